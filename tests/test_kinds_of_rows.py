"""Every kind of row that real sets hold, in small rows of our own: what it is read as, or the
reason why it is refused. Nothing is read wrongly in silence."""
import base64
import io
import json
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from calibrl.benchmarks import BENCHMARKS
from calibrl.cli import main, make_parser, of_kind
from calibrl.config import Config
from calibrl.data import as_images, load_problems
from calibrl.data.golds import earns
from calibrl.eval.answers import grade
from calibrl.eval.tables import benchmark_metrics
from calibrl.runs.folder import RunSpec
from calibrl.runs.start import training_problems
from calibrl.tasks import INSTRUCTION, messages

pytestmark = pytest.mark.usefixtures("table_cache")


def problems_of(*rows, **how):
    "Problems of some rows, as a training run reads them; each gold is accepted as its own answer."
    found = load_problems(datasets.Dataset.from_list(list(rows)), **how)
    assert all(earns(p.answer, p.answer, p.options) for p in found)
    return found


def reason(row, good=None, **how):
    "Why a row is left out that stands beside a good one of the same kind."
    good = good or {"question": "How long?", "answer": "4"}
    found = problems_of(good, row, **how)
    assert len(found) == 1
    return found.skipped[0]["reason"]


def encoded(image, kind="PNG"):
    "The bytes of a picture's file."
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def encoded64():
    "A picture of six by six pixels in base64."
    return base64.b64encode(encoded(Image.new("RGB", (6, 6)))).decode()


# Pictures

def grey_at(image, place=(0, 0)):
    "The grey of a pixel of a picture, once it has been through a file and a cell."
    kind = "TIFF" if image.mode == "F" else "PNG"
    shown, = as_images(encoded(image, kind))
    red, green, blue = shown.getpixel(place)
    assert red == green == blue
    return red


@pytest.mark.parametrize("values, greys", [
    (np.array([[0, .5, 1]], "float32"), [0, 128, 255]),
    (np.array([[0, 128, 255]], "float32"), [0, 128, 255]),
    (np.array([[-1, 0, 1]], "float32"), [0, 128, 255]),
    (np.array([[0, 1e6, 2e6]], "float32"), [0, 128, 255]),
    (np.array([[0, np.nan, 1]], "float32"), [0, 0, 255]),
    (np.array([[0, np.inf, 1]], "float32"), [0, 255, 255]),
    (np.array([[0, 128, 255]], "int32"), [0, 128, 255]),
    (np.array([[0, 32768, 65535]], "int32"), [0, 128, 255]),
    (np.array([[0, 128, 255]], "uint16"), [0, 128, 255]),
    (np.array([[0, 2048, 4095]], "uint16"), [0, 128, 255]),
    (np.array([[0, 32768, 65535]], "uint16"), [0, 128, 255]),
    (np.array([[0, 0, 1]], "uint16"), [0, 0, 255]),
    (np.array([[0, 0, 0]], "uint16"), [0, 0, 0])], ids=str)
def test_a_picture_in_deep_grey_goes_from_black_to_white(values, greys):
    image = Image.fromarray(values)
    assert [grey_at(image, (i, 0)) for i in range(3)] == greys


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_small_picture_in_base64_is_no_path(kind):
    stored = encoded(Image.new("RGB", (6, 6), "white"), kind)
    text = base64.b64encode(stored).decode()
    lines = base64.encodebytes(stored).decode()
    for spelled in (text, lines, text.rstrip("="), f"data:image/x;base64,{text}"):
        assert as_images(spelled)[0].size == (6, 6)
    row = {"question": "How long?", "answer": "4", "image": text}
    assert problems_of(row)[0].images[0].size == (6, 6)


def test_a_path_is_still_a_path(tmp_path):
    name = "iVBORw0KGgo.png"
    (tmp_path/name).write_bytes(encoded(Image.new("RGB", (5, 5))))
    assert as_images(name, tmp_path)[0].size == (5, 5)
    assert len(as_images(f"['{name}', '{name}']", tmp_path)) == 2
    with pytest.raises(ValueError, match="is missing"):
        as_images("a/very/long/path/of/a/picture/that/is/not/there", tmp_path)


# Answers

@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_a_gold_that_is_infinite_is_refused_in_plain_words(value, tmp_path):
    row = {"question": "How long?", "answer": value}
    good = {"question": "How long?", "answer": 4.5}
    assert reason(row, good) == "no answer: it is infinite"
    written = '{"question": "How long?", "answer": 4}\n{"question": "How long?", "answer": 1e999}\n'
    (tmp_path/"a.jsonl").write_text(written)
    assert load_problems(tmp_path/"a.jsonl").skipped[0]["reason"] == "no answer: it is infinite"
    choices = {"question": "Which?", "choices": [1.5, value], "answer": "A"}
    good = choices | {"choices": [1.5, 2.5]}
    assert reason(choices, good) == "bad options: one of them is no number"


