"""Throw rubbish at the verifier. Run: python benchmarks/fuzz_score.py --minutes 10 [--seed 0]

Four kinds of rubbish: random Unicode, soups of LaTeX and tags, mutated development cases, and
nested or repeated structures. Checked for each: a Score comes back, no fault is logged, the call
ends within the limit, a wrapped answer keeps its verdict, and no worker grows beyond its limit.
"""
import argparse
import json
import logging
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from calibrl.tasks import Score, score, verifier_stats
from calibrl.verify import sandbox
from score_cases import read_cases

WRAP = "<think>t</think><answer>{}</answer>".format
PIECES = r"""0 1 2 3 12 0.5 3.14 1,234 x y n A B C \frac{ }{ } \sqrt{ \sqrt[3]{ \pi \int_0^1
    \sum_{k=1}^{ \prod \lim_{x\to \log_ \sin \cos \begin{pmatrix} \end{pmatrix} \begin{cases} \\ &
    ^ ^{ _ _{ ( ) [ ] \{ \} { } | + - * / = < > \le \ge \ne \pm , ; : . ! % ° ' " $ ~ \, \text{
    \boxed{ \mathrm{ cm kg km/h square per hour and or not is the answer yes no true false because
    so therefore hundred twenty half of √ ∛ π ² ³ ½ ± × ÷ ∞ ∪ ∩ ∈ ℝ ≤ ≥ ≈ ∠ △ ∥ <answer> </answer>
    <think> </think> __import__('os') eval( exec( lambda: # // \def \input{ \x00
    \u200b""".split() + ["\x00", "\u200b", "\ud800", "\n", " ", "９", "e308", "**", "..."]
NESTS = [("(", ")"), ("{", "}"), (r"\sqrt{", "}"), (r"\frac{1}{", "}"), ("[", "]"), (r"\{", r"\}"),
    ("x^{", "}"), (r"\sin(", ")"), (r"\boxed{", "}"), (r"\text{", "}"), ("|", "|"),
    (r"\left(", r"\right)"), ("2^", ""), ("-", ""), ("√", ""), ("1+", ""), ("1,", "2"), ("x=", ""),
    ("a is ", ""), ("∪[1,2]", "")]
SAFE = ["{}", " {} ", "${}$", "{}.", "\n{}\n"] # wrappings that never change a verdict
MUTABLE = [case for case in read_cases() if "text" in case and len(case["text"]) < 300]
KINDS = ("unicode", "soup", "mutant", "nested")


@dataclass
class Rubbish:
    "One text to throw, and the truth that it is measured by."
    kind: str
    truth: str
    text: str
    options: list | None = None


def random_unicode(rnd):
    "Return up to 60 characters, plain ones more often."
    def char():
        ranges = [(32, 127), (0, 0x250), (0, 0x3000), (0, 0x110000)]
        return chr(rnd.randrange(*rnd.choice(ranges)))
    return "".join(char() for _ in range(rnd.randrange(60)))


def soup(rnd):
    "Return pieces of LaTeX, words and tags in any order."
    separator = rnd.choice(["", " "])
    return separator.join(rnd.choice(PIECES) for _ in range(rnd.choice([3, 8, 20, 60])))


def nested(rnd):
    "Return brackets and the like around a piece, up to 20,000 deep."
    opening, closing = rnd.choice(NESTS)
    times = rnd.choice([3, 10, 30, 200, 1000, 20000])
    return opening * times + rnd.choice([*PIECES, "12"]) + closing * times


def mutated(rnd, text):
    "Return a text with up to three characters taken out, put in, replaced or doubled."
    chars = list(text[:200])
    for _ in range(rnd.randrange(1, 4)):
        i = rnd.randrange(len(chars) + 1)
        what = rnd.random()
        if what < .3:
            chars[i:i+1] = []
        elif what < .6:
            chars[i:i] = list(rnd.choice(PIECES))
        elif what < .8:
            chars[i:i+1] = list(rnd.choice(PIECES))
        else:
            j = rnd.randrange(len(chars) + 1)
            chars[i:i] = chars[min(i, j):max(i, j)]
    return "".join(chars)


