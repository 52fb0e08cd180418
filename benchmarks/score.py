"""How right and how fast is the verifier? Run: python benchmarks/score.py [--out FILE] [--peer]

Scores the labelled development cases (tests/score_cases.py) on one core, hostile ones apart, and prints accuracy by category,
verdicts per second, percentiles and the tier that decided. With --peer it also runs Math-Verify alone, on the boxed answer.
"""
import argparse, json, logging, os, platform, statistics, sys, time
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from calibrl.tasks import score, verifier_stats
from calibrl.verify.tags import extract
from score_cases import all_cases

def peer_verdict(response, truth):
    "Math-Verify alone, its time limits as it ships them."
    from math_verify import parse, verify
    text = extract(response).answer
    if text is None: return False
    boxed = lambda s: s if "\\boxed" in s else f"\\boxed{{{s}}}"
    return bool(verify(parse(boxed(truth)), parse(boxed(text))))

def measure(cases, judge, repeat):
    "Accuracy by category, false positives and negatives, and the best of `repeat` times per case."
    right, total, fp, fn, times = Counter(), Counter(), 0, 0, []
    for cat, truth, response, ok, options, _ in cases:
        best = float("inf")
        for _ in range(repeat):
            t0 = time.perf_counter(); got = judge(response, truth, options); best = min(best, time.perf_counter() - t0)
        times.append(best); total[cat] += 1; right[cat] += got == ok; fp += got and not ok; fn += ok and not got
    times.sort()
    return dict(cases=len(times), accuracy=sum(right.values()) / len(times), false_positives=fp, false_negatives=fn, by_category={c: [right[c], total[c]] for c in total},
        per_second=len(times) / sum(times), median_ms=statistics.median(times) * 1e3, p99_ms=times[int(.99 * len(times))] * 1e3, max_ms=times[-1] * 1e3)

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--out", help="write the figures as JSON"); ap.add_argument("--peer", action="store_true", help="run Math-Verify alone, too"); ap.add_argument("--repeat", type=int, default=1)
    args = ap.parse_args()
    logging.disable(logging.WARNING)
    cases = [c for c in all_cases() if c[0] != "hostile" and len(c[2]) < 10_000]
    score("<answer>$\\int_0^1 x$</answer>", "\\frac{1}{2}"); verifier_stats(reset=True) # the judge is warm, as in training
    out = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "ours": measure(cases, lambda r, t, o: score(r, t, o).correct, args.repeat)}
    out["tiers"] = {k: v / args.repeat for k, v in verifier_stats().items()}
    if args.peer: out["math_verify"] = measure([c for c in cases if not c[4]], lambda r, t, o: peer_verdict(r, t), 1)
    for who in ("ours", "math_verify"):
        if who not in out: continue
        m = out[who]
        print(f"{who}: {m['accuracy']:.1%} of {m['cases']} right, {m['false_positives']} false positives, {m['false_negatives']} false negatives; {m['per_second']:,.0f} a second, median {m['median_ms']:.2f} ms, p99 {m['p99_ms']:.1f} ms, slowest {m['max_ms']:.0f} ms")
    print("tiers:", ", ".join(f"{k} {v:g}" for k, v in out["tiers"].items()))
    for cat, (a, b) in out["ours"]["by_category"].items(): print(f"  {cat:18s} {a:4d}/{b}" + (f"   Math-Verify {'/'.join(map(str, out['math_verify']['by_category'][cat]))}" if args.peer and cat in out["math_verify"]["by_category"] else ""))
    if args.out: Path(args.out).write_text(json.dumps(out, indent=1) + "\n")

if __name__ == "__main__": main()
