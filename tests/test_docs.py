"""The tools that make the README and the site, on small inputs; the site itself when it has been
built."""
import base64
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"tools"))
import badges
import build_docs
import check_sync
import readme


def cell(kind, source, outputs=(), *, number):
    "A cell of a small notebook."
    made = {"id": f"c{number}", "metadata": {}, "source": source.splitlines(True)}
    if kind == "md":
        return made | {"cell_type": "markdown"}
    return made | {"cell_type": "code", "outputs": list(outputs), "execution_count": None}


def notebook(path, *cells):
    "A small notebook: each cell is ('md' | 'code', source) or ('code', source, outputs)."
    made = [cell(*parts, number=number) for number, parts in enumerate(cells)]
    text = json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_readme_keeps_text_code_and_printed_output(tmp_path):
    out = [{"output_type": "stream", "name": "stdout", "text": ["4\n"]}]
    made = readme.readme(notebook(
        tmp_path/"index.ipynb",
        ("md", "# calibrl\n\nSee [the loss](00_loss.ipynb)."),
        ("code", "#| hide\nsecret()"),
        ("code", "2 + 2", out)))
    assert "# calibrl" in made and "](nbs/00_loss.ipynb)" in made
    assert "secret" not in made and "```python\n2 + 2\n```\n\n```\n4\n```" in made


def test_readme_finds_pictures_and_pages(tmp_path):
    text = "![a](images/a.svg) [b](pages/b.md)"
    made = readme.readme(notebook(tmp_path/"index.ipynb", ("md", text)))
    assert "](nbs/images/a.svg)" in made and "](nbs/pages/b.md)" in made


def test_badges_say_what_the_settings_say():
    for name, svg in badges.badges().items():
        assert (ROOT/"nbs/images"/name).read_text(encoding="utf-8") == svg, "run tools/badges.py"


def test_readme_leaves_other_links_alone(tmp_path):
    text = "[a](https://example.org/x.ipynb) [b](#here) [c](CONTRIBUTING.md)"
    assert text in readme.readme(notebook(tmp_path/"index.ipynb", ("md", text)))


PAGES = [  # notebook, what it exports to, its page
    ("00_loss.ipynb", "loss.terms", "loss.ipynb"),
    ("00a_tasks.ipynb", "tasks", "tasks.ipynb"),
    ("00c_viz.ipynb", "viz.__init__", "viz.ipynb"),
    ("viz/toy.ipynb", "viz.toy", "viz/toy.ipynb"),
    ("viz/01_toy.ipynb", "viz.toy", "viz/toy.ipynb"),
    ("index.ipynb", None, "index.ipynb"),
    ("tutorials/alpha.ipynb", None, "tutorials/alpha.ipynb"),
]


@pytest.mark.parametrize("name, module, page", PAGES)
def test_a_page_is_named_as_nbdev_links_to_it(tmp_path, name, module, page):
    first = ("code", f"#| default_exp {module}") if module else ("code", "1")
    path = notebook(tmp_path/name, ("md", "# A title"), first)
    assert build_docs.page_of(path, tmp_path).as_posix() == page


LINKS = [  # where a link stands, the link, what it becomes
    (".", "00c_viz.ipynb", "viz.ipynb"),
    (".", "viz/01_toy.ipynb", "viz/toy.ipynb"),
    ("viz", "01_toy.ipynb", "toy.ipynb"),
    ("viz", "../00c_viz.ipynb", "../viz.ipynb"),
    ("tutorials", "../viz/01_toy.ipynb", "../viz/toy.ipynb"),
    ("tutorials", "00c_viz.ipynb", "00c_viz.ipynb"),
    (".", "https://example.org/00c_viz.ipynb", "https://example.org/00c_viz.ipynb"),
]


@pytest.mark.parametrize("folder, link, mended", LINKS)
def test_links_follow_the_pages(folder, link, mended):
    pages = {"00c_viz.ipynb": Path("viz.ipynb"), "viz/01_toy.ipynb": Path("viz/toy.ipynb")}
    assert build_docs.relink(f"[x]({link})", Path(folder), pages) == f"[x]({mended})"


