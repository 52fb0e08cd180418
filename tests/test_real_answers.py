"""The verifier on golds and judged outputs of public data sets, where their folder is at hand.

CALIBRL_REALDATA names the folder; nothing of it is part of the project. Where a published verdict
differs from ours, the counts below say how often, and each case was read: see the comments.
"""
import ast
import csv
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from calibrl.benchmarks import judge
from calibrl.tasks import Problem, score

REAL = os.environ.get("CALIBRL_REALDATA")
pytestmark = pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows")
tagged = "<think>t</think><answer>{}</answer>".format


def path(name):
    return Path(REAL or ".", name)


def lines(name):
    return [json.loads(line) for line in path(name).read_text(encoding="utf-8").splitlines()]


def whole(name):
    return json.loads(path(name).read_text(encoding="utf-8"))


def table(name):
    with open(path(name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plain(rows):
    return [(str(row.get("answer", row.get("Answer"))), None) for row in rows]


GOLDS = { # set -> what gives its (gold, options)
    "gsm8k": lambda: [(row["answer"].split("####")[-1], None) for file in ("train", "test")
        for row in lines(f"gsm8k/{file}.jsonl")],
    "math500": lambda: plain(whole("math500/test.json")),
    "mathv": lambda: [(row["answer"], row["options"] or None)
        for row in lines("mathv/data/test.jsonl")],
    "logicvista": lambda: [(row["answer"], None)
        for row in whole("logicvista/dataset.json").values() if row["answer"].strip()],
    "dynamath": lambda: [(row["answer"], None) for trial in range(1, 11)
        for row in whole(f"dynamath/trial{trial}/dataset.json").values()],
    "mathverse": lambda: plain(whole("mathverse/testmini_text_only.json")),
    "mmmu_pro": lambda: [(row["answer"], ast.literal_eval(row["options"]))
        for row in lines("mmmu_pro/judged_gpt4o_standard10_direct.jsonl")],
    "mmmu": lambda: [(row["answer"], row["index2ans"])
        for file in ("llava1.5_13b", "qwen_vl") for row in lines(f"mmmu/{file}_outputs.jsonl")
        if row["question_type"] == "multiple-choice"],
    "college_math": lambda: plain(lines("college_math/test.jsonl")),
    "mmlu_stem": lambda: [("ABCD"[row["answer"]], row["choices"])
        for row in lines("mmlu_stem/test.jsonl")],
    "aqua": lambda: [(row["correct"], row["options"]) for row in lines("aqua/test.jsonl")],
    "svamp": lambda: plain(lines("svamp/test.jsonl")),
    "mawps": lambda: plain(table("mawps_svamp/train.csv") + table("mawps_svamp/svamp_1000.csv")),
}


@pytest.mark.parametrize("name", GOLDS)
def test_every_gold_is_its_own_answer(name):
    golds = GOLDS[name]()
    refused = [(gold, options) for gold, options in golds
        if not score(tagged(gold), gold, options).correct]
    assert len(golds) >= 40 and not refused, refused[:20]


@pytest.mark.parametrize("name", ["mathverse", "college_math", "math500"])
def test_a_part_of_a_compound_gold_is_paid_nothing(name):
    """Parts between commas, semicolons, lines, `and`, `or`; an equation's side is no part."""
    paid, tried = [], 0
    for gold, _ in GOLDS[name]():
        parts = {part.strip(" $.") for part in re.split(r"[,;\n]|\\\\|\band\b|\bor\b", gold)}
        for part in parts - {"", gold.strip(" $.")}:
            tried += 1
            if score(tagged(part), gold).correct:
                paid.append((gold, part))
    assert tried >= 5 and not paid, paid


@pytest.mark.parametrize("name", ["mathverse", "college_math"])
def test_a_gold_is_not_paid_for_its_neighbours(name):
    """Golds of the same set, one after the other, are other answers unless they say the same."""
    golds = [gold for gold, _ in GOLDS[name]()]
    pairs = [(a, b) for a, b in zip(golds, golds[1:], strict=False)
        if set(re.findall(r"\d+|[A-Z]\b", a)) != set(re.findall(r"\d+|[A-Z]\b", b))]
    paid = [(a, b) for a, b in pairs if score(tagged(b), a).correct]
    assert len(pairs) > 50 and not paid, paid


def counted(pairs):
    "Return how often (ours, published) verdicts are right and wrong."
    return Counter((bool(ours), bool(published)) for ours, published in pairs)


RECORD = Path(__file__).resolve().parent.parent/"nbs/records/agreement.json"
PUBLISHED = {row["set"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))}
KINDS = {"both_right": (True, True), "both_wrong": (False, False),
         "only_ours": (True, False), "only_published": (False, True)}


def shown(name):
    "Return what the book says of the verdicts on a set, as `counted` does."
    row = PUBLISHED[name]
    return Counter({verdicts: row[kind] for kind, verdicts in KINDS.items() if row[kind]})


def test_published_verdicts_on_gsm8k():
    "Each answer behind `A:` of four models: agreement in all of them."
    pairs = []
    for row in lines("gsm8k/judged_model_solutions.jsonl"):
        gold = re.split(r"A:|####", row["ground_truth"])[-1].strip()
        for solution in row.values():
            if isinstance(solution, dict):
                said = re.findall(r"A:\s*(.*)", solution["solution"]) or [""]
                ours = score(tagged(said[-1]), gold).correct
                pairs.append((ours, solution["is_correct"]))
    assert counted(pairs) == shown("gsm8k")


def test_published_verdicts_on_logicvista():
    """Letters that were extracted from answers of 14 models: agreement in all of them."""
    pairs = []
    for row in lines("logicvista/judged_outputs.jsonl"):
        gold, said = (", ".join(map(str.upper, ast.literal_eval(row[name])))
            if row[name].startswith("[") else row[name] for name in ("gold", "extracted"))
        if gold.strip():
            pairs.append((score(tagged(said), gold).correct, str(row["match"]).startswith("1")))
    assert counted(pairs) == shown("logicvista")


def test_published_verdicts_on_mathv():
    """Answers of six models, the last box or line. In 6 other answers pass for right there:
    (3^1008 - 1) / 3^1009 for 1/3, any power of a fraction for another, 2018 for the letter of
    2020."""
    pairs = []
    for row in lines("mathv/judged_outputs.jsonl"):
        options = row["options"]
        if [text.strip() for text in options] == list("ABCDE")[:len(options)]:
            options = None # the choices stand in the picture
        said = judge(row["response"], Problem("?", row["answer"]), lenient=True).answer
        ours = score(tagged(said or ""), row["answer"], options or None).correct
        pairs.append((ours, row["correct"]))
    assert counted(pairs) == shown("mathv")


@pytest.mark.parametrize("file", ["direct", "cot"])
def test_published_verdicts_on_mmmu_pro(file):
    "Letters among ten choices; two letters for another's text pass there: E. C, where C is right."
    pairs = []
    for row in lines(f"mmmu_pro/judged_gpt4o_standard10_{file}.jsonl"):
        problem = Problem("?", row["answer"], options=ast.literal_eval(row["options"]),
            tags=dict(rule="mmmu"), answer_is="letter")
        pairs.append((judge(row["response"], problem, lenient=True).correct, row["if_right"]))
    assert counted(pairs) == shown(f"mmmu_pro {file}")
