"""Build the site in _docs from the notebooks, without Quarto and without running them: it reads
from disk, with no network.

nbdev makes the API parts of each page from signatures and docments, smalldocs makes the pages.
Between and after them this script mends what would keep a reader offline or lost; each mend says
why. Then every link is checked. KaTeX, for the formulas, comes from npm once (kept in build/), or
from a folder named by KATEX_DIR.
"""
import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
STAGE = ROOT/"build/docs-nbs"
KATEX = ROOT/"build/katex"
KATEX_VERSION = "0.16.22"
# Of that version's archive, as the registry publishes it (npm view katex@VERSION dist.integrity)
KATEX_SHA512 = ("XCHRdUw4lf3SKBaJe4EvgqIuWwkPSo9XoeO8GjQW94Bp"
                "7TWv9hNhzZjZ+OH9yf1UmLygb7DIT5GSFQiyt16zYg==")


def page_of(notebook, root):
    """The path of a notebook from `root`, without its number: so nbdev links to it.

    00_loss.ipynb makes loss.html, 00c_viz.ipynb viz.html, viz/toy.ipynb viz/toy.html.
    """
    path = notebook.relative_to(root)
    return path.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.name))


def relink(text, folder, pages):
    "A text with links to moved notebooks mended; `folder` is where it stands, from the root."
    def mended(match):
        old = os.path.normpath(folder/match[0])
        if old not in pages:
            return match[0]
        new = os.path.relpath(pages[old], folder)
        return Path(new).as_posix()
    return re.sub(r"(?<![\w./-])[\w./-]+\.ipynb", mended, text)


def stage():
    "A copy of nbs/ with pages named after modules."
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT/"nbs", STAGE, ignore=shutil.ignore_patterns(".*", "_proc", "_docs"))
    pages = {}
    for path in sorted(STAGE.rglob("*.ipynb")):
        page = page_of(path, STAGE)
        pages[path.relative_to(STAGE).as_posix()] = page
        (STAGE/page).parent.mkdir(parents=True, exist_ok=True)
        path.rename(STAGE/page)
    for path in [*STAGE.rglob("*.ipynb"), *STAGE.rglob("*.md"), *STAGE.glob("*.yml")]:
        text = relink(path.read_text(encoding="utf-8"), path.relative_to(STAGE).parent, pages)
        path.write_text(show_source(text) if path.suffix == ".ipynb" else text, encoding="utf-8")


def shown(source):
    "The source of a code cell, with the directives that make nbdev and smalldocs show it."
    to = r"(?: +[\w.]+)? *$"                           # `#| export loss.terms` names another room
    source = re.sub(rf"\A#\| *export{to}", "#| exports", source, flags=re.M)
    source = re.sub(rf"\A#\| *exporti{to}", f"#| exports\n{INNER}", source, flags=re.M)
    for name, option in (("input", "echo"), ("output", "output")):
        source = re.sub(rf"^#\|\s*hide_{name}\s*$", f"#| {option}: false", source, flags=re.M)
    if re.match(r"#\|\s*(export|default_exp)", source) or "show_doc(" in source:
        return source
    return "#| eval: false\n" + source


CHECKS = '#| code-fold: true\n#| code-summary: "Checks"\n'


def only_checks(cell):
    "Whether a cell of code that is not exported asserts something and shows nothing."
    source = "".join(cell["source"])
    if cell["cell_type"] != "code" or cell.get("outputs") or re.search(r"^#\| *export", source,
                                                                       flags=re.M):
        return False
    return bool(re.search(r"^\s*(assert\b|test_\w+\(|with expect_fail)", source, flags=re.M))


def fold_checks(cells):
    "The cells with those that only check folded: a reader who wants them opens them."
    for cell in cells:
        if only_checks(cell):
            cell["source"] = CHECKS + "".join(cell["source"])
    return cells


def room_at_hand(text):
    "A hidden cell with what stands in the room that a chapter adds to, so that its exports run."
    for room in re.findall(r"#\| *exporti? +([\w.]+)", text)[:1]:
        source = ("#| hide\nimport importlib\n"       # a loop, for nbdev warns of other code
                  f'for room in [importlib.import_module("calibrl.{room}")]:\n'
                  "    globals().update(vars(room))")
        yield {"cell_type": "code", "id": "room", "metadata": {}, "source": source,
               "execution_count": None, "outputs": []}


