"""The registry on miniatures of every set, each rule on the cases its own harness defines, and
whatever rows may hold that they should not."""
import json
import os
import random
from pathlib import Path

import pytest

import miniatures
from calibrl.benchmarks import BENCHMARKS, RULES, final_answer, judge, number
from calibrl.eval import copies
from calibrl.eval.readers import choices_in
from calibrl.eval.rules import text_list
from calibrl.tasks import Problem, messages

COPIED = [name for name, benchmark in BENCHMARKS.items() if benchmark.dataset]


@pytest.fixture(scope="session")
def minis(tmp_path_factory):
    import datasets
    datasets.disable_progress_bars()
    return miniatures.make(tmp_path_factory.mktemp("minis"))


@pytest.mark.parametrize("name", COPIED)
def test_every_row_becomes_a_problem_that_its_own_truth_answers(name, minis):
    problems = BENCHMARKS[name](data_dir=minis)
    bad = miniatures.BAD.get(name, [])
    assert len(problems) >= 2
    for i in range(len(problems)):
        if i in bad:
            with pytest.raises(ValueError, match=f"{name}, row {i}: "):
                problems[i]
        else:
            answered_by_its_truth(problems[i])


def answered_by_its_truth(problem):
    "Placeholders and images agree, and the truth wins where it is tagged as an answer."
    messages(problem)
    assert all(image.mode == "RGB" for image in problem.images)
    rule = problem.tags.get("rule")
    truth = text_list(problem.answer)[0] if rule == "mmmu" else problem.answer
    assert judge(f"<think>x</think><answer>{truth}</answer>", problem).correct, problem
    assert not judge(truth, problem).correct, problem
    assert judge(f"The answer is {truth}", problem, lenient=True).correct, problem

    for text in ("none of these at all", "I hope this helps!", "I cannot see the image."):
        assert not judge(f"<think>x</think><answer>{text}</answer>", problem).correct, problem


def test_awkward_rows_keep_their_meaning(minis):
    def get(name, i):
        return BENCHMARKS[name](data_dir=minis)[i]

    # several pictures, and pictures as choices
    assert len(get("geometry3k", 4).images) == 2
    assert get("geometry3k_value", 2).answer == "14.0"
    several = get("mmmu_val", 2)
    assert len(several.images) == several.question.count("<image>") == 3
    assert several.options == ("(image 2)", "(image 3)")

    # choices where there are some, and what the tags keep
    assert get("mathvista_testmini", 2).tags["precision"] == "2.0"
    assert get("mathvista_testmini", 0).options is None
    assert get("mathverse_testmini", 4).options is None
    assert get("mathverse_testmini", 0).options[1] == "45°"
    assert get("mathvision_test", 0).options is None
    assert get("mathvision_test", 2).options[0] == "$1$"
    assert get("wemath_testmini", 3).options is None
    assert get("amc23", 0).answer == "27"

    # the four readings of one problem
    assert get("geoeval", 0).options == ("10", "12", "14")
    drawn_in_words = get("geoeval", 3)
    assert not drawn_in_words.images and "AB = 3" in drawn_in_words.question
    assert get("geoeval_backward", 0).answer == "3" != get("geoeval", 0).answer
    assert get("geoeval_aug", 0).question.startswith("How long")

    # variants of one question, and two splits in one folder
    assert [get("dynamath", i).tags["group"] for i in (0, 9, 10)] == ["0", "0", "1"]
    small, whole = (BENCHMARKS[f"mathvision_{split}"](data_dir=minis)
                    for split in ("testmini", "test"))
    assert len(small) == 2 < len(whole)


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path):
    for name, word in [("geoeval", "on application"), ("mathvista_testmini", "AI4Math/MathVista")]:
        with pytest.raises(FileNotFoundError, match=word) as e:
            BENCHMARKS[name](data_dir=tmp_path)
        assert f"{tmp_path}/{name}" in str(e.value) and "\n" not in str(e.value)
    (tmp_path/"amc23.jsonl").write_text("not json\n")
    for folder, word in ((tmp_path, "amc23"), (tmp_path/"none", "no folder")):
        with pytest.raises(FileNotFoundError, match=word):
            BENCHMARKS["amc23"](data_dir=folder)


