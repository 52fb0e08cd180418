"""How much there is to read to understand one training step: counted whole, nothing forgotten."""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import reading

PAGES = [*(ROOT/"nbs").rglob("*.ipynb"), *(ROOT/"nbs").rglob("*.md"), ROOT/"README.md"]


def test_a_line_counts_as_the_lines_that_it_fills():
    head = "@patch\ndef f(a,   # first\n      b):\n    'Say.'\n\n    # why\n"
    text = head + "    return " + "a + "*60 + "b\n"
    assert reading.whole(text, ["f"]) == {"f": 6 + 3}       # 252 columns are three lines
    assert reading.whole(text, ["g"]) == {}
    assert [reading.height("x"*n) for n in (0, 1, 100, 101, 200, 201)] == [1, 1, 1, 2, 2, 3]


def test_every_function_of_a_step_is_found_and_counted():
    for functions in (reading.STEP, reading.BEHIND):
        for module, lines in reading.counted(functions).items():
            assert sorted(lines) == sorted(functions[module])
    assert reading.total(reading.STEP) > len(sum(reading.STEP.values(), [])) * 3


def test_no_function_of_a_step_is_forgotten(monkeypatch):
    assert reading.unnamed() == set()
    monkeypatch.setitem(reading.BEHIND, "engine", ["pack"])
    monkeypatch.setitem(reading.BEHIND, "head", [])
    monkeypatch.setitem(reading.BEHIND, "policy", ["prefill"])
    assert {"Policy.packed", "packed_masks", "head_logps", "Prefill"} <= reading.unnamed()


def test_a_method_is_counted_alone():
    text = "class Policy:\n    def f(self):\n        return 1\n\n    def g(self):\n        pass\n"
    assert reading.whole(text, ["Policy.f"]) == {"Policy.f": 2}
    assert reading.whole(text, ["Policy"]) == {"Policy": 6}


def test_a_step_stays_within_five_files():
    step, behind = reading.total(reading.STEP), reading.total(reading.BEHIND)
    assert len(reading.STEP) == 5
    assert reading.BEHIND.keys() - reading.STEP.keys() == {
        "draws", "engine", "head", "pieces", "plain_rows", "prompts", "rates", "signs", "step"}
    assert step <= 450, f"{step} lines: what a reader of a step must read grows"
    assert step + behind <= 1260, f"{step + behind} lines: what stands behind a step grows"


def said(path):
    "The text of a page, code and outputs apart."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_the_first_page_says_how_much_there_is():
    step, behind = reading.total(reading.STEP), reading.total(reading.BEHIND)
    true = f"{step} lines in {len(reading.STEP)} files, signatures and docstrings counted; " \
           f"behind it stand {behind} more"
    for path in (ROOT/"nbs/index.ipynb", ROOT/"README.md"):
        assert true in said(path), f"{path.name} must say: {true}"


def test_no_page_promises_fewer_lines_than_there_are():
    together = reading.total(reading.STEP)
    for path in PAGES:
        for n in re.findall(r"(?:fewer|less) than (\d+) lines", said(path)):
            assert int(n) > together, f"{path.name}: {n} lines are promised, {together} counted"
