"""pass@k against simulation, grading against the verifier, summaries against sums."""
import random

import pytest

from calibrl.eval import BENCHMARKS, evaluate, grade, pass_at_k, summary, wilson
from calibrl.geometry import problems


def test_pass_at_k_is_what_drawing_k_answers_gives():
    rng = random.Random(0)
    for n, c, k in [(8, 1, 4), (8, 3, 2), (10, 5, 3), (6, 0, 6), (6, 6, 1)]:
        answers = [True]*c + [False]*(n - c)
        share = sum(any(rng.sample(answers, k)) for _ in range(20000))/20000
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=0.015)
    for bad in [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)]:
        with pytest.raises(ValueError, match="1 <= k <= n"): pass_at_k(*bad)


def test_wilson_stays_inside_and_shrinks():
    assert wilson(0.0, 20)[0] == 0.0 and wilson(0.0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4) and wilson(1.0, 20)[1] <= 1.0
    width = [hi - lo for lo, hi in (wilson(0.4, n) for n in (10, 100, 1000))]
    assert width == sorted(width, reverse=True)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)      # a textbook value


def test_grading_is_the_verifiers():
    p = problems(1, split="test")[0]
    row = grade(p, [p.expert, f"<answer>{p.answer}</answer>", "nothing"])
    assert row["correct"] == [True, True, False] and row["formatted"] == [True, False, False] and row["answers"][2] is None
    assert row["family"] == p.tags["family"] and row["id"] == p.id


def test_summary_adds_up():
    rows = [dict(family="a", k=2, correct=[True, False], formatted=[True, True], lengths=[2, 4], truncated=[False, True]),
            dict(family="b", k=2, correct=[False, False], formatted=[True, False], lengths=[6, 8], truncated=[False, False])]
    s = summary(rows)
    assert (s["n"], s["accuracy"], s["pass@2"], s["formatted"], s["length"], s["truncated"]) == (2, 0.25, 0.5, 0.75, 5.0, 0.25)
    assert {k: v["accuracy"] for k, v in summary(rows, by="family").items()} == {"a": 0.5, "b": 0.0}
    assert summary(rows, by="nothing") == {}
    with pytest.raises(ValueError, match="nothing was evaluated"): summary([])


def test_evaluate_greedy_and_sampled(policy):
    ps = problems(6, split="test")
    greedy = evaluate(policy, ps)
    assert greedy == evaluate(policy, ps, batch=4)                 # the batch decides nothing
    sampled = evaluate(policy, ps, k=3, temperature=1.0, seed=1)
    assert all(len(r["responses"]) == len(r["correct"]) == len(r["lengths"]) == 3 for r in sampled)
    assert sampled == evaluate(policy, ps, k=3, temperature=1.0, seed=1) != evaluate(policy, ps, k=3, temperature=1.0, seed=2)
    assert all(evaluate(policy, ps, max_new_tokens=3)[0]["truncated"])
    with pytest.raises(ValueError, match="all the same"): evaluate(policy, ps, k=2)


def test_benchmarks_make_problems():
    for name in ("geometry_test", "geometry_hard"): assert len(BENCHMARKS[name](3)) == 3, name
