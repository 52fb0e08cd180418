"""How much is there to read to understand one training step? `python tools/reading.py` counts it.

Each function is counted whole: decorators, signature, docstring, comments and empty lines. A line
longer than 100 columns counts as the lines of 100 columns that it fills.
"""
import ast, math
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100

# The way of a step with GRPO or CalibRL, from the loop over steps down to the loss.
STEP = {
    "train": ["train", "batches", "one_step", "sample_step", "train_step"],
    "rollout": ["encode", "prompts", "sample", "rollout", "logps", "read", "Rollouts"],
    "tasks": ["score"],
    "loss.terms": ["group_advantages", "clipped_surrogate", "masked_mean", "reduce_loss",
                   "expert_gap", "alpha_gate", "exploration_loss", "calibrl_loss"]}

# What the step calls and a reader may first believe, since a test holds it: how prompts are read
# in parts, how rows are packed (as rows of their own), how the head is tiled (as full logits).
BEHIND = {
    "train": ["settled", "share", "micro_batches", "summarize", "make_optimizer"],
    "rollout": ["prefill", "collate", "attention", "_attend", "_rows_over_prefix", "one_token",
                "pack", "packed", "draw", "_samples", "head_logps", "_FrozenHead",
                "wide_product", "stack"]}

# What else these functions call, and why it is in neither list.
LEFT_OUT = {
    "settings, plain containers and what reads one": ["Config", "Policy", "Logps", "Samples",
                                                      "decode", "trainable", "tokens"],
    "checks of the input": ["check_settings", "checked_batch", "checked_rewards"],
    "what is logged and looked at": ["loss_metrics", "gap_metrics", "clip_metrics",
                                     "look", "sound", "diagnosis"],
    "the alarm before an update": ["check_agreement"],
    "memory for time": ["recompute_activations"],
    "other methods than GRPO and CalibRL": ["refill"],
    "several processes": ["add_up", "gathered", "moved", "part_of", "processes", "watched"]}
BESIDE = "what stands behind `score`: the verifier of `calibrl.tasks`, far longer than the step"


def source(module):
    "The text of a module of the package."
    path = ROOT/"calibrl"/f"{module.replace('.', '/')}.py"
    return path.read_text(encoding="utf-8")


def height(line):
    "The lines of `WIDTH` columns that a line fills."
    return max(1, math.ceil(len(line)/WIDTH))


def whole(text, names):
    "Lines of functions and classes by name, each counted whole."
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if getattr(node, "name", None) not in names: continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        found[node.name] = sum(map(height, lines[first - 1:node.end_lineno]))
    return found


def counted(functions):
    "Lines of functions, as `{module: {name: lines}}`."
    return {module: whole(source(module), names) for module, names in functions.items()}


def total(functions):
    "All lines of functions together."
    return sum(sum(lines.values()) for lines in counted(functions).values())


def unnamed():
    "What the listed functions use of the same modules, the verifier apart, and no list names."
    ours, methods, called = {}, set(), set()
    for module in STEP.keys() - {"tasks"}:
        for node in ast.parse(source(module)).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            ours[node.name] = node
            if "patch" in map(ast.unparse, node.decorator_list): methods.add(node.name)
    listed = {name for part in (STEP, BEHIND) for names in part.values() for name in names}

    # A name is a function of ours, an attribute only if it was patched onto a class.
    for name in listed & ours.keys():
        inside = {n.name for n in ast.walk(ours[name]) if hasattr(n, "name")}
        for node in ast.walk(ours[name]):
            if isinstance(node, ast.Name) and node.id in ours.keys() - inside: called.add(node.id)
            if isinstance(node, ast.Attribute) and node.attr in methods: called.add(node.attr)
    return called - listed - {name for names in LEFT_OUT.values() for name in names}


def main():
    "Print each list with its lines."
    for title, functions in (("a step", STEP), ("behind contracts", BEHIND)):
        print(f"{title}: {total(functions)} lines in {len(functions)} files")
        for module, lines in counted(functions).items():
            print(f"  {module}: " + ", ".join(f"{name} {n}" for name, n in lines.items()))
    print("left out:")
    for why, names in LEFT_OUT.items(): print(f"  {why}: {', '.join(names)}")
    print(f"  {BESIDE}")


if __name__ == "__main__": main()
