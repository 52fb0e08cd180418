"""Write README.md from nbs/index.ipynb: `python tools/readme.py`.

With `--check`, only tell whether it is up to date.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made from nbs/index.ipynb by tools/readme.py: change it there. -->"

# A link to another notebook or to a picture, which from the root is one folder further down
LINK = re.compile(r"\]\((?!\w+:|#|/)([\w./-]+\.ipynb|(?:pages|images)/)")
DIRECTIVE = re.compile(r"#\s*\|\s*(\w+)?")


def directives(source):
    "Return the names of the `#| name` lines of a cell, and the rest of it."
    lines = source.splitlines()
    found = [DIRECTIVE.match(line) for line in lines]
    names = {m[1] for m in found if m and m[1]}
    rest = [line for line, m in zip(lines, found, strict=True) if not m]
    return names, "\n".join(rest).strip("\n")


def outputs(cell):
    "Yield what a code cell printed or returned, as text; a picture stays on the site."
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        text = "".join(out.get("text") or data.get("text/plain") or [])
        if "text/markdown" in data:
            yield "".join(data["text/markdown"])
        elif text and not {"image/png", "text/html"} & data.keys():
            yield f"```\n{text.rstrip()}\n```"


def parts(cells):
    "Yield the pieces of the README, in order."
    for cell in cells:
        names, source = directives("".join(cell["source"]))
        if cell["cell_type"] == "markdown":
            yield LINK.sub(r"](nbs/\1", source)
        if cell["cell_type"] != "code" or "hide" in names:
            continue
        if source and "hide_input" not in names:
            yield f"```python\n{source}\n```"
        if "hide_output" not in names:
            yield from outputs(cell)


def readme(notebook):
    "Return the README that `notebook` makes."
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    pieces = [part.strip() for part in parts(cells)]
    return "\n\n".join([HEAD, *filter(None, pieces)]) + "\n"


def main():
    "Write the README, or check it."
    made, path = readme(ROOT/"nbs/index.ipynb"), ROOT/"README.md"
    if "--check" not in sys.argv:
        path.write_text(made, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != made:
        sys.exit("README.md is not what nbs/index.ipynb makes: run `make sync`")


if __name__ == "__main__":
    main()
