"""How much is there to read to understand one training step? `python tools/reading.py` counts it.

Each function is counted whole: decorators, signature, docstring, comments and empty lines. A line
longer than 100 columns counts as the lines of 100 columns that it fills.
"""
import ast
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100

# The way of a step with GRPO or CalibRL, from the loop over steps down to the loss.
STEP = {
    "train": ["train", "batches", "one_step", "sample_step", "train_step", "update",
              "backward"],
    "rollout": ["rollout", "Rollouts"],
    "policy": ["Policy.sample", "write_responses", "next_token", "Policy.logps", "response_logps",
               "token_logps"],
    "tasks": ["score"],
    "loss.terms": ["group_advantages", "clipped_surrogate", "masked_mean", "reduce_loss",
                   "expert_gap", "alpha_gate", "exploration_loss", "calibrl_loss"]}

# What the step calls and a reader may first believe, since a test holds it: how prompts are read
# in parts, how rows are packed (as rows of their own), how the head is tiled (as full logits).
BEHIND = {
    "train": ["make_optimizer"],
    "rates": ["rate_share", "set_rate"],
    "pieces": ["loss_share", "micro_batches"],
    "signs": ["summarize"],
    "rollout": ["stack", "join", "row_fields", "pick_rows", "verdicts", "widen"],
    "policy": ["Policy.prompts", "Policy.prompt", "prompt_batch", "position_ids", "Policy.packed",
               "packed_batch", "read_prompts", "prefill", "Prefill", "group_of",
               "groups_of", "is_response"],
    "tasks": ["verify"],
    "plain_rows": ["token_scores"],
    "draws": ["write", "pick", "pick_some", "draw", "drawer", "luck_of", "Drawn", "by_row"],
    "step": ["Step", "feed", "make_room", "keep_rows", "OwnTokens", "in_blocks", "lengthened"],
    "prompts": ["prompt_text", "chat_of", "plain"],
    "engine": ["is_packed", "encode", "collate", "padded_row", "pack", "packed_masks", "past",
               "attention", "packed_attention", "rows_over_prefix", "own_tokens", "with_prompt",
               "attend", "one_token", "SharedPrompts"],
    "head": ["head_logps", "FrozenHead", "Sweep", "wide_product"]}

# What else these functions call, and why it is in neither list.
LEFT_OUT = {
    "settings, plain containers and what reads one": [
        "Config", "Policy", "Logps", "Samples", "Wording", "Policy.decode", "Policy.opening",
        "Policy.trainable", "Policy.tokens", "response_tokens"],
    "checks of the input": ["one_line", "check_choice", "check_settings", "checked_batch",
                            "checked_rewards"],
    "what is logged and looked at": ["loss_metrics", "gap_metrics", "clip_metrics",
                                     "at_first", "gap_positive",
                                     "samples_to_read", "response_record", "data_url",
                                     "lost_verdicts", "failures"],
    "numbers that break": ["is_finite", "skipped_step", "propagate_nan", "diagnosis"],
    "before the first step": ["prepare", "prepared"],
    "another program that samples": ["weighted", "sampler_metrics"],
    "the alarm before an update": ["check_agreement"],
    "what a kernel makes of a mask": ["bias_of"],
    "memory for time": ["recompute_activations", "Policy.remembering", "remembering", "seen_in"],
    "the same tokens, sooner on a GPU": ["Captured", "shapes", "Policy.writer",
                                         "light_writer"],
    "rows of models that cannot be packed, and what only some families have": [
        "sample_plainly", "plain_logps", "logit_logps", "attend_by", "laid_out", "with_sink",
        "attend_windows", "logps_by_passes", "Policy.passes"],
    "entropy on a dial": ["bonus_loss", "dial_metrics", "turned"],
    "GRPO's optional term": ["kl_loss", "with_reference", "without_reference"],
    "other methods than GRPO and CalibRL": ["refill", "fine_tuned"],
    "several processes": ["all_gather", "all_reduce_gradients", "gather_rollouts", "local_slice",
                          "padded", "processes"]}
BESIDE = "what stands behind `score`: the verifier of `calibrl.tasks`, far longer than the step"

# Classes whose methods are counted one by one: the step needs only some of them.
BY_METHOD = ("Policy",)


def source(module):
    "The text of a module of the package."
    path = ROOT/"calibrl"/f"{module.replace('.', '/')}.py"
    return path.read_text(encoding="utf-8")


def height(line):
    "The lines of `WIDTH` columns that a line fills."
    return max(1, math.ceil(len(line)/WIDTH))


def named(tree):
    "Functions and classes of a module by name, methods of some classes as `Class.method`."
    found = {}
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        found[node.name] = node
        if node.name in BY_METHOD:
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}": method for method in methods}
    return found


def whole(text, names):
    "Lines of functions and classes by name, each counted whole."
    lines, found = text.splitlines(), {}
    for name, node in named(ast.parse(text)).items():
        if name not in names:
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        found[name] = sum(map(height, lines[first - 1:node.end_lineno]))
    return found


def counted(functions):
    "Lines of functions, as `{module: {name: lines}}`."
    return {module: whole(source(module), names) for module, names in functions.items()}


def total(functions):
    "All lines of functions together."
    return sum(sum(lines.values()) for lines in counted(functions).values())


def by_attribute(ours):
    "What an attribute may call: a method of a class counted by method, or one that is patched on."
    methods = {name.partition(".")[2]: name for name in ours if "." in name}
    patched = [name for name, node in ours.items()
               if "patch" in map(ast.unparse, node.decorator_list)]
    return methods | {name: name for name in patched}


def calls(node, ours):
    "The names of our functions and classes that a function or class uses."
    inside = {part.name for part in ast.walk(node) if hasattr(part, "name")}
    methods, used = by_attribute(ours), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in ours.keys() - inside:
            used.add(part.id)
        if isinstance(part, ast.Attribute) and part.attr in methods:
            used.add(methods[part.attr])
    return used


def unnamed():
    "What the listed functions use of the same modules, the verifier apart, and no list names."
    ours = {}
    for module in (STEP.keys() | BEHIND.keys()) - {"tasks"}:
        ours |= named(ast.parse(source(module)))
    listed = {name for part in (STEP, BEHIND) for names in part.values() for name in names}
    called = set()
    for name in listed & ours.keys():
        called |= calls(ours[name], ours)
    return called - listed - {name for names in LEFT_OUT.values() for name in names}


def main():
    "Print each list with its lines."
    for title, functions in (("a step", STEP), ("behind contracts", BEHIND)):
        print(f"{title}: {total(functions)} lines in {len(functions)} files")
        for module, lines in counted(functions).items():
            print(f"  {module}: " + ", ".join(f"{name} {n}" for name, n in lines.items()))
    print("left out:")
    for why, names in LEFT_OUT.items():
        print(f"  {why}: {', '.join(names)}")
    print(f"  {BESIDE}")


if __name__ == "__main__":
    main()