LONG = "We add the numbers one after the other and look at what is left. "*6


@pytest.mark.parametrize("solution, answer", [
    ("So 2x = 8.\nThe answer is 4.", "4"),
    (LONG + "The answer is: $\\frac{1}{2}$", "$\\frac{1}{2}$"),
    (LONG + "\nThe final answer is $4$. I hope it is correct.", "$4$"),
    ("10% of 250 = 25\nAnswer : C", "C"),
    ("Hence the correct answer is (D).", "(D)"),
    ("ANSWER:E", "E"),
    ("It turns twice. The answer is yes.", "yes"),
    ("x + 1 = 5, so the correct option is B", "B"),
    ("由勾股定理，故答案为：12厘米。", "12厘米"),
    ("所以角相等，故选：B．", "B")])
def test_a_solution_is_reduced_to_what_it_says_is_its_answer(solution, answer):
    found = problems_of({"problem": "How much?", "solution": solution}, on_bad="fail")
    assert found[0].answer == answer
    assert found[0].expert.endswith(f"<answer>{answer}</answer>")
    assert found.counts["verified"] == 1


@pytest.mark.parametrize("solution", [
    LONG, "The answer is 4 or 5.", "The answer is not 4.", "The answer is clear.",
    "The answer is 4.\nWait, we must check that.",
    "The answer is in the table of 12 rows above it.",
    "The answer is 3.\nNo: twice as much.\nThe answer is 6."])
def test_a_solution_that_does_not_say_one_answer_is_refused(solution):
    good = {"problem": "How much?", "solution": "The answer is 24."}
    said = reason({"problem": "How much?", "solution": solution}, good)
    assert said.startswith("no answer: ")


@pytest.mark.parametrize("value, answer", [
    ("['24/7']", "24/7"), (["24/7"], "24/7"), ("[0, 2)", "[0, 2)"),
    ("[2007, 2008]", "[2007, 2008]"),
    (["A", "C"], "A, C"), ("['A', 'C']", "A, C"), ('["B"]', "B")])
def test_a_gold_that_is_a_list_is_what_it_lists(value, answer):
    choices = {"choices": list("wxyz")} if set(answer) & set("ABC") else {}
    found = problems_of({"question": "Which?", "answer": value} | choices, on_bad="fail")
    assert found[0].answer == answer


@pytest.mark.parametrize("value", ["['24/7', '3.429']", ["24/7", "3.429"], "nan", " nan "])
def test_a_gold_of_several_answers_or_of_none_is_refused(value):
    good = {"question": "Which?", "answer": ["4"] if isinstance(value, list) else "4"}
    said = reason(good | {"answer": value}, good)
    assert said in ("no answer: it lists several: 24/7, 3.429", "no answer")


def test_a_truth_of_several_answers_stays_one_in_a_set_whose_rule_knows_them(tmp_path):
    row = {"id": "x_1", "question": "How often, in <image 1>?", "options": "[]",
           "image_1": encoded64(), "question_type": "open", "answer": "['24/7', '3.429']"}
    write(tmp_path/"mmmu_val/validation.jsonl", row)
    problem, = benchmark("mmmu_val", tmp_path)
    assert problem.answer == row["answer"]


# Conversations

def talk(*said, names=("role", "content"), people=("user", "assistant")):
    "A conversation in which two people take turns."
    who, what = names
    return [{who: people[i % 2], what: text} for i, text in enumerate(said)]


SHAREGPT = {"names": ("from", "value"), "people": ("human", "gpt")}


@pytest.mark.parametrize("column, how", [("conversations", SHAREGPT), ("messages", {})])
def test_the_assistants_turn_is_expert_and_answer(column, how):
    asked = "<image>\nHow long is it?"
    picture = encoded(Image.new("RGB", (30, 30)))
    row = {"image": picture, column: talk(asked, "2 + 2 is 4, so \\boxed{4}.", **how)}
    found = problems_of(row, on_bad="fail")
    assert (found[0].question, found[0].answer) == (asked, "4")
    assert found[0].expert == "<think>2 + 2 is 4, so \\boxed{4}.</think><answer>4</answer>"
    assert found.counts["pictured"] == found.counts["verified"] == 1
    assert found.fields["answer"] == found.fields["expert"] == column


