"""Comparisons: what a name means, runs that go on where they were stopped, and figures from records alone."""
import json, math, os, random, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import pytest

from calibrl import compare as C
from calibrl.geometry import problems
from calibrl.tasks import score
from calibrl.train import Config

SMALL = Config(steps=2, prompts=2, responses=2, mini_batches=1)
EXAM = dict(size=4, k=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two variants and one seed, run in a process of their own."
    out, lines = tmp_path_factory.mktemp("records"), []
    return out, C.compare(["grpo", "sft_grpo:experts=half"], [0], SMALL, out, jobs=1, show=lines.append, **EXAM), lines


def test_every_run_leaves_a_complete_record(folder):
    out, rows, lines = folder
    found = C.records(out)
    assert [r["spec"] for r in found] == ["grpo", "sft_grpo:experts=half"] and len(lines) == 2 and not list(out.glob("*.at")) + list(out.glob("*.part*"))
    for r in found:
        assert len(r["curve"]) == 2 and all(len(row) == len(r["names"]) for row in r["curve"]) and r["seed"] == 0
        assert {"torch", "transformers", "calibrl", "commit"} <= set(r["about"]) and r["config"][-1]["method"] == "grpo"
        for e in r["exam"].values(): assert len(e["right"]) == len(e["routes"]) == len(e["greedy"]) == e["n"] and all(d <= c <= 2 for d, c in zip(e["routes"], e["right"]))
    assert found[1]["experts"] == "half" and sum(c["steps"] for c in found[1]["config"]) == 2
    assert {r["method"] for r in rows} == {"grpo", "sft_grpo:experts=half"} and rows[1]["greedy"]["pairs"] == 1


def test_a_stopped_comparison_goes_on(folder, monkeypatch):
    out, rows, _ = folder
    ran = []
    monkeypatch.setattr(C, "run_in_parallel", lambda todo, *a: ran.extend(todo))
    assert C.compare(["grpo", "sft_grpo:experts=half"], [0], SMALL, out, show=None, **EXAM) == rows and ran == []
    C.compare(["grpo", "luffy"], [0, 1], SMALL, out, show=None, **EXAM)
    assert ran == [("luffy", 0), ("grpo", 1), ("luffy", 1)]
    with pytest.raises(ValueError, match="made with other settings"): C.compare(["grpo"], [0], replace(SMALL, lr=1e-3), out, show=None)


@pytest.mark.parametrize("other, words", [
    (dict(size=6), "size was 4 and is 6 now"), (dict(k=3), "k was 2 and is 3 now"),
    (dict(bits=4), "bits was None and is 4 now"), (dict(model="changed"), "files was")])
def test_a_record_of_another_exam_is_no_answer(folder, monkeypatch, tmp_path, tiny, other, words):
    "Another size, number of answers, precision or model: nothing is returned, and nothing is run."
    import shutil
    from safetensors.torch import load_file, save_file
    out, _, _ = folder
    monkeypatch.setattr(C, "run_in_parallel", lambda *a: pytest.fail("a run began"))
    if "model" in other:
        other = dict(model=str(tmp_path/"model"))
        shutil.copytree(tiny, tmp_path/"model")
        assert C.compare(["grpo"], [0], SMALL, out, show=None, **EXAM | other)      # a copy is the same
        file = tmp_path/"model/model.safetensors"
        weights = load_file(file)
        name = next(n for n in weights if n.endswith("q_proj.weight"))
        save_file(weights | {name: weights[name] + .01}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"made with other settings .*{words}.*give another folder"):
        C.compare(["grpo"], [0], SMALL, out, show=None, **EXAM | other)


def test_other_problems_of_the_same_number_are_another_exam(folder, monkeypatch):
    "As a later version of a world might draw them."
    from calibrl import geometry
    monkeypatch.setattr(C, "run_in_parallel", lambda *a: pytest.fail("a run began"))
    drawn = geometry.problems
    other = lambda n, split: [replace(p, answer="1") for p in drawn(n, split=split)]
    monkeypatch.setattr(geometry, "problems", other)
    with pytest.raises(ValueError, match="made with other settings .*exam was"):
        C.compare(["grpo"], [0], SMALL, folder[0], show=None, **EXAM)


def test_a_record_that_says_nothing_of_its_exam_is_not_used(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(C, "run_in_parallel", lambda *a: pytest.fail("a run began"))
    record = json.loads((folder[0]/"grpo-0.json").read_text())
    record.pop("settings", None)
    (tmp_path/"grpo-0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="does not say how it was examined.*give another folder"):
        C.compare(["grpo"], [0], SMALL, tmp_path, show=None, **EXAM)


def test_a_record_says_what_it_is_of(folder):
    from calibrl.eval import data_hash
    for r in C.records(folder[0]):
        s, who = r["settings"], r["identity"]
        assert (s["size"], s["k"], s["bits"], s["world"], s["model"]) == (4, 2, None, "geometry", None)
        assert s["exam"] == data_hash(problems(4, split="test") + problems(2, split="hard"))
        assert who["rows"] == 4 and all(len(who[k]) == 16 for k in ("adapter", "base", "data"))
    a, b = (r["identity"] for r in C.records(folder[0]))
    assert a["data"] != b["data"] and a["adapter"] == b["adapter"]      # GRPO reads no expert


def test_exams_of_two_kinds_share_no_table():
    one, two = fake("grpo", 0, 3, .1), fake("calibrl", 0, 3, .1)
    two["exam"] = {name: e | {"k": 5} for name, e in two["exam"].items()}
    with pytest.raises(ValueError, match="cannot share a table"):
        C.table([one, two])
    with pytest.raises(ValueError, match="cannot share a table"):
        C.table([one, fake("calibrl", 0, 3, .1) | {"world": "algebra"}])


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
            parents[int(entry.name)] = int((entry/"stat").read_text().rpartition(")")[2].split()[1])
        except (ValueError, OSError):
            continue
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
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
        alive |= {pid} - ({pid} if state == "Z" else set())
    return alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    "kill -9: the parent can say goodbye to nobody, and a worker holds a gigabyte."
    (tmp_path/"long.py").write_text(LONG.format(out=str(tmp_path/"records")))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, str(tmp_path/"long.py")], env=env)
    started = set()
    try:
        end = time.monotonic() + 240
        while len(list((tmp_path/"records").glob("*.at"))) < 2:
            started = descendants(parent.pid)
            assert parent.poll() is None and time.monotonic() < end
            time.sleep(.1)
        started |= descendants(parent.pid)
        assert len(running(started)) >= 3                          # two workers, and what helps them
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
    a, b = C.one_run("grpo", 0, SMALL, tmp_path, **EXAM), C.records(folder[0])[0]
    cut = lambda r: [[v for n, v in zip(r["names"], row) if n != "seconds"] for row in r["curve"]]
    assert cut(a) == cut(b) and a["exam"] == b["exam"] and json.loads((tmp_path/"grpo-0.json").read_text())["exam"] == b["exam"]


def test_mistakes_are_found_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(C, "run_in_parallel", lambda *a: pytest.fail("a run began"))
    for spec, word in (("grpo:alhpa=1", "alhpa"), ("nothing", "method must be one of"), ("calibrl:weight=much", "needs a number"), ("calibrl:experts=drunk", "drunk"), ("calibrl:alpha", "option=value")):
        with pytest.raises(ValueError, match=word): C.compare(["grpo", spec], [0], SMALL, tmp_path)
    for kw, word in ((dict(seeds="a"), "seeds"), (dict(methods=""), "at least one"), (dict(seeds="0"), "at least one")):
        with pytest.raises(ValueError, match=word): C.compare_methods(**kw, out=str(tmp_path))
    (tmp_path/"x.json").write_text("{"); pytest.raises(ValueError, C.records, tmp_path).match("not JSON")


def test_names_and_phases():
    phases, experts = C.variant("calibrl:alpha=0.3,gap=sequence,weigh_by_adv=false,norm_std=true,experts=wrong,tries=3", SMALL)
    assert experts == "wrong" and len(phases) == 1
    c = phases[0]; assert (c.method, c.alpha, c.gap, c.weigh_by_adv, c.norm_std, c.tries) == ("calibrl", .3, "sequence", False, True, 3) and c.steps == SMALL.steps
    phases, _ = C.variant("sft_grpo", replace(SMALL, steps=8)); assert [(p.method, p.steps) for p in phases] == [("sft", 2), ("grpo", 6)]
    assert C.file_name("calibrl:alpha=0.3,gap=mean") != C.file_name("calibrl:alpha=0.3,gap=token") and "/" not in C.file_name("a/../b")


@pytest.mark.parametrize("given, specs", [
    ("grpo,calibrl", ["grpo", "calibrl"]), ("grpo calibrl:alpha=0.3,gap=mean", ["grpo", "calibrl:alpha=0.3,gap=mean"]), ("calibrl:alpha=0.3,weight=1,dapo", ["calibrl:alpha=0.3,weight=1", "dapo"]),
    ("luffy:experts=half,grpo", ["luffy:experts=half", "grpo"]), ("experts", C.EXPERIMENTS["experts"].split())])
def test_the_command_splits_names_from_options(monkeypatch, tmp_path, capsys, given, specs):
    asked = []
    def run(methods, seeds, cfg, out, **kw):
        asked.append((methods, seeds, cfg.steps)); (tmp_path/"o").mkdir(exist_ok=True)
        return C.table([fake(m, s, 3, .1) for m in methods for s in seeds])
    monkeypatch.setattr(C, "compare", run)
    C.compare_methods(given, seeds="4,7", steps=5, out=str(tmp_path/"o"))
    assert asked == [(specs, [4, 7], 5)] and "| method | seeds | greedy" in capsys.readouterr().out and (tmp_path/"o/table.md").exists()


def test_experts_of_all_kinds():
    ps = problems(60, split="train", seed=2)
    right = {kind: [bool(p.expert) and score(p.expert, p.answer).correct for p in change(ps, random.Random(0))] for kind, change in C.EXPERTS.items()}
    assert all(right["good"]) and all(right["terse"]) and all(right["verbose"])
    assert 30 < sum(right["noisy"]) < 60 and sum(right["wrong"]) < 20 and 15 < sum(right["half"]) < 45
    words = {kind: sum(len(p.expert or "") for p in change(ps, random.Random(0))) for kind, change in C.EXPERTS.items()}
    assert words["terse"] < .7*words["good"] and words["verbose"] > 1.3*words["good"]


@pytest.mark.parametrize("a, b, same", [
    ("<think>x;3*4=12</think><answer>12</answer>", "<think>x; 4*3=12;</think>\n<answer>12</answer>", True),
    ("<think>x;12-4=8</think><answer>8</answer>", "<think>x;4-12=8</think><answer>8</answer>", False),
    ("<think>a=1;b=2;3+4=7;7*2=14</think>", "<think>b=2;a=1;4+3=7;2*7=14</think>", True),
    ("<think>3+4=7;7*2=14</think>", "<think>3*2=6;4*2=8;6+8=14</think>", False), ("The answer is 5", "The answer is 6", False)])
def test_routes(a, b, same): assert (C.route(a) == C.route(b)) is same


def fake(spec, seed, greedy, entropy):
    exam = dict(n=10, k=4, greedy=[i < greedy for i in range(10)], right=[greedy % 5]*10, routes=[1]*10)
    return {"spec": spec, "seed": seed, "names": ["entropy", "silent_groups", "tokens"], "curve": [[9., 1., 5]]*3 + [[entropy, 0., 5]]*10, "seconds": 2., "exam": {"test": exam, "hard": exam}}


def test_figures_and_paired_differences():
    rows = {r["method"]: r for r in C.table([fake("grpo", s, 2 + s, .1*s) for s in range(4)] + [fake("a", s, 3 + s, .1*s) for s in range(1, 4)])}
    g, a = rows["grpo"], rows["a"]
    assert g["greedy"]["mean"] == pytest.approx(.35) and g["entropy"]["mean"] == pytest.approx(.15) and g["silent"]["mean"] == pytest.approx(3/13) and g["seeds"] == 4
    lo, hi = a["greedy"]["minus_interval"]; assert a["greedy"]["minus"] == pytest.approx(.1) and lo == pytest.approx(0) and .2 <= hi <= .4      # one problem of ten differs
    assert a["entropy"]["minus_interval"] == pytest.approx((0., 0.)) and a["greedy"]["pairs"] == 3 and "minus" not in g["greedy"]
    f = C.run_metrics(fake("x", 0, 1, .1))
    assert f["pass@1"] == .25 and f["pass@4"] == 1. and f["spread"] == .75 and f["tokens"] == 65
    assert "| a | 3 | 0.500 [" in C.as_text(list(rows.values())) and "+0.100 [" in C.as_text([a], differences=True)


def test_interval_covers_like_a_bootstrap():
    values = [random.Random(i).gauss(0, 1) for i in range(40)]
    lo, hi = C.interval(values)
    se = (sum((v - sum(values)/40)**2 for v in values)/40/40)**.5
    assert lo == pytest.approx(sum(values)/40 - 1.96*se, abs=.06) and hi == pytest.approx(sum(values)/40 + 1.96*se, abs=.06)
    assert math.isnan(C.interval([.5])[0]) and C.interval([.5, .5]) == (.5, .5) and C.interval(values, .5)[0] > lo and math.isfinite(hi)
    alike = C.interval([[0, 1]*50]*3); assert .38 < alike[0] < .42 and .58 < alike[1] < .62      # seeds agree, the hundred problems do not


def test_live_table(tmp_path):
    todo = [("grpo", 0), ("calibrl", 0), ("calibrl", 1)]
    (tmp_path/"grpo-0.json").write_text(json.dumps(fake("grpo", 0, 4, .1))); (tmp_path/"calibrl-0.at").write_text("7 0.5 0.2")
    lines = C.status_text(todo, tmp_path, SMALL).replace("\033[K", "").splitlines()
    assert [l.split() for l in lines] == [["greedy", "accuracy", "seed", "0", "seed", "1"], ["grpo", "0.400"], ["calibrl", "7/2", "."]]


def test_the_shipped_records_are_whole_and_small():
    folder = Path(__file__).parent.parent/"nbs/records/compare"
    files = sorted(folder.glob("*.jsonl"))
    assert files and sum(f.stat().st_size for f in folder.iterdir()) < 1_500_000
    runs = C.records(*files)
    keys = [(r["spec"], r["seed"], r.get("world", "geometry"), json.dumps(r["config"])) for r in runs]
    assert len(set(keys)) == len(keys)
    for r in runs:
        assert all(map(math.isfinite, C.run_metrics(r).values()))
    assert len(runs) == 273
    for r in runs:
        said = r["settings"]
        assert (said["size"], said["k"], said["model"], said["bits"]) == (96, 8, None, None)
        assert said["world"] == r.get("world", "geometry")
        assert [(r["exam"][e]["n"], r["exam"][e]["k"]) for e in ("test", "hard")] == [(96, 8), (48, 8)]
    assert {"grpo", "calibrl", "dapo", "luffy", "sft_grpo", "dr_grpo", "rl_plus"} <= {r["spec"] for r in C.records(folder/"main.jsonl")}