def rubbish(rnd, truths):
    "Return one piece of rubbish of a random kind."
    kind = rnd.choice(["unicode", "soup", "soup", "mutant", "mutant", "nested"])
    truth = rnd.choice(truths)
    if kind == "unicode":
        return Rubbish(kind, truth, random_unicode(rnd))
    if kind == "soup":
        return Rubbish(kind, truth, soup(rnd), rnd.choice([None, None, ["12", "x", "red"]]))
    if kind == "nested":
        return Rubbish(kind, truth, nested(rnd))
    case = rnd.choice(MUTABLE)
    return Rubbish(kind, case["answer"], mutated(rnd, case["text"]), case.get("options"))


@dataclass
class Findings:
    "What came of all calls."
    kinds: Counter = field(default_factory=Counter)
    trouble: list = field(default_factory=list)
    slowest: tuple = (0, "", "") # seconds, truth, text
    peak: int = 0 # address space of a worker, MiB


def worker_peaks():
    "Return the peak address spaces of the judge's idle workers, MiB."
    peaks = []
    for _, pid in sandbox.JUDGES.idle:
        try:
            with open(f"/proc/{pid}/status") as status:
                lines = [line for line in status if line.startswith("VmPeak")]
        except OSError:
            continue
        peaks += [int(line.split()[1]) >> 10 for line in lines]
    return peaks


def throw(thrown, limit, found):
    "Score one piece of rubbish, note what is wrong; return its verdict, None if it raised."
    start = time.perf_counter()
    try:
        verdict = score(WRAP(thrown.text), thrown.truth, thrown.options)
    except Exception as error:
        found.trouble.append(("raised", repr(error), thrown.truth, thrown.text[:200]))
        return None
    took = time.perf_counter() - start
    found.kinds[thrown.kind] += 1
    found.kinds["correct" if verdict.correct else "wrong"] += 1
    if verdict.correct and thrown.kind != "mutant":
        found.kinds[f"correct {thrown.kind}"] += 1

    # the slowest call, and what no call may do
    if took > found.slowest[0]:
        found.slowest = (took, thrown.truth, thrown.text[:100])
    if took > limit:
        found.trouble.append(("slow", round(took, 2), thrown.truth, thrown.text[:200]))
    if not isinstance(verdict, Score) or "fault" in verdict.how:
        found.trouble.append(("fault", verdict.how, thrown.truth, thrown.text[:200]))
    return verdict


def may_wrap(thrown):
    "Return whether a wrapping around a text can mean nothing."
    text = thrown.text
    plain = not set(text) & set("$\\<>`*\"'") and "$" not in thrown.truth
    return plain and text == text.strip() and text[-1:].isalnum()


def check_wrappings(thrown, verdict, found):
    "Note each wrapping that changes a verdict."
    for wrapping in SAFE:
        wrapped = wrapping.replace("{}", thrown.text)
        again = score(WRAP(wrapped), thrown.truth, thrown.options)
        if again.correct != verdict.correct:
            found.trouble.append(("wrapping", wrapping, thrown.truth, thrown.text[:200]))


def fuzz(args):
    "Throw rubbish for some minutes and return what was found."
    rnd, found = random.Random(args.seed), Findings()
    truths = sorted({case["answer"] for case in MUTABLE})
    end = time.time() + 60 * args.minutes
    while time.time() < end:
        thrown = rubbish(rnd, truths)
        verdict = throw(thrown, args.limit, found)
        if verdict is None:
            continue
        is_ruled = thrown.kind == "mutant" and verdict.how.startswith("rules")
        if is_ruled and rnd.random() < .2 and may_wrap(thrown):
            check_wrappings(thrown, verdict, found)
        if sum(found.kinds.values()) % 500 == 0:
            found.peak = max([found.peak, *worker_peaks()])
    return found


def main():
    "Fuzz, print the figures and fail if anything was wrong."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1.5, help="seconds a call may take")
    parser.add_argument("--out", help="write the figures as JSON")
    args = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    found = fuzz(args)
    out = dict(
        calls=sum(found.kinds[kind] for kind in KINDS),
        minutes=args.minutes,
        seed=args.seed,
        kinds=dict(found.kinds),
        stats=verifier_stats(),
        slowest_s=round(found.slowest[0], 3),
        slowest=ascii(found.slowest[1:]),
        worker_peak_mib=found.peak,
        trouble=len(found.trouble),
        first=[ascii(trouble) for trouble in found.trouble[:20]])
    text = json.dumps(out, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")
    sys.exit(bool(found.trouble))


if __name__ == "__main__":
    main()