SHOWN = [  # the source of a cell, the source that nbdev is given
    ("#| export\ndef f(): pass", "#| exports\ndef f(): pass"),
    ("#| exporti\nx = 1", "#| exports\n#| include: false\nx = 1"),
    ("#| export loss.terms\ndef f(): pass", "#| exports\ndef f(): pass"),
    ("#| exporti loss.terms\nx = 1", "#| exports\n#| include: false\nx = 1"),
    ("import os\nos.abort()", "#| eval: false\nimport os\nos.abort()"),
    ("#| hide_input\n1", "#| eval: false\n#| echo: false\n1"),
    ("#| default_exp viz.toy", "#| default_exp viz.toy"),
]


@pytest.mark.parametrize("source, shown", SHOWN)
def test_exported_code_is_shown_in_the_book_and_no_other_code_runs(tmp_path, source, shown):
    text = notebook(tmp_path/"a.ipynb", ("code", source)).read_text()
    made, *_ = json.loads(build_docs.show_source(text))["cells"]
    assert made["source"] == shown


def test_a_chapter_that_adds_to_a_room_has_that_room_at_hand(tmp_path):
    cells = ("md", "# Clip"), ("code", "#| export loss.terms\ndef f(x:torch.Tensor): pass")
    text = notebook(tmp_path/"clip.ipynb", *cells).read_text()
    _, hidden, *_ = json.loads(build_docs.show_source(text))["cells"]
    scope = {}
    exec(hidden["source"], scope)
    assert hidden["source"].startswith("#| hide\n") and "torch" in scope


@pytest.mark.parametrize("export, inner", [("export", ""),
                                           ("exporti", build_docs.INNER + "\n")])
def test_nbdev_marks_an_exported_cell_as_expected(tmp_path, export, inner):
    from nbdev.process import NBProcessor
    from nbdev.processors import add_fold, mv_exports
    path = notebook(tmp_path/"a.ipynb", ("code", f"#| {export}\nx = 1"))
    path.write_text(build_docs.show_source(path.read_text()))
    procs = [add_fold, mv_exports]      # the latter fails if nothing follows an exported cell
    made = NBProcessor(path, procs=procs, rm_directives="quarto", process=True).nb
    assert made.cells[0].source == build_docs.EXPORTED + inner + "x = 1"


