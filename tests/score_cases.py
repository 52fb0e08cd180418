"""Hand-labelled development cases for `calibrl.tasks.score`: score_cases.jsonl, one case a line.

Each case names its `category`, the `answer` (ground truth) and what is `expected` (is it right?).
`text` is put between answer tags; a `response` is taken whole, and says if it is `formatted`.
Where choices are given they stand in `options`. A text of many repetitions is a list of
[piece, times], so that a line stays short.
"""
import functools
import json
from pathlib import Path

FILE = Path(__file__).with_suffix(".jsonl")
TAGGED = "<think>t</think><answer>{}</answer>".format


def whole(text):
    "Return a text whose repetitions may be written as [piece, times]."
    return text if isinstance(text, str) else "".join(piece * times for piece, times in text)


@functools.cache
def read_cases():
    "Return all cases as dictionaries; `text` and `response` are whole."
    with open(FILE, encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    for case in cases:
        for name in ("text", "response"):
            if name in case:
                case[name] = whole(case[name])
    return cases


def all_cases():
    "Yield (category, truth, response, correct, options, formatted or None) of each case."
    for case in read_cases():
        response = case["response"] if "response" in case else TAGGED(case["text"])
        yield (case["category"], case["answer"], response, case["expected"], case.get("options"),
            case.get("formatted"))