def test_a_turn_that_is_the_answer_alone_is_no_expert():
    found = problems_of({"messages": talk("Is it long?", "Yes")})
    assert (found[0].answer, found[0].expert) == ("Yes", None)


def test_an_answer_of_its_own_stands_beside_a_conversation():
    said = talk("How long?", "<think>2+2</think><answer>4</answer>")
    found = problems_of({"messages": said, "answer": "4"})
    assert found[0].expert == "<think>2+2</think><answer>4</answer>"
    system = [{"role": "system", "content": "Be brief."}]
    found = problems_of({"messages": system + said, "answer": "4"})
    assert found[0].question == "How long?"
    assert found.counts["system"] == 1


@pytest.mark.parametrize("said, why", [
    (["How long?"], "no answer"),
    (["How long?", "It is hard to say, since nothing is given."], "no answer: it is a worked"),
    (["How long?", "4", "And wide?", "5"], "no question: its turns are user, assistant, user"),
    (["", "4"], "no question: it is empty")])
def test_a_conversation_that_is_not_one_question_and_answer_is_refused(said, why):
    good = {"messages": talk("How long?", "The answer is 4.")}
    assert reason({"messages": talk(*said)}, good).startswith(why)


def test_a_question_alone_is_no_expert():
    row = {"question": "How long?", "answer": "4", "expert": talk("How long is the side?")}
    found = problems_of(row)
    assert found[0].expert is None


# Columns

def wins(problem):
    "The letters that earn a reward."
    letters = [chr(65 + i) for i in range(len(problem.options))]
    return "".join(letter for letter in letters if earns(letter, problem.answer, problem.options))


@pytest.mark.parametrize("question, answer", [
    ("Question", "Answer"), ("QUESTION", "ANSWER"), ("Problem", "Final Answer"),
    ("problem", "answer_key"), ("Prompt", "groundTruth")])
def test_a_columns_name_counts_whatever_its_case(question, answer):
    found = problems_of({question: "How long?", answer: "4", "Level": 3}, on_bad="fail")
    assert (found[0].question, found[0].answer) == ("How long?", "4")
    assert found[0].tags == {"level": "3"}


def test_columns_that_differ_in_case_only_are_told_apart_by_you():
    row = {"question": "How long?", "answer": "4", "Answer": "5"}
    with pytest.raises(ValueError, match="'answer' and 'Answer' differ in case only.*answer=NAME"):
        problems_of(row)
    assert problems_of(row, map="answer=Answer")[0].answer == "5"
    row = {"QUESTION": "How long?", "Question": "How wide?", "answer": "4"}
    with pytest.raises(ValueError, match="'QUESTION' and 'Question' differ in case only"):
        problems_of(row)


BODY = "Dave used 12 tickets and has 14 left"


@pytest.mark.parametrize("columns", [
    {"Body": BODY, "Question": "How many had he?"},
    {"body": BODY, "question": "How many had he?"},
    {"hint": BODY, "question": "How many had he?"},
    {"context": BODY, "problem": "How many had he?"},
    {"Body": f" {BODY} ", "Question": f"{BODY}\nHow many had he?"}])
def test_what_a_question_needs_stands_before_it(columns):
    found = problems_of(columns | {"Answer": "26 (tickets)"}, on_bad="fail")
    assert found[0].question == f"{BODY}\nHow many had he?"
    assert earns("26", found[0].answer, None)


@pytest.mark.parametrize("empty", [None, "", " ", "nan"])
def test_a_question_that_needs_nothing_stands_alone(empty):
    rows = [{"hint": hint, "question": "How?", "answer": "4"} for hint in (empty, BODY)]
    assert problems_of(*rows)[0].question == "How?"


@pytest.mark.parametrize("numbers", ["18.0 10.0", "18 10", [18, 10], "[18, 10]"])
def test_numbers_of_their_own_column_stand_in_the_question(numbers):
    row = {"Question": "He has number0 and gives number1 , how many ?", "Numbers": numbers}
    found = problems_of(row | {"Answer": 8.0}, on_bad="fail")
    assert found[0].question == "He has 18 and gives 10 , how many ?"
    assert found[0].answer == "8"


@pytest.mark.parametrize("row", [
    {"question": "He has number0 , how many ?", "answer": 8},
    {"question": "He has number1 , how many ?", "answer": 8, "numbers": "18"},
    {"question": "He has number0 , how many ?", "answer": 8, "numbers": None}])
def test_a_question_without_its_numbers_is_refused(row):
    good = row | {"question": "How many?"}
    assert "and there is no number for it" in reason(row, good)


