"""What pushes entropy, measured on fresh samples: writes the record that `loss/law` reads.

    python tools/growth_record.py --world algebra --out nbs/records/growth/algebra.jsonl

No policy is trained for the figures themselves, but stages after the start have to be reached: by
steps of GRPO (`calibrl` with weight 0). At each stage some batches of problems are sampled. The
gradients of one batch are taken, and the entropy is looked at on the next, so that no push is
judged by its own samples. A row is a batch; the first line holds the settings.
"""
import argparse
import json
import random
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from calibrl import algebra, geometry
from calibrl.files import write_atomic
from calibrl.growth import adam_sizes, part_gradients, slope
from calibrl.rollout import Policy, rollout
from calibrl.tasks import Problem, Score
from calibrl.train import Config, make_optimizer, train

WORLDS = {"algebra": algebra, "geometry": geometry}
SEED = 1000     # of the first batch: far from the seeds of training


def gradients_of(policy, ro, cfg):
    "The gradients that are looked at: GRPO, wrong answers, the wrong side by two gaps."
    parts = part_gradients(policy, ro, cfg)
    found = {"grpo": parts["grpo"], "wrong": parts["wrong"]}
    if not ro.has_expert.any():
        return found
    sequence = part_gradients(policy, ro, Config(gap="sequence", micro_tokens=cfg.micro_tokens))
    length = float(ro.mask.sum(1).float().mean())
    scaled = [g/length for g in sequence["wrong_side"]]
    return found | {"wrong_side": parts["wrong_side"], "wrong_side_sequence": scaled}


def pooled_sizes(grads, optimizer):
    "What Adam would divide by, from the batches themselves: for a stage before its first step."
    group = optimizer.param_groups[0]
    squares = [sum(g**2 for g in same)/len(same) for same in zip(*grads, strict=True)]
    return [(square.sqrt() + group["eps"])/group["lr"] for square in squares]


def measured(policy, optimizer, batches, cfg, about):
    "A row for each batch of groups, its entropy taken on the next one."
    grads = [gradients_of(policy, ro, cfg) for ro in batches]
    sizes = adam_sizes(optimizer) or pooled_sizes([g["grpo"] for g in grads], optimizer)
    for k, (ro, parts) in enumerate(zip(batches, grads, strict=True)):
        fresh = batches[(k + 1) % len(batches)]
        shares = ro.correct.view(-1, ro.n).float().mean(1)
        row = about | {"batch": k, "accuracy": float(ro.correct.float().mean()),
                       "mixed": float(((shares > 0) & (shares < 1)).float().mean()),
                       "entropy": float(ro.entropy[ro.mask].mean()),
                       "length": float(ro.mask.sum(1).float().mean())}
        for name, gradient in parts.items():
            row[name] = slope(policy, fresh, [-g for g in gradient], cfg)
            scaled = [-g/size for g, size in zip(gradient, sizes, strict=True)]
            row[f"{name}_adam"] = slope(policy, fresh, scaled, cfg)
        yield row


def record(world, stages, batches, problems, responses):
    "The settings, then a row for each stage and batch."
    make = WORLDS[world]
    policy = Policy.from_pretrained(make.tiny_checkpoint())
    cfg = Config(weight=0., steps=max(stages) or 1)
    optimizer = make_optimizer(policy, cfg)
    steps = train(policy, make.problems(96, seed=0), cfg, optimizer)
    settings = dict(world=world, stages=stages, batches=batches, problems=problems,
                    responses=responses, seed=SEED, lr=cfg.lr, prompts=cfg.prompts)
    rows = [settings]
    done = 0
    for stage in stages:
        while done < stage:
            done = next(steps)["step"]
        groups = []
        for k in range(batches):
            seed = SEED + batches*stage + k
            groups.append(rollout(policy, make.problems(problems, seed=seed), responses, seed=seed))
        for row in measured(policy, optimizer, groups, cfg, {"stage": stage}):
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


# A model of somebody else's: small sums, whose last number is the answer, and no expert, whose
# style would be foreign to it in every case
def sums(count, seed):
    "Small sums as problems; the same arguments give the same list."
    rng = random.Random(f"sums-{seed}")
    pairs = [(rng.randint(2, 19), rng.randint(2, 19)) for _ in range(count)]
    return [Problem(f"{a} + {b} = ?", str(a + b)) for a, b in pairs]


def last_number(texts, problems):
    "A response is right where its last number is the answer."
    scores = []
    for text, problem in zip(texts, problems, strict=True):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        right = bool(numbers) and float(numbers[-1]) == float(problem.answer)
        scores.append(Score(right, False))
    return scores


def record_model(model, batches, problems, responses, max_new_tokens, temperature):
    "The settings, then a row for each batch of a model at its start."
    policy = Policy.from_pretrained(model, lora_rank=16)
    policy.set_prompts(instruction="none")
    cfg = Config(temperature=temperature)
    optimizer = make_optimizer(policy, cfg)
    rows = [dict(world=Path(model).name, stages=[0], batches=batches, problems=problems,
                 responses=responses, seed=SEED, max_new_tokens=max_new_tokens,
                 temperature=temperature, lr=cfg.lr)]
    groups = []
    for k in range(batches):
        groups.append(rollout(policy, sums(problems, SEED + k), responses, temperature,
                              max_new_tokens, SEED + k, last_number))
    for row in measured(policy, optimizer, groups, cfg, {"stage": 0}):
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", choices=WORLDS)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 20, 60])
    parser.add_argument("--model", help="a save_pretrained folder, in the place of a world")
    parser.add_argument("--temperature", type=float, default=.4, help="of a model's sampling")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--out", required=True)
    given = parser.parse_args(argv)
    if bool(given.world) == bool(given.model):
        parser.error("give either --world or --model")
    torch.set_num_threads(1)
    sizes = (given.batches, given.problems, given.responses)
    if given.world:
        rows = record(given.world, given.stages, *sizes)
    else:
        rows = record_model(given.model, *sizes, given.max_new_tokens, given.temperature)
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
