"""The registry on miniatures of every set, each rule on the cases its own harness defines, and whatever rows may hold that they should not."""
import json
import random

import pytest

import miniatures
from calibrl import benchmarks as B
from calibrl.benchmarks import BENCHMARKS, RULES, choices_in, final_answer, judge, number
from calibrl.tasks import Problem, messages


@pytest.fixture(scope="session")
def minis(tmp_path_factory):
    import datasets
    datasets.disable_progress_bars()
    return miniatures.make(tmp_path_factory.mktemp("minis"))


@pytest.mark.parametrize("name", [n for n, b in BENCHMARKS.items() if b.dataset])
def test_every_row_becomes_a_problem_that_its_own_truth_answers(name, minis):
    problems, bad = BENCHMARKS[name](data_dir=minis), miniatures.BAD.get(name, [])
    assert len(problems) >= 2
    for i in range(len(problems)):
        if i in bad:
            with pytest.raises(ValueError, match=f"{name}, row {i}: "): problems[i]
            continue
        p = problems[i]
        messages(p)                                                     # placeholders and images agree
        truth = B.text_list(p.answer)[0] if p.tags.get("rule") == "mmmu" else p.answer
        assert judge(f"<think>x</think><answer>{truth}</answer>", p).correct, p
        assert not judge("<think>x</think><answer>none of these at all</answer>", p).correct or p.tags.get("rule") == "nearest", p
        assert not judge(truth, p).correct and judge(f"The answer is {truth}", p, lenient=True).correct, p
        assert all(im.mode == "RGB" for im in p.images)