# Choices

def test_a_column_a_letter_is_a_choice():
    row = {"question": "Which?", "A": "red", "B": "green", "C": "blue", "D": None, "answer": "C"}
    found = problems_of(row, row | {"D": "white", "answer": "D"}, row | {"C": "", "answer": "B"})
    assert [p.options[-1] for p in found] == ["blue", "white", "green"]
    assert [wins(p) for p in found] == ["C", "D", "B"]
    assert found.fields["options"] == "A+B+C+D"
    assert reason(row | {"B": ""}, row) == "bad options: one of them is empty"
    assert problems_of(row, map="options=A+B+C")[0].options == ("red", "green", "blue")


def test_a_table_as_an_evaluation_kit_has_it(tmp_path):
    picture = base64.b64encode(encoded(Image.new("RGB", (6, 6)))).decode()
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    rows = [["1", "Which?", "nan", "red", "green", "nan", "nan", "B", "colour", picture],
            ["2", "Which?", "It is wet.", "a", "b", "c", "d", "D", "thing", picture],
            ["3", "How many?", "", "", "", "", "", "4", "thing", picture]]
    text = "\n".join("\t".join(row) for row in [head, *rows])
    (tmp_path/"set.tsv").write_text(text + "\n")
    found = load_problems(tmp_path/"set.tsv", on_bad="fail")
    assert [p.options for p in found] == [("red", "green"), tuple("abcd"), None]
    assert [p.question for p in found] == ["Which?", "It is wet.\nWhich?", "How many?"]
    assert [p.answer for p in found] == ["B", "D", "4"]
    assert found.counts["pictured"] == 3


@pytest.mark.parametrize("names", [
    ["option_a", "option_b", "option_c"], ["optionA", "optionB", "optionC"],
    ["Option A", "Option B", "Option C"], ["opa", "opb", "opc"],
    ["choice_a", "choice_b", "choice_c"], ["option1", "option2", "option3"],
    ["choice_0", "choice_1", "choice_2"]])
def test_columns_of_choices_go_by_several_names(names):
    row = dict(zip(names, ["red", "green", "blue"], strict=True))
    found = problems_of(row | {"question": "Which?", "answer": "green"}, on_bad="fail")
    assert found[0].options == ("red", "green", "blue")
    assert wins(found[0]) == "B"


def test_places_count_columns_of_choices():
    row = {"question": "Which?", "opa": "red", "opb": "green", "opc": "blue"}
    found = problems_of(row | {"label": 0}, row | {"label": 2}, on_bad="fail")
    assert [wins(p) for p in found] == ["A", "C"]


@pytest.mark.parametrize("choices", [
    {"text": ["red", "green"], "label": ["A", "B"]},
    {"text": ["red", "green"], "label": ["1", "2"]},
    [{"text": "red", "label": "1"}, {"text": "green", "label": "2"}],
    [{"key": "A", "value": "red"}, {"key": "B", "value": "green"}],
    '{"A": "red", "B": "green"}', {"1": "red", "2": "green"}])
def test_choices_with_labels_are_read(choices):
    label = "2" if "2" in str(choices) else "B"
    found = problems_of({"question": "Which?", "choices": choices, "answerKey": label})
    assert found[0].options == ("red", "green")
    assert wins(found[0]) == "B"


def test_a_question_that_is_a_record_holds_its_choices():
    choices = [{"text": "red", "label": "A"}, {"text": "green", "label": "B"}]
    row = {"question": {"stem": "Which?", "choices": choices}, "answerKey": "B", "id": "x1"}
    found = problems_of(row, on_bad="fail")
    assert (found[0].question, found[0].options) == ("Which?", ("red", "green"))
    assert wins(found[0]) == "B"


@pytest.mark.parametrize("choices", [
    "A. 5; B. 6.5; C. No correct answer", "(A) 5 (B) 6.5 (C) No correct answer",
    "A: 5\nB: 6.5\nC: No correct answer", "Choices: A) 5 B) 6.5 C) No correct answer"])
def test_choices_in_one_text_are_told_apart(choices):
    row = {"question": "Which?", "option": choices, "answer": "B"}
    found = problems_of(row, on_bad="fail")
    assert found[0].options == ("5", "6.5", "No correct answer")
    assert wins(found[0]) == "B"


@pytest.mark.parametrize("choices, why", [
    ("see the picture", "they are str, not a list"), ("B. 5; C. 6", "they are str, not a list"),
    (["a.png", "b.png"], "they are pictures, as 'a.png'"),
    ([{"word": "red"}, {"word": "green"}], "they are not texts")])
