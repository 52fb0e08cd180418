"""A run that survives: killed at several moments and continued, several processes against one,
full disks, broken numbers."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calibrl import ready, train as T
from calibrl.cli import main
from calibrl.draws import DRAWS
from calibrl.files import folder_hashes, read_jsonl
from calibrl.geometry import problems
from calibrl.rollout import Policy
from calibrl.runs import checkpoints as C
from calibrl.runs.folder import lock
from calibrl.runs.loop import run_in_folder
from full_disk import files_up_to

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--prompts", "4", "--responses", "4", "--max-new-tokens", "40", "--steps", "6",
         "--save-every", "2"]


def command(out, *more, launcher=("-m", "calibrl.cli"), path=()):
    env = {**os.environ, "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    argv = [sys.executable, *launcher, "train", *SMALL, "--out", str(out), *more]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=env)


def until(process, happened, seconds=120):
    "Wait for something to happen while a process runs."
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.002)


def without_clock(rows):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def same(a, b):
    "Whether rows of metrics are the same, but for the clock."
    return without_clock(a) == without_clock(b)


def metrics(out):
    return read_jsonl(out/"metrics.jsonl")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "An uninterrupted run."
    out = tmp_path_factory.mktemp("run")/"straight"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    return out


def test_what_a_run_leaves(straight):
    rows = metrics(straight)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    numbers = ("loss", "reward", "entropy", "gap", "gated_fraction", "approx_kl", "grad_norm",
               "verifier_kills")
    assert all(math.isfinite(r[k]) for r in rows for k in numbers)
    left = {"config.toml", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html",
            "curves.png", "adapter", "checkpoints"}
    assert left <= {p.name for p in straight.iterdir()}
    names = [p.name for p in C.checkpoints(straight/"checkpoints")]
    best = C.best_checkpoint(straight/"checkpoints").name
    assert names[-2:] == ["step-4", "step-6"] and set(names) == {"step-4", "step-6", best}

    # nothing to unpickle
    files = [p for p in straight.rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert {p.suffix for p in files} == {".toml", ".jsonl", ".json", ".html", ".png",
                                         ".safetensors", ".md"}
    steps = [s["step"] for s in read_jsonl(straight/"samples.jsonl")]
    assert steps == [1]*4 + [6]*4
    page = (straight/"report.html").read_text()
    assert page.count("data:image/png") == 9 and "https://" not in page and "step 6: " in page


SLOW = """import os, time
fsync = os.fsync
os.fsync = lambda fd: (time.sleep(0.25), fsync(fd))[1]
"""


def test_killed_at_several_moments_and_gone_on_with(straight, tmp_path):
    """kill -9 before the first checkpoint, twice while one is written, between two, and while the
    last one is written; the same command each time."""
    out = tmp_path/"run"
    (tmp_path/"slow").mkdir()
    (tmp_path/"slow/sitecustomize.py").write_text(SLOW)
    log = out/"metrics.jsonl"

    def lines(n):
        return lambda: log.exists() and log.read_bytes().count(b"\n") >= n

    def writing(n):
        return lambda: (out/f"checkpoints/.step-{n}.new").exists()

    def written(n):
        return lambda: (out/f"checkpoints/step-{n}").exists() and lines(n + 1)()

    moments = [     # what has happened, slowly or not, the newest checkpoint then
        (lines(1), False, 0),
        (writing(2), True, 0),
        (written(2), False, 2),
        (writing(4), True, 2),
        (writing(6), True, 4)]
    for happened, slow, newest in moments:
        p = command(out, path=[tmp_path/"slow"] if slow else [])
        until(p, happened)
        p.kill()
        p.communicate()
        assert p.returncode == -signal.SIGKILL
        found = [c.name for c in C.checkpoints(out/"checkpoints")]
        assert (found or ["step-0"])[-1] == f"step-{newest}"
        assert not (out/"summary.json").exists()

    # and a torn line besides
    with open(log, "a") as f:
        f.write('{"step": 99, "torn')
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    assert same(metrics(out), metrics(straight))
    for name in ("samples.jsonl", "adapter/adapter_model.safetensors"):
        assert (out/name).read_bytes() == (straight/name).read_bytes()
    assert moments_of(out) == moments_of(straight)
    assert not list((out/"checkpoints").glob(".*"))


def moments_of(out):
    "The optimiser's moments at the end of a run."
    tensors = load_file(out/"checkpoints/step-6/state.safetensors")
    return {k: v.tolist() for k, v in tensors.items() if k.startswith("optimizer")}


def test_the_same_command_says_what_it_finds(straight, tmp_path, capsys):
    def train(out, *more):
        return main(["train", *SMALL, "--out", str(out), *more])

    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    assert train(straight) == 0
    assert "is finished: 6 steps; nothing to do" in capsys.readouterr().out
    assert train(straight, "--alpha", "0.3") == 2
    assert "alpha was 0.5 and is 0.3 now" in capsys.readouterr().err
    assert train(straight, "--lora-rank", "8") == 2
    assert "lora_rank was 16 and is 8 now" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in straight.rglob("*")}

    # a folder of somebody else
    (tmp_path/"other").mkdir()
    (tmp_path/"other/file").touch()
    assert main(["train", "--out", str(tmp_path/"other")]) == 2
    assert "is not empty and holds no run" in capsys.readouterr().err

    # a folder in use, then free again; what is only kept on disk may change
    used = tmp_path/"used"
    shutil.copytree(straight, used)
    (used/"summary.json").unlink()
    held = lock(used)
    assert train(used) == 2 and "is in use" in capsys.readouterr().err
    held.release()
    assert train(used, "--save-every", "5") == 0
    assert "going on from step-6" in capsys.readouterr().out
    assert same(metrics(used), metrics(straight))


def small_data(path, n=6, change=None):
    "A data file of n sums, each with an expert; `change` takes the place of keys in the last row."
    rows = [{"question": f"Solve x+{i}={2*i}.", "answer": str(i),
             "expert": f"<think>{i}</think><answer>{i}</answer>"} for i in range(1, n + 1)]
    rows[-1] |= change or {}
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def unfinished(out, into):
    "A copy of a finished run as if it had been stopped after step 4."
    shutil.copytree(out, into)
    (into/"summary.json").unlink()
    shutil.rmtree(into/"checkpoints/step-6")
    return into


def refused(argv, out, capsys, *words):
    "A command that ends in one line and leaves the run as it is."
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if not p.name.startswith(".")}
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    for word in (*words, "give another --out"):
        assert word in said, said
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.fixture(scope="module")
def from_a_file(tmp_path_factory):
    "A run on a data file and a copy of the policy in words, finished: (folder, options)."
    from calibrl.algebra import tiny_checkpoint
    place = tmp_path_factory.mktemp("from")
    small_data(place/"sums.jsonl")
    shutil.copytree(tiny_checkpoint(), place/"model")
    options = ["train", *SMALL, "--data", str(place/"sums.jsonl"), "--model", str(place/"model")]
    assert main([*options, "--out", str(place/"run")]) == 0
    return place, options


@pytest.mark.parametrize("n, change, words", [
    (6, {"question": "How much is 3+3?"}, ["data was"]),
    (6, {"expert": None}, ["data was"]),
    (7, {}, ["data was", "rows was 6 and is 7 now"])])
def test_other_data_under_the_same_name_are_refused(from_a_file, tmp_path, capsys, n, change,
                                                    words):
    place, options = from_a_file
    out = unfinished(place/"run", tmp_path/"run")
    data = place/"sums.jsonl"
    small_data(data, n, change)
    try:
        refused([*options, "--out", str(out)], out, capsys, *words)
    finally:
        small_data(data)
    assert main([*options, "--out", str(out)]) == 0        # as they were: it goes on
    assert same(metrics(out), metrics(place/"run"))


def test_another_base_under_the_same_name_is_refused(from_a_file, tmp_path, capsys):
    from safetensors.torch import save_file
    place, options = from_a_file
    out = unfinished(place/"run", tmp_path/"run")
    file = place/"model/model.safetensors"
    weights = load_file(file)
    old = file.read_bytes()
    name = next(n for n in weights if n.endswith("q_proj.weight"))      # no part of a fingerprint
    save_file(weights | {name: weights[name] + .01}, file, metadata={"format": "pt"})
    try:
        refused([*options, "--out", str(out)], out, capsys, "files was")
    finally:
        file.write_bytes(old)


def test_another_adapter_to_begin_from_is_refused(tiny, straight, tmp_path, capsys):
    "Also before the first checkpoint, which would have replaced it."
    shutil.copytree(straight/"adapter", tmp_path/"start")
    out = tmp_path/"run"
    options = ["train", *SMALL, "--adapter", str(tmp_path/"start")]
    assert main([*options, "--out", str(out)]) == 0
    (out/"summary.json").unlink()
    shutil.rmtree(out/"checkpoints")
    Policy.from_pretrained(tiny).save(tmp_path/"start")
    refused([*options, "--out", str(out)], out, capsys, "adapter was")


def test_an_older_run_goes_on_and_says_what_cannot_be_checked(straight, tmp_path, capsys):
    "Its checkpoints tell the base; of its data nothing is known. From then on it is."
    import tomlkit
    out = unfinished(straight, tmp_path/"run")
    config = tomlkit.parse((out/"config.toml").read_text())
    config["run"].pop("identity", None)
    (out/"config.toml").write_text(tomlkit.dumps(config))
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    assert "cannot be checked" in capsys.readouterr().err
    assert same(metrics(out), metrics(straight))
    noted = tomlkit.parse((out/"config.toml").read_text())["run"]["identity"]
    whole = tomlkit.parse((straight/"config.toml").read_text())["run"]["identity"]
    assert noted == whole and {"base", "files", "data", "rows"} == set(noted)


def test_a_checkpoint_of_another_base_is_not_passed_over(straight, tiny, tmp_path, capsys):
    "A run would begin anew, and its log be cut to nothing."
    out = unfinished(straight, tmp_path/"run")
    note = out/"checkpoints/step-4/adapter/base.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"fingerprint": "0"*16}))
    hashes = out/"checkpoints/step-4/checksums.json"
    hashes.unlink()
    hashes.write_text(json.dumps(folder_hashes(hashes.parent)))
    policy = Policy.from_pretrained(tiny)
    optimizer = T.make_optimizer(policy, T.Config())
    with pytest.raises(ValueError, match="step-4 belongs to another base model"):
        C.load_checkpoint(out/"checkpoints/step-4", policy, optimizer)
    log = (out/"metrics.jsonl").read_bytes()
    assert main(["train", *SMALL, "--out", str(out)]) == 2
    assert "belongs to another base model" in capsys.readouterr().err
    assert (out/"metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("draws", [None, 1])
def test_a_run_that_drew_otherwise_does_not_go_on(draws, straight, tmp_path, capsys):
    "A checkpoint of a version with another way of drawing: one line, and nothing is cut."
    out = unfinished(straight, tmp_path/"run")
    folder = out/"checkpoints/step-4"
    state = json.loads((folder/"state.json").read_text())
    assert state["draws"] == DRAWS
    changed = {key: value for key, value in (state | {"draws": draws}).items() if value}
    (folder/"state.json").write_text(json.dumps(changed))
    (folder/"checksums.json").write_text("{}")
    log = (out/"metrics.jsonl").read_bytes()
    assert main(["train", *SMALL, "--out", str(out)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step-4 is of a version that drew other tokens" in line and "--out" in line
    assert (out/"metrics.jsonl").read_bytes() == log


def test_a_damaged_checkpoint_is_passed_over(straight, tmp_path, capsys):
    out = tmp_path/"run"
    shutil.copytree(straight, out)
    (out/"summary.json").unlink()
    with open(out/"checkpoints/step-6/state.safetensors", "r+b") as f:
        f.truncate(100)
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    assert "step-6 cannot be read" in capsys.readouterr().err
    assert same(metrics(out), metrics(straight))


def test_a_checkpoint_comes_into_being_by_one_rename(tiny, tmp_path, monkeypatch):
    """All files are written under another name; until the rename there is no checkpoint, and when
    it fails nothing is left."""
    policy = Policy.from_pretrained(tiny)
    optimizer = T.make_optimizer(policy, T.Config())
    seen = []

    def fails(self, target):
        seen.append({p.name for p in self.iterdir()})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="the checkpoint of step 1 could not be written"):
        C.save_checkpoint(tmp_path, 1, policy, optimizer)
    assert seen == [{"adapter", "checksums.json", "state.json", "state.safetensors"}]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_finishes_the_step_and_saves(straight, tmp_path):
    out = tmp_path/"run"
    log = out/"metrics.jsonl"
    p = command(out)
    until(p, lambda: log.exists() and log.stat().st_size)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130
    assert "the same command goes on from there" in err and "Traceback" not in err
    assert err.count("stopped") == 1                        # one ending
    done = len(read_jsonl(log))
    assert 0 < done < 6 and C.checkpoints(out/"checkpoints")[-1].name == f"step-{done}"
    assert (out/"adapter/adapter_config.json").exists()
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    assert same(metrics(out), metrics(straight))


def test_a_full_disk_is_said_and_the_last_checkpoint_stays(straight, tmp_path, capsys):
    out = unfinished(straight, tmp_path/"run")
    size = (out/"metrics.jsonl").stat().st_size
    limits = {size - 100: ".jsonl could not be written",
              100_000: "checkpoint of step 6 could not be written"}
    for limit, word in limits.items():
        with files_up_to(limit):
            code = main(["train", *SMALL, "--out", str(out)])
        err = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2 and "give the same command again" in err and "Traceback" not in err, err
        left = [p.name for p in (out/"checkpoints").iterdir()]
        assert [name for name in left if name >= "step-4"] == ["step-4"]
        assert word in err
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    assert same(metrics(out), metrics(straight))


def test_a_folder_that_cannot_be_written_to_is_refused_early(tmp_path, capsys):
    (tmp_path/"file").touch()
    assert main(["train", *SMALL, "--out", str(tmp_path/"file/run")]) == 2
    err = capsys.readouterr().err
    assert "cannot be" in err and "give another --out" in err and "Traceback" not in err


@pytest.mark.parametrize("argv, word", [
    (["--preset", "big"], "preset must be one of demo, paper, single-gpu"),
    (["--tracker", "mlflow"], "--tracker must be one of"),
    (["--sample-prompts", "-1"], "--sample-prompts must be")])
def test_mistakes_are_found_before_anything_is_loaded(argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "from_pretrained", lambda *a, **kw: pytest.fail("loaded"))
    assert main(["train", *argv, "--out", str(tmp_path/"run")]) == 2
    assert word in capsys.readouterr().err and not (tmp_path/"run").exists()


def test_presets_and_their_order(tmp_path):
    (tmp_path/"c.toml").write_text("prompts = 8\nalpha = 0.8")
    cfg = T.load_config(tmp_path/"c.toml", "paper", alpha=0.3)
    assert (cfg.responses, cfg.prompts, cfg.alpha) == (10, 8, 0.3)
    assert (cfg.lr, cfg.max_new_tokens) == (1e-6, 4096)
    assert T.load_config(preset="demo") == T.Config()


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "internvl", "qwen3"])
def test_a_run_on_each_architecture_in_4_bits(kind, checkpoint, tmp_path, monkeypatch):
    """The whole loop on random weights, stopped after its first checkpoint and continued; a
    text-only model gets the questions without pictures."""
    from calibrl import tasks
    # random weights are never right: any verdict will do
    monkeypatch.setattr(tasks, "score",
                        lambda text, *_: tasks.Score(sum(map(ord, text)) % 2 == 0, False))
    cfg = T.Config(prompts=2, responses=4, mini_batches=1, steps=2, save_every=1,
                   max_new_tokens=8)
    ps = problems(4, seed=1)
    if kind == "qwen3":
        ps = [replace(p, images=()) for p in ps]

    def go(out, steps=2):
        out.mkdir(exist_ok=True)
        T.save_config(cfg, out/"config.toml")
        policy = Policy.from_pretrained(checkpoint(kind), bits=4)
        return run_in_folder(policy, ps, replace(cfg, steps=steps), out)

    straight = go(tmp_path/"a")
    go(tmp_path/"b", steps=1)
    assert same(go(tmp_path/"b"), straight)
    assert len(straight) == 2 and straight[0]["tokens"] > 0
    assert max(r["grad_norm"] for r in straight) > 0
    adapter = load_file(tmp_path/"b/adapter/adapter_model.safetensors")
    assert any(w.any() for n, w in adapter.items() if "lora_B" in n)      # they begin at zero


def broken_run(tiny, out, steps, monkeypatch, bad):
    "A run of the loop behind `train` in which the log-probabilities of some steps are NaN."
    cfg = T.Config(prompts=2, responses=2, mini_batches=1, steps=steps, max_broken=2,
                   max_new_tokens=24)
    logps = Policy.logps
    calls = []

    def odd(self, *args, **kw):
        calls.append(1)
        found = logps(self, *args, **kw)
        if len(calls) in bad:
            found.logp = found.logp*float("nan")
        return found

    monkeypatch.setattr(Policy, "logps", odd)
    policy = Policy.from_pretrained(tiny)
    out.mkdir()
    T.save_config(cfg, out/"config.toml")
    return policy, lambda: run_in_folder(policy, problems(8), cfg, out)


def test_a_broken_step_is_skipped_counted_and_saved(tiny, tmp_path, monkeypatch):
    policy, go = broken_run(tiny, tmp_path/"run", 3, monkeypatch, bad=[2])
    assert [r["skipped_updates"] for r in go()] == [0., 1., 0.]
    assert all(w.isfinite().all() for w in policy.trainable)
    saved = json.loads((tmp_path/"run/broken/step-2.json").read_text())
    assert len(saved["batch"]) == 4 and saved["metrics"]["loss"] is None
    assert {"question", "response", "reward"} <= set(saved["batch"][0])
    assert "NaN" not in (tmp_path/"run/metrics.jsonl").read_text()


def test_a_run_that_stays_broken_stops_with_a_diagnosis(tiny, tmp_path, monkeypatch):
    policy, go = broken_run(tiny, tmp_path/"run", 9, monkeypatch, bad=range(2, 99))
    said = ("stopped after step 3: 2 steps in a row without a finite update;"
            " the loss was not finite.*lower lr")
    with pytest.raises(RuntimeError, match=said):
        go()
    assert len(metrics(tmp_path/"run")) == 3
    assert (tmp_path/"run/adapter/adapter_model.safetensors").exists()


def test_samples_that_are_not_numbers_skip_the_step(tiny, monkeypatch):
    sample = Policy.sample

    def odd(self, *args, **kw):
        out = sample(self, *args, **kw)
        out.logp[0, 0] = float("nan")
        return out

    monkeypatch.setattr(Policy, "sample", odd)
    cfg = T.Config(prompts=2, responses=2, mini_batches=1, max_broken=2)
    steps = T.train(Policy.from_pretrained(tiny), problems(8), cfg)
    assert [next(steps)["skipped_updates"] for _ in range(2)] == [1., 1.]
    with pytest.raises(RuntimeError, match="log-probabilities while sampling was not finite"):
        next(steps)


def test_the_saved_adapter_is_plain_peft_and_writes_the_same(straight, tiny):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from calibrl.rollout import encode
    base = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(straight/"adapter")).eval()
    p = problems(1, split="test")
    ours = Policy.from_pretrained(tiny, adapter=straight/"checkpoints/step-6/adapter")
    inputs = encode(ours.processor, p[0])
    ids = plain.generate(**inputs, do_sample=False, max_new_tokens=24,
                         bad_words_ids=[[i] for i in ours.banned])
    said = ids[0, inputs["input_ids"].shape[1]:].tolist()
    assert ours.sample(p, 1, temperature=0., max_new_tokens=24).ids[0] == said


def member(rank, store, world, path, cfg):
    "One of several processes that train together."
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank,
                                         world_size=world)
    policy = Policy.from_pretrained(path, bits=None)
    rows = list(T.train(policy, problems(32, split="train"), cfg))
    (Path(store).parent/f"rows-{rank}.json").write_text(json.dumps(rows))
    torch.save([w.detach() for w in policy.trainable], f"{store}.weights-{rank}")


@pytest.mark.parametrize("world, options", [
    (2, {}),
    (3, {"method": "grpo", "sample_prompts": 1, "micro_tokens": 300, "mini_batches": 1})])
def test_several_processes_give_the_trajectory_of_one(tiny, tmp_path, world, options):
    usual = {"prompts": 4, "responses": 4, "steps": 3, "sample_prompts": 2, "lr": 1e-3,
             "max_new_tokens": 24}
    cfg = T.Config(**usual | options)
    policy = Policy.from_pretrained(tiny)
    alone = list(T.train(policy, problems(32, split="train"), cfg))
    store = tmp_path/"store"

    # fork does not go with an autograd that has run
    torch.multiprocessing.start_processes(member, (str(store), world, tiny, cfg), nprocs=world,
                                          start_method="spawn")
    for rank in range(world):
        rows = json.loads((tmp_path/f"rows-{rank}.json").read_text())
        assert [r["sample"] for r in rows] == [r["sample"] for r in alone]
        for a, b in zip(alone, rows, strict=True):
            for k, v in a.items():
                if isinstance(v, float) and k not in ("seconds", "gated_fraction"):
                    assert b[k] == pytest.approx(v, abs=1e-5), k

        # Gradients are about 1e-6 here, and their rounding 1e-8: a hundredth of a step of Adam,
        # which moves every weight by about `lr`, may come from the order of a sum
        weights = torch.load(f"{store}.weights-{rank}", weights_only=True)
        for w, v in zip(policy.trainable, weights, strict=True):
            torch.testing.assert_close(w.detach(), v, atol=.02*cfg.lr, rtol=0)


def test_too_many_processes_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(ready, "processes", lambda: (0, 3))
    steps = T.train(Policy.from_pretrained(tiny), problems(8), T.Config(prompts=4))
    said = "3 processes are too many: a mini-batch has 2 problems"
    with pytest.raises(ValueError, match=said):
        next(steps)
