"""A copy to sample from: what it says is what the model says, the model stays as it is, and it
is there where it is said to be."""
import copy

import pytest
import torch

from calibrl.cli import main
from calibrl.draws import drawer, luck_of
from calibrl.geometry import problems
from calibrl.peers import Operations
from calibrl.policy import next_token, read_prompts
from calibrl.rollout import Policy, ratio_floor, rollout
from calibrl.runs.folder import run_notes
from calibrl.sampling_copy import Choice, SamplingCopy, copy_bytes, merged, settle_copy
from calibrl.step import Step
from calibrl.train import Config, train

PROBLEMS = problems(6, split="test")


def trained(folder, **options):
    "A policy whose adapter has learned for some steps from experts' answers."
    torch.set_num_threads(1)
    policy = Policy.from_pretrained(folder, **options)
    cfg = Config(method="sft", steps=4, prompts=8, responses=2, mini_batches=1, lr=2e-3)
    list(train(policy, problems(32, split="train"), cfg))
    return policy


@pytest.fixture(scope="module", params=[4, 8, None], ids=["nf4", "int8", "fp32"])
def policy(request, tiny):
    return trained(tiny, bits=request.param)


def test_a_copy_says_what_the_model_says(policy):
    "Tokens drawn from the copy, scored by the model; in 8 bits the model itself rounds."
    policy.copy, policy.sampling_copy = None, True
    before = [weight.clone() for weight in policy.model.parameters()]
    ro = rollout(policy, PROBLEMS, n=4, seed=1)
    assert policy.copy and policy.writer is policy.copy.core
    with torch.no_grad():
        again = policy.logps(ro.problems, ro.grouped)
    T = again.logp.shape[1]
    off = (again.logp - ro.old_logp[:, :T])[again.mask].expm1().abs().mean()
    bits8 = getattr(policy.base, "is_loaded_in_8bit", False)
    assert float(off) < (4*ratio_floor(policy, ro) + 1e-4 if bits8 else 1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def test_a_copy_shares_all_but_its_matrices(policy):
    held = SamplingCopy(policy.core, policy.base.dtype)
    known = {id(tensor) for tensor in (*policy.model.parameters(), *policy.model.buffers())}
    own = [weight for weight in held.core.parameters() if id(weight) not in known]
    assert sum(weight.nbytes for weight in own) == copy_bytes(policy.core, policy.base.dtype)
    assert not any("lora_" in name for name, _ in held.core.named_parameters())
    assert all(id(buffer) in known for buffer in held.core.buffers())
    assert policy.core.get_input_embeddings().weight is held.core.get_input_embeddings().weight


@pytest.mark.parametrize("options", [dict(foreach=False), dict(foreach=True), dict(fused=True)],
                         ids=["one by one", "together", "fused"])
def test_every_kind_of_step_is_seen(policy, options):
    held = SamplingCopy(policy.core, torch.float32)
    held.fresh()
    optimizer = torch.optim.AdamW(policy.trainable, lr=1e-3, **options)
    for weight in policy.trainable:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    module, matrix = held.pairs[-1]
    assert not torch.equal(matrix.weight, merged(module))
    place = matrix.weight.data_ptr()
    held.fresh()
    assert torch.equal(matrix.weight, merged(module)) and matrix.weight.data_ptr() == place


def test_a_run_samples_from_the_copy_as_from_the_model(tiny):
    "The same run with and without: the same tokens in 32 bits, so the same metrics up to rounding."
    rows = []
    for asked in (True, False):
        policy = Policy.from_pretrained(tiny, bits=4, sampling_copy=asked)
        cfg = Config(method="grpo", steps=3, prompts=4, responses=4, mini_batches=1, lr=1e-3)
        rows.append(list(train(policy, problems(12, split="train"), cfg)))
        assert bool(policy.copy) == asked
    for a, b in zip(*rows, strict=True):
        assert a["tokens"] == b["tokens"] and a["reward"] == b["reward"]
        assert max(a["first_ratio_error"], b["first_ratio_error"]) < 1e-4


def test_half_precision_stays_within_the_bound_of_the_alarm(tiny):
    "Samples of a merged copy in bf16, scored by 4 bits and adapter: mean |ratio - 1|."
    policy = trained(tiny, bits=4, dtype=torch.bfloat16)
    policy.sampling_copy = True
    policy.copy = None
    ro = rollout(policy, PROBLEMS, n=4, seed=1)
    assert policy.copy
    with torch.no_grad():
        again = policy.logps(ro.problems, ro.grouped)
    T = again.logp.shape[1]
    off = float((again.logp - ro.old_logp[:, :T])[again.mask].expm1().abs().mean())
    floor = ratio_floor(policy, ro, tokens=10**6)
    assert 0 < off < 4*floor + 1e-4
    print(f"merged copy in bf16: {off:.5f}, floor {floor:.5f}")


def test_where_there_is_a_copy(tiny):
    def is_copied(**options):
        policy = Policy.from_pretrained(tiny, **options)
        return policy.writer is not policy.core

    assert is_copied(bits=8) and not is_copied(bits=4)
    assert is_copied(bits=4, sampling_copy=True) and not is_copied(bits=4, sampling_copy=False)
    assert not is_copied(lora_rank=0)
    with pytest.raises(ValueError, match="in 8 bits .* leave it out"):
        Policy.from_pretrained(tiny, bits=8, sampling_copy=False)
    with pytest.raises(ValueError, match="sampling_copy: .* leave it out"):
        Policy.from_pretrained(tiny, rows="plain", sampling_copy=True)


def test_advice_counts_where_nobody_asked_and_bits_leave_a_choice(tiny):
    "A plan's word is taken for 4 bits; what is asked for, and 8 bits, come before it."
    policy = Policy.from_pretrained(tiny, bits=4)
    for copied in (True, False):
        policy.sampling_copy = None
        found = settle_copy(policy, None, Choice(copied, "as planned"))
        assert found.copied == copied == (policy.writer is not policy.core)
        assert found.line.endswith(": as planned")
        assert settle_copy(policy, not copied, Choice(copied, "as planned")).copied != copied
    policy = Policy.from_pretrained(tiny, bits=8)
    assert settle_copy(policy, None, Choice(False, "no room")).why == "in 8 bits it always is"


STEP = ["--prompts", "2", "--responses", "2", "--mini-batches", "1", "--max-new-tokens", "8"]


def test_a_run_says_what_it_samples_from_and_goes_on_with_it(tmp_path, capsys):
    "What was asked for, or chosen, is noted; no word is the same again, another is refused."
    def ran(name, *words):
        code = main(["train", *STEP, "--out", str(tmp_path/name), *words])
        shown = capsys.readouterr()
        lines = [row for row in shown.out.splitlines() if row.startswith("sampling from")]
        return code, lines, shown.err

    said = ["sampling from a copy with the adapter merged: as asked for"]
    assert ran("asked", "--steps", "1", "--sampling-copy")[:2] == (0, said)
    assert run_notes(tmp_path/"asked")["sampling_copy"] is True
    again = ["sampling from a copy with the adapter merged: as this run began"]
    assert ran("asked", "--steps", "2")[:2] == (0, again)
    code, _, error = ran("asked", "--steps", "2", "--no-sampling-copy")
    assert code == 2 and "sampling_copy was True and is False now" in error

    # chosen, where nobody asked
    said = ["sampling from a copy with the adapter merged: in 8 bits it always is"]
    assert ran("chosen", "--steps", "1", "--bits", "8")[:2] == (0, said)
    assert run_notes(tmp_path/"chosen")["sampling_copy"] is True


@pytest.mark.parametrize("words, why", [
    (["--bits", "8", "--no-sampling-copy"], "--no-sampling-copy does not go with --bits 8"),
    (["--engine", "trl", "--sampling-copy"], "--sampling-copy does not go with --engine trl"),
    (["--rows", "plain", "--sampling-copy"], "sampling_copy: a copy serves packed rows"),
    (["--sampler", "vllm", "--sampling-copy"], "sampling_copy: the server of sampler vllm writes")])
def test_what_a_copy_does_not_go_with(words, why, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert why in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_an_adapter_of_another_kind_is_not_merged(tiny):
    "DoRA scales columns: the copy would leave that out."
    from peft import LoraConfig, get_peft_model

    from calibrl.base import load_base
    model, processor = load_base(tiny)
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    policy = Policy(get_peft_model(copy.deepcopy(model), config), processor)
    policy.sampling_copy = True
    with pytest.raises(ValueError, match="plain adapters"):
        policy.sample(PROBLEMS[:1], max_new_tokens=2)


@torch.no_grad()
def operations(policy, core):
    "What one token of all rows launches, rows in their places."
    def draw(states, luck):
        return next_token(policy, states, luck, drawer(1.), 1.)

    read = read_prompts(policy, PROBLEMS[:2], None, 1., 8192)
    made = Step(core, read, 2, draw, luck_of(0, 4, 8), True)
    made.next_token()
    with Operations() as seen:
        made.next_token()
    return seen.counted


def test_a_token_takes_fewer_operations_with_a_copy(tiny):
    "Of a model's seven matrices a layer each is one product; nothing is unpacked or added."
    policy = Policy.from_pretrained(tiny, bits=4, dtype=torch.bfloat16, sampling_copy=False)
    layers = policy.base.config.get_text_config().num_hidden_layers
    without = operations(policy, policy.core)
    with_copy = operations(policy, SamplingCopy(policy.core, torch.bfloat16).fresh())
    products = with_copy["mm"] + with_copy["addmm"]
    assert products == 7*layers + 1                                  # and the head
    assert without["mm"] + without["addmm"] >= 2*7*layers
    assert with_copy.total() < .63*without.total()
    assert (without.total() - with_copy.total())/layers > 45
    print(f"operations a token, {layers} layers: {without.total()}, copied {with_copy.total()}")