FOLDED = '#| code-fold: true\n#| code-summary: "The code of the live figure"\n'


def figures_first(cells):
    """The cells with each figure that moves without a kernel before the live one, whose code is
    folded: a reader of the site can move only the first."""
    cells = list(cells)
    for i in range(len(cells) - 1):
        live, still = cells[i:i + 2]
        sources = ["".join(cell["source"]) for cell in (live, still)]
        if "interact(" in sources[0] and "_figure_html(" in sources[1]:
            live["source"] = FOLDED + sources[0]
            cells[i:i + 2] = still, live
    return cells


def show_source(text):
    """nbdev hides exported cells; in a book the code is the point, so they become `#| exports`,
    which stay. What is not API (`#| exporti`) is shown, too, without a signature of its own.

    nbdev also runs each cell with an import in it, tests and training included. Only exported code
    is needed, so the others say `eval: false`. smalldocs knows Quarto's names of the options.
    """
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = shown("".join(cell["source"]))
    notebook["cells"] = fold_checks(figures_first(notebook["cells"]))
    notebook["cells"][1:1] = room_at_hand(text)
    notebook["cells"].append(markdown("<!-- -->", "end"))   # nbdev asks what follows an export
    return json.dumps(notebook, indent=1, ensure_ascii=False)


INNER = "#| include: false"      # nbdev makes no signature of such a cell; `arrange` shows it again
# How nbdev marks an exported cell
EXPORTED = '#| code-fold: show\n#| code-summary: "Exported source"\n#| exports: true\n'


def is_widget(out):
    "Without a kernel, a live slider is only the text `interactive(children=...`."
    text = "".join(out.get("data", {}).get("text/plain", ""))
    return text.startswith("interactive(children=")


def take_signatures(cells):
    "The cells without nbdev's signatures, and these by name, as Markdown."
    rest = []
    signatures = {}
    for cell in cells:
        source = "".join(cell["source"])
        called = re.search(r"^show_doc\(([\w.]+)", source, flags=re.M)
        if cell["cell_type"] == "code" and called and cell["outputs"]:
            data = cell["outputs"][0].get("data", {})
            signatures[called[1]] = "".join(data.get("text/markdown", ""))
        else:
            rest.append(cell)
    return rest, signatures


def defined(source):
    "The functions and classes that a cell defines, in order."
    return re.findall(r"^(?:async )?(?:def|class) (\w+)", source, flags=re.M)


def documented(source, signatures):
    "The names whose signature nbdev knows, of what a cell defines: `Policy.logps` of `logps`."
    return [name for made in defined(source) for name in signatures
            if name.split(".")[-1] == made]


def markdown(text, key):
    return {"cell_type": "markdown", "id": key, "metadata": {}, "source": text}


def headings(source, signatures, key):
    "Markdown cells before an exported cell: what the text, and the API page, link to."
    names = documented(source, signatures)
    inner = [made for made in defined(source) if made not in {n.split(".")[-1] for n in names}]
    if inner:                                          # no heading, but the text may link to it
        yield markdown("".join(f'<span id="{made.lower()}"></span>' for made in inner), f"p{key}")
    for i, name in enumerate(names):
        yield markdown(f"### `{name}` {{#{name.lower()}}}", f"h{key}-{i}")


def show_cells(cells, signatures):
    "The cells of a page, with a heading or an anchor before what is exported."
    for number, cell in enumerate(cells):
        if "outputs" in cell:
            cell["outputs"] = [out for out in cell["outputs"] if not is_widget(out)]
        source = "".join(cell["source"])
        if source.startswith(EXPORTED):
            cell["source"] = source.removeprefix(EXPORTED).removeprefix(INNER + "\n")
            yield from headings(cell["source"], signatures, number)
        yield cell