def test_a_hostile_row_is_a_named_row(tmp_path):
    rows = [dict(problem="ok", answer="1"),
            dict(problem="<image> with no image", answer="1"),
            dict(problem=None, answer="1"),
            dict(problem="x", answer=None)]
    miniatures.jsonl(tmp_path/"math500.jsonl", rows)
    problems = BENCHMARKS["math500"](data_dir=tmp_path)
    assert problems[0].id == "math500-0" and messages(problems[1])
    for i in (2, 3):
        with pytest.raises(ValueError, match=f"math500, row {i}"):
            problems[i]
    row = dict(question="q", ground_truth="1", image_path="../../../../etc/passwd")
    miniatures.jsonl(tmp_path/"geoqa.jsonl", [row])
    with pytest.raises(ValueError, match="geoqa, row 0"):
        BENCHMARKS["geoqa"](data_dir=tmp_path)[0]


def test_limit_and_slices(minis):
    problems = BENCHMARKS["mathvista_testmini"](limit=4, data_dir=minis)
    assert [p.id for p in problems] == ["1", "2", "3", "4"]
    assert len(problems) == 4
    assert [p.id for p in problems[1:3]] == ["2", "3"]
    assert problems[-1].id == "4"
    with pytest.raises(IndexError):
        problems[4]


# Rules: RULES[name].source is where the cases of each come from

def free(kind, **tags):
    "What a problem with an answer of this kind is made with."
    return dict(tags=dict(question_type="free_form", answer_type=kind, **tags))


def chosen(*options):
    "What a problem with these choices is made with."
    return dict(options=options, tags=dict(question_type="multi_choice"))


# The rule, the answer of the model, the truth, is it right?, and what the problem is made with
CASES = [
    ("nearest", "3 or 4", "3", False, free("integer")),
    ("nearest", "3.0", "3", True, free("integer")),
    ("nearest", "-3", "3", False, free("integer")),
    ("nearest", "3", "3.0", True, free("integer")),
    ("nearest", "0.125", "0.12", True, free("float", precision="2.0")),
    ("nearest", "1/8", "0.12", True, free("float", precision="2.0")),
    ("nearest", "0.13", "0.12", False, free("float", precision="2.0")),
    ("nearest", "[0, 2, 0.0, 1]", "[0, 2, 0, 1]", True, free("list")),
    ("nearest", "(C)", "z", True, chosen("x", "y", "z")),
    ("nearest", "Isoceles", "isosceles", True, chosen("scalene", "isosceles")),
    ("nearest", "B", "A", False, chosen("x", "y")),
    ("two_decimals", "3.14159", r"\pi", True, {}),
    ("two_decimals", "3.15", r"\pi", False, {}),
    ("two_decimals", "(1,2)", "(1,2)", True, {}),
    ("two_decimals", "2,1", "(1,2)", False, {}),
    ("mmmu", "1,234.50", "1234.5", True, {}),
    ("mmmu", "-1234.5", "1234.5", False, {}),
    ("mmmu", "a sonata form", "Sonata", True, {}),
    ("mmmu", "c", "carbon", False, {}),
    ("letters", "ACE", "A, C, E", True, {}),
    ("letters", "E, C, A", "A, C, E", True, {}),
    ("letters", "A and C", "A, C, E", False, {}),
    ("letters", "ABCDE", "A", False, {}),
    ("letters", "(D)", "D", True, {}),
    ("letters", "d", "D", True, {}),
    ("dynamath", "0.3333", "0.333", True, free("float")),
    ("dynamath", "1/3", "0.333", True, free("float")),
    ("dynamath", "0.335", "0.333", False, free("float")),
    ("dynamath", "c", "C", True, free("multiple choice")),
    ("dynamath", "(a)", "A", True, free("multiple choice")),
    ("dynamath", "Odd", "odd", True, free("text")),
    ("dynamath", "odd or even", "odd", False, free("text")),
    ("geoeval", "11.9995", "12", True, {}),
    ("geoeval", "-100", "12", False, {}),
    ("geoeval", "C", "C", True, {}),
    ("value", "x = 5", "5", True, {}),
    ("value", "A", "A", True, {}),
    ("verifier", "4", "D", True, dict(options=("1", "2", "3", "4")))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}:{case[1]}~{case[2]}")
def test_rule(case):
    name, text, truth, right, how = case
    assert RULES[name](text, Problem("?", truth, **how)) is right


def judged_problems():
    "Problems of several kinds of truth, each by every rule."
    kinds = [("B", dict(options=("10", "12", "14"))),
             ("1.5", free("float", precision="1")),
             ("[1, 2]", free("list")),
             ("A, C", {}),
             (r"\frac{1}{2}", {}),
             ("blue", free("text"))]
    return [Problem("?", truth, options=how.get("options"),
                    tags={**how.get("tags", {}), "rule": rule})
            for rule in RULES for truth, how in kinds]


PIECES = [*"AB 1.5,[](){}\\frac$^_-+/<>\"'\n∞√°", "\\boxed{", "<answer>", "</answer>", "or", "\x00",
          "𝟙", "[" * 300, "9" * 500]


