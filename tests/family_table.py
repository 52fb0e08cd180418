"""A table over all tiny families: how each is run, how exact, how fast; `make test-families`."""
import sys
import tempfile
import time
from functools import partial

import torch
from families import OLD, TEXTS, VISION, family
from test_families import gap, gradient, some, trained

from calibrl.policy import Policy
from calibrl.rollout import rollout
from calibrl.train import Config, train_step


def seconds(measure):
    "CPU seconds of a call, the better of two."
    spent = []
    for _ in range(2):
        start = time.process_time()
        measure()
        spent.append(time.process_time() - start)
    return min(spent)


def speed(packed, plain):
    "How many times faster packed rows are: eight responses of 40 tokens, forward and backward."
    problem = some(packed)[:1]
    groups = [[packed.tokens("1 + 1 = 2, so the answer is 2, I think.")]*8]

    def scored(policy):
        policy.logps(problem, groups).logp.sum().backward()

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


def row(name, folder):
    "A family's cells."
    packed, plain = (trained(Policy.from_pretrained(folder, lora_rank=4, rows=rows))
                     for rows in ("auto", "plain"))
    a, b = gradient(packed), gradient(plain)
    apart = float((a - b).norm()/b.norm())
    faster = speed(packed, plain)
    error, metrics = step(packed, some(packed))
    assert error < 1e-3 and apart < 1e-3 and metrics["first_ratio_error"] < 1e-3, name
    assert metrics["grad_norm"] > 0, name
    sampler = "shared" if packed.shared else "own cache"
    return (name, packed.rows, sampler, f"{faster:.1f}", f"{packed.verdict.gap:.0e}",
            f"{error:.0e}", f"{apart:.0e}", packed.about.split(", ")[1].split()[0],
            f"{metrics['first_ratio_error']:.0e}")


HEAD = ("family", "rows", "sampler", "speed", "scoring", "sampling", "gradient", "matrices",
        "ratio")


def main(names):
    "Print the table; fail where a family does not run."
    names = names or [*VISION, *OLD, *TEXTS]
    failed = []
    print("| " + " | ".join(HEAD) + " |\n|" + "---|"*len(HEAD), flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print("| " + " | ".join(row(name, family(name, folder))) + " |", flush=True)
            except Exception as error:
                failed.append(name)
                print(f"| {name} | {type(error).__name__}: {error} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