def api_entry(name, shown, page):
    "The lines of the API page about a name: signature, first words, link."
    signature, _, about = re.sub(r"\A.*?```python\n", "", shown, flags=re.S).partition("\n```")
    signature = re.sub(r"(\w+):VAR_KEYWORD", r"**\1", signature)
    signature = re.sub(r"(\w+):VAR_POSITIONAL", r"*\1", signature)
    signature = re.sub(r"\[`([\w.]+)`\]\([^)]*\)", r"`\1`", signature)   # no link inside code
    signature = re.sub(r"(?<=[:>[])(?:\w+\.)+(?=\w)", "", signature)     # a type without its module
    return (f"### `{name}`\n\n```python\n{signature.strip()}\n```\n\n{in_words(about)} "
            f"[In its chapter]({page}.html#{name.lower()}).\n")


def room_of(page):
    "The room whose names a page shows; a chapter that makes no room of its own is its wing's."
    made = (ROOT/"calibrl"/f"{page}.py").exists()
    return (page if made or "/" not in page else page.rpartition("/")[0]).replace("/", ".")


def in_words(about):
    "A docstring as nbdev hands it on, without its asterisks; a session in Python becomes code."
    about = re.sub(r"\A\*(.*?)\*(?=\n\n|\Z)", r"\1", about.strip(), flags=re.S)
    parts = re.split(r"\n\s*\n", about)
    return "\n\n".join(f"```python\n{part}\n```\n\n" if part.startswith(">>> ") else part
                       for part in parts)


