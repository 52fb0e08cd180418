"""The first page: its code fits a terminal, its data file is read as it says, its picture and its
figures are what the records hold."""
import csv
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import result

README = (ROOT/"README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.M | re.S)


def blocks(kind):
    "The blocks of one language."
    return [text for name, text in BLOCKS if name == kind]


def test_code_and_what_it_printed_fit_eighty_columns():
    assert len(BLOCKS) > 10
    wide = [line for kind, text in BLOCKS for line in text.splitlines() if len(line.rstrip()) > 79]
    assert wide == []


def test_the_rows_are_read_as_the_page_says(tmp_path):
    from calibrl.data import load_problems
    [text] = blocks("csv")
    rows = list(csv.DictReader(text.splitlines()))
    for row in rows:
        Image.new("RGB", (32, 32)).save(tmp_path/row["image"])
    (tmp_path/"train.csv").write_text(text)
    found = load_problems(tmp_path/"train.csv", need_expert=True, wrong_expert="skip")
    assert len(found) == 3 and not found.skipped
    assert found.fields == {"question": "question", "answer": "answer", "images": "image",
                            "expert": "expert"}
    for name, row in (("question", rows[0]), ("answer", rows[0]), ("expert", rows[0])):
        assert getattr(found[0], name) == row[name]


def test_the_commands_for_a_large_model_are_those_of_the_row_above():
    shell = "\n".join(blocks("sh"))
    for command in ("data check", "plan", "train", "eval", "ask", "export"):
        assert f"calibrl {command} " in shell
    assert shell.count("train.csv") == 3


def test_the_picture_is_what_the_records_give():
    again = "run python tools/result.py: the records have changed"
    assert result.PICTURE.read_text(encoding="utf-8") == result.picture(), again


def test_the_page_prints_what_the_records_give():
    again = "run nbs/index.ipynb again: a record has changed"
    accuracy, entropy = result.curves("accuracy"), result.curves("entropy")
    for name in result.RUNS:
        line = (f"{name:8} right {accuracy[name][-1]:.0%}, "
                f"entropy {entropy[name][-1]:.3f} nats a token")
        assert line in README, again
    taken = json.loads((ROOT/"benchmarks/install.json").read_text())
    for name in ("make demo", "make test"):
        assert f"{name}: {taken[name]['gib']:.1f} GiB in .venv" in README, again
    gpu = json.loads((ROOT/"benchmarks/gpu.json").read_text())
    for row in gpu["memory_gib"]:
        line = rf"{row['name']} +{row['planned']:.2f} +{row['measured']:.2f} "
        assert re.search(line, README), again


def test_a_running_mean_begins_with_fewer_steps(monkeypatch):
    monkeypatch.setattr(result, "SPAN", 2)
    assert result.smooth([1., 3., 5.]) == [1., 2., 4.]


@pytest.mark.parametrize("target", ["demo", "test", "install", "docs", "book"])
def test_each_target_that_it_names_exists(target):
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT/"Makefile").read_text(encoding="utf-8"), flags=re.M)
