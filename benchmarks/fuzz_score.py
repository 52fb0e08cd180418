"""Throw rubbish at the verifier. Run: python benchmarks/fuzz_score.py --minutes 10 [--seed 0] [--out FILE]

Four kinds of rubbish: random Unicode, soups of LaTeX and tags, mutated development cases, and nested or repeated structures. Checked for each: a Score comes
back, no fault is logged, the call ends within the limit, a wrapped answer keeps its verdict, and no worker grows beyond its memory limit.
"""
import argparse, json, logging, os, random, sys, time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from calibrl.tasks import Score, score, verifier_stats
from calibrl.verify import sandbox
from score_cases import read_cases

WRAP = "<think>t</think><answer>{}</answer>".format
PIECES = r"""0 1 2 3 12 0.5 3.14 1,234 x y n A B C \frac{ }{ } \sqrt{ \sqrt[3]{ \pi \int_0^1 \sum_{k=1}^{ \prod \lim_{x\to \log_ \sin \cos \begin{pmatrix} \end{pmatrix} \begin{cases} \\ & ^ ^{ _ _{ ( ) [ ] \{ \} { } | + - * / = < > \le \ge
    \ne \pm , ; : . ! % ° ' " $ ~ \, \text{ \boxed{ \mathrm{ cm kg km/h square per hour and or not is the answer yes no true false because so therefore hundred twenty half of √ ∛ π ² ³ ½ ± × ÷ ∞ ∪ ∩ ∈ ℝ ≤ ≥ ≈ ∠ △ ∥ <answer> </answer> <think>
    </think> __import__('os') eval( exec( lambda: # // \def \input{ \x00 \u200b""".split() + ["\x00", "\u200b", "\ud800", "\n", " ", "９", "e308", "**", "..."]
NEST = [("(", ")"), ("{", "}"), (r"\sqrt{", "}"), (r"\frac{1}{", "}"), ("[", "]"), (r"\{", r"\}"), ("x^{", "}"), (r"\sin(", ")"), (r"\boxed{", "}"), (r"\text{", "}"), ("|", "|"), (r"\left(", r"\right)"), ("2^", ""), ("-", ""), ("√", ""), ("1+", ""), ("1,", "2"), ("x=", ""), ("a is ", ""), ("∪[1,2]", "")]
SAFE = ["{}", " {} ", "${}$", "{}.", "\n{}\n"] # wrappings that never change a verdict

def rubbish(rnd, truths):
    "(kind, truth, text, options)"
    kind, truth = rnd.choice(["unicode", "soup", "soup", "mutant", "mutant", "nested"]), rnd.choice(truths)
    if kind == "unicode": return kind, truth, "".join(chr(rnd.choice([rnd.randrange(32, 127), rnd.randrange(0x250), rnd.randrange(0x3000), rnd.randrange(0x110000)])) for _ in range(rnd.randrange(60))), None
    if kind == "soup": return kind, truth, rnd.choice(["", " "]).join(rnd.choice(PIECES) for _ in range(rnd.choice([3, 8, 20, 60]))), rnd.choice([None, None, ["12", "x", "red"]])
    if kind == "nested":
        a, b = rnd.choice(NEST); k = rnd.choice([3, 10, 30, 200, 1000, 20000])
        return kind, truth, a * k + rnd.choice(PIECES + ["12"]) + b * k, None
    truth, text, _, options = rnd.choice(MUTABLE)
    text = list(text[:200])
    for _ in range(rnd.randrange(1, 4)):
        i = rnd.randrange(len(text) + 1); what = rnd.random()
        if what < .3: text[i:i+1] = []
        elif what < .6: text[i:i] = list(rnd.choice(PIECES))
        elif what < .8: text[i:i+1] = list(rnd.choice(PIECES))
        else: j = rnd.randrange(len(text) + 1); text[i:i] = text[min(i, j):max(i, j)]
    return kind, truth, "".join(text), options

MUTABLE = [(case["answer"], case["text"], case["expected"], case.get("options"))
    for case in read_cases() if "text" in case and len(case["text"]) < 300]

def worker_peaks():
    "Peak address space of the judge's idle workers, MiB."
    out = []
    for _, pid in sandbox.JUDGES.idle:
        try: out += [int(l.split()[1]) >> 10 for l in open(f"/proc/{pid}/status") if l.startswith("VmPeak")]
        except OSError: pass
    return out

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--minutes", type=float, default=10); ap.add_argument("--seed", type=int, default=0); ap.add_argument("--limit", type=float, default=1.5, help="seconds a call may take"); ap.add_argument("--out")
    args = ap.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    rnd, kinds, trouble, slowest, peak = random.Random(args.seed), Counter(), [], (0, "", ""), 0
    truths = sorted({g for g, *_ in MUTABLE}); end = time.time() + 60 * args.minutes
    while time.time() < end:
        kind, truth, text, options = rubbish(rnd, truths)
        t0 = time.perf_counter()
        try: s = score(WRAP(text), truth, options)
        except Exception as e: trouble.append(("raised", repr(e), truth, text[:200])); continue
        took = time.perf_counter() - t0
        kinds[kind] += 1; kinds["correct" if s.correct else "wrong"] += 1
        if took > slowest[0]: slowest = (took, truth, text[:100])
        if took > args.limit: trouble.append(("slow", round(took, 2), truth, text[:200]))
        if not isinstance(s, Score) or "fault" in s.how: trouble.append(("fault", s.how, truth, text[:200]))
        if s.correct and kind in ("unicode", "nested", "soup"): kinds["correct " + kind] += 1
        if kind == "mutant" and s.how.startswith("rules") and rnd.random() < .2 and not set(text) & set("$\\<>`*\"'") and "$" not in truth and text == text.strip() and text[-1:].isalnum():
            for w in SAFE:
                again = score(WRAP(w.format(text) if "{" not in text else w.replace("{}", text)), truth, options)
                if again.correct != s.correct: trouble.append(("wrapping", w, truth, text[:200]))
        if sum(kinds.values()) % 500 == 0: peak = max([peak, *worker_peaks()])
    n = sum(kinds[k] for k in ("unicode", "soup", "mutant", "nested"))
    out = dict(calls=n, minutes=args.minutes, seed=args.seed, kinds=dict(kinds), stats=verifier_stats(), slowest_s=round(slowest[0], 3), slowest=ascii(slowest[1:]), worker_peak_mib=peak, trouble=len(trouble), first=[ascii(t) for t in trouble[:20]])
    print(json.dumps(out, indent=1))
    if args.out: Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
    sys.exit(bool(trouble))

if __name__ == "__main__": main()
