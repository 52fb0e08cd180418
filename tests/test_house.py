"""The house rules: which room may use which, what an import costs, what a notebook may hold,
what the wheel carries."""
import ast
import graphlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import tomlkit

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/"calibrl"


def room_of(path):
    "The room that a module is: `viz.toy` of calibrl/viz/toy.py, `viz` of calibrl/viz/__init__.py."
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_module(path):
    return "__pycache__" not in path.parts and path.name != "_modidx.py"


def is_source(path):
    return ".ipynb_checkpoints" not in path.parts


NOTEBOOKS = sorted(filter(is_source, (ROOT/"nbs").rglob("*.ipynb")))
MODULES = {room_of(path): path for path in sorted(filter(is_module, PACKAGE.rglob("*.py")))}
del MODULES[""]
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT/"settings.ini", encoding="utf-8")
CONFIG = CONFIG["DEFAULT"]
sys.path.insert(0, str(ROOT/"tools"))

# A room may use the rooms named here; `train` and `eval` know nothing of each other. A wing's room
# is named with its wing, and the wing's name alone is its face. A room without a row is refused.
MAY_USE = {
    "algebra": {"tasks", "worlds.beyond", "worlds.kit", "worlds.solutions", "worlds.start",
                "worlds.worded"},
    "base": {"engine", "files", "prompts"},
    "benchmarks": {"eval.benchmarks", "eval.rules"},
    "cases": {"peers", "rollout", "tasks", "train"},
    "compare": {"compare.command", "compare.exams", "compare.figures", "compare.kept",
                "compare.many", "compare.pull", "compare.run", "compare.told",
                "compare.variants", "eval.stats"},
    "compare.command": {"compare.exams", "compare.figures", "compare.many", "compare.variants",
                        "files", "loss", "train"},
    "compare.exams": {"algebra", "eval", "eval.hashes", "geometry"},
    "compare.figures": {"compare.exams", "compare.kept", "eval", "eval.stats", "loss"},
    "compare.kept": {"compare.variants", "config", "eval.hashes", "eval.stats", "files"},
    "compare.many": {"compare.exams", "compare.figures", "compare.kept", "compare.run",
                     "compare.variants", "eval.stats", "files", "train"},
    "compare.pull": {"loss", "methods", "train"},
    "compare.run": {"compare.exams", "compare.kept", "compare.pull", "compare.variants",
                    "eval.hashes", "files", "rollout", "train"},
    "compare.told": {"compare.kept"},
    "compare.variants": {"config"},
    "config": {"dial", "files", "http_json", "loss", "prompts"},
    "costs": {"base", "draws", "memory", "step", "traces"},
    "data": {"data.check", "data.columns", "data.pictures", "data.problems", "data.rows",
             "data.sources"},
    "data.cards": {"data.files"},
    "data.check": {"data.columns", "data.files", "data.problems", "prompts", "rollout", "tasks"},
    "data.columns": set(),
    "data.files": {"data.json_files", "data.pictures"},
    "data.golds": {"data.columns", "data.pictures", "data.texts", "tasks"},
    "data.json_files": set(),
    "data.marks": {"data.texts"},
    "data.pictures": {"data.texts"},
    "data.problems": {"data.columns", "data.files", "data.golds", "data.pictures", "data.rows",
                      "data.sources", "data.texts", "prompts", "rollout", "tasks"},
    "data.rows": {"data.columns", "data.golds", "data.marks", "data.pictures", "data.texts",
                  "tasks"},
    "data.sources": {"data.cards", "data.files", "data.json_files", "data.pictures"},
    "data.texts": {"verify.sentence"},
    "dial": {"files", "loss"},
    "draws": set(),
    "engine": {"head", "prompts", "tasks", "windows"},
    "eval": {"eval.answers", "eval.benchmarks", "eval.hashes", "eval.lmms", "eval.report",
             "eval.resume", "eval.stats", "eval.tables"},
    "eval.answers": {"eval.rules", "files", "rollout", "tasks"},
    "eval.benchmarks": {"data.files", "eval.copies", "eval.metrics", "eval.readers", "geometry"},
    "eval.copies": {"data", "data.columns", "data.files", "data.json_files", "data.pictures",
                    "eval.rules", "tasks"},
    "eval.hashes": {"prompts", "rollout", "tasks"},
    "eval.lmms": {"eval.answers", "eval.benchmarks", "eval.stats", "eval.tables", "files", "tasks"},
    "eval.metrics": {"eval.stats"},
    "eval.readers": {"data.golds", "data.marks", "data.texts", "eval.rules"},
    "eval.report": {"eval.answers", "eval.lmms", "eval.stats", "eval.tables", "files", "templates"},
    "eval.resume": {"eval.answers", "eval.hashes", "files", "rollout", "tasks"},
    "eval.rules": {"data.texts", "tasks", "verify.choices", "verify.clean", "verify.forms",
                   "verify.letters", "verify.numbers", "verify.parse", "verify.sentence",
                   "verify.spelled", "verify.tags"},
    "eval.stats": set(),
    "eval.tables": {"eval.benchmarks", "eval.rules", "eval.stats"},
    "files": set(),
    "gpu": {"base", "files", "geometry", "plan", "prompts", "rollout", "sampling_copy", "speed",
            "train"},
    "geometry": {"tasks", "worlds.beyond", "worlds.drawing", "worlds.drawn", "worlds.kit",
                 "worlds.lessons", "worlds.solutions", "worlds.start", "worlds.tiny_vl"},
    "growth": {"config", "loss", "rollout", "train"},
    "head": set(),
    "hooks": {"loss"},
    "http_json": set(),
    "kl": {"loss", "pieces"},
    "light": {"sampling_copy"},
    "loss": {"loss.live", "loss.objectives", "loss.rivals", "loss.terms"},
    "loss.checks": set(),
    "loss.law": set(),
    "loss.live": {"loss.checks", "loss.rivals", "loss.terms"},
    "loss.objectives": {"loss.live", "loss.rivals", "loss.terms"},
    "loss.rivals": {"loss.checks", "loss.terms"},
    "loss.terms": {"loss.checks"},
    "masks": {"engine"},
    "memory": set(),
    "methods": {"config", "kl", "loss", "rollout"},
    "own_reward": {"files", "tasks", "verify.sandbox", "verify.tags", "verify.worker"},
    "paper": {"base", "engine"},
    "parallel": {"rollout"},
    "pace": {"files"},
    "plan": {"base", "costs", "masks", "pace", "paper", "policy", "prompts", "rollout",
             "sampling_copy", "traces", "train"},
    "peers": {"rollout", "tasks"},
    "pieces": {"rollout"},
    "plain_rows": {"draws", "engine", "masks", "memory"},
    "policy": {"base", "draws", "engine", "light", "masks", "memory", "plain_rows", "prompts",
               "responses", "sampling_copy", "selfcheck", "states", "step", "windows"},
    "prompts": {"tasks"},
    "rates": {"config"},
    "ready": {"config", "parallel", "rollout", "sampling_copy", "served", "tasks"},
    "records": {"config", "files", "rollout"},
    "responses": {"prompts"},
    "rewards": {"tasks", "verify.tags"},
    "rollout": {"base", "engine", "policy", "prompts", "tasks"},
    "runs": set(),
    "runs.ask": {"rollout", "runs.sources", "tasks"},
    "runs.card": {"base", "config", "files", "prompts", "runs.folder", "runs.logs",
                  "runs.report", "runs.sources", "runs.validation"},
    "runs.checkpoints": {"draws", "files", "rollout"},
    "runs.demo": {"config", "eval", "files", "geometry", "rollout", "runs.folder", "runs.loop",
                  "runs.report", "runs.sources", "runs.tables", "train", "viz"},
    "runs.engine_trl": {"base", "config", "files", "parallel", "prompts", "records", "rollout",
                        "runs.checkpoints", "runs.fit", "runs.launch", "runs.logs", "runs.loop",
                        "runs.options", "runs.validation", "runs.watch", "tasks", "train", "trl"},
    "runs.evaluation": {"eval", "files", "rollout", "runs.folder", "runs.sources", "runs.start",
                        "runs.tables"},
    "runs.fit": {"base", "config", "engine", "pace", "parallel", "plan", "prompts", "runs.folder",
                 "runs.options", "runs.sources", "sampling_copy"},
    "runs.folder": {"config", "files"},
    "runs.launch": {"parallel"},
    "runs.logs": {"files"},
    "runs.loop": {"config", "files", "growth", "parallel", "rollout", "runs.checkpoints",
                  "runs.logs", "runs.report", "runs.validation", "runs.watch", "tasks", "train",
                  "viz"},
    "runs.options": {"algebra", "config", "geometry", "runs.folder", "runs.launch",
                     "runs.sources"},
    "runs.report": {"config", "files", "runs.folder", "runs.logs", "runs.sources",
                    "runs.validation", "runs.watch", "viz"},
    "runs.sources": {"base", "config", "data", "eval", "files", "geometry", "own_reward",
                     "prompts", "runs.checkpoints", "runs.folder", "tasks"},
    "runs.start": {"config", "eval", "files", "parallel", "rollout", "runs.checkpoints",
                   "runs.engine_trl", "runs.fit", "runs.folder", "runs.launch", "runs.loop",
                   "runs.report", "runs.sources", "runs.validation", "sampling_copy", "tasks",
                   "train", "trl"},
    "runs.tables": set(),
    "runs.validation": {"config", "eval", "eval.hashes", "eval.resume", "files", "parallel",
                        "rollout", "runs.folder", "runs.sources"},
    "runs.watch": {"files"},
    "sampling_copy": set(),
    "selfcheck": {"base", "engine", "plain_rows", "prompts", "tasks", "verdicts"},
    "served": {"files", "http_json", "policy", "prompts"},
    "signs": {"config", "dial", "loss", "parallel", "rollout", "selfcheck", "tasks"},
    "speed": {"base", "cases", "files", "masks", "peers", "rollout"},
    "states": set(),
    "step": {"engine", "prompts"},
    "tasks": {"verify.clean", "verify.decide", "verify.sandbox", "verify.tags", "verify.truth"},
    "templates": {"files"},
    "train": {"config", "dial", "kl", "loss", "methods", "parallel", "pieces", "rates", "ready",
              "records", "rollout", "served", "signs", "tasks"},
    "traces": {"base", "engine", "paper", "windows"},
    "trl": {"loss.checks", "loss.live", "loss.terms", "prompts", "rewards", "tasks"},
    "verdicts": {"files"},
    "verify": set(),
    "verify.adjacent": {"verify.expressions", "verify.tokens", "verify.units"},
    "verify.bases": {"verify.expressions", "verify.forms"},
    "verify.characters": {"verify.chinese"},
    "verify.chinese": set(),
    "verify.choices": {"verify.clean", "verify.free", "verify.letters", "verify.sentence",
                       "verify.truth", "verify.words"},
    "verify.clean": {"verify.characters", "verify.latex", "verify.notation"},
    "verify.clocks": {"verify.spelled"},
    "verify.decide": {"verify.choices", "verify.clean", "verify.echo", "verify.free",
                      "verify.judge", "verify.lines", "verify.sandbox", "verify.truth"},
    "verify.domains": set(),
    "verify.echo": {"verify.clean", "verify.numbers", "verify.parse", "verify.same",
                    "verify.sentence", "verify.spelled"},
    "verify.expressions": set(),
    "verify.forms": {"verify.units"},
    "verify.free": {"verify.bases", "verify.clocks", "verify.expressions", "verify.forms",
                    "verify.labels", "verify.letters", "verify.numbers", "verify.parse",
                    "verify.readings", "verify.same", "verify.sentence", "verify.spelled",
                    "verify.tokens", "verify.truth", "verify.words"},
    "verify.grammar": {"verify.adjacent", "verify.expressions", "verify.matrices", "verify.tokens"},
    "verify.grid": {"verify.expressions", "verify.forms", "verify.numbers", "verify.points"},
    "verify.intervals": {"verify.numbers"},
    "verify.judge": {"verify.characters", "verify.clean", "verify.latex"},
    "verify.labels": {"verify.forms", "verify.numbers", "verify.parse", "verify.same",
                      "verify.spelled", "verify.tokens", "verify.units", "verify.words"},
    "verify.latex": set(),
    "verify.letters": {"verify.sentence"},
    "verify.lines": {"verify.clean", "verify.sentence"},
    "verify.matrices": {"verify.expressions"},
    "verify.notation": {"verify.latex"},
    "verify.numbers": {"verify.expressions", "verify.tokens"},
    "verify.parse": {"verify.bases", "verify.expressions", "verify.forms", "verify.quantities",
                     "verify.tokens", "verify.units", "verify.vectors"},
    "verify.points": {"verify.expressions", "verify.numbers"},
    "verify.quantities": {"verify.adjacent", "verify.expressions", "verify.forms",
                          "verify.grammar", "verify.tokens", "verify.units"},
    "verify.ratios": {"verify.expressions", "verify.forms", "verify.intervals", "verify.numbers",
                      "verify.points", "verify.readings"},
    "verify.readings": {"verify.expressions", "verify.forms", "verify.grammar", "verify.numbers",
                        "verify.quantities", "verify.rounding", "verify.values"},
    "verify.relations": {"verify.expressions", "verify.forms", "verify.points", "verify.sets",
                         "verify.units", "verify.values"},
    "verify.rounding": {"verify.expressions", "verify.numbers"},
    "verify.same": {"verify.expressions", "verify.forms", "verify.grid", "verify.ratios",
                    "verify.readings", "verify.relations", "verify.sets", "verify.shapes",
                    "verify.values", "verify.vectors"},
    "verify.sandbox": set(),
    "verify.sentence": {"verify.clean"},
    "verify.sets": {"verify.expressions", "verify.forms", "verify.grid", "verify.intervals",
                    "verify.numbers"},
    "verify.shapes": {"verify.forms", "verify.readings"},
    "verify.spelled": {"verify.domains"},
    "verify.tags": set(),
    "verify.tokens": {"verify.expressions"},
    "verify.truth": {"verify.clean", "verify.clocks", "verify.expressions", "verify.labels",
                     "verify.letters", "verify.numbers", "verify.parse", "verify.sentence",
                     "verify.sets", "verify.spelled", "verify.words"},
    "verify.units": {"verify.tokens"},
    "verify.values": {"verify.expressions", "verify.numbers", "verify.points", "verify.rounding"},
    "verify.vectors": {"verify.expressions", "verify.forms", "verify.grammar", "verify.matrices",
                       "verify.points", "verify.quantities", "verify.tokens"},
    "verify.words": {"verify.sentence", "verify.spelled"},
    "verify.worker": {"verify.judge"},
    "viz": {"viz.animated", "viz.curves", "viz.figures", "viz.gallery", "viz.movable", "viz.page",
            "viz.record", "viz.toy"},
    "viz.animated": {"viz.figures", "viz.stage", "viz.toy"},
    "viz.curves": {"files", "viz.figures"},
    "viz.figures": {"loss.law", "viz.record", "viz.toy"},
    "viz.gallery": {"viz.figures"},
    "viz.movable": {"loss", "loss.law", "viz.figures", "viz.record", "viz.stage", "viz.toy"},
    "viz.page": {"files", "templates"},
    "viz.record": {"loss"},
    "viz.stage": {"templates"},
    "viz.toy": {"loss"},
    "windows": set(),
    "worlds": set(),
    "worlds.beyond": {"worlds.drawn", "worlds.kit", "worlds.shapes", "worlds.worded"},
    "worlds.drawing": {"worlds.kit"},
    "worlds.drawn": {"worlds.kit", "worlds.shapes"},
    "worlds.kit": set(),
    "worlds.lessons": {"tasks", "worlds.drawing", "worlds.drawn", "worlds.kit", "worlds.start"},
    "worlds.shapes": set(),
    "worlds.solutions": {"worlds.kit"},
    "worlds.start": {"files", "worlds.kit", "worlds.solutions"},
    "worlds.tiny_vl": {"tasks", "worlds.drawing", "worlds.drawn", "worlds.start"},
    "worlds.worded": {"worlds.kit"},
}
MAY_USE["cli"] = set(MAY_USE)

