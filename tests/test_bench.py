"""The bench measures the same work on both sides, and the committed record holds what it promises. No test here looks at a clock."""
import json
import sys
from pathlib import Path

import pytest
import torch

from calibrl import bench

SMALL = dict(width=128, layers=2)
RECORD = Path(__file__).parent.parent/"benchmarks"/"bench.json"


def test_quick_checks_equality_and_never_a_time(tmp_path, capsys):
    bench.bench(str(tmp_path), quick=True)
    rows = json.loads((tmp_path/"bench.json").read_text())
    assert {r["name"].split("/")[0] for r in rows} == {"prefix", "sample", "head"}
    assert all(r["logp_error"] < 1e-4 and "ratio" not in r and "ours" not in r for r in rows)
    assert "the same" in capsys.readouterr().out and not (tmp_path/"bench.png").exists()


def test_a_difference_stops_it(monkeypatch):
    honest = bench.repeated
    monkeypatch.setattr(bench, "repeated", lambda *a: honest(*a) + 1e-3)
    with pytest.raises(RuntimeError, match="do not agree"): bench.prefix(96, 8, 2, runs=0, **SMALL)
    with pytest.raises(RuntimeError, match="does not find"): bench.sample(96, 8, 2, runs=0, B=1, **SMALL)


def test_pairs_alternate_after_a_warm_up():
    calls = []
    pairs = bench.paired(lambda: calls.append("a"), lambda: calls.append("b"), runs=2)
    assert calls == list("ababab") and len(pairs) == 2
    r = bench.record("x", [(1., 2.), (2., 6.), (1., 5.)], theory=4.)
    assert (r["ratio"], r["ours"], r["peer"], r["runs"], r["theory"]) == (3., 1., 5., 3, 4.)


def test_timed_rows_and_their_files(tmp_path, monkeypatch, capsys):
    cases = {"prefix/x": (lambda: bench.prefix(96, 8, 2, runs=1, **SMALL),), "sample/x": (lambda: bench.sample(96, 4, 2, runs=1, B=1, **SMALL),), "head/x": (lambda: bench.head(500, 16, 8, runs=1),)}
    monkeypatch.setattr(bench, "CASES", cases)
    threads = torch.get_num_threads()
    bench.bench(str(tmp_path))
    rows = json.loads((tmp_path/"bench.json").read_text())
    assert [r["name"].split("/")[0] for r in rows] == ["prefix", "sample", "head", "head_logp_only"]
    assert all({"name", "ratio", "ours", "peer", "unit", "runs"} <= set(r) and r["ratio"] > 0 for r in rows)
    assert (tmp_path/"bench.png").read_bytes()[:4] == b"\x89PNG" and torch.get_num_threads() == threads
    assert "CPU seconds" in capsys.readouterr().out


def test_only_names_rows_and_an_unknown_name_is_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no row of the bench starts with 'speed'"): bench.bench(str(tmp_path), only="speed")
    with pytest.raises(ValueError, match="too few for an image"): bench.bench_problem(bench.bench_processor(), 20, 8)


def test_without_trl_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(bench, "CASES", {"step_vs_trl/P96": (lambda: bench.step_vs_trl(96, 1, **SMALL),), "head/x": (lambda: bench.head(500, 16, 8, runs=1),)})
    bench.bench(str(tmp_path))
    assert "left out, the comparison with TRL needs it: pip install" in capsys.readouterr().out
    assert len(json.loads((tmp_path/"bench.json").read_text())) == 2
    with pytest.raises(ValueError, match="pip install 'trl"): bench.bench(str(tmp_path), only="step_vs_trl")


def test_a_step_in_turns_with_trl():
    pytest.importorskip("trl", reason="trl is a requirement of the bench only")
    row, = bench.step_vs_trl(96, 1, prompts=2, responses=2, max_new_tokens=6, **SMALL)
    assert row["name"] == "step_vs_trl/P96" and row["runs"] == 1 and row["ratio"] > 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")
def test_memory_is_what_was_above_the_start():
    assert 300 < bench.peak(lambda: torch.ones(80, 1024, 1024)) < 400       # 320 MiB
    row, = bench.memory("head_memory/x", "head", (50_000, 256, 16), runs=1)
    assert row["ratio"] > 1.5 and "MiB" in row["unit"]                      # full logits: at least 49 MiB each for logits and their gradient
    with pytest.raises(RuntimeError, match="measuring the memory of head, nobody, failed: KeyError"): bench.alone("head", "nobody", (100, 8, 4))


def test_growth_follows_the_formula_in_tokens(tmp_path):
    rows = bench.growth(str(tmp_path), runs=1, sweeps=dict(G=(2, 4)), vocabularies=(1000,), **SMALL)
    saved = json.loads((tmp_path/"growth.json").read_text())
    assert saved["rows"] == rows and abs(sum(saved["spent"]["time"].values()) - 1) < 1e-6
    assert rows[1]["tokens"] - rows[0]["tokens"] == 2*64


def test_the_committed_record_is_sound():
    rows = {r["name"]: r for r in json.loads(RECORD.read_text())}
    assert set(rows) == set(bench.CASES) | {"head_logp_only/V151936_N2048"} and len({r["machine"] for r in rows.values()}) == 1
    assert {f"{what}/P{P}" for what in ("step_vs_trl", "memory_vs_trl") for P in (160, 500)} | {"sample/P256_L64_G8", "head/V151936_N2048"} <= set(rows)
    for r in rows.values():
        assert r["runs"] >= 5 and len(r["pairs"]) == r["runs"] and r["unit"] and r["machine"]
        assert r["logp_error"] < 1e-4 if "logp_error" in r else True
    for shape in bench.SHAPES:
        r = rows["prefix/P{}_L{}_G{}".format(*shape)]
        assert r["ratio"] >= .85*bench.theory(*shape) and r["gradient_error"] < 1e-4
