"""The house rules: which room may use which, what an import costs, what a notebook may hold, what the wheel carries."""
import ast, json, re, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = {p.stem: p for p in sorted((ROOT/"calibrl").glob("[a-z]*.py"))}
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT/"settings.ini", encoding="utf-8")
CONFIG = CONFIG["DEFAULT"]
sys.path.insert(0, str(ROOT/"tools"))

# A room may use the rooms named here. `cli` may use all; `train` and `eval` know nothing of each other.
MAY_USE = {"loss": set(), "tasks": set(), "geometry": {"tasks"}, "algebra": {"tasks", "geometry"}, "viz": {"loss"}, "rollout": {"loss", "tasks"},
           "data": {"tasks", "rollout"}, "plan": {"rollout", "train"},
           "train": {"loss", "tasks", "rollout"}, "benchmarks": {"tasks", "data", "geometry"}, "eval": {"tasks", "rollout", "geometry", "benchmarks"},
           "compare": {"train", "eval", "geometry", "algebra", "rollout", "loss", "tasks"}, "trl": {"loss", "tasks"}, "bench": {"tasks", "rollout", "train"}}
HEAVY = {"transformers", "peft", "bitsandbytes", "datasets", "math_verify", "sympy", "accelerate", "trl"}


def imports(tree):
    "(first part of the module, the room of ours or None, whether at the top) for each import in `tree`."
    top = set(tree.body) | {n for b in tree.body if isinstance(b, (ast.Try, ast.If, ast.With)) for n in ast.walk(b)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                yield parts[0], parts[1] if parts[0] == "calibrl" and len(parts) > 1 else None, node in top
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level: parts = ["calibrl", *[p for p in parts if p]]
            rooms = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            for room in rooms if parts[0] == "calibrl" else [None]: yield parts[0], room, node in top


def wrong_rooms(name, source):
    "The rooms of ours that module `name` uses and may not."
    allowed = MAY_USE.get(name)
    used = {room for package, room, _ in imports(ast.parse(source)) if package == "calibrl" and room in {*MAY_USE, "cli"}}
    return set() if allowed is None else used - allowed - {name}


def heavy_at_top(source): return {package for package, _, top in imports(ast.parse(source)) if top and package in HEAVY}


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_downwards(name):
    assert wrong_rooms(name, MODULES[name].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_are_imported_where_they_are_used(name):
    assert heavy_at_top(MODULES[name].read_text(encoding="utf-8")) == set()


def test_the_rules_see_what_they_forbid():
    assert wrong_rooms("eval", "from calibrl.train import train") == {"train"}
    assert wrong_rooms("train", "def f():\n    from .eval import evaluate") == {"eval"}
    assert wrong_rooms("rollout", "import calibrl.viz") == {"viz"} == wrong_rooms("rollout", "from calibrl import viz")
    assert wrong_rooms("viz", "from calibrl.loss import alpha_gate") == set()
    assert heavy_at_top("try:\n    import transformers\nexcept ImportError: pass") == {"transformers"}
    assert heavy_at_top("def f():\n    import transformers") == set()


def trusting(source):
    "Calls of an Auto class's `from_pretrained` without trust_remote_code=False, in code as text."
    out = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute): continue
        made = ast.unparse(node.func.value).split(".")[-1]
        if node.func.attr != "from_pretrained" or not made.lower().startswith("auto"): continue
        said = {k.arg: k.value for k in node.keywords}.get("trust_remote_code")
        if isinstance(said, ast.Constant) and said.value is False: continue
        out.append(ast.unparse(node))
    return out


def code_of(path):
    "The code of a module, or of all cells of a notebook that are Python alone."
    if path.suffix == ".py": return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return "\n".join(c for c in code if not re.search(r"^\s*[%!]", c, flags=re.M))


@pytest.mark.parametrize("path", [*MODULES.values(), *NOTEBOOKS], ids=lambda p: p.name)
def test_no_model_folder_brings_code_that_is_run(path):
    assert trusting(code_of(path)) == []


def test_the_rule_about_code_sees_what_it_forbids():
    for call in ("AutoProcessor.from_pretrained(m)", "AutoConfig.from_pretrained(m, **kw)",
                 "transformers.AutoModel.from_pretrained(m, dtype=d)",
                 "auto.from_pretrained(m, trust_remote_code=True)",
                 "AutoTokenizer.from_pretrained(m, trust_remote_code=trust)"):
        assert trusting(f"def f():\n    x = {call}") == [call]
    assert trusting("AutoProcessor.from_pretrained(m, trust_remote_code=False)") == []
    assert trusting("Policy.from_pretrained(m)") == []


NEWER = ["contextlib.chdir", "import tomllib", "datetime.UTC", "StrEnum", "ExceptionGroup", "import Self", "typing.Self", "itertools.batched", "from typing import override"]


def too_new(source):
    "What in `source` Python 3.10 does not have."
    try: ast.parse(source, feature_version=(3, 10))
    except SyntaxError as error: return [str(error)]
    return [name for name in NEWER if name in source]


@pytest.mark.parametrize("path", [*MODULES.values(), *(ROOT/"tools").glob("*.py"), *(p for p in (ROOT/"tests").glob("*.py") if p.name != "test_house.py")], ids=lambda p: p.name)
def test_python_310_can_read_it(path):
    assert too_new(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name, banned", [
    ("loss", HEAVY | {"matplotlib", "PIL", "pandas", "ipywidgets", "torchvision"}), ("tasks", HEAVY | {"torch", "matplotlib", "pandas"})])