def test_no_rule_raises_or_is_fooled_by_noise():
    rng = random.Random(0)
    problems = judged_problems()
    for _ in range(150):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 12)))
        for problem in problems:
            judge(text, problem, lenient=True)
            judge(f"<answer>{text}</answer>", problem)

    # nothing said, and everything said
    for problem in problems:
        for text in (None, 5, "", "<answer></answer>", "<answer> </answer>"):
            assert not judge(text, problem, lenient=True).correct
        everything = judge("<answer>A or B or C or 1.5 or 2</answer>", problem)
        assert not everything.correct or problem.tags["rule"] == "nearest", problem


def test_every_rule_is_sourced_and_every_benchmark_names_a_known_one(minis):
    assert all(rule.source for rule in RULES.values())
    for name, benchmark in BENCHMARKS.items():
        problem = benchmark(2, minis)[0]
        assert problem.tags.get("rule", "verifier") in RULES, name


def test_numbers_and_choices():
    assert number("3.") == 3
    assert number("1e400") is None and number("9"*5000) is None
    assert choices_in("A. 1") == ("A. 1", [])
    assert choices_in("A) 1 B) 2 C) 3")[1] == ["1", "2", "3"]
    assert final_answer(r"\boxed{") == "" == final_answer("x" * 100_000)
    assert final_answer("answer: 5\nanswer: 6") == "6"


# Copies as the authors give them, and copies whose pictures nobody finds