def test_choices_that_cannot_be_read_are_refused(choices, why):
    with pytest.raises(ValueError, match=f"bad options: {why}"):
        problems_of({"question": "Which?", "option": choices, "answer": "B"})


# Where pictures stand

def pictures_of(count):
    "Pictures that differ in width: 31, 32, ..."
    return [{"bytes": encoded(Image.new("RGB", (31 + i, 30))), "path": None} for i in range(count)]


def shown(problem):
    "The prompt as text, with the width of each picture at its place, and the choices."
    content = messages(problem, "")[0]["content"]
    parts = [f"[{part['image'].width}]" if part["type"] == "image" else part["text"]
             for part in content]
    return "".join(parts)


@pytest.mark.parametrize("question, choices, prompt", [
    ("Is <image 1> like <image 2>?", None, "Is[31]like[32]?"),
    ("Is <image_2> like <image1>?", None, "Is (image 2:)[32]like (image 1:)[31]?"),
    ("Is <image 1> like <image 2>, as <image 1> is?", None,
     "Is (image 1:)[31]like (image 2:)[32], as (image 1) is?"),
    ("Which is like <image 1>?", ["<image 2>", "none"],
     "Which is like (image 1:)[31]?\n(image 2:)[32]\nA. (image 2)\nB. none"),
    ("Which is red?", ["<image 2>", "<image 1>"],
     "Which is red?\n(image 2:)[32](image 1:)[31]\nA. (image 2)\nB. (image 1)"),
    ("Which is red?", ["<image>", "<image>"],
     "Which is red?\n(image 1:)[31](image 2:)[32]\nA. (image 1)\nB. (image 2)"),
    ("Which is like <image>?", ["<image>", "none"],
     "Which is like (image 1:)[31]?\n(image 2:)[32]\nA. (image 2)\nB. none"),
    ("Which?", None, "[31][32]Which?")])
def test_each_picture_stands_where_it_is_named(question, choices, prompt):
    row = {"question": question, "images": pictures_of(2), "answer": "4"}
    if choices:
        row |= {"choices": choices, "answer": "A"}
    found = problems_of(row, on_bad="fail")
    assert shown(found[0]) == prompt


def test_numbered_columns_are_the_pictures():
    one, two, three = pictures_of(3)
    row = {"question": "Is <image 3> like <image 1>?", "image_1": one, "image_2": None,
           "image_3": three, "image_4": None, "answer": "yes"}
    table = datasets.Dataset.from_list([row, row | {"image_2": two}, row | {"image_3": None}])
    found = load_problems(table)
    assert shown(found[0]) == "Is (image 3:)[33]like (image 1:)[31]?"
    assert [skip["reason"] for skip in found.skipped] == [
        "image tokens: picture 2 is named nowhere, but others are",
        "image tokens: <image 3> is named but there is no picture of that number"]


def test_a_gold_that_is_a_picture_among_the_choices_is_its_letter():
    row = {"question": "Which?", "images": pictures_of(2), "choices": ["<image 1>", "<image 2>"]}
    found = problems_of(row | {"answer": "<image 2>"}, on_bad="fail")
    assert wins(found[0]) == "B"


@pytest.mark.parametrize("question, choices, why", [
    ("Is it <image 3>?", None, "<image 3> is named but there is no picture of that number"),
    ("Is it <image 1>?", None, "picture 2 is named nowhere, but others are"),
    ("Which?", ["<image>", "<image>", "<image>"], "<image 3> is named but there is no picture"),
    ("Is it <image>?", None, "1 <image> in the question but 2 pictures")])
def test_pictures_and_names_that_do_not_agree_are_refused(question, choices, why):
    good = {"question": "Which?", "images": pictures_of(2), "answer": "A", "choices": ["x", "y"]}
    said = reason(good | {"question": question, "choices": choices or ["x", "y"]}, good)
    assert said.startswith(f"image tokens: {why}")


# Folders

def write(path, *rows, indent=None):
    "Rows as JSON Lines, or one value as JSON."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows[0], indent=indent))


ROW = {"question": "How long?", "answer": "4"}
OTHER = {"id": "v1", "model": "some", "raw": "B", "match": True}


