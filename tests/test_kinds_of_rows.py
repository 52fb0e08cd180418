"""Every kind of row that real sets hold, in small rows of our own: what it is read as, or the
reason why it is refused. Nothing is read wrongly in silence."""
import base64
import io

import datasets
import numpy as np
import pytest
from PIL import Image

from calibrl.data import as_images, load_problems


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "Tables that `datasets` writes on the way go to a folder of this run."
    usual = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = usual


def problems_of(*rows, **how):
    "Problems of some rows, as a training run reads them."
    return load_problems(datasets.Dataset.from_list(list(rows)), **how)


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