# What stands whole in one cell: classes whose methods only call functions, commands with an option
# a line
WHOLE = {"Policy", "Config", "train", "evaluate", "plan"}
HEAVY = {"transformers", "peft", "bitsandbytes", "datasets", "math_verify", "sympy", "accelerate",
         "trl"}


def nodes_at_top(tree):
    "The statements that run when a module is imported, functions and classes apart."
    blocks = [node for node in tree.body if isinstance(node, (ast.Try, ast.If, ast.With))]
    return set(tree.body) | {node for block in blocks for node in ast.walk(block)}


def absolute(node, room, is_face):
    "The module that a `from ... import` names, written out from the package."
    if not node.level:
        return node.module
    here = ["calibrl", *room.split(".")]
    if not is_face:
        here.pop()
    here = here[:len(here) - node.level + 1]
    return ".".join(here + ([node.module] if node.module else []))


def imports(tree, room="", is_face=False):
    "(module, names taken from it or None, whether at the top) for each import in `tree`."
    top = nodes_at_top(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node in top
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            yield absolute(node, room, is_face), names, node in top


def rooms_used(module, names):
    "The rooms of ours that an import goes to; a name of a wing may be a room of it."
    package, _, room = module.partition(".")
    if package != "calibrl":
        return set()
    if names is None:
        return {room} - {""}
    inner = {f"{room}.{name}".strip(".") for name in names if not name.startswith("__")}
    if not room:
        return inner
    return {name if name in MAY_USE else room for name in inner}


def wrong_rooms(room, source, is_face=False):
    "The rooms of ours that `room` uses and may not; a room without a row may use none."
    used = set()
    for module, names, _ in imports(ast.parse(source), room, is_face):
        used |= rooms_used(module, names)
    return used - MAY_USE.get(room, set()) - {room}


def heavy_at_top(source):
    "The heavy libraries that importing a module loads."
    loaded = {module.split(".")[0] for module, _, top in imports(ast.parse(source)) if top}
    return loaded & HEAVY


def test_each_room_has_a_row_and_each_row_a_room():
    assert set(MODULES) == set(MAY_USE)


def test_the_rules_have_no_circle():
    list(graphlib.TopologicalSorter(MAY_USE).static_order())


@pytest.mark.parametrize("room", MODULES)
def test_arrows_point_downwards(room):
    path = MODULES[room]
    is_face = path.name == "__init__.py"
    assert wrong_rooms(room, path.read_text(encoding="utf-8"), is_face) == set()


@pytest.mark.parametrize("room", MODULES)
def test_heavy_libraries_are_imported_where_they_are_used(room):
    assert heavy_at_top(MODULES[room].read_text(encoding="utf-8")) == set()


# The public API: what people call, by the room that they import it from. All else is `exporti`.
PUBLIC = {
    "algebra": "problems tiny_checkpoint",
    "base": "export",
    "benchmarks": "BENCHMARKS",
    "cli": "bench demo evaluate main plan quiet report train",
    "compare": "compare compare_methods",
    "config": "Config PRESETS load_config save_config",
    "data": "Problems check_file load_problems",
    "engine": "encode",
    "eval": "evaluate paired pass_at_k read_answers rescore run_benchmark summary write_results",
    "geometry": "problems tiny_checkpoint",
    "loss": "GAPS OBJECTIVES Objective REDUCTIONS alpha_gate calibrl_loss clipped_surrogate"
            " expert_gap exploration_loss group_advantages grpo_loss masked_mean reduce_loss",
    "own_reward": "OwnReward",
    "plan": "Plan plan",
    "policy": "Logps Policy Samples",
    "rewards": "accuracy_reward batch_scores compute_score format_reward reward_func",
    "rollout": "Rollouts rollout",
    "speed": "bench plot_bench",
    "tasks": "INSTRUCTION Problem Score messages score verifier_stats",
    "train": "batches make_optimizer train train_step",
    "viz": "alpha_figure_html group_figure_html mix_group plot_alpha plot_bands plot_curves"
           " plot_gate plot_group plot_intervals plot_problems plot_push plot_table read_group"
           " table_figure_html",
    "worlds.drawing": "layout paint",
    "worlds.kit": "Family",
    "worlds.solutions": "expert",
}


# Names that a room makes when they are first asked for, because another library is needed for them
LAZY = {"trl": "CalibRLConfig CalibRLTrainer"}


def public_names():
    "The names in `__all__` of all rooms, an object that several hand on by its outermost room."
    found = {}
    for room in sorted(MODULES, key=lambda room: (room.count("."), room)):
        module = importlib.import_module(f"calibrl.{room}")
        for name in getattr(module, "__all__", ()):
            found.setdefault(id(getattr(module, name)), f"{room}.{name}")
    return sorted(found.values())


def test_a_new_public_name_is_a_decision():
    listed = [f"{room}.{name}" for room, names in PUBLIC.items() for name in names.split()]
    assert public_names() == sorted(listed)
    lazy = [name for names in LAZY.values() for name in names.split()]
    assert len(listed) + len(lazy) <= 90


FORBIDDEN = [  # room, its code, what is wrong in it
    ("eval", "from calibrl.train import train", {"train"}),
    ("train", "def f():\n    from .eval import evaluate", {"eval"}),
    ("rollout", "import calibrl.viz", {"viz"}),
    ("rollout", "from calibrl import viz", {"viz"}),
    ("rollout", "from calibrl.viz.figures import plot_gate", {"viz.figures"}),
    ("rollout", "from .viz import figures, plot_gate", {"viz", "viz.figures"}),
    ("viz.toy", "from .figures import plot_gate", {"viz.figures"}),
    ("viz.toy", "from . import figures", {"viz.figures"}),
    ("viz.toy", "from ..train import train", {"train"}),
    ("viz.stage", "from .. import loss", {"loss"}),
    ("train", "from calibrl.attic import old", {"attic"}),
    ("attic", "from calibrl.loss import alpha_gate", {"loss"}),
    ("viz.attic", "from .toy import toy_group", {"viz.toy"}),
]
ALLOWED = [
    ("viz.toy", "from calibrl.loss import alpha_gate"),
    ("viz.toy", "from ..loss import alpha_gate"),
    ("viz.figures", "from .toy import toy_group\nfrom . import record"),
    ("cli", "from . import __version__, viz\nfrom .viz import figures"),
]


@pytest.mark.parametrize("room, source, wrong", FORBIDDEN)
def test_the_rules_see_what_they_forbid(room, source, wrong):
    assert wrong_rooms(room, source) == wrong


@pytest.mark.parametrize("room, source", ALLOWED)
def test_the_rules_see_what_they_allow(room, source):
    assert wrong_rooms(room, source) == set()


def test_the_face_of_a_wing_looks_from_inside():
    assert wrong_rooms("viz", "from .toy import toy_group", is_face=True) == set()
    assert wrong_rooms("viz", "from ..train import train", is_face=True) == {"train"}


def test_a_heavy_import_is_seen():
    guarded = "try:\n    import transformers\nexcept ImportError: pass"
    assert heavy_at_top(guarded) == {"transformers"}
    assert heavy_at_top("from peft.tuners import lora") == {"peft"}
    assert heavy_at_top("def f():\n    import transformers") == set()


def trusting(source):
    "Calls of an Auto class's `from_pretrained` without trust_remote_code=False, in code as text."
    out = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        made = ast.unparse(node.func.value).split(".")[-1]
        if node.func.attr != "from_pretrained" or not made.lower().startswith("auto"):
            continue
        said = {keyword.arg: keyword.value for keyword in node.keywords}.get("trust_remote_code")
        if isinstance(said, ast.Constant) and said.value is False:
            continue
        out.append(ast.unparse(node))
    return out


def code_cells(path):
    "The sources of a notebook's code cells that are Python alone, by their number."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not re.search(r"^\s*[%!]", source, flags=re.M):
            yield number, source


def code_of(path):
    "The code of a module, or of all cells of a notebook that are Python alone."
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    return "\n".join(source for _, source in code_cells(path))


def short_path(path):
    "How a test is named after a file."
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*MODULES.values(), *NOTEBOOKS], ids=short_path)
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