def signature(name):
    "The two cells that nbdev makes of an exported function, outputs and all."
    text = f"header\n```python\n{name}(x:list[torch.Tensor])->__main__.Out\n```\n*About {name}.*"
    out = [{"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}]
    return (("code", f"show_doc({name})", out),
            ("code", build_docs.EXPORTED + f"def {name}(x):\n    return x"))


def test_the_api_page_names_a_wings_room_and_links_to_it(tmp_path):
    inner = build_docs.EXPORTED + build_docs.INNER + "\ndef inner(): pass"
    page = notebook(tmp_path/"viz/toy.ipynb", *signature("run"), ("code", inner))
    notebook(tmp_path/"loss.ipynb", *signature("gap"))
    notebook(tmp_path/"loss/clip.ipynb", *signature("clip"))       # makes no room of its own
    (tmp_path/"api.md").write_text("# API")
    (tmp_path/"sidebar.yml").write_text("- viz/toy.ipynb\n- loss.ipynb\n- loss/clip.ipynb")
    build_docs.arrange(tmp_path)
    api = (tmp_path/"api.md").read_text()
    assert re.findall("^## (.*)", api, flags=re.M) == ["calibrl.viz.toy {#viz-toy}",
                                                      "calibrl.loss {#loss}"]
    assert "[In its chapter](viz/toy.html#run)" in api and "inner" not in api
    assert api.index("### `gap`") < api.index("### `clip`") < api.index("(loss/clip.html#clip)")
    assert "run(x:list[Tensor])->Out" in api
    sources = ["".join(cell["source"]) for cell in json.loads(page.read_text())["cells"]]
    assert sources == ["### `run` {#run}", "def run(x):\n    return x",
                       '<span id="inner"></span>', "def inner(): pass"]


def test_broken_links_are_found(tmp_path):
    (tmp_path/"index.html").write_text(
        '<h2 id="here">x</h2><a href="#here">a</a><a href="#gone">b</a><a href="no.html">c</a>'
        '<a href="wing/room.html#far">d</a><a href="https://example.org">e</a>'
        '<script src="https://example.org/x.js"></script>'
        '<code>&lt;a href="in_code.html"&gt;</code>')
    (tmp_path/"wing").mkdir()
    room = '<a href="../index.html#here">a</a><a href="up.html">b</a>'
    (tmp_path/"wing/room.html").write_text(room)
    (tmp_path/"a.css").write_text("@import url(https://example.org/font.css);"
                                  "b { background: url(https://example.org/b.png) }")
    found = "\n".join(build_docs.broken_links(tmp_path))
    for part in ("#gone has no such place", "no.html is not there",
                 "wing/room.html#far has no such place", "wing/room.html: up.html is not there",
                 "<script> loads https://example.org/x.js",
                 "a.css: loads https://example.org/b.png"):
        assert part in found
    for part in ("#here", "in_code", "index.html: https"):
        assert part not in found


def test_cells_without_an_id_are_found():
    text = json.dumps({"cells": [{"id": "ab"}, {}, {"id": ""}]})
    assert list(check_sync.without_id(text)) == [1, 2]


GENERATED = check_sync.GENERATED


def test_the_sync_check_sees_a_module_edited_by_hand(tmp_path):
    root = tmp_path/"calibrl"
    for name in ("settings.ini", "setup.py", "pyproject.toml", "calibrl/__init__.py"):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, root/name)
    for name, module in (("00_loss", "loss"), ("00c_viz", "viz.__init__"), ("viz/toy", "viz.toy")):
        notebook(root/f"nbs/{name}.ipynb", ("md", "# Title\n\n> One."),
                 ("code", f"#| default_exp {module}"), ("code", "#| export\ndef one(): return 1"))
    missing = check_sync.differences(root)
    for made in ("loss", "viz/__init__", "viz/toy"):
        assert any(line.startswith(f"calibrl/{made}.py: missing") for line in missing)
    (root/"calibrl/viz").mkdir()
    for edited in ("loss", "viz/toy"):
        (root/f"calibrl/{edited}.py").write_text(GENERATED + "\ndef one(): return 2\n")
    for gone in ("gone", "viz/gone"):
        (root/f"calibrl/{gone}.py").write_text(GENERATED + "\n")
    found = check_sync.differences(root)
    for start in ("loss.py: differs", "viz/toy.py: differs", "gone.py: no notebook",
                  "viz/gone.py: no notebook"):
        assert any(line.startswith(f"calibrl/{start}") for line in found)
    text = (root/"calibrl/loss.py").read_text()
    assert text.endswith("return 2\n"), "a check must change nothing"


def test_every_chapter_is_in_the_sidebar():
    lines = (ROOT/"nbs/sidebar.yml").read_text(encoding="utf-8").splitlines()
    listed = {line.split("- ")[1].strip() for line in lines
              if line.strip().endswith((".ipynb", ".md"))}
    files = [*(ROOT/"nbs").rglob("*.ipynb"), *(ROOT/"nbs").rglob("*.md")]
    there = {path.relative_to(ROOT/"nbs").as_posix() for path in files
             if ".ipynb_checkpoints" not in path.parts}
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


BUILT = (ROOT/"_docs/index.html").exists()


@pytest.mark.skipif(not BUILT, reason="the site is not built: make docs")
def test_the_built_site_has_no_broken_link():
    assert list(build_docs.broken_links(ROOT/"_docs")) == []


def archive(path, *members):
    "Write an archive of (name, text) or (name, None, where a link leads); return its SHA-512."
    with tarfile.open(path, "w:gz") as file:
        for name, text, *link in members:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link[0]
            else:
                info.size = len(text)
            file.addfile(info, None if link else io.BytesIO(text.encode()))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_only_the_expected_archive_is_unpacked(tmp_path):
    file = tmp_path/"a.tgz"
    known = archive(file, ("package/x.js", "1"))
    build_docs.unpack(file, known, tmp_path)
    assert (tmp_path/"package/x.js").read_text() == "1"
    archive(file, ("package/x.js", "2"))
    with pytest.raises(SystemExit, match="is not the archive that is expected"):
        build_docs.unpack(file, known, tmp_path)
    assert (tmp_path/"package/x.js").read_text() == "1" and not file.exists()


@pytest.mark.parametrize("members", [
    [("../out.js", "1")],
    [("link", None, "/etc"), ("link/out.js", "1")],
    [("package/link", None, "../../out")]])
def test_no_archive_writes_outside_its_folder(members, tmp_path):
    folder = tmp_path/"in"
    folder.mkdir()
    sha512 = archive(folder/"a.tgz", *members)
    with pytest.raises(tarfile.FilterError):
        build_docs.unpack(folder/"a.tgz", sha512, folder)
    assert not list(tmp_path.rglob("out*"))


@pytest.mark.parametrize("path", sorted((ROOT/".github").rglob("*.yml")), ids=lambda p: p.name)
def test_actions_are_named_by_the_commit_that_was_read(path):
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+(/[\w-]+)+@[0-9a-f]{40}", action), f"{action} may be moved"


def code(source, outputs=()):
    return dict(cell_type="code", source=source, outputs=list(outputs))


def test_a_figure_stands_before_the_live_one_whose_code_is_folded():
    live = code("interact(plot, alpha=1);")
    still = code("HTML(alpha_figure_html())")
    other = code("interact(plot, alpha=2);")
    cells = build_docs.figures_first([live, still, other, code("1 + 1")])
    assert [cell["source"] for cell in cells] == [
        "HTML(alpha_figure_html())", build_docs.FOLDED + "interact(plot, alpha=1);",
        "interact(plot, alpha=2);", "1 + 1"]


@pytest.mark.parametrize("source, outputs, folded", [
    ("x = 1\nassert x == 1", [], True),
    ("test_eq(1, 1)", [], True),
    ("for x in y:\n    assert x", [], True),
    ("assert x\nx", [dict(data={})], False),
    ("#| exports\ndef f():\n    assert 1", [], False),
    ("x = 1", [], False),
])
def test_only_cells_that_check_and_show_nothing_are_folded(source, outputs, folded):
    assert build_docs.only_checks(code(source, outputs)) == folded


def test_what_is_replaced_in_another_projects_script_must_be_there(tmp_path):
    script = tmp_path/"x.js"
    script.write_text("let a = 1;")
    build_docs.replace_once(script, (r"a = \d", r"a = 2"))
    assert script.read_text() == "let a = 2;"
    with pytest.raises(SystemExit, match="0 places"):
        build_docs.replace_once(script, ("nowhere", "x"))


@pytest.mark.parametrize("html, want", [
    ('by <span class="math inline">A</span>, so',
     'by <span class="text-nowrap"><span class="math inline">A</span>,</span> so'),
    ("<td>calibrl:gap=mean</td>", "<td>calibrl:<wbr>gap=<wbr>mean</td>"),
    ("<td>2e-07</td>", '<td class="text-nowrap">2e-07</td>'),
    ("<td>0.1, 0.2</td>", "<td>0.1, 0.2</td>"),
])
def test_what_may_break_on_a_phone(html, want):
    assert build_docs.narrow(html) == want


@pytest.mark.parametrize("said, wraps", [
    ("right 3% of the time\n", True),
    ("GRPO     65%\nCalibRL  68%\n", False),
    ("  1\n 12\n", False)])
def test_an_output_of_sentences_is_wrapped_and_columns_are_not(said, wraps):
    html = f'<div class="cell-output cell-output-stdout">\n<pre><code>{said}</code></pre>'
    assert ('<pre class="sentences">' in build_docs.narrow(html)) == wraps


def test_a_docstring_keeps_its_session_and_loses_its_asterisks():
    said = build_docs.in_words("*Return a * b.*\n\nMore.\n\n>>> f(2)\n4")
    assert said == "Return a * b.\n\nMore.\n\n```python\n>>> f(2)\n4\n```\n\n"
