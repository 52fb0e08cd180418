"""Comparisons: what a name means, runs that go on where they were stopped, and figures from records
alone."""
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from calibrl import compare as C
from calibrl.cli import main
from calibrl.compare import command, many, run
from calibrl.eval import data_hash
from calibrl.geometry import problems
from calibrl.tasks import score
from calibrl.train import Config

SMALL = Config(steps=2, prompts=2, responses=2, mini_batches=1)
EXAM = dict(size=4, k=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two variants and one seed, run in a process of their own."
    out = tmp_path_factory.mktemp("records")
    lines = []
    specs = ["grpo", "sft_grpo:experts=half"]
    rows = C.compare(specs, [0], SMALL, out, jobs=1, show=lines.append, **EXAM)
    return out, rows, lines


@pytest.fixture
def no_run(monkeypatch):
    "Whatever is asked for must be answered without a run."
    monkeypatch.setattr(many, "run_in_parallel", lambda *a: pytest.fail("a run began"))


def test_every_run_leaves_a_complete_record(folder):
    out, rows, lines = folder
    found = C.records(out)
    assert [r["spec"] for r in found] == ["grpo", "sft_grpo:experts=half"]
    assert len(lines) == 2
    assert not list(out.glob("*.at")) + list(out.glob(".*"))
    for record in found:
        complete(record)
    assert found[1]["experts"] == "half"
    assert sum(phase["steps"] for phase in found[1]["config"]) == 2
    assert {r["method"] for r in rows} == {"grpo", "sft_grpo:experts=half"}
    assert rows[1]["greedy"]["pairs"] == 1


def complete(record):
    "A row of metrics a step, where it ran, and a result of each problem of each exam."
    assert len(record["curve"]) == 2
    assert all(len(row) == len(record["names"]) for row in record["curve"])
    assert record["seed"] == 0
    assert {"torch", "transformers", "calibrl", "commit"} <= set(record["about"])
    assert record["config"][-1]["method"] == "grpo"
    for exam in record["exam"].values():
        assert len(exam["right"]) == len(exam["routes"]) == len(exam["greedy"]) == exam["n"]
        both = zip(exam["routes"], exam["right"], strict=True)
        assert all(routes <= right <= 2 for routes, right in both)


def test_a_stopped_comparison_goes_on(folder, monkeypatch):
    out, rows, _ = folder
    ran = []
    monkeypatch.setattr(many, "run_in_parallel", lambda todo, *a: ran.extend(todo))

    def compare(specs, seeds, cfg=SMALL, **exam):
        return C.compare(specs, seeds, cfg, out, show=None, **exam)

    assert compare(["grpo", "sft_grpo:experts=half"], [0], **EXAM) == rows
    assert ran == []
    compare(["grpo", "luffy"], [0, 1], **EXAM)
    assert ran == [("luffy", 0), ("grpo", 1), ("luffy", 1)]
    with pytest.raises(ValueError, match="made with other settings"):
        compare(["grpo"], [0], replace(SMALL, lr=1e-3))


@pytest.mark.parametrize("other, words", [
    (dict(size=6), "size was 4 and is 6 now"),
    (dict(k=3), "k was 2 and is 3 now"),
    (dict(bits=4), "bits was None and is 4 now"),
    (dict(model="changed"), "files was")])
def test_a_record_of_another_exam_is_no_answer(folder, no_run, tmp_path, tiny, other, words):
    "Another size, number of answers, precision or model: nothing is returned, and nothing is run."
    out, _, _ = folder
    if "model" in other:
        other = dict(model=str(tmp_path/"model"))
        shutil.copytree(tiny, tmp_path/"model")
        # a copy is the same
        assert C.compare(["grpo"], [0], SMALL, out, show=None, **EXAM | other)
        nudge(tmp_path/"model/model.safetensors")
    why = f"made with other settings .*{words}.*give another folder"
    with pytest.raises(ValueError, match=why):
        C.compare(["grpo"], [0], SMALL, out, show=None, **EXAM | other)


def nudge(file):
    "Change one matrix of a checkpoint a little."
    from safetensors.torch import load_file, save_file
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file(weights | {name: weights[name] + .01}, file, metadata={"format": "pt"})


def test_other_problems_of_the_same_number_are_another_exam(folder, no_run, monkeypatch):
    "As a later version of a world might draw them."
    from calibrl import geometry
    drawn = geometry.problems

    def other(n, split):
        return [replace(p, answer="1") for p in drawn(n, split=split)]

    monkeypatch.setattr(geometry, "problems", other)
    with pytest.raises(ValueError, match="made with other settings .*exam was"):
        C.compare(["grpo"], [0], SMALL, folder[0], show=None, **EXAM)


def test_a_record_that_says_nothing_of_its_exam_is_not_used(folder, no_run, tmp_path):
    record = json.loads((folder[0]/"grpo-0.json").read_text())
    record.pop("settings", None)
    (tmp_path/"grpo-0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="does not say how it was examined.*give another folder"):
        C.compare(["grpo"], [0], SMALL, tmp_path, show=None, **EXAM)


def test_a_record_says_what_it_is_of(folder):
    exam = data_hash(problems(4, split="test") + problems(2, split="hard"))
    settings = dict(size=4, k=2, bits=None, world="geometry", model=None, exam=exam)
    found = C.records(folder[0])
    for record in found:
        assert record["settings"].items() >= settings.items()
        assert record["identity"]["rows"] == 4
        assert all(len(record["identity"][name]) == 16 for name in ("adapter", "base", "data"))

    # GRPO reads no expert
    first, second = (record["identity"] for record in found)
    assert first["data"] != second["data"] and first["adapter"] == second["adapter"]


def older(record):
    "The record as it was before there were further exams, and families to leave out."
    settings = {k: v for k, v in record["settings"].items() if k not in ("further", "held_out")}
    exams = {name: record["exam"][name] for name in ("test", "hard")}
    return record | {"settings": settings, "exam": exams}


def test_older_records_stay_and_lack_only_the_further_exams(folder, no_run, tmp_path):
    grpo, other = C.records(folder[0])
    C.write_record(tmp_path/"grpo-0.json", older(grpo))
    row, = C.compare(["grpo"], [0], SMALL, tmp_path, show=None, **EXAM)
    assert "hard pass@1" in row and "larger pass@1" not in row
    rows = C.table([older(grpo), other])
    assert "larger pass@1" in rows[1] and "transfer pass@1" not in rows[0]
    assert "| larger pass@1 |" in C.as_text(rows, ("greedy", "larger pass@1"))

    # both kinds as runs of one variant: the newer one alone says how it did
    newer = grpo | {"seed": 1}
    row, = C.table([older(grpo), newer])
    assert row["greedy"]["mean"] == C.table([newer])[0]["greedy"]["mean"]
    assert row["larger greedy"] == C.table([newer])[0]["larger greedy"]
    small = {name: grpo["exam"]["test"] for name in ("larger", "transfer")}
    with pytest.raises(ValueError, match="other exams 'larger' cannot share a table"):
        C.table([grpo, other | {"exam": other["exam"] | small}])


def test_runs_without_hard_families_are_apart(folder, no_run, tmp_path, monkeypatch):
    out, _, _ = folder
    with pytest.raises(ValueError, match="with held_out nothing, not hard; give another folder"):
        C.compare(["luffy"], [0], SMALL, out, show=None, held_out="hard", **EXAM)
    with pytest.raises(ValueError, match="held_out must be hard or nothing, not 'test'"):
        C.compare(["grpo"], [0], SMALL, tmp_path, show=None, held_out="test", **EXAM)

    # what such a run is trained on, and what its record says
    monkeypatch.setattr(run, "pull_now", lambda *a: None)
    trained = []
    def no_training(policy, pool, phases, path):
        trained.extend(pool)
        return [{"step": 1, "entropy": 1., "silent_groups": 0., "tokens": 1, "accuracy": 0.}]
    monkeypatch.setattr(run, "train_phases", no_training)
    cfg = replace(SMALL, steps=30)
    apart = C.one_run("grpo", 0, cfg, tmp_path, held_out="hard", **EXAM)
    families = {p.tags["family"] for p in trained}
    assert len(trained) == 60 and len(families) > 6 and not families & {"cut", "back"}
    assert apart["settings"]["held_out"] == "hard"
    assert apart["identity"]["data"] == data_hash(problems(60, split="easy"))
    with pytest.raises(ValueError, match="cannot share a table.*held_out"):
        C.table([apart, C.records(out)[0]])


HALF = {"right": [0]*4, "routes": [0]*4}      # of an exam


@pytest.mark.parametrize("change, why", [
    (lambda record: [record], "holds no JSON object but list"),
    (lambda record: {}, "no spec, or no seed"),
    (lambda record: record | {"seed": "0"}, "no spec, or no seed"),
    (lambda record: record | {"config": {}}, "no configurations"),
    (lambda record: record | {"settings": [1]}, "no table of settings"),
    (lambda record: record | {"seconds": None}, "no seconds"),
    (lambda record: record | {"names": ["loss"]}, "no curve of numbers, or no entropy in it"),
    (lambda record: record | {"curve": [["1"]*12]}, "no curve of numbers"),
    (lambda record: record | {"exam": {}}, "no exam, or not both parts of it"),
    (lambda record: record | {"exam": record["exam"] | {"hard": 5}}, "an exam 'hard' without"),
    (lambda record: record | {"exam": record["exam"] | {"test": record["exam"]["test"] | HALF
                                                        | {"greedy": [0, 1, 2, 0]}}},
     "counts that cannot be: 2, 0, 0"),
    (lambda record: record | {"seed": 1}, "is the record of grpo, seed 1: call it grpo-1.json")])
def test_a_file_that_is_no_record_is_named(folder, no_run, tmp_path, capsys, change, why):
    record = json.loads((folder[0]/"grpo-0.json").read_text())
    path = tmp_path/"grpo-0.json"
    path.write_text(json.dumps(change(record)))
    before = path.read_bytes()
    assert main(["compare", "--out", str(tmp_path), "--methods", "grpo", "--seeds", "1"]) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert "Traceback" not in error and str(path) in line and why in line, line
    assert "take it away" in line and path.read_bytes() == before


def test_exams_of_two_kinds_share_no_table():
    one = fake("grpo", 0, 3, .1)
    more_answers = fake("calibrl", 0, 3, .1)
    more_answers["exam"] = {name: exam | {"k": 5} for name, exam in more_answers["exam"].items()}
    for other in (more_answers, fake("calibrl", 0, 3, .1) | {"world": "algebra"}):
        with pytest.raises(ValueError, match="cannot share a table"):
            C.table([one, other])


LONG = """
from calibrl.compare import compare
from calibrl.train import Config
if __name__ == "__main__":
    cfg = Config(steps=400, prompts=2, mini_batches=1)
    compare(["grpo", "calibrl"], [0], cfg, {out!r}, jobs=2, show=None)
"""


def descendants(pid):
    "Numbers of the processes that a process started, and those, and so on."
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            after_name = (entry/"stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(after_name[1])
        except (ValueError, OSError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def running(pids):
    "Those of some processes that are there and no zombies."
    alive = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.add(pid)
    return alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    "kill -9: the parent can say goodbye to nobody, and a worker holds a gigabyte."
    (tmp_path/"long.py").write_text(LONG.format(out=str(tmp_path/"records")))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, str(tmp_path/"long.py")], env=env)
    started = set()
    try:
        # until both workers have begun: they, and what helps them
        end = time.monotonic() + 600
        while len(list((tmp_path/"records").glob("*.at"))) < 2:
            started = descendants(parent.pid)
            assert parent.poll() is None and time.monotonic() < end
            time.sleep(.1)
        started |= descendants(parent.pid)
        assert len(running(started)) >= 3

        parent.send_signal(signal.SIGKILL)
        parent.wait()
        end = time.monotonic() + 20
        while running(started) and time.monotonic() < end:
            time.sleep(.1)
        assert running(started) == set()
    finally:
        for pid in {parent.pid} | running(started):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def test_the_process_changes_nothing(folder, tmp_path):
    def timeless(record):
        rows = [dict(zip(record["names"], row, strict=True)) for row in record["curve"]]
        return [row | dict(seconds=None) for row in rows]

    here = C.one_run("grpo", 0, SMALL, tmp_path, **EXAM)
    there = C.records(folder[0])[0]
    written = json.loads((tmp_path/"grpo-0.json").read_text())
    assert timeless(here) == timeless(there)
    assert here["exam"] == there["exam"] == written["exam"]


def test_mistakes_are_found_before_the_first_run(tmp_path, no_run):
    for spec, word in (("grpo:alhpa=1", "alhpa"),
                       ("nothing", "method must be one of"),
                       ("calibrl:weight=much", "needs a number"),
                       ("calibrl:experts=drunk", "drunk"),
                       ("calibrl:alpha", "option=value")):
        with pytest.raises(ValueError, match=word):
            C.compare(["grpo", spec], [0], SMALL, tmp_path)
    for options, word in ((dict(seeds="a"), "seeds"),
                          (dict(methods=""), "at least one"),
                          (dict(seeds="0"), "at least one")):
        with pytest.raises(ValueError, match=word):
            C.compare_methods(**options, out=str(tmp_path))
    (tmp_path/"x.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        C.records(tmp_path)


def test_names_and_phases():
    options = dict(alpha=.3, gap="sequence", weigh_by_adv=False, norm_std=True, tries=3)
    spec = ("calibrl:alpha=0.3,gap=sequence,weigh_by_adv=false,norm_std=true,experts=wrong,"
            "tries=3")
    phases, experts = C.variant(spec, SMALL)
    assert phases == [replace(SMALL, method="calibrl", **options)]
    assert experts == "wrong"

    phases, _ = C.variant("sft_grpo", replace(SMALL, steps=8))
    assert [(phase.method, phase.steps) for phase in phases] == [("sft", 2), ("grpo", 6)]
    names = {C.file_name(f"calibrl:alpha=0.3,gap={gap}") for gap in ("mean", "token")}
    assert len(names) == 2 and "/" not in C.file_name("a/../b")


@pytest.mark.parametrize("given, specs", [
    ("grpo,calibrl", ["grpo", "calibrl"]),
    ("grpo calibrl:alpha=0.3,gap=mean", ["grpo", "calibrl:alpha=0.3,gap=mean"]),
    ("calibrl:alpha=0.3,weight=1,dapo", ["calibrl:alpha=0.3,weight=1", "dapo"]),
    ("luffy:experts=half,grpo", ["luffy:experts=half", "grpo"]),
    ("experts", C.EXPERIMENTS["experts"].split())])
def test_the_command_splits_names_from_options(monkeypatch, tmp_path, capsys, given, specs):
    asked = []
    out = tmp_path/"o"

    def compare(methods, seeds, cfg, folder, **how):
        asked.append((methods, seeds, cfg.steps))
        out.mkdir(exist_ok=True)
        return C.table([fake(method, seed, 3, .1) for method in methods for seed in seeds])

    monkeypatch.setattr(command, "compare", compare)
    C.compare_methods(given, seeds="4,7", steps=5, out=str(out))
    assert asked == [(specs, [4, 7], 5)]
    assert "| method | seeds | greedy" in capsys.readouterr().out
    assert (out/"table.md").exists()


def test_experts_of_all_kinds():
    ps = problems(60, split="train", seed=2)
    right, length = {}, {}
    for kind, change in C.EXPERTS.items():
        changed = change(ps, random.Random(0))
        right[kind] = sum(bool(p.expert) and score(p.expert, p.answer).correct for p in changed)
        length[kind] = sum(len(p.expert or "") for p in changed)
    assert right["good"] == right["terse"] == right["verbose"] == 60
    assert 30 < right["noisy"] < 60
    assert right["wrong"] < 20
    assert 15 < right["half"] < 45
    assert right["foreign"] == right["semi"] == 60
    assert 1.5 < length["foreign"]/length["good"] < 3
    assert length["terse"] < .7*length["good"]
    assert length["verbose"] > 1.3*length["good"]


@pytest.mark.parametrize("a, b, same", [
    ("<think>x;3*4=12</think><answer>12</answer>",
     "<think>x; 4*3=12;</think>\n<answer>12</answer>", True),
    ("<think>x;12-4=8</think><answer>8</answer>",
     "<think>x;4-12=8</think><answer>8</answer>", False),
    ("<think>a=1;b=2;3+4=7;7*2=14</think>", "<think>b=2;a=1;4+3=7;2*7=14</think>", True),
    ("<think>3+4=7;7*2=14</think>", "<think>3*2=6;4*2=8;6+8=14</think>", False),
    ("The answer is 5", "The answer is 6", False)])
def test_routes(a, b, same):
    assert (C.route(a) == C.route(b)) is same


def fake(spec, seed, greedy, entropy):
    "A record in which so many of ten problems are solved greedily, and entropy ends at a value."
    exam = dict(n=10, k=4, greedy=[i < greedy for i in range(10)], right=[greedy % 5]*10,
                routes=[1]*10)
    return dict(spec=spec, seed=seed, names=["entropy", "silent_groups", "tokens"],
                curve=[[9., 1., 5]]*3 + [[entropy, 0., 5]]*10, seconds=2.,
                exam={"test": exam, "hard": exam})


def test_figures_and_paired_differences():
    base = [fake("grpo", seed, 2 + seed, .1*seed) for seed in range(4)]
    other = [fake("a", seed, 3 + seed, .1*seed) for seed in range(1, 4)]
    rows = C.table(base + other)
    grpo, a = rows
    assert (grpo["method"], a["method"]) == ("grpo", "a")
    assert grpo["greedy"]["mean"] == pytest.approx(.35)
    assert grpo["entropy"]["mean"] == pytest.approx(.15)
    assert grpo["silent"]["mean"] == pytest.approx(3/13)
    assert grpo["seeds"] == 4 and "minus" not in grpo["greedy"]

    # one problem of ten differs,
    low, high = a["greedy"]["minus_interval"]
    assert a["greedy"]["minus"] == pytest.approx(.1)
    # in each run another one: of ten problems three have 1/3; Student's with 9 degrees of freedom
    half = 2.2622*((3*(1/3 - .1)**2 + 7*.1**2)/9/10)**.5
    assert (low, high) == pytest.approx((.1 - half, .1 + half), abs=1e-4)
    assert a["entropy"]["minus_interval"] == pytest.approx((0., 0.))
    assert a["greedy"]["pairs"] == 3

    # the metrics of one run, and the table as text
    metrics = dict({"pass@1": .25, "pass@4": 1.}, spread=.75, tokens=65)
    assert C.run_metrics(fake("x", 0, 1, .1)).items() >= metrics.items()
    assert "| a | 3 | 0.500 [" in C.as_text(rows)
    assert "+0.100 [" in C.as_text([a], differences=True)


def test_the_interval_is_students():
    values = [random.Random(i).gauss(0, 1) for i in range(40)]
    average = sum(values)/40
    error = (sum((v - average)**2 for v in values)/40/40)**.5
    low, high = C.interval(values)
    t = 2.0227*(40/39)**.5               # the table's for 39 degrees of freedom
    assert (low, high) == pytest.approx((average - t*error, average + t*error), abs=1e-4)
    assert math.isfinite(high) and C.interval(values, .5)[0] > low
    assert math.isnan(C.interval([.5])[0])
    assert C.interval([.5, .5]) == (.5, .5)

    # seeds agree, the hundred problems do not
    low, high = C.interval([[0, 1]*50]*3)
    assert .39 < low < .41 and .59 < high < .61


def at(record, start):
    "The record, of a run that began from another policy."
    return record | {"settings": {"files": start}}


def test_several_warm_starts_are_the_sample():
    "Three seeds on each of two starts are two numbers, and a seed alone is no interval."
    runs = [at(fake("a", seed, 2, .1 + .001*seed), "x") for seed in range(3)]
    runs += [at(fake("a", seed, 2, .3), "y") for seed in range(3)]
    row, = C.table(runs)
    assert (row["seeds"], row["starts"]) == (3, 2)
    low, high = row["entropy"]["interval"]
    assert row["entropy"]["mean"] == pytest.approx(.2005)
    assert high - low == pytest.approx(2*12.7062*.199/2, abs=1e-3)
    assert "3 on each of 2 starts" in C.as_text([row])
    assert "| 1: no interval | 0.200 |" in C.as_text(C.table(runs[:1]))

    # a difference pairs runs of one start, not seeds of the same number
    base = [at(fake("b", seed, 1, .1), "x") for seed in range(3)]
    row = C.table(base + runs, to="b")[1]
    assert row["entropy"]["pairs"] == 3
    assert row["entropy"]["minus"] == pytest.approx(.001)


def test_starts_are_told_apart_and_built(tmp_path, monkeypatch):
    from calibrl import algebra
    built = []

    def build(folder, seed, progress):
        built.append(seed)
        folder.mkdir(parents=True)
        (folder/"model.safetensors").write_text("x")

    monkeypatch.setattr(algebra, "build_checkpoint", build)
    folders = C.warm_starts("algebra", 3, tmp_path)
    assert built == [1, 2] and folders[0] == algebra.tiny_checkpoint()
    assert C.warm_starts("algebra", 3, tmp_path) == folders and built == [1, 2]
    names = [place.name for place, _ in C.places_of(tmp_path, folders)]
    assert names == ["algebra", "start-1", "start-2"]
    with pytest.raises(ValueError, match="starts: two have the same name"):
        C.places_of(tmp_path, ["a/x", "b/x"])
    assert C.places_of(tmp_path, [None]) == [(tmp_path, None)]


def test_tuning_wants_the_same_for_everyone():
    three = [f"luffy:expert_weight={w}" for w in (1, 5, 9)]
    C.check_tuning([C.BASE, *three, "hpt:expert_weight=1", "hpt:expert_weight=2",
                    "hpt:expert_weight=3"], [0, 1])
    with pytest.raises(ValueError, match="not luffy 3, hpt 1"):
        C.check_tuning([*three, "hpt"], [0, 1])
    with pytest.raises(ValueError, match="at least two seeds"):
        C.check_tuning(three, [0])
    runs = [fake(spec, seed, 3 + k, .1) for k, spec in enumerate(three) for seed in range(4)]
    rows = C.tuned(runs, "greedy")
    assert [row["method"] for row in rows] == [three[2]] and rows[0]["seeds"] == 2
    with pytest.raises(ValueError, match="no record has 'speed'; there are greedy"):
        C.tuned(runs, "speed")


def test_the_experiment_on_pull_can_be_tuned():
    C.check_tuning(C.EXPERIMENTS["pull"].split(), [0, 1])
    for name in ("pull", "equal_pull", "foreign", "entropy"):
        for spec in C.EXPERIMENTS[name].split():
            C.variant(spec, SMALL)


def test_new_records_say_what_they_cost():
    old = fake("a", 0, 2, .1)
    names = old["names"] + ["groups_drawn", "tokens_trained", "tokens_drawn", "gap_positive"]
    curve = [row + [7, 9, 11, math.nan if k == 0 else 1.] for k, row in enumerate(old["curve"])]
    new = old | dict(names=names, curve=curve, pull=[.25, None])
    metrics = C.run_metrics(new)
    assert metrics["groups drawn"] == 7*13 and metrics["tokens trained"] == 9*13
    assert metrics["tokens drawn"] == 11*13
    assert metrics["not read"] == 1. and metrics["pull"] == .25
    assert "pull at the end" not in metrics and "pull" not in C.run_metrics(old)

    # a table of old and new ones has the columns of both
    text = C.as_text(C.table([old, new | dict(spec="b")]), ("entropy", "pull"))
    assert "| a | 1: no interval | 0.100 |  |" in text and "| 0.250 |" in text


def learner(spec, seed, pace, start, entropy):
    "A record that solves one more of a hundred for each step and pace, and loses entropy for it."
    accuracies = [min(.9, pace*step/100) for step in range(60)]
    curve = [[entropy - accuracy, .5, 5, accuracy, accuracy/2] for accuracy in accuracies]
    names = ["entropy", "silent_groups", "tokens", "accuracy", "solved_groups"]
    config = [{"method": "grpo", "responses": 8}]
    return at(fake(spec, seed, 2, .1), start) | dict(names=names, curve=curve, config=config)


def test_columns_at_equal_accuracy():
    "Half as fast: behind at the end, and equal where both know as much; one nat above: ahead."
    fast = [learner("grpo", seed, 1., start, 1.) for seed in range(2) for start in "xy"]
    slow = [learner("slow", seed, .5, start, 1.) for seed in range(2) for start in "xy"]
    above = [learner("above", seed, 1., start, 2.) for seed in range(2) for start in "xy"]
    _, slow_row, above_row = C.table(fast + slow + above)
    assert slow_row["entropy"]["minus"] > .2
    for key in ("entropy at equal accuracy", "pass@8 at equal accuracy"):
        assert abs(slow_row[key]["minus"]) < .006 and slow_row[key]["pairs"] == 4
    assert above_row["entropy at equal accuracy"]["minus"] == pytest.approx(1.)
    assert "mean" not in above_row["entropy at equal accuracy"]

    # in the table of differences alone, and for no method that chooses groups by their outcome
    text = C.comparison_text(C.table(fast + above), "algebra", SMALL)
    first, second = text.split("Difference to grpo")
    assert "at equal accuracy" not in first
    assert "entropy at equal accuracy | pass@8 at equal accuracy |" in second and "+1.000" in second
    chosen = [r | {"config": [{"method": "dapo"}]} for r in above]
    assert "entropy at equal accuracy" not in C.table(fast + chosen)[1]
    older = [r | {"names": r["names"][:3], "curve": [c[:3] for c in r["curve"]]} for r in above]
    assert "entropy at equal accuracy" not in C.table(fast + older)[1]
    assert C.table(fast + above, keys=("greedy",))[1].keys() == {
        "method", "seeds", "starts", "greedy"}


def test_the_help_says_what_is_meant_and_nothing_else(capsys):
    assert main(["compare", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "noqa" not in text and "--methods METHODS main, ablations" in text
    assert "those families are left out of training" in text


def test_live_table(tmp_path):
    todo = [("grpo", 0), ("calibrl", 0), ("calibrl", 1)]
    (tmp_path/"grpo-0.json").write_text(json.dumps(fake("grpo", 0, 4, .1)))
    (tmp_path/"calibrl-0.at").write_text("7 0.5 0.2")
    text = C.status_text(todo, tmp_path, SMALL).replace("\033[K", "")
    assert [line.split() for line in text.splitlines()] == [
        ["greedy", "accuracy", "seed", "0", "seed", "1"], ["grpo", "0.400"],
        ["calibrl", "7/2", "."]]


METHODS = {"grpo", "calibrl", "dapo", "luffy", "sft_grpo", "dr_grpo", "rl_plus"}


def test_the_shipped_records_are_whole_and_small():
    folder = Path(__file__).parent.parent/"nbs/records/compare"
    files = sorted(folder.glob("*.jsonl"))
    assert files
    # the newer ones hold all numbers of each step, some 14 KB a run
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    kept = {file.stem: C.records(file) for file in files}
    for name, found in kept.items():
        keys = {(r["spec"], r["seed"], r["settings"].get("files"), json.dumps(r["config"]))
                for r in found}
        assert len(keys) == len(found), name
    runs = [record for found in kept.values() for record in found]
    assert len(runs) == 273 + 75 + 74 + 15

    # each has finite metrics, and says which exam it sat
    exams = {"test": (96, 8), "hard": (48, 8)}
    settings = dict(size=96, k=8, bits=None)
    starts = {None, "algebra", "start-1", "start-2", "start-3", "start-4"}
    for record in runs:
        assert record["settings"]["model"] in starts
        assert all(map(math.isfinite, C.run_metrics(record).values()))
        world = record.get("world", "geometry")
        assert record["settings"].items() >= (settings | {"world": world}).items()
        assert exams.items() <= {name: (exam["n"], exam["k"])
                                 for name, exam in record["exam"].items()}.items()
    assert METHODS <= {r["spec"] for r in C.records(folder/"main.jsonl")}
