"""Real sets as their authors give them, read by the training loader and by the test sets: how many
rows, how many refused by name, none wrong, every gold accepted as its own answer, every picture
seen. The rows lie in the folder that CALIBRL_REALDATA names; nothing of them is kept here."""
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import datasets
import pytest

from calibrl.benchmarks import BENCHMARKS, judge
from calibrl.data import load_problems
from calibrl.tasks import score

REAL = os.environ.get("CALIBRL_REALDATA")
pytestmark = [
    pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows"),
    pytest.mark.usefixtures("table_cache")]


def raw_rows(place):
    "The rows of a set, read by hand, one after the other."
    path = Path(REAL)/place
    files = sorted(path.glob("trial*/dataset.json")) if path.is_dir() else [path]
    rows = []
    for file in files:
        text = file.read_text("utf-8")
        if file.suffix == ".csv":
            rows += datasets.load_dataset("csv", data_files=str(file), split="train").to_list()
        elif file.suffix == ".jsonl":
            rows += [json.loads(line) for line in text.splitlines()]
        else:
            value = json.loads(text)
            rows += value if isinstance(value, list) else list(value.values())
    return rows


def as_written(row):
    return row["answer"].strip()


def without_box(row):
    return re.sub(r"^\$\\boxed\{(.*)\}\$$", r"\1", as_written(row))


def letter_from_0(row):
    return chr(65 + row["answer"])


def last_line(row):
    return row["answer"].rpartition("#### ")[2]


def whole_number(row):
    number = row["Answer"]
    return str(int(number)) if number == int(number) else str(number)


def number_as_text(row):
    return str(row["Answer"])


class Set(NamedTuple):
    "A set and what becomes of it."
    place: str
    gold: object          # function(row as written) -> its gold
    rows: int
    refused: dict         # kind: how many
    pictures: int = 0
    experts: int = 0      # as they are
    verified: int = 0     # of them, right by the verifier
    closed: int = 0       # right once those without an end are closed
    how: dict = {}
    disputed: int = 0     # at most so many golds that the verifier does not take for themselves


NOT_ITSELF = "the verifier does not even accept"


LOADED = [
    Set("gsm8k/train.jsonl", last_line, 200, {}, 0, 200, 200, 200),
    Set("gsm8k/test.jsonl", last_line, 200, {}, 0, 200, 200, 200),
    Set("math500/test.json", as_written, 250, {}),
    Set("mathv/data/test.jsonl", without_box, 90, {"no question": 1}, 89, 20, 0, 20,
        {"root": "mathv"}),
    Set("logicvista/dataset.json", as_written, 41, {"no question": 1}, 40),
    Set("dynamath", as_written, 120, {}, 120),
    Set("mathverse/testmini_text_only.json", as_written, 130, {}),
    Set("college_math/test.jsonl", as_written, 230, {"no answer": 38}),
    Set("mmlu_stem/test.jsonl", letter_from_0, 81, {}),
    Set("aqua/test.jsonl", lambda row: row["correct"], 60, {}, 0, 60, 43, 59),
    Set("svamp/test.jsonl", whole_number, 60, {}),
    Set("mawps_svamp/train.csv", number_as_text, 3138, {}),
    Set("mawps_svamp/svamp_1000.csv", number_as_text, 1000, {})]


def read(known, **more):
    "The problems of a set."
    how = {name: Path(REAL)/place for name, place in known.how.items()}
    return load_problems(Path(REAL)/known.place, **how, **more)


@pytest.mark.parametrize("known", LOADED, ids=lambda known: known.place)
def test_a_set_is_read_whole_or_refused_by_name(known):
    found = read(known)
    assert found.counts["rows"] == known.rows
    said = [skip["kind"] for skip in found.skipped if NOT_ITSELF not in skip["reason"]]
    assert Counter(said) == known.refused
    assert len(found.skipped) - len(said) <= known.disputed
    assert len(found.sizes) == known.pictures
    assert (found.counts["experts"], found.counts["verified"]) == (known.experts, known.verified)

    # None is wrong: each gold is that of its own row, and the answer that it is
    left_out = {(skip["file"], skip["row"]) for skip in found.skipped}
    places = [found.where(i) for i in range(known.rows)]
    golds = [known.gold(row) for row, place in zip(raw_rows(known.place), places, strict=True)
             if place not in left_out]
    assert [p.answer for p in found] == golds
    assert all(score(f"<answer>{p.answer}</answer>", p.answer, p.options).correct for p in found)


@pytest.mark.parametrize("known", [known for known in LOADED if known.experts],
                         ids=lambda known: known.place)
def test_experts_without_an_end_are_closed(known):
    found = read(known, close_experts=True)
    assert found.counts["verified"] == known.closed
    assert found.counts["open"] == 0


def test_no_number_is_missing_from_a_word_problem():
    for place in ("mawps_svamp/svamp_1000.csv", "svamp/test.jsonl"):
        found = load_problems(Path(REAL)/place)
        assert not [p.question for p in found if re.search(r"\bnumber\d", p.question)]
        bodies = [row["Body"].strip() for row in raw_rows(place)]
        if "number0" not in bodies[0]:
            assert all(p.question.startswith(body)
                       for p, body in zip(found, bodies, strict=True))


@pytest.mark.parametrize("folder, split, rows, unread", [
    ("logicvista", None, 41, "judged_outputs.jsonl"), ("mathv", None, 90, "judged_outputs.jsonl"),
    ("gsm8k", "test", 200, "judged_model_solutions.jsonl, train.jsonl")])
def test_the_set_of_a_folder_is_read_whatever_lies_beside_it(folder, split, rows, unread):
    found = load_problems(Path(REAL)/folder, split=split)
    assert found.counts["rows"] == rows
    assert f"not read: {unread}" in str(found)


@pytest.mark.parametrize("place, why", [
    ("mmmu_pro", "image tokens 320"), ("mmmu", "no column holds the question")])
def test_rows_without_their_pictures_or_questions_are_refused(place, why):
    with pytest.raises(ValueError, match=why):
        load_problems(Path(REAL)/place)


ASKED = [    # test set, folder, rows, unusable (and at most so many disputed), pictures
    ("logicvista", "logicvista", 41, (1, 0), 40), ("dynamath", "dynamath", 120, (0, 0), 120),
    ("mathvision_test", "mathv", 90, (1, 0), 89),
    ("mathverse_testmini", "mathverse", 130, (0, 0), 0),
    ("math500", "math500", 250, (0, 0), 0), ("mmmu_pro_standard", "mmmu_pro", 320, (320, 0), 0),
    ("amc23", "gsm8k", 200, (0, 0), 0), ("math500", "college_math", 230, (38, 2), 0)]


@pytest.mark.parametrize("name, folder, rows, unusable, pictures", ASKED)
def test_a_test_set_is_asked_whole_or_unusable_by_name(name, folder, rows, unusable, pictures,
                                                       tmp_path):
    (tmp_path/name).symlink_to(Path(REAL)/folder, target_is_directory=True)
    asked = BENCHMARKS[name](data_dir=tmp_path)
    assert len(asked) == rows
    seen = wrong = faults = 0
    for i in range(rows):
        try:
            problem = asked[i]
        except ValueError as error:
            assert str(error).startswith(f"{name}, row {i}: ")
            faults += 1
            continue
        seen += len(problem.images)
        wrong += not judge(f"<answer>{problem.answer}</answer>", problem).correct
    assert (seen, wrong) == (pictures, 0)
    known, disputed = unusable
    assert known <= faults <= known + disputed
