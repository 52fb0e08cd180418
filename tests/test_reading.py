"""How much must a newcomer read to understand one training step? At most 4 files and 150 lines of ours, counted here.

Counted are the bodies of the functions that a step runs through, without docstrings and parameter lists. Not counted is what stands behind a contract of one
sentence that a test holds: how prompts are read (in parts, equal to all at once), how rows are packed (equal to rows of their own), how the head is tiled (equal to full logits), how inputs are checked, what is logged.
"""
import ast
from pathlib import Path

STEP = {"train": ["train_step"], "rollout": ["encode", "prompts", "sample", "rollout", "logps", "read"],
        "loss": ["group_advantages", "clipped_surrogate", "masked_mean", "reduce_loss", "expert_gap", "alpha_gate", "exploration_loss", "calibrl_loss"],
        "tasks": ["score"]}
BEHIND = {"train": ["settled", "share", "micro_batches", "summarize"], "rollout": ["prefill", "collate", "attention", "_attend", "_rows_over_prefix", "one_token", "pack", "packed", "draw", "_samples", "head_logps", "_FrozenHead"]}


def lines(functions):
    "Lines of code in the bodies of functions, by name."
    found = {}
    for module, names in functions.items():
        source = (Path(__file__).parent.parent/"calibrl"/f"{module}.py").read_text(encoding="utf-8")
        text = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                code = {i for b in body for i in range(b.lineno, b.end_lineno + 1) if (line := text[i-1].strip()) and not line.startswith("#") and "raise " not in line}
                found[f"{module}.{node.name}"] = 1 + len(code)
    return found


def test_a_step_is_read_in_four_files_and_150_lines():
    step, behind = lines(STEP), lines(BEHIND)
    print(f"a step: {sum(step.values())} lines in {len(STEP)} files; behind contracts: {sum(behind.values())} more", step, behind)
    assert len(step) == sum(map(len, STEP.values())) and len(behind) == sum(map(len, BEHIND.values()))      # every name was found
    assert len(STEP) <= 4 and sum(step.values()) <= 150
    assert sum(step.values()) + sum(behind.values()) <= 260