@pytest.mark.parametrize("other", ["a.jsonl", "a.json", "zz.jsonl", "b/outputs.jsonl", "a.csv"])
@pytest.mark.parametrize("own", ["dataset.json", "m.jsonl", "data/test.jsonl", "table.csv"])
def test_the_file_that_holds_problems_is_read_whatever_lies_beside_it(tmp_path, own, other):
    if other.endswith(".csv"):
        (tmp_path/other).write_text("id,model,raw\nv1,some,B\n")
    else:
        write(tmp_path/other, {"v1": OTHER} if other.endswith("json") else OTHER)
    if own.endswith(".csv"):
        (tmp_path/own).write_text("question,answer\nHow long?,4\n")
    else:
        write(tmp_path/own, {"v1": ROW} if own.endswith("json") else ROW)
    found = load_problems(tmp_path, on_bad="fail")
    assert [p.answer for p in found] == ["4"]
    said = f"1 of 2 data files is read: {own}; not read: {other}"
    assert f"note: {said}" in str(found)


def test_a_map_tells_which_file_is_meant(tmp_path):
    write(tmp_path/"a.jsonl", ROW | {"answer": "5"})
    write(tmp_path/"b.jsonl", {"frage": "How long?", "antwort": "4"})
    how = "question=frage,answer=antwort"
    assert [p.answer for p in load_problems(tmp_path, map=how)] == ["4"]
    assert [p.answer for p in load_problems(tmp_path)] == ["5"]


def test_all_files_of_problems_are_read(tmp_path):
    for i in range(10):
        write(tmp_path/f"part{i}.jsonl", ROW | {"answer": str(i)})
    found = load_problems(tmp_path)
    assert [p.answer for p in found] == list("0123456789")
    assert "data files" not in str(found)


def test_files_of_another_kind_or_split_are_said_to_be_unread(tmp_path):
    write(tmp_path/"train.jsonl", ROW)
    for i in range(9):
        (tmp_path/f"more{i}.csv").write_text("question,answer\nHow long?,4\n")
    said = str(load_problems(tmp_path))
    names = ", ".join(f"more{i}.csv" for i in range(5))
    assert f"1 of 10 data files is read: train.jsonl; not read: {names} and 4 more" in said


def test_where_no_file_holds_problems_its_columns_are_named(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path/name, OTHER)
    with pytest.raises(ValueError, match="the columns are id, model, raw, match"):
        load_problems(tmp_path)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_file_a_problem_is_a_row_each(tmp_path, indent):
    for i in (1, 2):
        row = {"problem": "How long?", "level": f"Level {i}", "solution": f"It is \\boxed{{{i}}}."}
        write(tmp_path/f"train/algebra/{i}.json", row, indent=indent)
    found = load_problems(tmp_path, on_bad="fail")
    assert [p.answer for p in found] == ["1", "2"]
    assert found[1].tags == {"level": "Level 2"}


# Test sets

def benchmark(name, folder):
    "The problems of a benchmark whose copy is a folder's subfolder of its name."
    return BENCHMARKS[name](data_dir=folder)


def unusable(problems):
    "{number: why} of the rows that cannot be used."
    found = {}
    for i in range(len(problems)):
        try:
            problems[i]
        except ValueError as error:
            found[i] = str(error)
    return found


@pytest.mark.parametrize("other", ["a.json", "a.jsonl", "outputs.json"])
@pytest.mark.parametrize("own", ["dataset.json", "rows.json", "rows.jsonl"])
def test_a_copy_is_read_from_the_file_that_holds_problems(tmp_path, own, other, caplog):
    home = tmp_path/"math500"
    write(home/other, {"v1": OTHER} if other.endswith("json") else OTHER)
    rows = {"dataset.json": {"v1": ROW}, "rows.json": [ROW]}.get(own, ROW)
    write(home/own, rows)
    assert [p.answer for p in benchmark("math500", tmp_path)] == ["4"]
    assert f"math500: 1 of 2 data files is read: {own}; not read: {other}" in caplog.text


def test_a_copy_of_ten_files_is_read_whole_or_says_what_is_not(tmp_path, caplog):
    for i in range(10):
        write(tmp_path/f"math500/test-0000{i}-of-00010.jsonl", ROW | {"answer": str(i)})
    assert len(benchmark("math500", tmp_path)) == 10
    assert not caplog.text
    write(tmp_path/"amc23/test.jsonl", ROW)
    for i in range(9):
        write(tmp_path/f"amc23/more{i}.jsonl", ROW)
    assert len(benchmark("amc23", tmp_path)) == 1
    assert "amc23: 1 of 10 data files is read: test.jsonl; not read: more0.jsonl" in caplog.text
    for split in ("test", "testmini"):
        write(tmp_path/f"mathvision_test/{split}.jsonl", ROW)
    caplog.clear()
    benchmark("mathvision_test", tmp_path)
    assert not caplog.text                        # another split is another set


