"""The bench measures the same work on both sides, and the record holds what it promises.

No test here looks at a clock.
"""
import json
import sys
from pathlib import Path

import pytest
import torch

from calibrl import cases as room, speed

SMALL = dict(width=128, layers=2)
RECORD = Path(__file__).parent.parent/"benchmarks"/"bench.json"
LINUX = Path("/proc/self/clear_refs").exists()


def written(folder, name="bench.json"):
    "Return what a file of records holds."
    return json.loads((folder/name).read_text())


def kinds(rows):
    "Return the part of each row's name before the slash."
    return [row["name"].split("/")[0] for row in rows]


def small_head():
    "Return the rows of a head so small that it takes no time."
    return speed.head(500, 16, 8, runs=1)


def test_quick_checks_equality_and_never_a_time(tmp_path, capsys):
    speed.bench(str(tmp_path), quick=True)
    rows = written(tmp_path)
    assert set(kinds(rows)) == {"prefix", "sample", "head"}
    assert all(row["logp_error"] < 1e-4 for row in rows)
    assert all("ratio" not in row and "ours" not in row for row in rows)
    assert "the same" in capsys.readouterr().out
    assert not (tmp_path/"bench.png").exists()


def test_a_difference_stops_it(monkeypatch):
    honest = speed.repeated
    monkeypatch.setattr(room, "repeated", lambda *args: honest(*args) + 1e-3)
    with pytest.raises(RuntimeError, match="do not agree"):
        speed.prefix(96, 8, 2, runs=0, **SMALL)
    with pytest.raises(RuntimeError, match="does not find"):
        speed.sample(96, 8, 2, runs=0, B=1, **SMALL)


def test_pairs_alternate_after_a_warm_up():
    calls = []
    pairs = speed.paired(lambda: calls.append("a"), lambda: calls.append("b"), runs=2)
    assert calls == list("ababab") and len(pairs) == 2
    row = speed.record("x", [(1., 2.), (2., 6.), (1., 5.)], theory=4.)
    assert (row["ratio"], row["ours"], row["peer"]) == (3., 1., 5.)
    assert (row["runs"], row["theory"]) == (3, 4.)


def test_timed_rows_and_their_files(tmp_path, monkeypatch, capsys):
    cases = {"prefix/x": (lambda: speed.prefix(96, 8, 2, runs=1, **SMALL),),
             "sample/x": (lambda: speed.sample(96, 4, 2, runs=1, B=1, **SMALL),),
             "head/x": (small_head,)}
    monkeypatch.setattr(speed, "CASES", cases)
    threads = torch.get_num_threads()
    speed.bench(str(tmp_path))
    rows = written(tmp_path)
    assert kinds(rows) == ["prefix", "sample", "head", "head_logp_only"]
    columns = {"name", "ratio", "ours", "peer", "unit", "runs"}
    assert all(columns <= set(row) and row["ratio"] > 0 for row in rows)
    assert (tmp_path/"bench.png").read_bytes()[:4] == b"\x89PNG"
    assert torch.get_num_threads() == threads
    assert "CPU seconds" in capsys.readouterr().out


def test_only_names_rows_and_an_unknown_name_is_told(tmp_path):
    with pytest.raises(ValueError, match="no row of the bench starts with 'speed'"):
        speed.bench(str(tmp_path), only="speed")
    with pytest.raises(ValueError, match="too few for an image"):
        speed.bench_problem(speed.bench_processor(), 20, 8)


def test_without_trl_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    cases = {"step_vs_trl/P96": (lambda: speed.step_vs_trl(96, 1, **SMALL),),
             "head/x": (small_head,)}
    monkeypatch.setattr(speed, "CASES", cases)
    speed.bench(str(tmp_path))
    left_out = "left out, the comparison with TRL needs it: pip install"
    assert left_out in capsys.readouterr().out
    assert len(written(tmp_path)) == 2
    with pytest.raises(ValueError, match="pip install 'trl"):
        speed.bench(str(tmp_path), only="step_vs_trl")


def test_a_step_in_turns_with_trl():
    pytest.importorskip("trl", reason="trl is a requirement of the bench only")
    size = dict(prompts=2, responses=2, max_new_tokens=6)
    rows = speed.step_vs_trl(96, 1, **size, **SMALL)
    assert [row["name"] for row in rows] == ["step_vs_trl/P96"]
    assert rows[0]["runs"] == 1 and rows[0]["ratio"] > 0


def test_a_case_that_is_left_out_prints_no_other_row(tmp_path, capsys):
    def measured():
        return [speed.record("first", [(1., 2.)])]

    def missing():
        raise ValueError("TRL is not installed")

    cases = {"first": (measured,), "second": (missing,)}
    rows = speed.run_cases(cases, tmp_path/"bench.json", strict=False, whole=False)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["first", "second:"] and len(rows) == 1


@pytest.mark.skipif(not LINUX, reason="memory is measured on Linux only")
def test_memory_is_what_was_above_the_start():
    assert 300 < speed.peak(lambda: torch.ones(80, 1024, 1024)) < 400       # 320 MiB
    rows = speed.memory("head_memory/x", "head", (50_000, 256, 16), runs=1)

    # Full logits: at least 49 MiB each for logits and their gradient.
    assert len(rows) == 1 and rows[0]["ratio"] > 1.5 and "MiB" in rows[0]["unit"]
    failed = "measuring the memory of head, nobody, failed: KeyError"
    with pytest.raises(RuntimeError, match=failed):
        speed.alone("head", "nobody", (100, 8, 4))


def test_growth_follows_the_formula_in_tokens(tmp_path):
    rows = speed.growth(str(tmp_path), runs=1, sweeps=dict(G=(2, 4)), vocabularies=(1000,),
                        **SMALL)
    saved = written(tmp_path, "growth.json")
    assert saved["rows"] == rows
    assert abs(sum(saved["spent"]["time"].values()) - 1) < 1e-6
    assert rows[1]["tokens"] - rows[0]["tokens"] == 2*64


def test_the_committed_record_is_sound():
    rows = {row["name"]: row for row in json.loads(RECORD.read_text())}
    assert set(rows) == set(speed.CASES) | {"head_logp_only/V151936_N2048"}
    assert len({row["machine"] for row in rows.values()}) == 1
    promised = ["step_vs_trl/P160", "step_vs_trl/P500", "memory_vs_trl/P160",
                "memory_vs_trl/P500", "sample/P256_L64_G8", "head/V151936_N2048"]
    assert set(promised) <= set(rows)
    for row in rows.values():
        assert row["runs"] >= 5 and len(row["pairs"]) == row["runs"]
        assert row["unit"] and row["machine"]
        assert row.get("logp_error", 0) < 1e-4
    for P, L, G in speed.SHAPES:
        row = rows[f"prefix/P{P}_L{L}_G{G}"]
        assert row["ratio"] >= .85*speed.theory(P, L, G) and row["gradient_error"] < 1e-4
