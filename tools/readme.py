"""Write README.md from nbs/index.ipynb: `python tools/readme.py`, or `--check` to tell whether it is up to date."""
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def directives(source):
    "The `#| name` lines at the top of a cell, and the rest of it."
    lines = source.splitlines()
    names = [m.group(1) for line in lines if (m := re.match(r"#\s*\|\s*(\w+)", line))]
    return set(names), "\n".join(line for line in lines if not re.match(r"#\s*\|", line)).strip("\n")


def outputs(cell):
    "What a code cell printed or returned, as text; a picture stays on the site."
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        if "text/markdown" in data: yield "".join(data["text/markdown"])
        elif "image/png" in data or "text/html" in data: continue
        elif text := "".join(out.get("text") or data.get("text/plain") or []): yield f"```\n{text.rstrip()}\n```"


def parts(cells):
    "The pieces of the README, in order."
    for cell in cells:
        names, source = directives("".join(cell["source"]))
        if cell["cell_type"] == "markdown":    # links between notebooks and to pictures, seen from the root
            yield re.sub(r"\]\((?!\w+:|#|/)([\w./-]+\.ipynb|(?:pages|images)/)", r"](nbs/\1", source)
        if cell["cell_type"] != "code" or "hide" in names: continue
        if source and "hide_input" not in names: yield f"```python\n{source}\n```"
        if "hide_output" not in names: yield from outputs(cell)


def readme(notebook):
    "The README that `notebook` makes."
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    head = "<!-- Made from nbs/index.ipynb by tools/readme.py: change it there. -->"
    return "\n\n".join([head, *(part.strip() for part in parts(cells) if part.strip())]) + "\n"


if __name__ == "__main__":
    made, path = readme(ROOT/"nbs/index.ipynb"), ROOT/"README.md"
    if "--check" not in sys.argv: path.write_text(made, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != made: sys.exit("README.md is not what nbs/index.ipynb makes: run `make sync`")