@pytest.mark.parametrize("answer, why", [
    (LONG, "characters are no short answer"),
    ("It is 2*2=<<2*2=4>>4 in all", "a worked solution"),
    ("", "no answer")])
def test_a_truth_that_is_no_answer_makes_a_row_unusable(tmp_path, answer, why):
    write(tmp_path/"math500/test.jsonl", ROW, ROW | {"answer": answer})
    problems = benchmark("math500", tmp_path)
    assert why in unusable(problems)[1]
    assert problems[0].answer == "4"


def test_a_worked_truth_is_its_conclusion(tmp_path):
    worked = [LONG + "\n#### 4", LONG + "So $x = \\boxed{4}$.", LONG + "The answer is 4."]
    write(tmp_path/"math500/test.jsonl", *(ROW | {"answer": text} for text in worked))
    assert [p.answer for p in benchmark("math500", tmp_path)] == ["4"]*3


def test_a_truth_that_its_own_rule_does_not_accept_is_unusable(tmp_path):
    row = {"question": "How many?", "question_type": "free_form", "answer_type": "float",
           "precision": 1.0, "image": encoded64(), "choices": None}
    write(tmp_path/"mathvista_testmini/testmini.jsonl", row | {"answer": "1.2"},
          row | {"answer": "1.25"})
    problems = benchmark("mathvista_testmini", tmp_path)
    assert list(unusable(problems)) == [1]
    assert "its own rule does not accept its answer '1.25'" in unusable(problems)[1]


def test_a_row_says_with_how_many_pictures_it_was_asked(tmp_path):
    row = {"question": "Which?", "answer": "B", "image": encoded64()}
    write(tmp_path/"logicvista/test.jsonl", row)
    write(tmp_path/"math500/test.jsonl", ROW)
    graded = [grade(benchmark(name, tmp_path)[0], [""]) for name in ("logicvista", "math500")]
    assert [row["pictures"] for row in graded] == [1, 0]
    rows = [row | {"benchmark": "mmmu_val", "lengths": [0], "truncated": [False], "pictures": n}
            for n, row in zip((1, 2, 1, 1), graded*2, strict=True)]
    line, = benchmark_metrics(rows)
    assert line["pictures"] == "1.25"


# Experts

def expert(**row):
    "The expert of a row, and how experts were counted."
    how = {name: row.pop(name) for name in ("close_experts", "map") if name in row}
    found = problems_of({"question": "How many?"} | row, **how)
    names = ("experts", "verified", "tagged", "closed")
    return found[0].expert, {name: found.counts[name] for name in names}


GSM8K = "He has 2*2=<<2*2=4>>4 and one more.\nThat is 4+1=5.\n#### 5"


def test_a_worked_answer_is_the_expert_too():
    said, counts = expert(answer=GSM8K)
    assert said == f"<think>{GSM8K}</think><answer>5</answer>"
    assert counts == {"experts": 1, "verified": 1, "tagged": 1, "closed": 0}
    assert problems_of({"question": "How many?", "answer": GSM8K}).fields["expert"] == "answer"
    assert expert(answer=GSM8K, map="expert=")[0] is None
    for answer in ("5", "\\boxed{5}", "<answer>5</answer>", "#### 5"):
        assert expert(answer=answer)[0] is None


OPEN = "He has 4 and one more, which makes 5 of them."


def test_an_expert_without_an_end_is_closed_where_you_say_so():
    said, counts = expert(answer="5", solution=OPEN)
    assert said == OPEN
    assert counts == {"experts": 1, "verified": 0, "tagged": 0, "closed": 0}
    said, counts = expert(answer="5", solution=OPEN, close_experts=True)
    assert said == f"<think>{OPEN}</think><answer>5</answer>"
    assert counts == {"experts": 1, "verified": 1, "tagged": 0, "closed": 1}
    thought = "<think>4 + 1</think> So there are five of them."
    said, _ = expert(answer="5", solution=thought, close_experts=True)
    assert said == f"{thought}\n<answer>5</answer>"
    said, _ = expert(answer="5", solution=f"<think>{OPEN}", close_experts=True)
    assert said == f"<think>{OPEN}</think><answer>5</answer>"


@pytest.mark.parametrize("solution", [
    "That is 6.\n#### 6", "So it is \\boxed{6}.", "<think>4+2</think><answer>6</answer>",
    "The answer is 6."])
def test_an_expert_that_ends_in_another_answer_stays_wrong(solution):
    said, counts = expert(answer="5", solution=solution, close_experts=True)
    assert said.endswith("<answer>6</answer>")
    assert (counts["verified"], counts["closed"]) == (0, 0)


