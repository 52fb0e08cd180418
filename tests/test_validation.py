"""Validation between the steps: what is held out, the same figures after a kill, the best
checkpoint, and the commands on data of one's own."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibrl.cli import main
from calibrl.files import read_jsonl
from calibrl.runs import checkpoints as C
from calibrl.runs import loop, start
from calibrl.runs.validation import Validation

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["train", "--prompts", "2", "--responses", "2", "--mini-batches", "1",
         "--max-new-tokens", "24", "--save-every", "3", "--map", "question=problem"]


def sums(path, numbers):
    "A data file of sums, each with an expert, its questions in a column that has to be named."
    rows = [{"problem": f"Solve x+{i}={2*i}.", "answer": str(i),
             "expert": f"<think>{i}</think><answer>{i}</answer>"} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "Twelve problems to train on and four others."
    place = tmp_path_factory.mktemp("data")
    return sums(place/"sums.jsonl", range(1, 13)), sums(place/"test.jsonl", range(20, 24))


def options(files, *more):
    return [*SMALL, "--data", str(files[0]), "--steps", "5", *more]


def validated(files):
    return options(files, "--val", str(files[1]), "--val-every", "2")


def metrics(out, *without):
    return [{k: v for k, v in row.items() if k not in ("seconds", *without)}
            for row in read_jsonl(out/"metrics.jsonl")]


NAMES = ("val_n", "val_accuracy", "val_low", "val_high", "val_entropy", "val_length",
         "val_truncated")


@pytest.fixture(scope="module")
def straight(files, tmp_path_factory):
    "A run with validation after steps 2, 4 and 5 that nothing interrupted."
    out = tmp_path_factory.mktemp("run")/"straight"
    assert main([*validated(files), "--out", str(out)]) == 0
    return out


def test_validation_is_noted_and_changes_nothing_else(straight, files, tmp_path):
    rows = metrics(straight)
    assert [row["step"] for row in rows if "val_accuracy" in row] == [2, 4, 5]
    assert all(set(NAMES) <= row.keys() for row in rows if "val_accuracy" in row)
    names = sorted(path.name for path in (straight/"validation").iterdir())
    assert names == [f"step-{step}.jsonl" for step in (0, 2, 4, 5)]
    asked = {row["question"] for row in read_jsonl(straight/"validation/step-0.jsonl")}
    assert asked == {f"Solve x+{i}={2*i}." for i in range(20, 24)}
    assert main([*options(files), "--out", str(tmp_path/"run")]) == 0
    assert metrics(tmp_path/"run") == metrics(straight, *NAMES)


def shown_in(out):
    "All that validation leaves: its answers, and the figures as they stand in the log, in bytes."
    figures = [json.dumps({name: row.get(name) for name in NAMES}) for row in metrics(out)]
    answers = {path.name: path.read_bytes() for path in (out/"validation").iterdir()}
    return figures, answers, C.best_checkpoint(out/"checkpoints").name


def killed_at(moment, files, out, place):
    "Start a run and kill it right after the validation of a step, before that step's line."
    place.mkdir()
    code = ("import os, time\nold = os.replace\ndef new(a, b):\n    old(a, b)\n"
            f"    if str(b).endswith('validation/step-{moment}.jsonl'): time.sleep(60)\n"
            "os.replace = new\n")
    (place/"sitecustomize.py").write_text(code)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}
    argv = [sys.executable, "-m", "calibrl.cli", *validated(files), "--out", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=env)
    end = time.monotonic() + 120
    while not (out/f"validation/step-{moment}.jsonl").exists():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out/"summary.json").exists()
    assert len(read_jsonl(out/"metrics.jsonl")) == max(0, moment - 1)


def test_a_killed_run_has_the_same_validation_to_the_last_byte(straight, files, tmp_path):
    "kill -9 after the validation before training, and after that of step 4."
    out = tmp_path/"run"
    for moment in (0, 4):
        killed_at(moment, files, out, tmp_path/f"slow-{moment}")
    assert main([*validated(files), "--out", str(out)]) == 0
    assert metrics(out) == metrics(straight) and shown_in(out) == shown_in(straight)


def given_to_train(monkeypatch, argv):
    "The problems that a command would train on, and those that it would validate on."
    seen = []

    def notes(policy, problems, cfg, out, tracker, held, judge):
        seen.append((problems, held))
        raise KeyboardInterrupt
    monkeypatch.setattr(start, "run_in_folder", notes)
    assert main(argv) == 130
    return seen[0]


def test_what_is_held_out_is_never_trained_on(files, tmp_path, monkeypatch):
    argv = options(files, "--val", "0.25")
    kept = [given_to_train(monkeypatch, [*argv, "--out", str(tmp_path/name), *more])
            for name, more in (("a", []), ("a", []), ("b", ["--seed", "5"]),
                               ("c", ["--val-seed", "1"]))]
    questions = [[{p.question for p in part} for part in parts] for parts in kept]
    for trained, held in questions:
        assert len(held) == 3 and not trained & held and len(trained | held) == 12
    first, again, other_run, other_draw = [held for _, held in questions]
    assert first == again == other_run != other_draw


def test_other_validation_is_refused(straight, files, tmp_path, capsys):
    def refused(*argv):
        capsys.readouterr()
        assert main([*argv, "--out", str(out)]) == 2
        return capsys.readouterr().err

    out = tmp_path/"run"
    shutil.copytree(straight, out)
    (out/"summary.json").unlink()
    assert "val was" in refused(*options(files, "--val", "0.25", "--val-every", "2"))
    assert "val_every was 2 and is 3 now" in refused(*validated(files), "--val-every", "3")
    old = files[1].read_bytes()
    try:
        sums(files[1], range(20, 25))
        assert "val_rows was 4 and is 5 now" in refused(*validated(files))
    finally:
        files[1].write_bytes(old)
    assert "is no share" in refused(*options(files, "--val", "1.5"))
    assert "--val-seed is about validation" in refused(*options(files, "--val-seed", "1"))


def test_the_best_step_is_kept_and_named(files, tmp_path, capsys, monkeypatch):
    "Also in what a tracker is sent, which begins before training."
    accuracies = {0: .2, 2: .5, 4: .4, 5: .4}
    sent = []

    def ask(self, policy, step):
        return dict.fromkeys(NAMES, accuracies[step])

    @contextlib.contextmanager
    def tracking(name, out, config, again):
        yield lambda values, step: sent.append((step, values.get("val_accuracy")))
    monkeypatch.setattr(Validation, "ask", ask)
    monkeypatch.setattr(loop, "tracking", tracking)
    out = tmp_path/"run"
    (tmp_path/"keep.toml").write_text("keep = 1")
    argv = [*validated(files), "--config", str(tmp_path/"keep.toml"), "--out", str(out)]
    assert main(argv) == 0
    assert sent == [(0, .2), (1, None), (2, .5), (3, None), (4, .4), (5, .4)]
    assert [path.name for path in C.checkpoints(out/"checkpoints")] == ["step-2", "step-5"]
    best = out/"checkpoints/step-2"
    said = capsys.readouterr().out
    assert f"kept in {best}" in said
    assert said.endswith(f"Next: calibrl eval --adapter {best} --data {files[1]}"
                         " --map question=problem\n")
    noted = json.loads((out/"summary.json").read_text())["validation"]["best"]
    assert (noted["step"], noted["val_accuracy"]) == (2, .5)


def test_eval_on_own_data_is_what_validation_saw(straight, files, tmp_path, capsys):
    "By the file, with its columns named, and as what the run held out."
    named = {str(files[1]): ["--map", "question=problem"], "held-out": []}
    seen = read_jsonl(straight/"validation/step-5.jsonl")
    for i, (data, more) in enumerate(named.items()):
        argv = ["eval", "--adapter", str(straight), "--data", data, *more]
        assert main([*argv, "--out", str(tmp_path/f"eval-{i}")]) == 0
        found = read_jsonl(tmp_path/f"eval-{i}/answers.jsonl")
        for key in ("question", "answer", "responses", "correct", "lengths"):
            assert [row[key] for row in found] == [row[key] for row in seen], key
        assert Path(data).name in capsys.readouterr().out
    assert main(["eval", "--data", "held-out", "--out", str(tmp_path/"none")]) == 2
    assert "there is no such run" in capsys.readouterr().err and not (tmp_path/"none").exists()


def test_a_finished_run_is_lengthened_with_its_optimiser(straight, files, tmp_path, capsys):
    "Three steps, one more and another one are five, to the bytes of the adapter."
    out = tmp_path/"run"
    argv = [*validated(files), "--out", str(out)]
    assert main([*argv, "--steps", "3"]) == 0
    assert main([*argv, "--steps", "4"]) == 0
    said = capsys.readouterr().out
    assert "was a run of 3 steps and is one of 4 now" in said and "from step-3" in said
    assert json.loads((out/"summary.json").read_text())["steps"] == 4
    assert main(argv) == 0
    name = "adapter/adapter_model.safetensors"
    assert (out/name).read_bytes() == (straight/name).read_bytes()
    assert metrics(out, *NAMES) == metrics(straight, *NAMES)
    capsys.readouterr()
    assert main([*argv, "--steps", "3"]) == 2
    assert "steps was 5 and is 3 now" in capsys.readouterr().err


def test_a_report_compares_with_another_run(straight, files, tmp_path, capsys):
    "The page says what was set and what happened; curves.png is drawn anew, with the other run."
    run, other = tmp_path/"run", tmp_path/"other"
    shutil.copytree(straight, run)
    assert main([*options(files, "--method", "grpo", "--steps", "1"), "--out", str(other)]) == 0
    old = (run/"curves.png").read_bytes()
    assert main(["report", str(run), "--beside", str(other)]) == 0
    assert (run/"curves.png").read_bytes() != old
    page = (run/"report.html").read_text()
    for words in (">alpha<", ">weight<", ">gap<", "In 5 steps the accuracy", "best after step",
                  "before training"):
        assert words in page, words
    assert ">alpha<" not in (other/"report.html").read_text()
    capsys.readouterr()
    assert main(["report", str(run), "--beside", str(tmp_path)]) == 2
    assert "wants the folder of another run" in capsys.readouterr().err