def test_awkward_rows_keep_their_meaning(minis):
    get = lambda name, i: BENCHMARKS[name](data_dir=minis)[i]
    assert len(get("geometry3k", 4).images) == 2 and get("geometry3k_value", 2).answer == "14.0"
    two = get("mmmu_val", 2)
    assert len(two.images) == 3 and two.options == ("(image 2)", "(image 3)") and two.question.count("<image>") == 3
    assert get("mathvista_testmini", 2).tags["precision"] == "2.0" and get("mathvista_testmini", 0).options is None
    assert get("mathverse_testmini", 4).options is None and get("mathverse_testmini", 0).options[1] == "45°"
    assert get("mathvision_test", 0).options is None and get("mathvision_test", 2).options[0] == "$1$"
    assert get("geoeval", 0).options == ("10", "12", "14") and not get("geoeval", 3).images and "AB = 3" in get("geoeval", 3).question
    assert get("geoeval_backward", 0).answer == "3" != get("geoeval", 0).answer and get("geoeval_aug", 0).question.startswith("How long")
    assert [get("dynamath", i).tags["group"] for i in (0, 9, 10)] == ["0", "0", "1"]
    assert len(BENCHMARKS["mathvision_testmini"](data_dir=minis)) == 2 < len(BENCHMARKS["mathvision_test"](data_dir=minis))     # one folder, two splits
    assert get("amc23", 0).answer == "27" and get("wemath_testmini", 3).options is None


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    for name, word in [("geoeval", "on application"), ("mathvista_testmini", "AI4Math/MathVista")]:
        with pytest.raises(FileNotFoundError, match=word) as e: BENCHMARKS[name](data_dir=tmp_path)
        assert f"{tmp_path}/{name}" in str(e.value) and "\n" not in str(e.value)
    (tmp_path/"amc23.jsonl").write_text("not json\n")
    with pytest.raises(FileNotFoundError, match="amc23"): BENCHMARKS["amc23"](data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"): BENCHMARKS["amc23"](data_dir=tmp_path/"none")


def test_a_hostile_row_is_a_named_row(tmp_path):
    rows = [dict(problem="ok", answer="1"), dict(problem="<image> with no image", answer="1"), dict(problem=None, answer="1"), dict(problem="x", answer=None)]
    (tmp_path/"math500.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    problems = BENCHMARKS["math500"](data_dir=tmp_path)
    assert problems[0].id == "math500-0" and messages(problems[1])
    for i in (2, 3):
        with pytest.raises(ValueError, match=f"math500, row {i}"): problems[i]
    (tmp_path/"geoqa.jsonl").write_text(json.dumps(dict(question="q", ground_truth="1", image_path="../../../../etc/passwd")) + "\n")
    with pytest.raises(ValueError, match="geoqa, row 0"): BENCHMARKS["geoqa"](data_dir=tmp_path)[0]


def test_limit_and_slices(minis):
    problems = BENCHMARKS["mathvista_testmini"](limit=4, data_dir=minis)
    assert len(problems) == 4 and [p.id for p in problems[1:3]] == ["2", "3"] == [p.id for p in problems][1:3] and problems[-1].id == "4"
    with pytest.raises(IndexError): problems[4]


# (rule, answer of the model, truth, right?, arguments of the problem); the source of each rule is RULES[name].source
free = lambda kind, **kw: dict(tags=dict(question_type="free_form", answer_type=kind, **kw))
CASES = [
    ("nearest", "3 or 4", "3", False, free("integer")), ("nearest", "3.0", "3", True, free("integer")), ("nearest", "-3", "3", False, free("integer")), ("nearest", "3", "3.0", True, free("integer")),
    ("nearest", "0.125", "0.12", True, free("float", precision="2.0")), ("nearest", "1/8", "0.12", True, free("float", precision="2.0")), ("nearest", "0.13", "0.12", False, free("float", precision="2.0")),
    ("nearest", "[0, 2, 0.0, 1]", "[0, 2, 0, 1]", True, free("list")), ("nearest", "(C)", "z", True, dict(options=("x", "y", "z"), tags=dict(question_type="multi_choice"))),
    ("nearest", "Isoceles", "isosceles", True, dict(options=("scalene", "isosceles"), tags=dict(question_type="multi_choice"))), ("nearest", "B", "A", False, dict(options=("x", "y"), tags=dict(question_type="multi_choice"))),
    ("two_decimals", "3.14159", r"\pi", True, {}), ("two_decimals", "3.15", r"\pi", False, {}), ("two_decimals", "(1,2)", "(1,2)", True, {}), ("two_decimals", "2,1", "(1,2)", False, {}),
    ("mmmu", "1,234.50", "1234.5", True, {}), ("mmmu", "-1234.5", "1234.5", False, {}), ("mmmu", "a sonata form", "Sonata", True, {}), ("mmmu", "c", "carbon", False, {}),
    ("letters", "ACE", "A, C, E", True, {}), ("letters", "E, C, A", "A, C, E", True, {}), ("letters", "A and C", "A, C, E", False, {}), ("letters", "ABCDE", "A", False, {}), ("letters", "(D)", "D", True, {}), ("letters", "d", "D", True, {}),
    ("dynamath", "0.3333", "0.333", True, free("float")), ("dynamath", "1/3", "0.333", True, free("float")), ("dynamath", "0.335", "0.333", False, free("float")), ("dynamath", "c", "C", False, free("multiple choice")),
    ("dynamath", "(a)", "A", True, free("multiple choice")), ("dynamath", "Odd", "odd", True, free("text")), ("dynamath", "odd or even", "odd", False, free("text")),
    ("geoeval", "11.9995", "12", True, {}), ("geoeval", "-100", "12", False, {}), ("geoeval", "C", "C", True, {}), ("value", "x = 5", "5", True, {}), ("value", "A", "A", True, {}), ("verifier", "4", "D", True, dict(options=("1", "2", "3", "4")))]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}:{c[1]}~{c[2]}")
def test_rule(case):
    name, text, truth, right, kw = case
    assert RULES[name](text, Problem("?", truth, **kw)) is right


def test_no_rule_raises_or_is_fooled_by_noise():
    rng, problems = random.Random(0), []
    for name in RULES:
        for truth, kw in [("B", dict(options=("10", "12", "14"))), ("1.5", free("float", precision="1")), ("[1, 2]", free("list")), ("A, C", {}), (r"\frac{1}{2}", {}), ("blue", free("text"))]:
            tags = {**kw.get("tags", {}), "rule": name}
            problems.append(Problem("?", truth, options=kw.get("options"), tags=tags))
    alphabet = list("AB 1.5,[](){}\\frac$^_-+/<>\"'\n∞√°") + ["\\boxed{", "<answer>", "</answer>", "or", "\x00", "𝟙", "[" * 300, "9" * 500]
    for _ in range(150):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 12)))
        for p in problems:
            judge(text, p, lenient=True); judge(f"<answer>{text}</answer>", p)
    for p in problems:
        for text in (None, 5, "", "<answer></answer>", "<answer> </answer>"): assert not judge(text, p, lenient=True).correct
        if p.tags["rule"] not in ("nearest",): assert not judge("<answer>A or B or C or 1.5 or 2</answer>", p).correct, p


def test_every_rule_is_sourced_and_every_benchmark_names_a_known_one(minis):
    assert all(f.source for f in RULES.values())
    for name, b in BENCHMARKS.items():
        p = b(2, minis)[0]
        assert p.tags.get("rule", "verifier") in RULES, name


def test_numbers_and_choices():
    assert number("3.") == 3 and number("1e400") is None and number("9"*5000) is None
    assert choices_in("A. 1") == ("A. 1", []) and choices_in("A) 1 B) 2 C) 3")[1] == ["1", "2", "3"]
    assert final_answer(r"\boxed{") == "" and final_answer("x" * 100_000) == "" and final_answer("answer: 5\nanswer: 6") == "6"
