"""What each tutorial promises a student: what it builds and what it needs, words before their use,
values that are shown, answers in words, exercises with solutions, and where to go on."""
import ast
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
OF_LOSS = ("checks", "clip", "lengths", "whole", "first_order", "law")
TAUGHT = [ROOT/"nbs/00_loss.ipynb", *(ROOT/f"nbs/loss/{name}.ipynb" for name in OF_LOSS)]
CHAPTERS = sorted((ROOT/"nbs/tutorials").glob("*.ipynb")) + TAUGHT
OPENING = ("**You will build**", "**With**", "**You should know**", "**It takes**")
ENDING = ("## You can now", "## Exercises", "## Where to go on")
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n(.*?)\n\n</details>", re.S)
WORDS = ("policy", "response", "group", "reward", "advantage", "push", "expert", "gap",
         "token gap", "entropy")


def cells_of(path):
    "The cells of a notebook: kind, source, names of its directives, whether it shows anything."
    found = []
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        names = set(re.findall(r"^#\s*\|\s*(\w+)", source, flags=re.M))
        found.append((cell["cell_type"], source, names, bool(cell.get("outputs"))))
    return found


def text_of(path):
    "The text of a notebook."
    return "\n\n".join(source for kind, source, *_ in cells_of(path) if kind == "markdown")


def seen(path):
    "The code cells that a reader sees and that run here: (source, shows something)."
    return [(source, shown) for kind, source, names, shown in cells_of(path)
            if kind == "code" and not names & {"hide", "gpu"}]


def shows_nothing(source):
    "Whether code only imports, defines and assigns."
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
    return all(isinstance(node, kinds) for node in ast.parse(source).body)


def each_chapter(function):
    "Run a test with each tutorial."
    return pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)(function)


@each_chapter
def test_it_says_at_once_what_it_builds_and_what_it_needs(path):
    opening = cells_of(path)[1][1]
    places = [opening.find(part) for part in OPENING]
    assert -1 not in places and places == sorted(places)


@each_chapter
def test_it_ends_with_what_one_can_do_exercises_and_where_to_go_on(path):
    text = text_of(path)
    headings = re.findall(r"^## .*", text, flags=re.M)
    assert tuple(headings[-3:]) == ENDING
    can, exercises, further = (text.partition(heading)[2] for heading in ENDING)
    assert re.match(r"\n\n\* \w", can) and "](" in further
    tasks = re.split(r"^\*\*\d\.\*\* ", exercises.partition(ENDING[2])[0], flags=re.M)[1:]
    assert len(tasks) == 3
    for task in tasks:
        [solution] = SOLUTION.findall(task)
        assert len(solution.split()) > 12
        for code in re.findall(r"```python\n(.*?)```", solution, re.S):
            ast.parse(code)


@each_chapter
def test_one_example_runs_through_all_chapters(path):
    assert "the trapezium" in text_of(path).lower()


@each_chapter
def test_no_check_stands_where_a_value_belongs(path):
    for source, _ in seen(path):
        assert not re.search(r"^\s*(?:assert|test_\w+\()", source, flags=re.M), source


@each_chapter
def test_values_are_shown_after_nearly_each_cell(path):
    live = [(source, shown) for source, shown in seen(path) if "interact(" not in source]
    silent = [source for source, shown in live if not shown and not shows_nothing(source)]
    assert silent == []


@each_chapter
def test_code_fits_beside_its_output(path):
    code = [source for source, _ in seen(path) if not source.startswith("#| export")]
    assert [line for source in code for line in source.splitlines() if len(line) > 90] == []


@pytest.mark.parametrize("path", [*CHAPTERS, ROOT/"nbs/00a_tasks.ipynb"],
                         ids=lambda path: path.stem)
def test_what_the_site_hides_is_folded_in_jupyterlab(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if re.search(r"^#\s*\|\s*hide(_input)?$", "".join(cell["source"]), flags=re.M):
            assert cell["metadata"] == {"jupyter": {"source_hidden": True}}, cell["source"]


BOOK = ROOT/"nbs"
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:href|src)="([^"]+)"')


def links_of(path):
    "The relative links of a page's text, without the place on the page."
    text = text_of(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for link in LINK.findall(text):
        to = unquote("".join(link).partition("#")[0])
        if to and not re.match(r"\w+:", to):
            yield to


def test_each_relative_link_leads_to_a_file_that_jupyterlab_sees():
    "It reads links from a page's folder, and sees nothing above nbs, where `make book` starts."
    pages = [path for kind in ("ipynb", "md") for path in BOOK.rglob(f"*.{kind}")
             if not re.search(r"/[._]", path.relative_to(ROOT).as_posix())]
    links = [(page, to) for page in pages for to in links_of(page)]
    assert len(links) > 300
    nowhere = [(page.name, to) for page, to in links
               if not (page.parent/to).resolve().is_relative_to(BOOK)
               or not (page.parent/to).is_file()]
    assert nowhere == []


def first_use(word, cells):
    "The first cell of the text that uses a word, and how it stands there."
    for i, (kind, source, *_) in enumerate(cells):
        found = kind == "markdown" and re.search(rf"(\*?)\b{word}s?\b", source, flags=re.I)
        if found:
            return i, found[1]
    raise AssertionError(f"{word!r} is never used")


def test_the_first_chapter_says_each_word_with_a_number_before_it_is_used():
    path = ROOT/"nbs/tutorials/alpha.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tables = ["".join(out["data"].get("text/markdown", "")) for cell in cells
              for out in cell.get("outputs", []) if "data" in out]
    [said] = [text for text in tables if text.startswith("| word |")]
    place = next(i for i, cell in enumerate(cells) if any(
        "| word |" in str(out) for out in cell.get("outputs", [])))
    rows = [line.strip("| ").split(" | ") for line in said.splitlines()[2:]]
    assert [word.strip("*") for word, *_ in rows] == list(WORDS)
    for word, meaning, here in rows:
        assert len(meaning.split()) > 6 and re.search(r"\d", here), word
        i, star = first_use(word.strip("*"), cells_of(path))
        assert i > place or star, f"{word} is used in cell {i}, before it is said"