# Methods that write a whole file where they are told to: texts, pictures, tables, tensors
WRITERS = {"write_text", "write_bytes", "savefig", "save", "write_html", "write_image", "to_csv",
           "to_json", "to_html", "to_parquet", "tofile", "savez", "save_file", "save_pretrained"}


def written_in_place(source):
    "Calls that write a whole file under its own name, in code as text."
    out = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not (node.args or node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        strings = {arg.value for arg in [*node.args, *(k.value for k in node.keywords)]
                   if isinstance(arg, ast.Constant)}
        writes = name in WRITERS and (isinstance(node.func, ast.Attribute) or name == "save_file")
        if writes or name == "open" and strings & {"w", "wb", "x", "xb"}:
            out.append(ast.unparse(node))
    return out


# Nothing of ours, or a log that grows line by line, or a folder that is still under another name;
# and `files` is what writes for the others
IN_PLACE = {
    "base": ["part.save_pretrained(str(folder))"],
    "cases": ["Path('/proc/self/clear_refs').write_text('5')"],
    "data.problems": ["open(skipped, 'w', encoding='utf-8')"],
    "files": ["open(new, 'wb')", "open(probe, 'w')"],
    "runs.checkpoints": ["policy.save(new / 'adapter')", "st.save(tensors)"],
    "runs.launch": ["open(os.devnull, 'w')"],
    "runs.loop": ["policy.save(new)"],
    "served": ["served.policy.save(new)"],
    "worlds.start": ["part.save_pretrained(new)"],
}


@pytest.mark.parametrize("room", MODULES)
def test_no_file_is_written_in_place(room):
    found = written_in_place(MODULES[room].read_text(encoding="utf-8"))
    assert found == IN_PLACE.get(room, []), "use `files.write_atomic`"


def test_the_rule_about_files_sees_what_it_forbids():
    for call in ("figure.savefig('a.png', dpi=110)", "image.save(folder / name, quality=85)",
                 "open(path, 'wb')", "path.open('w')", "Path(path).write_text(page)",
                 "table.to_csv(path)", "save_file(tensors, path)"):
        assert written_in_place(f"def f():\n    {call}") == [call]
    for call in ("write_atomic(path, bytes_of(figure.savefig, format='png'))", "to_csv(table)",
                 "recorder.save()", "open(path, 'rb')"):
        assert written_in_place(call) == []


NEWER = ["contextlib.chdir", "import tomllib", "datetime.UTC", "StrEnum", "ExceptionGroup",
         "import Self", "typing.Self", "itertools.batched", "from typing import override"]


def too_new(source):
    "What in `source` Python 3.10 does not have."
    try:
        ast.parse(source, feature_version=(3, 10))
    except SyntaxError as error:
        return [str(error)]
    return [name for name in NEWER if name in source]


SCRIPTS = [*(ROOT/"tools").glob("*.py"), *(ROOT/"tests").glob("*.py")]
SCRIPTS.remove(Path(__file__).resolve())      # this file names what is newer


@pytest.mark.parametrize("path", [*MODULES.values(), *SCRIPTS], ids=short_path)
def test_python_310_can_read_it(path):
    assert too_new(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room, banned", [
    ("loss", HEAVY | {"matplotlib", "PIL", "pandas", "ipywidgets", "torchvision"}),
    ("tasks", HEAVY | {"torch", "matplotlib", "pandas"}),
    ("viz", HEAVY)])
