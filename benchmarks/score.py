"""How right and how fast is the verifier? Run: python benchmarks/score.py [--out FILE] [--peer]

Scores the labelled development cases (tests/score_cases.jsonl) on one core, hostile ones apart, and
prints accuracy by category, verdicts per second, percentiles and the tier that decided. With --peer
it also runs Math-Verify alone, on the boxed answer.
"""
import argparse
import json
import logging
import platform
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from calibrl.tasks import score, verifier_stats
from calibrl.verify.tags import extract
from score_cases import all_cases


def verdict(response, truth, options):
    "Return whether our verifier takes a response for right."
    return score(response, truth, options).correct


def boxed(text):
    "Return a text in a box, where Math-Verify looks for the answer."
    return text if "\\boxed" in text else f"\\boxed{{{text}}}"


def peer_verdict(response, truth, _):
    "Return whether Math-Verify alone does, its time limits as it ships them."
    from math_verify import parse, verify
    text = extract(response).answer
    if text is None:
        return False
    return bool(verify(parse(boxed(truth)), parse(boxed(text))))


def best_time(judge, case, repeat):
    "Return (verdict, best of `repeat` times in seconds) on one case."
    _, truth, response, _, options, _ = case
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        got = judge(response, truth, options)
        best = min(best, time.perf_counter() - start)
    return got, best


def measure(cases, judge, repeat):
    "Return accuracy by category, false positives and negatives, and the best times."
    right, total, times = Counter(), Counter(), []
    false_positives = false_negatives = 0
    for case in cases:
        category, expected = case[0], case[3]
        got, best = best_time(judge, case, repeat)
        times.append(best)
        total[category] += 1
        if got == expected:
            right[category] += 1
        elif got:
            false_positives += 1
        else:
            false_negatives += 1

    # times as a whole, and the slow ones
    times.sort()
    return dict(
        cases=len(times),
        accuracy=sum(right.values()) / len(times),
        false_positives=false_positives,
        false_negatives=false_negatives,
        by_category={category: [right[category], total[category]] for category in total},
        per_second=len(times) / sum(times),
        median_ms=statistics.median(times) * 1e3,
        p99_ms=times[int(.99 * len(times))] * 1e3,
        max_ms=times[-1] * 1e3)


def show(who, found):
    "Print the figures of one verifier in a line."
    print(f"{who}: {found['accuracy']:.1%} of {found['cases']} right, "
        f"{found['false_positives']} false positives, {found['false_negatives']} false negatives; "
        f"{found['per_second']:,.0f} a second, median {found['median_ms']:.2f} ms, "
        f"p99 {found['p99_ms']:.1f} ms, slowest {found['max_ms']:.0f} ms")


def show_categories(out):
    "Print how many of each category are right, Math-Verify's beside ours."
    peer = out.get("math_verify", {}).get("by_category", {})
    for category, (right, total) in out["ours"]["by_category"].items():
        line = f"  {category:18s} {right:4d}/{total}"
        if category in peer:
            line += f"   Math-Verify {'/'.join(map(str, peer[category]))}"
        print(line)


def main():
    "Measure, print and write the figures."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", help="write the figures as JSON")
    parser.add_argument("--peer", action="store_true", help="run Math-Verify alone, too")
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    cases = [case for case in all_cases() if case[0] != "hostile" and len(case[2]) < 10_000]

    # the judge is warm, as in training
    score("<answer>$\\int_0^1 x$</answer>", "\\frac{1}{2}")
    verifier_stats(reset=True)
    out = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "ours": measure(cases, verdict, args.repeat)}
    out["tiers"] = {tier: calls / args.repeat for tier, calls in verifier_stats().items()}
    if args.peer:
        free = [case for case in cases if not case[4]]
        out["math_verify"] = measure(free, peer_verdict, 1)

    for who in ("ours", "math_verify"):
        if who in out:
            show(who, out[who])
    print("tiers:", ", ".join(f"{tier} {calls:g}" for tier, calls in out["tiers"].items()))
    show_categories(out)
    if args.out:
        Path(args.out).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
