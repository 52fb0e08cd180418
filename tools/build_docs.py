"""Build the site in _docs from the notebooks, without Quarto and without running them: it reads from disk, with no network.

nbdev makes the API parts of each page from signatures and docments, smalldocs makes the pages. Between and after them this
script mends what would keep a reader offline or lost; each mend says why. Then every link is checked.
KaTeX, for the formulas, comes from npm once (kept in build/), or from a folder named by KATEX_DIR.
"""
import html, json, os, re, shutil, subprocess, sys, tarfile
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
STAGE, KATEX, KATEX_VERSION = ROOT/"build/docs-nbs", ROOT/"build/katex", "0.16.22"


def module_of(notebook):
    "The module a notebook exports to, which names its page: 00_loss.ipynb makes loss.html."
    found = re.search(r"#\|\s*default_exp\s+([\w.]+)", notebook.read_text(encoding="utf-8"))
    return found.group(1) if found else notebook.stem


def stage():
    "A copy of nbs/ with pages named after modules."
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT/"nbs", STAGE, ignore=shutil.ignore_patterns(".*", "_proc", "_docs"))
    names = {p.name: module_of(p) + ".ipynb" for p in STAGE.glob("*.ipynb")}
    for old, new in names.items(): (STAGE/old).rename(STAGE/new)
    for path in [*STAGE.rglob("*.ipynb"), *STAGE.rglob("*.md"), *STAGE.glob("*.yml")]:
        text = path.read_text(encoding="utf-8")
        for old, new in names.items(): text = re.sub(rf"(?<![\w./-])((?:\.\./)*){re.escape(old)}", rf"\g<1>{new}", text)
        path.write_text(show_source(text) if path.suffix == ".ipynb" else text, encoding="utf-8")


def show_source(text):
    """nbdev hides `#| export` cells; in a book the code is the point, so they become `#| exports`, which stay.

    nbdev also runs each cell with an import in it, tests and training included. Only exported code is needed, so the others say `eval: false`.
    smalldocs knows Quarto's names of the options, not nbdev's.
    """
    nb = json.loads(text)
    for cell in nb["cells"]:
        if cell["cell_type"] != "code": continue
        source = re.sub(r"\A(#\|\s*export)\s*$", r"\1s", "".join(cell["source"]), flags=re.M)
        source = re.sub(r"^#\|\s*hide_(input|output)\s*$", lambda m: f"#| {'echo' if m[1] == 'input' else 'output'}: false", source, flags=re.M)
        cell["source"] = source if re.match(r"#\|\s*(export|default_exp)", source) or "show_doc(" in source else "#| eval: false\n" + source
    return json.dumps(nb, indent=1, ensure_ascii=False)


EXPORTED = '#| code-fold: show\n#| code-summary: "Exported source"\n'    # how nbdev marks such a cell


def is_widget(out):
    "Without a kernel, a live slider is only the text `interactive(children=...`."
    return "".join(out.get("data", {}).get("text/plain", "")).startswith("interactive(children=")


def arrange(cache):
    "Signatures go to the API page, where they stand alone; in the chapters each exported cell gets a heading to link to."
    api, about_all = {}, (cache/"api.md").read_text(encoding="utf-8")
    for path in sorted(cache.rglob("*.ipynb")):
        nb = json.loads(path.read_text(encoding="utf-8"))
        docs, cells, order = {}, [], []
        for cell in nb["cells"]:
            if cell["cell_type"] == "code" and (m := re.search(r"^show_doc\(([\w.]+)", "".join(cell["source"]), flags=re.M)) and cell["outputs"]:
                docs[m.group(1)] = "".join(cell["outputs"][0].get("data", {}).get("text/markdown", ""))
            else: cells.append(cell)
        nb["cells"] = []
        for n, cell in enumerate(cells):
            if "outputs" in cell: cell["outputs"] = [out for out in cell["outputs"] if not is_widget(out)]
            source = "".join(cell["source"])
            if source.startswith(EXPORTED):
                cell["source"] = source = source[len(EXPORTED):]
                found = {name: re.search(rf"^(?:async )?(?:def|class) {name.split('.')[-1]}\b", source, flags=re.M) for name in docs}
                names = sorted((name for name in docs if found[name]), key=lambda name: found[name].start())
                order += names
                private = re.findall(r"^(?:async )?(?:def|class) (_\w+)", source, flags=re.M)    # no heading, but the text may link to it
                if private: nb["cells"].append({"cell_type": "markdown", "id": f"p{n}", "metadata": {}, "source": "".join(f'<span id="{name.lower()}"></span>' for name in private)})
                nb["cells"] += [{"cell_type": "markdown", "id": f"h{n}-{i}", "metadata": {}, "source": f"### `{name}` {{#{name.lower()}}}"} for i, name in enumerate(names)]
            nb["cells"].append(cell)
        path.write_text(json.dumps(nb), encoding="utf-8")
        if docs: api[path.stem] = [f"\n## calibrl.{path.stem} {{#{path.stem}}}\n"]
        for name in [*dict.fromkeys(order), *(name for name in docs if name not in order)]:
            signature, _, about = re.sub(r"\A.*?```python\n", "", docs[name], flags=re.S).partition("\n```")
            signature = re.sub(r"(\w+):VAR_(KEYWORD|POSITIONAL)", lambda m: ("**" if m[2] == "KEYWORD" else "*") + m[1], signature)
            signature = re.sub(r"\[`([\w.]+)`\]\([^)]*\)", r"`\1`", signature)                         # a link inside code is only its text
            api[path.stem].append(f"### `{name}`\n\n```python\n{signature.strip()}\n```\n\n{about.strip().strip('*')} [In its chapter]({path.stem}.html#{name.lower()}).\n")
    order = re.findall(r"(\w+)\.ipynb", (cache/"sidebar.yml").read_text(encoding="utf-8"))           # the chapters' own order, what is not in it last
    (cache/"api.md").write_text("\n".join([about_all, *(line for stem in sorted(api, key=lambda stem: (order + [stem]).index(stem)) for line in api[stem])]), encoding="utf-8")