def test_a_light_import_stays_light(name, banned):
    code = f"import sys, calibrl.{name}; print(*sorted(set(sys.modules) & set({sorted(banned)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    ids = [cell.get("id") for cell in cells]
    assert all(ids) and len(set(ids)) == len(ids), "each cell needs an id of its own, or every export changes the modules"
    assert path.stat().st_size < 1_000_000, "over 1 MB: make the pictures smaller"
    long, errors, new = [], [], []
    for n, cell in enumerate(cells):
        if cell["cell_type"] != "code": continue
        source = "".join(cell["source"])
        if re.match(r"#\|\s*export", source) and len(lines := [x for x in source.splitlines() if x.strip()]) - 1 > 40: long.append((n, len(lines) - 1))
        if not re.search(r"^\s*[%!]", source, flags=re.M): new += [(n, what) for what in too_new(source)]
        errors += [(n, out["ename"]) for out in cell["outputs"] if out["output_type"] == "error"]
    assert not long, f"(cell, lines) over 40 lines: {long}"
    assert not new, f"(cell, what) newer than Python 3.10: {new}"
    assert not errors, f"(cell, error) left in the outputs: {errors}"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if re.match(r"\d", p.name)], ids=lambda p: p.stem)
def test_chapter_opens_with_title_and_module(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert re.fullmatch(r"# .+\n\n> .+", "".join(cells[0]["source"]).strip()), "the first cell is `# Title`, a blank line, `> one line`"
    code = next("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert (m := re.search(r"#\|\s*default_exp (\w+)", code)) and m.group(1) in MODULES


def test_one_version():
    import calibrl
    assert calibrl.__version__ == CONFIG["version"]
    assert CONFIG["version"] in (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")


def test_docs_settings_agree_with_settings_ini():
    text = (ROOT/"nbs/nbdev.yml").read_text(encoding="utf-8")
    for value in (CONFIG["title"], CONFIG["description"], CONFIG["git_url"] % CONFIG if "%" in CONFIG["git_url"] else CONFIG["git_url"],
                  CONFIG["doc_host"] + CONFIG["doc_baseurl"], CONFIG["doc_path"]): assert value in text


def test_readme_is_made_from_the_index():
    from readme import readme
    assert (ROOT/"README.md").read_text(encoding="utf-8") == readme(ROOT/"nbs/index.ipynb"), "run `make sync`"


def test_the_two_commands_exist():
    readme, make = ((ROOT/name).read_text(encoding="utf-8") for name in ("README.md", "Makefile"))
    for command in ("make demo", "make test"):
        assert command in readme
        assert re.search(rf"^{command.split()[1]}:", make, flags=re.M)
    named = set(re.findall(r"`make ([a-z-]+)", readme + (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert named <= set(re.findall(r"^([a-z-]+):", make, flags=re.M))


def test_every_lower_bound_is_within_the_constraints():
    from packaging.requirements import Requirement
    pins = [Requirement(line) for line in (ROOT/"constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pinned = {}
    for pin in pins: pinned.setdefault(pin.name.lower().replace("_", "-"), []).append(next(iter(pin.specifier)).version)
    for text in (value for key, value in CONFIG.items() if key.endswith("requirements")):
        for need in map(Requirement, text.split()):
            versions = pinned.get(need.name.lower().replace("_", "-"))
            assert versions, f"{need.name} is not in constraints.txt"
            assert all(need.specifier.contains(v) for v in versions), f"{need} leaves out {versions}"


def test_the_package_does_not_say_which_nbdev_is_installed_beside_it():
    "nbdev 2 needs fastcore 1, nbdev 3 needs fastcore 2: the package itself runs with both."
    from packaging.requirements import Requirement
    needs = {need.name: need for need in map(Requirement, CONFIG["requirements"].split())}
    assert not {"nbdev", "execnb", "ghapi"} & needs.keys()
    for version in ("1.12.47", "2.2.28", "2.2.41"):
        assert needs["fastcore"].specifier.contains(version)
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    used = set(re.findall(r"(?:from|import) (fastcore[.\w]*)", code))
    assert used <= {"fastcore.basics", "fastcore.docments"}      # both are in either series


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "The wheel, built from a copy so that nothing is left in the work tree."
    import shutil
    src, out = tmp_path_factory.mktemp("src")/"calibrl", tmp_path_factory.mktemp("wheel")
    src.mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in", "LICENSE"): shutil.copy(ROOT/name, src/name)
    for name in ("calibrl", "nbs", "tests"): shutil.copytree(ROOT/name, src/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=src, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(wheel.namelist())
    shipped = {p.relative_to(ROOT).as_posix() for p in (ROOT/"calibrl").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {n for n in names if ".dist-info/" not in n} == shipped
    assert any(n.startswith("calibrl/assets/") for n in names), "the tiny checkpoint is missing"
    meta = wheel.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    assert f"Version: {CONFIG['version']}" in meta and "Requires-Python: >=3.10" in meta
    needed = [line for line in meta.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in needed if "nbdev" in line or "execnb" in line]
    assert "calibrl = calibrl.cli:main" in wheel.read(next(n for n in names if n.endswith("/entry_points.txt"))).decode()


def test_no_file_is_out_of_step():
    from check_sync import differences
    assert differences() == []
