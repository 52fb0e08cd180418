"""What a command finds in a folder may be anybody's, or half of it: it is read as it was meant, or
one line names it and says what to do, and nothing that was there is lost.

More cases: CALIBRL_FUZZ=3000 pytest tests/test_hostile_runs.py"""
import contextlib
import io
import os
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import damages
from calibrl import compare
from calibrl.compare import many
from calibrl.cli import main
from calibrl.config import Config
from calibrl.files import read_jsonl
from calibrl.runs import demo

CASES = int(os.environ.get("CALIBRL_FUZZ", "320"))
SMALL = ["--prompts", "1", "--responses", "2", "--mini-batches", "1", "--max-new-tokens", "8",
         "--steps", "2", "--save-every", "1"]
EVAL = ["eval", "--benchmarks", "geometry_test", "--limit", "2", "--max-new-tokens", "4"]
QUICK = ["compare", "--methods", "grpo", "--seeds", "1", "--steps", "1", "--quick"]
LOG = "lmms-eval/calibrl_samples_geometry_test.jsonl"
OF_AN_ADAPTER = ("adapter", "adapter/adapter_config.json", "adapter/base.json",
                 "adapter/adapter_model.safetensors")
NEWEST = "checkpoints/step-2"


# ---- what there is to damage
def run(argv):
    "The exit status of a command, and the last line that it leaves on stderr."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(map(str, argv)))
    return status, (err.getvalue().strip().splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A finished run, the same before its summary, an evaluation and a comparison."
    place = tmp_path_factory.mktemp("whole")
    assert run(["train", *SMALL, "--out", place/"run"])[0] == 0
    shutil.copytree(place/"run", place/"cut")
    (place/"cut/summary.json").unlink()
    assert run([*EVAL, "--lmms", "--out", place/"eval"])[0] == 0
    (place/"compare").mkdir()
    compare.one_run("grpo", 0, Config(steps=1, prompts=8), place/"compare", size=24, k=4)
    assert run([*QUICK, "--out", place/"compare"])[0] == 0
    return place


@pytest.fixture
def nothing_long(folders, monkeypatch):
    """Where a folder is gone, a comparison and a demo begin: they are not what is tested. Curves
    are laid out, but no pixel is painted."""
    def blank(figure, file, **options):
        file.write(b"picture")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", blank)
    def copy_records(todo, cfg, out, *more):
        for record in (folders/"compare").glob("*.json"):
            shutil.copy(record, out)

    monkeypatch.setattr(many, "run_in_parallel", copy_records)
    monkeypatch.setattr(demo, "demo_in", lambda *args: None)


# ---- what the commands read, and what they leave
def text_of(path):
    return path.read_text(encoding="utf-8")


def trained(folder, new):
    "The adapter and the metrics of a run, its clock apart."
    rows = [row | {"seconds": 0} for row in read_jsonl(folder/"metrics.jsonl")]
    return (folder/"adapter/adapter_model.safetensors").read_bytes(), rows


def answered(folder, new):
    "The answers of an evaluation, in any order, and its figures."
    rows = {row["index"]: row for row in read_jsonl(folder/"answers.jsonl")}
    return rows, text_of(folder/"summary.json")


# command: what it is about, what of that it reads, what is the same whenever it succeeds, its line
COMMANDS = {
    "train": ("cut", ("config.toml", "metrics.jsonl", "samples.jsonl", "checkpoints", NEWEST,
                      f"{NEWEST}/state.json", f"{NEWEST}/checksums.json",
                      f"{NEWEST}/state.safetensors", *(f"{NEWEST}/{x}" for x in OF_AN_ADAPTER)),
              trained, lambda folder, new: ["train", *SMALL, "--out", folder]),
    "report": ("run", ("config.toml", "metrics.jsonl", "samples.jsonl", "report.html"),
               lambda folder, new: "</html>" in text_of(folder/"report.html"),
               lambda folder, new: ["report", folder]),
    "export": ("run", OF_AN_ADAPTER, lambda folder, new: (new/"model.safetensors").read_bytes(),
               lambda folder, new: ["export", folder, "--out", new, "--dtype", "fp32"]),
    "eval of a run": ("run", ("config.toml", *OF_AN_ADAPTER),
                      lambda folder, new: [r["responses"] for r in read_jsonl(new/"answers.jsonl")],
                      lambda folder, new: [*EVAL, "--adapter", folder, "--out", new]),
    "eval": ("eval", ("answers.jsonl", "eval.json", "images", "summary.json"), answered,
             lambda folder, new: [*EVAL, "--out", folder]),
    "eval against": ("eval", ("answers.jsonl",),
                     lambda folder, new: "Against the other run" in text_of(new/"results.md"),
                     lambda folder, new: [*EVAL, "--against", folder, "--out", new]),
    "eval of a log": ("eval", (LOG,), lambda folder, new: "accuracy" in text_of(new/"results.csv"),
                      lambda folder, new: [*EVAL, "--rescore", folder/LOG, "--out", new]),
    "compare": ("compare", ("grpo-0.json", "table.md"),
                lambda folder, new: text_of(folder/"table.md"),
                lambda folder, new: [*QUICK, "--out", folder]),
    "demo": ("run", (), lambda folder, new: None, lambda folder, new: ["demo", "--out", folder]),
    "plan": ("run", (), lambda folder, new: None, lambda folder, new: ["plan", folder]),
}
SHARES = {"train": .09, "report": .12, "export": .13, "eval of a run": .09, "eval": .11,
          "eval against": .08, "eval of a log": .12, "compare": .12, "demo": .07, "plan": .07}

# figures that somebody changed to others that could be are not to be told from true ones
MAY_DIFFER = {("train", "metrics.jsonl"), ("eval", "answers.jsonl"), ("compare", "grpo-0.json"),
              ("eval", "summary.json")}


def content(folder):
    "What is in a folder: bytes, where links lead, and folders."
    found = {}
    for path in folder.rglob("*") if folder.is_dir() and not folder.is_symlink() else ():
        if path.name == ".lock":
            continue
        inner = "a folder" if path.is_dir() else path.read_bytes() if path.is_file() else ""
        found[path.relative_to(folder)] = os.readlink(path) if path.is_symlink() else inner
    return found


def is_kept(before, after):
    "Whether a file is as it was, half a line at its end apart."
    if before == after or not isinstance(before, bytes) or not isinstance(after, bytes):
        return before == after
    return before.startswith(after) and b"\n" not in before[len(after):]


def check_refusal(line, folder, before, new):
    "One line that names what is wrong and says what to do; all is as it was."
    assert line.startswith("calibrl ") and "[Errno" not in line and len(line) < 1000, line
    assert re.search(r"\b(give|put|mend|take|call|load|wants|train|is this|belongs)\b", line), line
    assert str(folder) in line or "no model at" in line, line
    after = content(folder)
    assert [path for path in before if not is_kept(before[path], after.get(path))] == []
    assert not content(new)


def one_case(command, source, place, chance, wanted):
    "Damage a copy, run the command, and look at what came of it."
    _, reads, result, argv = COMMANDS[command]
    folder, new = place/"folder", place/"new"
    shutil.copytree(source, folder)
    everything = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
    kinds = [reads, everything, (".",)]
    name = chance.choice(kinds[chance.choice((0, 0, 0, 0, 0, 1, 2))] or (".",))
    damage = chance.choice(damages.damages_of(folder/name))
    damage(folder/name, chance)

    # a refusal, or the same result
    before = content(folder)
    status, line = run(argv(folder, new))
    if status == 2:
        check_refusal(line, folder, before, new)
        return
    assert status == 0
    plausible = damage in (damages.one_bit, damages.wrong_value, damages.other_lines)
    if not plausible or (command, str(name)) not in MAY_DIFFER:
        assert result(folder, new) == wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_folder_is_read_as_it_was_meant_or_named(command, folders, tmp_path,
                                                           nothing_long):
    about, _, result, argv = COMMANDS[command]
    source, numbers = folders/about, iter(range(10**9))
    whole = tmp_path/"whole"
    shutil.copytree(source, whole/"folder")
    status, _ = run(argv(whole/"folder", whole/"new"))
    wanted = result(whole/"folder", whole/"new") if status == 0 else None

    @settings(max_examples=max(10, round(SHARES[command]*CASES)), deadline=None, derandomize=True,
              database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def cases(chance):
        place = tmp_path/str(next(numbers))
        place.mkdir()
        try:
            one_case(command, source, place, chance, wanted)
        finally:
            shutil.rmtree(place)

    cases()