def fetch_katex():
    "KaTeX's own dist folder."
    if os.environ.get("KATEX_DIR"): return Path(os.environ["KATEX_DIR"])
    if (KATEX/"package/dist/katex.min.js").exists(): return KATEX/"package/dist"
    if not shutil.which("npm"): sys.exit("build_docs: formulas need KaTeX: install npm (Node.js), or set KATEX_DIR to KaTeX's dist folder")
    KATEX.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["npm", "pack", "--silent", f"katex@{KATEX_VERSION}"], cwd=KATEX, capture_output=True, text=True)
    if done.returncode: sys.exit(f"build_docs: npm could not fetch katex@{KATEX_VERSION}: {done.stderr.strip()[-300:]}")
    with tarfile.open(KATEX/f"katex-{KATEX_VERSION}.tgz") as archive: archive.extractall(KATEX)
    return KATEX/"package/dist"


def edit(path, *changes):
    "Apply (pattern, replacement) pairs to a text file."
    text = path.read_text(encoding="utf-8")
    for pattern, new in changes: text = re.sub(pattern, new, text)
    path.write_text(text, encoding="utf-8")


def mend(site, home):
    "Make the built pages whole without a network."
    libs, katex = site/"site_libs", fetch_katex()
    for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
        (libs/"katex"/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(katex/name, libs/"katex"/name)
    shutil.copytree(katex/"fonts", libs/"katex/fonts", ignore=lambda d, names: [n for n in names if not n.endswith(".woff2")], dirs_exist_ok=True)
    edit(libs/"katex/katex.min.css", (r",url\([^)]*\.(?:woff|ttf)\) format\(\"\w+\"\)", ""))    # every current browser reads woff2
    for css in (libs/"themes").glob("*.css"): edit(css, (r"@import url\([^)]*\);?", ""))        # a web font: the system's own serves
    edit(libs/"smalldocs.js", (r'const r = await fetch\(offset \+ "search.json"\);\s*index = await r.json\(\);',    # fetch is refused on file://, a script is not
         'await new Promise((ok, no) => { const s = document.createElement("script"); s.src = offset + "search.js"; s.onload = ok; s.onerror = no; document.head.append(s); }); index = window.searchIndex;'))
    (site/"search.js").write_text("window.searchIndex = " + (site/"search.json").read_text(encoding="utf-8") + ";\n", encoding="utf-8")
    (site/"search.json").unlink()
    (site/".nojekyll").touch()
    for page in site.rglob("*.html"):
        up = "../" * (len(page.relative_to(site).parts) - 1)
        edit(page, (r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist", up + "site_libs/katex"),
             (rf'href="{re.escape(home)}/', f'href="{up}'))    # nbdev links API names to the published site


def broken_links(site):
    "Links that lead nowhere, and anything a page would load from elsewhere."
    pages = {p: p.read_text(encoding="utf-8") for p in site.rglob("*.html")}
    ids = {p: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}
    for page, text in pages.items():
        name, code = page.relative_to(site), re.sub(r"<(pre|script|code)\b.*?</\1>", "", text, flags=re.S)
        for tag in re.findall(r"<(?:script|link|img|iframe|source|object)\b[^>]*>", text):
            url = re.search(r"\s(?:src|href|data)=\"((?:https?:)?//[^\"]+)\"", tag)
            if url and 'rel="canonical"' not in tag: yield f"{name}: {tag.split()[0]}> loads {url.group(1)}"
        for url in re.findall(r'\s(?:href|src)="([^"]*)"', code):
            target, _, anchor = html.unescape(url).partition("#")
            if re.match(r"[a-z]+:|//", target) or not url: continue
            where = (page.parent/unquote(target.partition("?")[0])).resolve() if target else page
            if where.is_dir(): where = where/"index.html"
            if not where.exists(): yield f"{name}: {url} is not there"
            elif anchor and where in ids and unquote(anchor) not in ids[where]: yield f"{name}: {url} has no such place"
    for css in site.rglob("*.css"):
        for url in re.findall(r"@import|url\(['\"]?((?:https?:)?//[^)]+)\)", css.read_text(encoding="utf-8")): yield f"{css.relative_to(site)}: loads {url}"


def main():
    "Stage, process, render, mend, check; then put the result in place of the old site."
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs
    from smalldocs.site import build
    os.chdir(ROOT)
    cfg = get_config()
    stage()
    shutil.rmtree(ROOT/"_proc", ignore_errors=True)
    cache = proc_nbs(str(STAGE), n_workers=2, force=True)
    arrange(cache)
    for warning in build(cache, quiet=True).warnings:
        if "output-file" not in warning: print("note:", warning)    # stage() named the files
    mend(cache/"_docs", cfg.doc_host + cfg.doc_baseurl)
    problems = list(broken_links(cache/"_docs"))
    for problem in problems: print("broken:", problem)
    shutil.rmtree(ROOT/"_docs", ignore_errors=True)
    shutil.move(cache/"_docs", ROOT/"_docs")
    shutil.rmtree(cache)
    pages = len(list((ROOT/"_docs").rglob("*.html")))
    print(f"_docs: {pages} pages, {sum(f.stat().st_size for f in (ROOT/'_docs').rglob('*') if f.is_file())/1e6:.1f} MB, {len(problems)} broken links; open _docs/index.html")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