def arrange(cache):
    """Signatures go to the API page, where they stand alone; in the chapters each exported cell
    gets a heading to link to."""
    api = {}
    for path in sorted(cache.rglob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells, signatures = take_signatures(notebook["cells"])
        notebook["cells"] = list(show_cells(cells, signatures))
        path.write_text(json.dumps(notebook), encoding="utf-8")
        if not signatures:
            continue
        page = path.relative_to(cache).with_suffix("").as_posix()
        found = [documented("".join(cell["source"]), signatures) for cell in cells]
        names = dict.fromkeys([name for some in found for name in some] + list(signatures))
        api[page] = [api_entry(name, signatures[name], page) for name in names]

    # The chapters' own order, what is not in it last; chapters of one room under one heading
    listed = re.findall(r"([\w/]+)\.ipynb", (cache/"sidebar.yml").read_text(encoding="utf-8"))
    entries = {}
    for page in sorted(api, key=lambda page: (listed + [page]).index(page)):
        entries.setdefault(room_of(page), []).extend(api[page])
    lines = [(cache/"api.md").read_text(encoding="utf-8")]
    for module, shown in entries.items():
        lines += [f"\n## calibrl.{module} {{#{module.replace('.', '-')}}}\n", *shown]
    (cache/"api.md").write_text("\n".join(lines), encoding="utf-8")


def fetch_katex():
    "KaTeX's own dist folder."
    if os.environ.get("KATEX_DIR"):
        return Path(os.environ["KATEX_DIR"])
    dist = KATEX/"package/dist"
    if (dist/"katex.min.js").exists():
        return dist
    KATEX.mkdir(parents=True, exist_ok=True)
    package = f"katex@{KATEX_VERSION}"
    done = subprocess.run(["npm", "pack", "--silent", package], cwd=KATEX, capture_output=True,
                          text=True)
    if done.returncode:
        why = done.stderr.strip()[-300:]
        sys.exit(f"build_docs: npm could not fetch {package}: {why}")
    unpack(KATEX/f"katex-{KATEX_VERSION}.tgz", KATEX_SHA512, KATEX)
    return dist


def unpack(file, sha512, folder):
    "Unpack an archive into a folder, once it is known to be the right one."
    found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if found != sha512:
        file.unlink()
        sys.exit(f"build_docs: {file.name} is not the archive that is expected: its SHA-512 is"
                 f" {found}; it was removed, try again")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")    # no path, link or right leads out of it


def edit(path, *changes):
    "Apply (pattern, replacement) pairs to a text file."
    text = path.read_text(encoding="utf-8")
    for pattern, new in changes:
        text = re.sub(pattern, new, text)
    path.write_text(text, encoding="utf-8")


def mend_katex(libs):
    "Put KaTeX beside the pages; every current browser reads woff2, so the other fonts go."
    katex = fetch_katex()
    for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
        (libs/"katex"/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(katex/name, libs/"katex"/name)
    (libs/"katex/fonts").mkdir(exist_ok=True)
    for font in (katex/"fonts").glob("*.woff2"):
        shutil.copy(font, libs/"katex/fonts")
    other_fonts = r",url\([^)]*\.(?:woff|ttf)\) format\(\"\w+\"\)"
    edit(libs/"katex/katex.min.css", (other_fonts, ""))


FETCH = r'const r = await fetch\(offset \+ "search.json"\);\s*index = await r.json\(\);'
LOAD = ('await new Promise((ok, no) => { const s = document.createElement("script"); '
        's.src = offset + "search.js"; s.onload = ok; s.onerror = no; document.head.append(s); }); '
        "index = window.searchIndex;")


# What is found, in the order of the search's own score, and in ours
FOUND = r"fuse\.search\(q, \{ limit \}\)\.map\(\(h\) => h\.item\)"
RANKED = "rankedHits(fuse.search(q).map((h) => h.item), q).slice(0, limit)"
RANK = """
// A chapter whose title has all the words comes first, then a section, then a paragraph
function rankedHits(items, query) {
  const words = query.toLowerCase().split(/\\s+/);
  const within = (text) => words.every((word) => (text || "").toLowerCase().includes(word));
  const rank = (item) => {
    if (within(item.title)) return item.section ? 1 : 0;
    return within(item.section) ? 2 : within(item.text) ? 3 : 4;
  };
  return items.map((item, i) => [rank(item), i, item])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, , item]) => item);
}
"""


def replace_once(path, *changes):
    "Apply (pattern, replacement) pairs to a file of another project, each of which must be found."
    text = path.read_text(encoding="utf-8")
    for pattern, new in changes:
        text, count = re.subn(pattern, lambda match, new=new: new, text)
        if count != 1:
            sys.exit(f"build_docs: {path.name} has {count} places like {pattern!r}, not one: "
                     "smalldocs has changed, look at it again")
    path.write_text(text, encoding="utf-8")


def mend_search(site):
    """Load the index of the search as a script: on file:// a fetch is refused, a script is not.
    And let a chapter be found before the paragraphs that mention it."""
    script = site/"site_libs/smalldocs.js"
    replace_once(script, (FETCH, LOAD), (FOUND, RANKED))
    script.write_text(script.read_text(encoding="utf-8") + RANK, encoding="utf-8")
    index = (site/"search.json").read_text(encoding="utf-8")
    (site/"search.js").write_text(f"window.searchIndex = {index};\n", encoding="utf-8")
    (site/"search.json").unlink()


def stands_in_columns(text):
    "Whether lines of an output stand under one another, so that they must not be wrapped."
    return bool(re.search(r"^ {2}|\S {2,}\S", text, flags=re.M))


OUTPUT = re.compile(r'(<div class="cell-output cell-output-stdout">\s*<pre)(><code>)(.*?</code>)',
                    re.S)


def wrapped(match):
    "An output whose lines are sentences: it says so, and the style sheet wraps it."
    kind = "" if stands_in_columns(match[3]) else ' class="sentences"'
    return match[1] + kind + match[2] + match[3]


def narrow(text):
    "A page as it is also read on a phone: sentences wrap, and words break where they may."
    text = OUTPUT.sub(wrapped, text)
    text = re.sub(r'(<span class="math inline">[^<]{,24}</span>[.,;:)]+)',
                  r'<span class="text-nowrap">\1</span>', text)    # no line begins with a comma
    text = re.sub(r"<td>(\S*\de-\d+\S*)</td>", r'<td class="text-nowrap">\1</td>', text)
    settings = re.compile(r"(?<=<td>)\w+:[\w=.,:]+(?=</td>)")    # of a method, behind its name
    return settings.sub(lambda found: re.sub(r"([:,=])", r"\1<wbr>", found[0]), text)


def mend(site):
    "Make the built pages whole without a network."
    libs = site/"site_libs"
    mend_katex(libs)
    for css in (libs/"themes").glob("*.css"):      # a web font: the system's own serves
        edit(css, (r"@import url\([^)]*\);?", ""))
    mend_search(site)
    (site/".nojekyll").touch()
    for page in site.rglob("*.html"):              # nbdev links API names from the root of a site
        up = "../" * (len(page.relative_to(site).parts) - 1)
        edit(page,
             (r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist", up + "site_libs/katex"),
             (r'href="/(?!/)', f'href="{up}'))
        page.write_text(narrow(page.read_text(encoding="utf-8")), encoding="utf-8")
    link_methods(site)


def link_methods(site):
    "Let a link to a method lead to its class, which the book shows whole."
    pages = {path.resolve(): path for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
           for path, page in pages.items()}
    for path, page in pages.items():
        def to_class(match, here=path):
            target, anchor = match[1], match[2]
            where = (here.parent/target).resolve() if target else here
            whole = anchor.partition(".")[0]
            there = ids.get(where, set())
            found = anchor in there or whole not in there
            return match[0] if found else f'href="{target}#{whole}"'
        edit(page, (r'href="([\w./-]*)#(\w+\.\w+)"', to_class))


def outside(text):
    "What a page would load from elsewhere: (tag, address)."
    for tag in re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*>", text):
        url = re.search(r"\s(?:src|href|data)=\"((?:https?:)?//[^\"]+)\"", tag)
        if url and 'rel="canonical"' not in tag:
            yield tag.split()[0], url[1]


def wrong_link(url, page, ids):
    "What is wrong with a link of a page, or None; `ids` has the anchors of each page."
    target, _, anchor = html.unescape(url).partition("#")
    if re.match(r"[a-z]+:|//", target) or not url:
        return None
    where = page
    if target:
        where = (page.parent/unquote(target.partition("?")[0])).resolve()
    if where.is_dir():
        where = where/"index.html"
    if not where.exists():
        return "is not there"
    place = unquote(anchor).partition(":")[0]          # `figure:a=1` is a setting of a figure
    if anchor and where in ids and not {unquote(anchor), place} & ids[where]:
        return "has no such place"
    return None


def broken_links(site):
    "Links that lead nowhere, and anything a page would load from elsewhere."
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    for page, text in pages.items():
        name = page.relative_to(site)
        for tag, url in outside(text):
            yield f"{name}: {tag}> loads {url}"
        prose = re.sub(r"<(pre|script|code)\b.*?</\1>", "", text, flags=re.S)
        for url in re.findall(r'\s(?:href|src)="([^"]*)"', prose):
            if wrong := wrong_link(url, page, ids):
                yield f"{name}: {url} {wrong}"
    for css in site.rglob("*.css"):
        text = css.read_text(encoding="utf-8")
        for url in re.findall(r"@import|url\(['\"]?((?:https?:)?//[^)]+)\)", text):
            yield f"{css.relative_to(site)}: loads {url}"


def main():
    "Stage, process, render, mend, check; then put the result in place of the old site."
    from nbdev.serve import proc_nbs
    from smalldocs.site import build
    os.chdir(ROOT)
    stage()
    shutil.rmtree(ROOT/"_proc", ignore_errors=True)
    cache = proc_nbs(str(STAGE), n_workers=2, force=True)
    arrange(cache)
    for warning in build(cache, quiet=True).warnings:
        if "output-file" not in warning:           # stage() named the files
            print("note:", warning)
    mend(cache/"_docs")
    problems = list(broken_links(cache/"_docs"))
    for problem in problems:
        print("broken:", problem)

    shutil.rmtree(ROOT/"_docs", ignore_errors=True)
    shutil.move(cache/"_docs", ROOT/"_docs")
    shutil.rmtree(cache)
    pages = len(list((ROOT/"_docs").rglob("*.html")))
    size = sum(path.stat().st_size for path in (ROOT/"_docs").rglob("*") if path.is_file())
    print(f"_docs: {pages} pages, {size/1e6:.1f} MB, {len(problems)} broken links; "
          "open _docs/index.html")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