def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def picture(path, n=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    miniatures.draw(n).save(path)


def test_the_authors_own_files_are_asked_with_their_pictures(tmp_path):
    # LogicVista: objects by name
    row = dict(question="Which?", answer="B", skill=["inductive"])
    both = {f"v{n}": row | dict(imagename=f"v{n}.png") for n in (1, 2)}
    write(tmp_path/"logicvista/dataset.json", both)
    for n in (1, 2):
        picture(tmp_path/f"logicvista/images/v{n}.png", n)

    # MathVista: three files, of which one is the set
    row = dict(question="How many?", choices=None, answer="14", question_type="free_form",
               answer_type="integer", image="images/1.jpg", metadata={})
    picture(tmp_path/"mathvista_testmini/images/1.jpg")
    write(tmp_path/"mathvista_testmini/testmini.json", {"1": row})
    write(tmp_path/"mathvista_testmini/annot_testmini.json", {"1": row | dict(answer="15")})
    write(tmp_path/"mathvista_testmini/query.json", {"1": "How many?"})

    # DynaMath: a folder a variant
    for variant in (1, 2, 10):
        row = dict(question=f"What is {variant}/4?", answer=str(variant/4), image="image/a.png",
                   answer_type="float")
        folder = tmp_path/f"dynamath/trial{variant}"
        write(folder/"dataset.json", {"29": row, "41": row})
        picture(folder/"image/a.png", variant)

    for name, answers in (("logicvista", "BB"), ("mathvista_testmini", ["14"]),
                          ("dynamath", ["0.25", "0.5", "2.5"]*2)):
        problems = list(BENCHMARKS[name](data_dir=tmp_path))
        assert [p.answer for p in problems] == list(answers)
        assert all(len(p.images) == 1 for p in problems)
        assert len({p.id for p in problems}) == len(problems)
    dynamath = BENCHMARKS["dynamath"](data_dir=tmp_path)
    assert [p.tags["group"] for p in dynamath] == ["29"]*3 + ["41"]*3
    assert len({p.images[0].tobytes() for p in dynamath}) == 3      # each variant its own picture


def test_which_of_two_files_is_the_set_must_be_told(tmp_path):
    row = dict(question="Which?", answer="B", image=None)
    for name in ("a", "b"):
        write(tmp_path/f"logicvista/{name}.json", dict(v1=row))
    with pytest.raises(FileNotFoundError, match="holds a.json, b.json, and which"):
        BENCHMARKS["logicvista"](data_dir=tmp_path)


def holds_pictures(column):
    return column in ("image", "images", "decoded_image") or column.startswith("image_")


def blind(row):
    "A row without what may hold a picture; its name is now one that nobody expects."
    rest = {column: value for column, value in row.items() if not holds_pictures(column)}
    return rest | dict(scan="x.png")


@pytest.mark.parametrize("name", [name for name in COPIED if "geoeval" not in name])
def test_a_row_that_yields_no_picture_is_unusable_by_name(name, minis, tmp_path):
    benchmark = BENCHMARKS[name]
    rows = copies.load_rows(benchmark, copies.local_copy(benchmark, minis))
    miniatures.jsonl(tmp_path/f"{name}.jsonl", map(blind, rows))
    problems = benchmark(data_dir=tmp_path)
    for i in set(range(len(problems))) - set(miniatures.BAD.get(name, [])):
        if name in ("math500", "amc23"):
            assert problems[i].images == ()
        else:
            why = f"{name}, row {i}: it yields no picture.*, scan$"
            with pytest.raises(ValueError, match=why):
                problems[i]


def test_rows_of_mathverse_that_are_text_only_need_no_picture(tmp_path):
    row = dict(sample_index="1", question="What is x?", answer="3", image="")
    versions = ("Text Only", "text_only", "Text Lite", None)
    write(tmp_path/"mathverse_testmini.json", [row | dict(problem_version=v) for v in versions])
    problems = BENCHMARKS["mathverse_testmini"](data_dir=tmp_path)
    assert [problems[i].images for i in (0, 1)] == [(), ()]
    for i in (2, 3):
        with pytest.raises(ValueError, match="it yields no picture"):
            problems[i]


def test_a_number_that_counts_the_choices_is_no_truth(tmp_path):
    picture(tmp_path/"wemath_testmini/a.png")
    row = dict(key="2steps_1", question="Which?", option="A. 5; B. 6", image_path="a.png")
    rows = [row | dict(ID=str(i), answer=answer) for i, answer in enumerate(("2", "6", "B"))]
    miniatures.jsonl(tmp_path/"wemath_testmini/testmini.jsonl", rows)
    problems = BENCHMARKS["wemath_testmini"](data_dir=tmp_path)
    with pytest.raises(ValueError, match="row 0: its answer 2 is none of its choices"):
        problems[0]
    assert [problems[i].answer for i in (1, 2)] == ["6", "B"]


def test_a_copy_reads_no_file_outside(tmp_path):
    row = dict(question="Which?", answer="B")
    home = tmp_path/"copies/logicvista"
    picture(tmp_path/"secret.png")
    write(tmp_path/"secret.json", dict(v1=row))
    names = ("../../secret.png", str(tmp_path/"secret.png"), "link.png", "secret.png")
    rows = {str(i): row | dict(imagename=name) for i, name in enumerate(names)}
    write(home/"dataset.json", rows)
    (home/"link.png").symlink_to(tmp_path/"secret.png")
    (home/"images").symlink_to(tmp_path, target_is_directory=True)
    problems = BENCHMARKS["logicvista"](data_dir=tmp_path/"copies")
    for i in range(4):
        with pytest.raises(ValueError, match="leaves the folder|is missing"):
            problems[i]

    # the set itself is a link
    (home/"dataset.json").unlink()
    (home/"dataset.json").symlink_to(tmp_path/"secret.json")
    with pytest.raises(FileNotFoundError, match="link that leads out"):
        BENCHMARKS["logicvista"](data_dir=tmp_path/"copies")


def test_rows_of_a_hub_are_given_no_file(tmp_path, monkeypatch):
    import datasets
    picture(tmp_path/"secret.png")
    for value in (str(tmp_path/"secret.png"), dict(bytes=None, path=str(tmp_path/"secret.png"))):
        table = datasets.Dataset.from_list([dict(question="Which?", answer="B", image=value)])
        monkeypatch.setattr(copies, "read_rows", lambda *a, table=table, **k: table)
        with pytest.raises(ValueError, match="logicvista, row 0: .*is not followed"):
            BENCHMARKS["logicvista"]()[0]


REAL = os.environ.get("CALIBRL_REALDATA")
real = pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows")


@real
@pytest.mark.parametrize("name, folder, rows, bad, seen", [
    ("logicvista", "logicvista", 41, 1, 40),
    ("dynamath", "dynamath", 120, 0, 120),
    ("mathvision_test", "mathv", 90, 1, 89),
    ("mathverse_testmini", "mathverse", 130, 0, 0),
    ("math500", "math500", 250, 0, 0),
    ("mmmu_pro_standard", "mmmu_pro", 320, 320, 0)])
def test_real_rows_are_seen_or_unusable_by_name(name, folder, rows, bad, seen, tmp_path):
    (tmp_path/name).symlink_to(Path(REAL)/folder, target_is_directory=True)
    problems = BENCHMARKS[name](data_dir=tmp_path)
    faults = pictures = 0
    for i in range(len(problems)):
        try:
            pictures += len(problems[i].images)
        except ValueError as e:
            assert str(e).startswith(f"{name}, row {i}: ")
            faults += 1
    assert (len(problems), faults, pictures) == (rows, bad, seen)
