"""Functions that notebooks define, for another notebook to test with: `functions(paths, names)`.

A chapter grows a plain loop beside each formula. Where the next room compares with the same loop,
it takes it from there, so that it is written once. The notebook's cells are not run.
"""
import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace


def code_of(path):
    "Return the code of a notebook's cells, those with magics left out."
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(source for source in code if not re.search(r"^\s*[%!]", source, flags=re.M))


def functions(paths, *names, **given):
    """Return functions of a notebook, or of several, as attributes; `given` are globals they use.

    >>> functions("00_loss.ipynb", "naive_gate").naive_gate(-2., .5)
    -1.0
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    found = []
    for path in paths:
        for node in ast.parse(code_of(path)).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                found.append(node)
    missing = set(names) - {node.name for node in found}
    where = ", ".join(map(str, paths))
    if missing:
        raise ValueError(f"{where}: defines no function {', '.join(sorted(missing))}")
    scope = dict(given)
    exec(compile(ast.Module(found, []), where, "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})
