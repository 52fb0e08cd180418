"""A test set's rows are somebody else's: whatever a cell holds, the row is a problem or one line,
and no answer to it ends the evaluation."""
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import miniatures
from calibrl.benchmarks import BENCHMARKS, judge
from calibrl.data import load_problems

COPIED = [name for name, benchmark in BENCHMARKS.items() if benchmark.dataset]
DEEP = "[" * 3000 + "]" * 3000
WRONG = (None, "", " ", "x", "0", "-1", "9" * 5000, 0, -1, 10**40, True, math.nan, math.inf,
         1e308, [], [None], [[]], ["a", 1], {}, {"a": None}, b"\x89PNG", b"", "[" + "'a'," * 10000,
         DEEP, "{'x': " * 500, "a\u2028b", "<image>" * 9, "<image 99>", "\x00", "\ud800",
         "../../etc/passwd", "https://example.org/x.png", "data:image/png;base64,AAAA",
         {"precision": math.inf}, {"precision": "x"}, {"answer_type": []})
ANSWERS = ("", "<answer></answer>", "<think>x</think><answer>A</answer>", "(" * 2000, "9" * 5000,
           "<think>x</think><answer>" + "[" * 2000 + "</answer>", "A", "3.14", "\ud800", "nan",
           "<answer>1e999</answer>", "<answer>\\frac{1}{0}</answer>")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "The rows of a small copy of each set."
    import datasets
    datasets.disable_progress_bars()
    minis = miniatures.make(tmp_path_factory.mktemp("minis"))
    return {name: BENCHMARKS[name](data_dir=minis) for name in COPIED}


@settings(max_examples=1000, deadline=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
@given(st.sampled_from(COPIED), st.randoms(use_true_random=False), st.sampled_from(WRONG),
       st.sampled_from(ANSWERS), st.booleans())
def test_a_wrong_cell_makes_a_problem_or_one_line(sets, name, chance, value, answer, lenient):
    problems = sets[name]
    row = dict(problems.rows[chance.randrange(len(problems.rows))])
    row[chance.choice(sorted(row))] = value
    changed = type(problems)(name, [row], problems.make, problems.root, None, problems.pictured)
    try:
        problem = changed[0]
    except ValueError as error:
        said = str(error)
        assert said.startswith(f"{name}, row 0: ") and "\n" not in said and len(said) < 450
        return
    verdict = judge(answer, problem, lenient=lenient)
    assert verdict.correct in (True, False)


def as_text(value):
    "A value as a JSON line may hold it."
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def test_a_training_file_of_wrong_cells_is_read_to_its_end(tmp_path):
    import json
    chance = random.Random(0)
    rows = []
    for _ in range(1000):
        row = {"question": "What is 2 + 2?", "answer": "4", "solution": "2 + 2 = 4",
               "choices": ["3", "4"]}
        row[chance.choice(sorted(row))] = as_text(chance.choice(WRONG))
        rows.append(row)
    file = tmp_path/"rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    # rows of many kinds, read as they come
    problems = load_problems(file, map="question=question,answer=answer,expert=solution,"
                                       "options=choices")
    assert problems.counts["rows"] == 1000 == len(problems) + len(problems.skipped)
    assert 0 < len(problems) < 1000
    for row in problems.skipped:
        assert row["reason"] and "\n" not in row["reason"] and len(row["reason"]) < 400
