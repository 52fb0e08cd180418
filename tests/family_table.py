"""A table over all tiny families: how each is run, how exact, how fast; `make test-families`.

It is also written down, family by family, in nbs/records/families.json, for the page on models.
With --resume, families that are there with the versions of now are left out."""
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from families import OLD, OTHERS, TEXTS, VISION, family
from test_families import gap, gradient, some, trained

from calibrl.base import adapted
from calibrl.files import write_atomic
from calibrl.policy import Policy
from calibrl.rollout import rollout
from calibrl.train import Config, train_step

RECORD = Path(__file__).parent.parent/"nbs/records/families.json"
LENGTH = 40     # tokens of a timed response
EACH = 8        # timed responses
REFUSED = ("gpt2", "gpt_neox", "bloom", "mamba")    # put together in another way than the others


def seconds(measure):
    "CPU seconds of a call, the better of two."
    spent = []
    for _ in range(2):
        start = time.process_time()
        measure()
        spent.append(time.process_time() - start)
    return min(spent)


def speed(packed, plain):
    "How many times faster packed rows are: a group of responses, forward and backward."
    problem = some(packed)[:1]
    response = packed.tokens("1")[:1]*(LENGTH - 1) + packed.eos_ids[:1]

    def scored(policy):
        policy.logps(problem, [[response]*EACH]).logp.sum().backward()

    scored(packed)      # what a first call prepares is not counted
    return seconds(partial(scored, plain))/seconds(partial(scored, packed))


def step(policy, problems):
    "A sampled group and an update, whose verdicts are given: its largest error, its metrics."
    ro = rollout(policy, problems, n=3, max_new_tokens=24, seed=1)
    error = gap(policy, problems, ro.responses, ro.old_logp)
    ro.rewards = torch.tensor([1.1, 0, .1]*2)
    ro.correct = torch.tensor([True, False, False]*2)
    cfg = Config(prompts=2, responses=3, mini_batches=1, max_new_tokens=24, lr=1e-3)
    optimizer = torch.optim.AdamW(policy.trainable, lr=cfg.lr)
    return error, train_step(policy, optimizer, ro, cfg)


def measured(folder):
    "What is found of a family that runs."
    policy, plain = (trained(Policy.from_pretrained(folder, lora_rank=4, rows=rows))
                     for rows in ("auto", "plain"))
    a, b = gradient(policy), gradient(plain)
    apart = float((a - b).norm()/b.norm())
    prompt = policy.prompt(some(policy)[0])["input_ids"].shape[1]
    faster = speed(policy, plain) if policy.rows == "packed" else None
    error, metrics = step(policy, some(policy))
    ratio = metrics["first_ratio_error"]
    assert error < 1e-3 and apart < 1e-3 and ratio < 1e-3, "not the model's own numbers"
    assert metrics["grad_norm"] > 0, "no gradient"
    count, left = adapted(policy.model)
    verdict = policy.verdict
    return dict(rows=policy.rows, why=verdict.why, mixes=policy.mixes,
                sampler="shared" if policy.shared else "own cache",
                gap=verdict.gap, bound=verdict.bound, sampling=error, gradient=apart, ratio=ratio,
                speed=faster, prompt=prompt, matrices=count, left=left,
                parameters=policy.base.num_parameters())


def versions():
    "What decides a row beside the code."
    packages = {name: version(name) for name in ("torch", "transformers", "peft")}
    return packages | {"python": platform.python_version()}


def row(name, folder):
    "What is written down of a family."
    start = time.process_time()
    kind = "pictures and text" if name in (*VISION, *OLD) else "text"
    path = family(name, folder)
    try:
        found = measured(path)
    except ValueError as e:    # in one line, or it is no refusal
        found = dict(rows="refused", why=str(e))
    return dict(reads=kind, **found, seconds=round(time.process_time() - start, 1),
                day=f"{datetime.date.today()}", versions=versions())


HEAD = ("family", "rows", "sampler", "speed", "gap", "sampling", "gradient", "matrices", "ratio")


def cells(name, found):
    "A line of the table."
    if found["rows"] == "refused":
        return f"| {name} | refused: {found['why']} |"
    small = {key: f"{found[key]:.0e}" for key in ("gap", "sampling", "gradient", "ratio")}
    faster = f"{found['speed']:.1f}" if found["speed"] else ""
    shown = found | small | dict(speed=faster, family=name)
    return "| " + " | ".join(str(shown[key]) for key in HEAD) + " |"


def main(names):
    "Print the table and write it down; fail where a family does not run as it should."
    resume = "--resume" in names
    names = [name for name in names if name != "--resume"] or [*VISION, *OLD, *TEXTS, *OTHERS]
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    failed = []
    print("| " + " | ".join(HEAD) + " |\n|" + "---|"*len(HEAD), flush=True)
    for name in names:
        if resume and record.get(name, {}).get("versions") == versions():
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                record[name] = row(name, folder)
            except Exception as error:
                failed.append(name)
                print(f"| {name} | {type(error).__name__}: {error} |", flush=True)
                continue
        print(cells(name, record[name]), flush=True)
        if (record[name]["rows"] == "refused") != (name in REFUSED):
            failed.append(name)
        whole = json.dumps(dict(sorted(record.items())), indent=1) + "\n"
        write_atomic(RECORD, whole.encode())
    return 1 if failed else 0

if __name__ == "__main__":
    from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    os.environ["CALIBRL_VERDICTS"] = "off"    # each family is tried anew
    sys.exit(main(sys.argv[1:]))