def test_closed_experts_are_said_and_so_are_those_that_could_be():
    rows = [{"question": "How many?", "answer": "5", "solution": OPEN}]*3
    rows.append(rows[0] | {"solution": "Five.\n#### 5"})
    said = str(problems_of(*rows))
    assert "right by the verifier: 1 of 4 (25.0%); 1 were put into answer tags" in said
    assert "note: 3 experts end in no answer: close_experts closes each with its gold" in said
    said = str(problems_of(*rows, close_experts=True))
    assert "right by the verifier: 4 of 4 (100.0%)" in said
    assert "; 3 were closed with their gold, as you wish" in said
    assert "end in no answer" not in said


def test_a_letter_closes_the_expert_of_a_choice():
    row = {"options": ["A)4", "B)5"], "correct": "B", "rationale": OPEN}
    said, counts = expert(**row, close_experts=True)
    assert said.endswith("<answer>B</answer>")
    assert counts["verified"] == 1


@pytest.mark.parametrize("flags, closed", [([], 0), (["--close-experts"], 1)])
def test_a_training_run_closes_experts_where_you_say_so(tmp_path, capsys, flags, closed):
    write(tmp_path/"a.jsonl", ROW | {"solution": OPEN, "answer": "5"})
    given = make_parser("train").parse_args(["--data", str(tmp_path/"a.jsonl"), *flags])
    spec = RunSpec(**of_kind(RunSpec, vars(given)))
    problems = training_problems(Config(), spec, model=None)
    assert problems.counts["closed"] == closed
    assert ("closed with their gold" in capsys.readouterr().out) == bool(closed)
    assert main(["data", "check", str(tmp_path/"a.jsonl"), *flags]) == 0
    assert ("closed with their gold" in capsys.readouterr().out) == bool(closed)


# The check before a run

def checked(capsys, *argv):
    "Exit code, output and error of `calibrl data check`."
    code = main(["data", "check", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_three_drawn_rows_are_shown_as_the_model_sees_them(tmp_path, capsys, tiny):
    Image.new("RGB", (84, 84)).save(tmp_path/"a.png")
    row = {"question": "Which is <image>?", "image": "a.png", "choices": ["red", "green"],
           "answer": "B", "solution": "It is \\boxed{B}."}
    write(tmp_path/"rows.jsonl", *(row | {"id": f"row {i}"} for i in range(9)))
    code, said, _ = checked(capsys, tmp_path/"rows.jsonl")
    assert code == 0
    assert len(re.findall(r"^row \d, as the model will see it:$", said, flags=re.M)) == 3
    prompt = ("  | Which is\n  | [picture, 84 x 84]\n  | ?\n  | A. red\n  | B. green\n"
              f"  | {INSTRUCTION}\n")
    for part in (prompt, "  gold: B = green\n", "visual tokens: a model counts them (--model)\n",
                 "  expert, right by the verifier:\n  | <think>It is \\boxed{B}.</think>"):
        assert said.count(part) == 3
    code, said, _ = checked(capsys, tmp_path/"rows.jsonl", "--model", tiny)
    assert code == 0
    assert said.count("  visual tokens: 9, of ") == 3
    assert said.count(f"B. green\n  | {INSTRUCTION}") == 3
    assert "[picture" not in said


def test_what_each_column_is_taken_for_is_said(tmp_path, capsys):
    row = {"Body": BODY, "Question": "How many?", "label": 1, "opa": "4", "opb": "5", "Level": 2,
           "kind": "x", "meta": {"id": 3}}
    write(tmp_path/"rows.jsonl", row, row | {"label": 0})
    _, said, _ = checked(capsys, tmp_path/"rows.jsonl", "--map", "id=meta.id")
    roles = {"Body": "question", "Question": "question", "opa": "options", "Level": "tag level",
             "label": "answer, a place counted from 0", "kind": "not read", "meta": "id (its id)"}
    for column, role in roles.items():
        assert f"\n  {column}: {role}\n" in said


@pytest.mark.parametrize("bad, code", [(1, 0), (2, 0), (3, 2), (4, 2)])
def test_a_file_of_which_most_rows_mean_nothing_is_no_success(tmp_path, capsys, bad, code):
    rows = [ROW]*(4 - bad) + [ROW | {"answer": ""}]*bad
    write(tmp_path/"rows.jsonl", *rows)
    found, said, error = checked(capsys, tmp_path/"rows.jsonl")
    assert found == code
    if bad == 3:
        assert "left out: 3 rows: no answer 3" in said
        assert "3 of 4 rows cannot be used, more than half" in error
