"""The tower that single tokens are sampled from: the model's numbers, in fewer operations."""
import pytest
import torch

from calibrl.draws import drawer, luck_of
from calibrl.geometry import problems
from calibrl.light import (
    TURN, Joined, OneNorm, Turns, TwoProducts, light_tower, light_writer, names_in, one_norm,
    turn_of)
from calibrl.peers import token_operations
from calibrl.policy import next_token, read_prompts
from calibrl.rollout import Policy
from calibrl.step import Step

PROBLEMS = problems(3, split="test")
KINDS = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl", "qwen2", "qwen3")


def load(folder, **options):
    "A policy whose adapter does something."
    policy = Policy.from_pretrained(folder, lora_rank=4, **options)
    generator = torch.Generator().manual_seed(1)
    for weight in policy.trainable:
        weight.data += .1*torch.randn(weight.shape, generator=generator).to(weight)
    return policy


def turned(policy):
    "Whether the library turns by the function that we know: Qwen's pictures once had their own."
    return TURN in names_in(policy.decoder.layers[0].self_attn)


# Of a layer, and of all in a model of 28; what was aimed at for the latter is 2,650 and 1,250.
# With the library's modules and rows in no order of their own a layer took 108 and 59
MOST = {False: (49, 1420), True: (32, 945)}


@pytest.mark.parametrize("copied", MOST, ids=["4 bits and adapter", "copy"])
def test_operations_of_a_token_do_not_grow(tiny, copied):
    policy = Policy.from_pretrained(tiny, bits=4, dtype=torch.bfloat16, sampling_copy=copied)
    if not turned(policy):
        pytest.skip("an older transformers turns in more operations")
    layer, rest = [part.total() for part in token_operations(policy, PROBLEMS[:2])]
    print(f"a layer {layer}, beside them {rest}, with 28 layers {28*layer + rest}")
    most, whole = MOST[copied]
    assert layer <= most and 28*layer + rest <= whole
    assert policy.light is None and len(policy.decoder.layers) == 3


def kinds(tower):
    "How many modules of each kind of ours a tower has."
    return [sum(isinstance(module, kind) for module in tower.modules())
            for kind in (OneNorm, TwoProducts, Joined, Turns)]


def tokens_of(policy, tower, count=4):
    "Log-probabilities of some tokens, greedily drawn."
    def draw(states, luck):
        return next_token(policy, states, luck, drawer(0.), 1.)

    ps = PROBLEMS if hasattr(policy.base.config, "vision_config") else [
        type(PROBLEMS[0])(question, "1") for question in ("Find x.", "How long is it, then?")]
    with torch.no_grad():
        step = Step(tower, read_prompts(policy, ps, None, 1., 8192), 2, draw,
                    luck_of(0, 2*len(ps), count), True)
        found = [step.next_token() for _ in range(count)]
    return torch.stack([one[0] for one in found]), torch.stack([one[1] for one in found])


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_says_the_same(checkpoint, kind):
    policy = load(checkpoint(kind))
    layers = len(policy.decoder.layers)
    turns = int(turned(policy))
    for copied, parts in ((False, (7*layers, 0, turns)), (True, (0, 2*layers, turns))):
        policy.sampling_copy, policy.copy = copied, None
        before = {id(module) for module in policy.writer.modules()}
        ours = light_writer(policy)
        norms, *others = kinds(ours)
        assert tuple(others) == parts and norms == (4 if "qwen3" in kind else 2)*layers + 1
        ids, logps = tokens_of(policy, ours)
        same, want = tokens_of(policy, policy.writer)
        assert torch.equal(ids, same)
        torch.testing.assert_close(logps, want, atol=1e-5, rtol=0)

        # The model is as it was, and no number is there twice
        assert {id(module) for module in policy.writer.modules()} == before
        assert kinds(policy.writer) == [0, 0, 0, 0]
        known = {weight.data_ptr() for weight in policy.writer.parameters()}
        assert {weight.data_ptr() for weight in ours.parameters()} <= known


def test_an_update_and_a_sleeping_adapter_are_seen(tiny):
    policy = load(tiny, bits=4)
    first = tokens_of(policy, light_writer(policy))[1]
    with policy.model.disable_adapter():
        asleep = tokens_of(policy, light_writer(policy))[1]
        want = tokens_of(policy, policy.core)[1]
    torch.testing.assert_close(asleep, want, atol=1e-5, rtol=0)
    for weight in policy.trainable:
        weight.data += .05
    moved = tokens_of(policy, light_writer(policy))[1]
    torch.testing.assert_close(moved, tokens_of(policy, policy.core)[1], atol=1e-5, rtol=0)
    assert not torch.equal(first, asleep) and not torch.equal(first, moved)


class RMSNorm(torch.nn.Module):
    "A norm as Gemma has it: 1 is added to the weight."
    def __init__(self, width, more, eps=1e-6):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((width,), .5))
        self.eps = eps
        self.more = more

    def forward(self, x):
        return x*torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)*(self.more + self.weight)


def test_what_is_put_together_otherwise_is_left(tiny, monkeypatch):
    with torch.no_grad():
        assert one_norm(RMSNorm(8, 0)) and not one_norm(RMSNorm(8, 1))
        assert not one_norm(RMSNorm(8, 0, eps=1e-5))
    policy = load(tiny)
    decoder = policy.decoder
    forward = type(decoder.layers[0].self_attn).forward
    turn = turn_of(decoder)

    def backwards(q, k, cos, sin):
        return turn(q, k, cos, -sin)

    monkeypatch.setitem(forward.__globals__, "apply_rotary_pos_emb", backwards)
    assert turn_of(decoder) is None
    assert kinds(light_tower(policy.core, decoder, torch.float32))[3] == 0

    # A tower that says something else is not used
    monkeypatch.setattr(TwoProducts, "forward", lambda self, x: 2*self.base_layer(x))
    assert light_tower(policy.core, decoder, torch.float32) is policy.core