def test_a_light_import_stays_light(room, banned):
    loaded = f"sorted(set(sys.modules) & set({sorted(banned)!r}))"
    code = f"import sys, calibrl.{room}; print(*{loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=short_path)
def test_notebook(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    ids = [cell.get("id") for cell in cells]
    same = "each cell needs an id of its own, or every export changes the modules"
    assert all(ids) and len(set(ids)) == len(ids), same
    assert path.stat().st_size < 1_000_000, "over 1 MB: make the pictures smaller"

    # What is stored is what a reader is to see: no warnings and no places of somebody's machine
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    assert not [out["text"] for out in outputs if out.get("name") == "stderr"]
    assert "site-packages" not in json.dumps(outputs)

    # An exported cell is at most 40 lines long, its first line and empty ones apart
    long = []
    for number, source in enumerate("".join(cell["source"]) for cell in cells):
        height = len([line for line in source.splitlines() if line.strip()]) - 1
        whole = re.search(r"^(?:class|def) (\w+)", source, flags=re.M)
        if whole and whole[1] in WHOLE:
            continue
        if re.match(r"#\|\s*export", source) and height > 40:
            long.append((number, height))
    assert not long, f"(cell, lines) over 40 lines: {long}"

    new = [(number, what) for number, source in code_cells(path) for what in too_new(source)]
    assert not new, f"(cell, what) newer than Python 3.10: {new}"
    errors = [(number, out["ename"]) for number, cell in enumerate(cells)
              for out in cell.get("outputs", []) if out["output_type"] == "error"]
    assert not errors, f"(cell, error) left in the outputs: {errors}"


def place(path):
    "Where a notebook is, from nbs/ on."
    return path.relative_to(ROOT/"nbs")


# Chapters that make no room: what they export goes to the room that their wing's first makes
LESSONS = {"loss/clip": "loss.terms", "loss/lengths": "loss.terms", "loss/whole": "loss.terms",
           "loss/first_order": None}


def is_lesson(path):
    return place(path).with_suffix("").as_posix() in LESSONS


def is_chapter(path):
    "A notebook that makes a room: a numbered one, or one in a wing."
    folder, *inside = place(path).parts
    if inside:
        return folder not in ("tutorials", "pages") and not is_lesson(path)
    return bool(re.match(r"\d", path.name))


@pytest.mark.parametrize("path", filter(is_chapter, NOTEBOOKS), ids=short_path)
def test_chapter_opens_with_title_and_module(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    opening = "".join(first["source"]).strip()
    want = "the first cell is `# Title`, a blank line, `> one line`"
    assert re.fullmatch(r"# .+\n\n> .+", opening), want
    _, code = next(code_cells(path))
    made = re.search(r"#\|\s*default_exp ([\w.]+)", code)
    assert made and made[1].removesuffix(".__init__") in MODULES
    if len(place(path).parts) > 1:       # nbs/verify/grammar.ipynb makes verify.grammar
        assert made[1] == ".".join(place(path).with_suffix("").parts)


@pytest.mark.parametrize("path", filter(is_lesson, NOTEBOOKS), ids=short_path)
def test_a_lesson_writes_only_into_the_room_that_it_is_to_add_to(path):
    code = "\n".join(source for _, source in code_cells(path))
    written = re.findall(r"^#\|\s*(?:default_exp|exporti?)\b[ \t]*(.*)", code, flags=re.M)
    room = LESSONS[place(path).with_suffix("").as_posix()]
    assert set(written) == ({room} if room else set())


def test_each_room_has_a_chapter():
    makers = [code for path in filter(is_chapter, NOTEBOOKS) for _, code in code_cells(path)]
    made = re.findall(r"^#\|\s*default_exp ([\w.]+)", "\n".join(makers), flags=re.M)
    empty = {room for room, path in MODULES.items() if not path.read_text("utf-8").strip()}
    assert sorted(name.removesuffix(".__init__") for name in made) == sorted(set(MODULES) - empty)


def test_one_version():
    import calibrl
    assert calibrl.__version__ == CONFIG["version"]
    assert CONFIG["version"] in (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")


def test_docs_settings_agree_with_settings_ini():
    text = (ROOT/"nbs/nbdev.yml").read_text(encoding="utf-8")
    url = CONFIG["git_url"] % CONFIG if "%" in CONFIG["git_url"] else CONFIG["git_url"]
    site = CONFIG["doc_host"] + CONFIG["doc_baseurl"]
    for value in (CONFIG["title"], CONFIG["description"], url, site):
        assert value in text


def test_the_readme_clones_from_the_address_of_the_settings():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    url = CONFIG["git_url"] % CONFIG if "%" in CONFIG["git_url"] else CONFIG["git_url"]
    assert f"git clone {url} && cd {CONFIG['repo']}" in text


def test_what_needs_a_newer_python_says_so():
    """uv finds versions for every Python that is allowed at once: a package that has none for the
    oldest would stop `uv sync`. These two begin with 3.11."""
    from packaging.requirements import Requirement
    needs = " ".join(value for key, value in CONFIG.items() if key.endswith("requirements"))
    for need in map(Requirement, needs.split()):
        assert need.name != "vllm", "its pins would hold back torch for everybody"
        if need.name in ("trl", "smalldocs"):
            assert need.marker and not need.marker.evaluate({"python_version": "3.10"}), need


def test_pyproject_agrees_with_settings_ini():
    project = tomlkit.parse((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == CONFIG["lib_name"]
    assert project["requires-python"] == ">=" + CONFIG["min_python"]


def test_readme_is_made_from_the_index():
    from readme import readme
    made = readme(ROOT/"nbs/index.ipynb")
    assert (ROOT/"README.md").read_text(encoding="utf-8") == made, "run `make sync`"


def test_the_two_commands_exist():
    readme, make, contributing = [(ROOT/name).read_text(encoding="utf-8")
                                  for name in ("README.md", "Makefile", "CONTRIBUTING.md")]
    targets = set(re.findall(r"^([a-z-]+):", make, flags=re.M))
    for target in ("demo", "test"):
        assert f"make {target}" in readme and target in targets
    assert set(re.findall(r"`make ([a-z-]+)", readme + contributing)) <= targets


def plain_name(name):
    "The name of a package, as an index has it."
    return name.lower().replace("_", "-")


def pins_of(file):
    "The versions that a file of constraints names, by package: one, or one for each Python."
    from packaging.requirements import Requirement
    lines = (ROOT/file).read_text(encoding="utf-8").splitlines()
    pinned = {}
    for pin in [Requirement(line) for line in lines if line and not line.startswith("#")]:
        versions = pinned.setdefault(plain_name(pin.name), [])
        versions.append(next(iter(pin.specifier)).version)
    return pinned


def test_every_lower_bound_is_within_the_constraints():
    from packaging.requirements import Requirement
    pinned = pins_of("constraints.txt")
    needs = " ".join(value for key, value in CONFIG.items() if key.endswith("requirements"))
    for need in map(Requirement, needs.split()):
        versions = pinned.get(plain_name(need.name))
        assert versions, f"{need.name} is not in constraints.txt"
        within = all(need.specifier.contains(version) for version in versions)
        assert within, f"{need} leaves out {versions}"


def test_every_lower_bound_is_a_version_that_is_run():
    pinned = pins_of("constraints-lowest.txt")
    bounds = [line.split(">=") for line in CONFIG["requirements"].split()]
    assert bounds == [[name, *pinned[plain_name(name)]] for name, _ in bounds]


def test_the_package_does_not_say_which_nbdev_is_installed_beside_it():
    "nbdev 2 needs fastcore 1, nbdev 3 needs fastcore 2: the package itself runs with both."
    from packaging.requirements import Requirement
    needs = {need.name: need for need in map(Requirement, CONFIG["requirements"].split())}
    assert not {"nbdev", "execnb", "ghapi"} & needs.keys()
    for version in ("1.12.47", "2.2.28", "2.2.41"):
        assert needs["fastcore"].specifier.contains(version)
    code = "\n".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    used = set(re.findall(r"(?:from|import) (fastcore[.\w]*)", code))
    assert used <= {"fastcore.basics", "fastcore.docments", "fastcore.meta"}     # in either series


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "The wheel, built from a copy so that nothing is left in the work tree."
    src = tmp_path_factory.mktemp("src")/"calibrl"
    out = tmp_path_factory.mktemp("wheel")
    src.mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in",
                 "LICENSE"):
        shutil.copy(ROOT/name, src/name)
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("calibrl", "nbs", "tests"):
        shutil.copytree(ROOT/name, src/name, ignore=unwanted)
    code = f"from setuptools.build_meta import build_wheel; print(build_wheel({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=src, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(wheel.namelist())
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    shipped = {short_path(path) for path in files if "__pycache__" not in path.parts}
    assert {name for name in names if ".dist-info/" not in name} == shipped
    assert "calibrl/assets/tiny/model.safetensors" in names, "the tiny checkpoint is missing"
    assert "calibrl/assets/viz/movable.js" in names, "the files of the figures are missing"
    assert "calibrl/assets/pages/base.html" in names, "the templates of the pages are missing"

    def text(ending):
        return wheel.read(next(name for name in names if name.endswith(ending))).decode()

    meta = text("/METADATA")
    assert f"Version: {CONFIG['version']}" in meta and "Requires-Python: >=3.10" in meta
    needed = [line for line in meta.splitlines()
              if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in needed if "nbdev" in line or "execnb" in line]
    assert "calibrl = calibrl.cli:main" in text("/entry_points.txt")


def test_a_wing_works_from_the_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from calibrl import viz; print(viz.__file__); viz.alpha_figure_html()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_no_file_is_out_of_step():
    from check_sync import differences
    assert differences() == []


def ruff(*arguments):
    "Run the linter as the project sets it up; return its exit status and what it says."
    done = subprocess.run([Path(sys.executable).with_name("ruff"), "check", *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout


LONG = "x = " + "1 + "*30 + "1"
TWO_STATEMENTS = "x = 1; y = 2"
MANY_PARAMETERS = "def f(a, b, c, d, e, f, g, h, i):\n    return a"
UNUSED = "import os"
KNOTTED = "def f(x):\n" + "".join(f"    if x == {n}:\n        return {n}\n" for n in range(13))


@pytest.mark.parametrize("text, rule", [
    (LONG, "E501"), (TWO_STATEMENTS, "E702"), (MANY_PARAMETERS, "PLR0913"), (UNUSED, "F401"),
    (KNOTTED, "C901")], ids=["long", "two", "many", "unused", "knotted"])
def test_the_linter_refuses_lines_that_cannot_be_read(text, rule, tmp_path):
    (tmp_path/"room.py").write_text(text + "\n")
    status, said = ruff("--config", ROOT/"pyproject.toml", tmp_path/"room.py")
    assert status == 1 and rule in said


def test_only_files_that_need_it_are_exempt():
    "A command has an option a parameter; nothing else is let off."
    text = (ROOT/"pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[tool.ruff.lint.per-file-ignores]\n")[2].partition("\n[")[0]
    assert table.strip() == '"nbs/06_cli.ipynb" = ["PLR0913"]'
    status, said = ruff("--isolated", "--select", "PLR0913", "--config", "lint.pylint.max-args=8",
                        "nbs/06_cli.ipynb")
    assert status == 1 and "PLR0913" in said
