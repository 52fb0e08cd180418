"""The tools that make the README and the site, on small inputs; the site itself when it has been built."""
import json, re, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import badges, build_docs, check_sync, readme


def notebook(path, *cells):
    "A small notebook: each cell is ('md' | 'code', source) or ('code', source, outputs)."
    made = [{"cell_type": "markdown" if kind == "md" else "code", "id": f"c{n}", "metadata": {}, "source": source.splitlines(True),
             **({} if kind == "md" else {"outputs": rest[0] if rest else [], "execution_count": None})} for n, (kind, source, *rest) in enumerate(cells)]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def test_readme_keeps_text_code_and_printed_output(tmp_path):
    out = [{"output_type": "stream", "name": "stdout", "text": ["4\n"]}]
    made = readme.readme(notebook(tmp_path/"index.ipynb", ("md", "# calibrl\n\nSee [the loss](00_loss.ipynb)."), ("code", "#| hide\nsecret()"), ("code", "2 + 2", out)))
    assert "# calibrl" in made and "](nbs/00_loss.ipynb)" in made
    assert "secret" not in made and "```python\n2 + 2\n```\n\n```\n4\n```" in made


def test_readme_finds_pictures_and_pages(tmp_path):
    made = readme.readme(notebook(tmp_path/"index.ipynb", ("md", "![a](images/a.svg) [b](pages/b.md)")))
    assert "](nbs/images/a.svg)" in made and "](nbs/pages/b.md)" in made


def test_badges_say_what_the_settings_say():
    for name, svg in badges.badges().items(): assert (ROOT/"nbs/images"/name).read_text(encoding="utf-8") == svg, "run tools/badges.py"


def test_readme_leaves_other_links_alone(tmp_path):
    text = "[a](https://example.org/x.ipynb) [b](#here) [c](CONTRIBUTING.md)"
    assert text in readme.readme(notebook(tmp_path/"index.ipynb", ("md", text)))


def test_a_page_is_named_after_its_module(tmp_path):
    assert build_docs.module_of(notebook(tmp_path/"00_loss.ipynb", ("md", "# The loss"), ("code", "#| default_exp loss"))) == "loss"
    assert build_docs.module_of(notebook(tmp_path/"index.ipynb", ("md", "# calibrl"))) == "index"


def test_exported_code_is_shown_in_the_book_and_no_other_code_runs(tmp_path):
    nb = json.loads(build_docs.show_source(notebook(tmp_path/"a.ipynb", ("code", "#| export\ndef f(): pass"), ("code", "#| exporti\nx = 1"), ("code", "import os\nos.abort()"), ("code", "#| hide_input\n1")).read_text()))
    assert [c["source"] for c in nb["cells"]][:4] == ["#| exports\ndef f(): pass", "#| exporti\nx = 1", "#| eval: false\nimport os\nos.abort()", "#| eval: false\n#| echo: false\n1"]


def test_broken_links_are_found(tmp_path):
    (tmp_path/"index.html").write_text('<h2 id="here">x</h2><a href="#here">a</a><a href="#gone">b</a><a href="no.html">c</a><a href="https://example.org">d</a>'
                                       '<script src="https://example.org/x.js"></script><code>&lt;a href="in_code.html"&gt;</code>')
    (tmp_path/"a.css").write_text("@import url(https://example.org/font.css); b { background: url(https://example.org/b.png) }")
    found = "\n".join(build_docs.broken_links(tmp_path))
    for part in ("#gone has no such place", "no.html is not there", "<script> loads https://example.org/x.js", "a.css: loads https://example.org/b.png"): assert part in found
    for part in ("#here", "in_code", "index.html: https"): assert part not in found


def test_cells_without_an_id_are_found():
    assert list(check_sync.without_id(json.dumps({"cells": [{"id": "ab"}, {}, {"id": ""}]}))) == [1, 2]


def test_the_sync_check_sees_a_module_edited_by_hand(tmp_path):
    root = tmp_path/"calibrl"
    for name in ("nbs", "calibrl"): (root/name).mkdir(parents=True)
    for name in ("settings.ini", "setup.py", "pyproject.toml"): (root/name).write_bytes((ROOT/name).read_bytes())
    notebook(root/"nbs/00_loss.ipynb", ("md", "# Loss\n\n> One."), ("code", "#| default_exp loss"), ("code", "#| export\ndef one(): return 1"))
    (root/"calibrl/__init__.py").write_bytes((ROOT/"calibrl/__init__.py").read_bytes())
    missing = check_sync.differences(root)
    assert any(line.startswith("calibrl/loss.py: missing") for line in missing)
    (root/"calibrl/loss.py").write_text(check_sync.GENERATED + "\ndef one(): return 2\n")
    (root/"calibrl/gone.py").write_text(check_sync.GENERATED + "\n")
    found = check_sync.differences(root)
    assert any(line.startswith("calibrl/loss.py: differs") for line in found) and any(line.startswith("calibrl/gone.py: no notebook") for line in found)
    assert (root/"calibrl/loss.py").read_text().endswith("return 2\n"), "a check must change nothing"


def test_every_chapter_is_in_the_sidebar():
    text = (ROOT/"nbs/sidebar.yml").read_text(encoding="utf-8")
    listed = {line.split("- ")[1].strip() for line in text.splitlines() if line.strip().endswith((".ipynb", ".md"))}
    there = {p.relative_to(ROOT/"nbs").as_posix() for kind in ("ipynb", "md") for p in (ROOT/"nbs").rglob(f"*.{kind}") if ".ipynb_checkpoints" not in p.parts}
    assert listed == there


def from_an_index(text):
    "Places that install the package by its name from an index, which has none of that name."
    return re.findall(r"pip3? install (?:-\S+ |\S+\.txt )*['\"]?calibrl\b", text)


def test_no_page_installs_from_an_index():
    for text in ("calibrl", "-U 'calibrl[dev]'", "-c constraints.txt calibrl"):
        assert from_an_index("pip install " + text)
    assert not from_an_index("pip install . -c constraints.txt") + from_an_index("pip install -e .")
    places = [*(ROOT/"nbs/pages").iterdir(), *(ROOT/"nbs/tutorials").glob("*.ipynb"),
              *ROOT.glob("*.md"), ROOT/"nbs/index.ipynb", ROOT/"constraints.txt",
              ROOT/"benchmarks/README.md"]
    wrong = [p.name for p in places if p.is_file() and from_an_index(p.read_text("utf-8"))]
    assert wrong == []


@pytest.mark.skipif(not (ROOT/"_docs/index.html").exists(), reason="the site is not built: make docs")
def test_the_built_site_has_no_broken_link():
    assert list(build_docs.broken_links(ROOT/"_docs")) == []
