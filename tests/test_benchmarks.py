"""The registry on miniatures of every set, each rule on the cases its own harness defines, and whatever rows may hold that they should not."""
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
        truth = text_list(p.answer)[0] if p.tags.get("rule") == "mmmu" else p.answer
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
    ("dynamath", "0.3333", "0.333", True, free("float")), ("dynamath", "1/3", "0.333", True, free("float")), ("dynamath", "0.335", "0.333", False, free("float")), ("dynamath", "c", "C", True, free("multiple choice")),
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


# Copies as the authors give them, and copies whose pictures nobody finds

def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def picture(path, n=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    miniatures.draw(n).save(path)


def test_the_authors_own_files_are_asked_with_their_pictures(tmp_path):
    row = dict(question="Which?", answer="B", skill=["inductive"])
    both = {f"v{n}": row | dict(imagename=f"v{n}.png") for n in (1, 2)}
    write(tmp_path/"logicvista/dataset.json", both)
    for n in (1, 2): picture(tmp_path/f"logicvista/images/v{n}.png", n)
    row = dict(question="How many?", choices=None, answer="14", question_type="free_form",
               answer_type="integer", image="images/1.jpg", metadata={})
    picture(tmp_path/"mathvista_testmini/images/1.jpg")
    write(tmp_path/"mathvista_testmini/testmini.json", {"1": row})
    write(tmp_path/"mathvista_testmini/annot_testmini.json", {"1": row | dict(answer="15")})
    write(tmp_path/"mathvista_testmini/query.json", {"1": "How many?"})
    for v in (1, 2, 10):
        row = dict(question=f"What is {v}/4?", answer=str(v/4), image="image/a.png")
        row["answer_type"] = "float"
        write(tmp_path/f"dynamath/trial{v}/dataset.json", {"29": row, "41": row})
        picture(tmp_path/f"dynamath/trial{v}/image/a.png", v)
    for name, answers in (("logicvista", "BB"), ("mathvista_testmini", ["14"]),
                          ("dynamath", ["0.25", "0.5", "2.5"]*2)):
        problems = list(BENCHMARKS[name](data_dir=tmp_path))
        assert [p.answer for p in problems] == list(answers)
        assert all(len(p.images) == 1 for p in problems)
        assert len({p.id for p in problems}) == len(problems)
    dyna = BENCHMARKS["dynamath"](data_dir=tmp_path)
    assert [p.tags["group"] for p in dyna] == ["29"]*3 + ["41"]*3
    assert len({p.images[0].tobytes() for p in dyna}) == 3          # each variant its own picture


def test_which_of_two_files_is_the_set_must_be_told(tmp_path):
    row = dict(question="Which?", answer="B", image=None)
    for name in ("a", "b"): write(tmp_path/f"logicvista/{name}.json", dict(v1=row))
    with pytest.raises(FileNotFoundError, match="holds a.json, b.json, and which"):
        BENCHMARKS["logicvista"](data_dir=tmp_path)


def blind(rows):
    "Rows without what may hold a picture; its name is now one that nobody expects."
    held = lambda k: k in ("image", "images", "decoded_image") or k.startswith("image_")
    return [{k: v for k, v in r.items() if not held(k)} | dict(scan="x.png") for r in rows]


@pytest.mark.parametrize("name", [n for n, b in BENCHMARKS.items()
                                  if b.dataset and "geoeval" not in n])
def test_a_row_that_yields_no_picture_is_unusable_by_name(name, minis, tmp_path):
    b = BENCHMARKS[name]
    rows = copies.load_rows(b, copies.local_copy(b, minis))
    miniatures.jsonl(tmp_path/f"{name}.jsonl", blind(rows))
    problems, bad = b(data_dir=tmp_path), miniatures.BAD.get(name, [])
    for i in set(range(len(problems))) - set(bad):
        if name in ("math500", "amc23"): assert problems[i].images == ()
        else:
            why = f"{name}, row {i}: it yields no picture.*, scan$"
            with pytest.raises(ValueError, match=why): problems[i]


def test_rows_of_mathverse_that_are_text_only_need_no_picture(tmp_path):
    row = dict(sample_index="1", question="What is x?", answer="3", image="")
    versions = ("Text Only", "text_only", "Text Lite", None)
    write(tmp_path/"mathverse_testmini.json", [row | dict(problem_version=v) for v in versions])
    problems = BENCHMARKS["mathverse_testmini"](data_dir=tmp_path)
    assert [problems[i].images for i in (0, 1)] == [(), ()]
    for i in (2, 3):
        with pytest.raises(ValueError, match="it yields no picture"): problems[i]


def test_a_number_that_counts_the_choices_is_no_truth(tmp_path):
    picture(tmp_path/"wemath_testmini/a.png")
    row = dict(key="2steps_1", question="Which?", option="A. 5; B. 6", image_path="a.png")
    rows = [row | dict(ID=str(i), answer=a) for i, a in enumerate(("2", "6", "B"))]
    miniatures.jsonl(tmp_path/"wemath_testmini/testmini.jsonl", rows)
    problems = BENCHMARKS["wemath_testmini"](data_dir=tmp_path)
    with pytest.raises(ValueError, match="row 0: its answer 2 is none of its choices"): problems[0]
    assert [problems[i].answer for i in (1, 2)] == ["6", "B"]


def test_a_copy_reads_no_file_outside(tmp_path):
    row, home = dict(question="Which?", answer="B"), tmp_path/"copies/logicvista"
    picture(tmp_path/"secret.png")
    write(tmp_path/"secret.json", dict(v1=row))
    names = ("../../secret.png", str(tmp_path/"secret.png"), "link.png", "secret.png")
    write(home/"dataset.json", {str(i): row | dict(imagename=n) for i, n in enumerate(names)})
    (home/"link.png").symlink_to(tmp_path/"secret.png")
    (home/"images").symlink_to(tmp_path, target_is_directory=True)
    problems = BENCHMARKS["logicvista"](data_dir=tmp_path/"copies")
    for i in range(4):
        with pytest.raises(ValueError, match="leaves the folder|is missing"): problems[i]
    (home/"dataset.json").unlink()
    (home/"dataset.json").symlink_to(tmp_path/"secret.json")
    with pytest.raises(FileNotFoundError, match="link that leads out"):
        BENCHMARKS["logicvista"](data_dir=tmp_path/"copies")


def test_rows_of_a_hub_are_given_no_file(tmp_path, monkeypatch):
    import datasets
    picture(tmp_path/"secret.png")
    for cell in (str(tmp_path/"secret.png"), dict(bytes=None, path=str(tmp_path/"secret.png"))):
        table = datasets.Dataset.from_list([dict(question="Which?", answer="B", image=cell)])
        monkeypatch.setattr(copies, "read_rows", lambda *a, **k: table)
        with pytest.raises(ValueError, match="logicvista, row 0: .*is not followed"):
            BENCHMARKS["logicvista"]()[0]


REAL = os.environ.get("CALIBRL_REALDATA")
real = pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows")


@real
@pytest.mark.parametrize("name, folder, rows, bad, seen", [
    ("logicvista", "logicvista", 41, 1, 40), ("dynamath", "dynamath", 120, 0, 120),
    ("mathvision_test", "mathv", 90, 1, 89), ("mathverse_testmini", "mathverse", 130, 0, 0),
    ("math500", "math500", 250, 0, 0), ("mmmu_pro_standard", "mmmu_pro", 320, 320, 0)])
def test_real_rows_are_seen_or_unusable_by_name(name, folder, rows, bad, seen, tmp_path):
    (tmp_path/name).symlink_to(Path(REAL)/folder, target_is_directory=True)
    problems, faults, pictures = BENCHMARKS[name](data_dir=tmp_path), 0, 0
    for i in range(len(problems)):
        try: pictures += len(problems[i].images)
        except ValueError as e:
            assert str(e).startswith(f"{name}, row {i}: ")
            faults += 1
    assert (len(problems), faults, pictures) == (rows, bad, seen)
