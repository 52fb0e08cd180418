"""How many operations a layer of the update needs: forward, recomputed attention, and backward.

Counted, not timed: the difference between a model of three layers and the same one cut to two."""
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calibrl import engine, policy as room
from calibrl.geometry import problems, tiny_checkpoint
from calibrl.policy import Policy


class Counted(TorchDispatchMode):
    "Counts the operations within."

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def policy():
    policy = Policy.from_pretrained(tiny_checkpoint(), lora_rank=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable:
            weight.add_(torch.randn_like(weight)*.02)
    return policy


def update(policy, count):
    "Log-probabilities of two responses to each of some problems, and the gradients of their sum."
    some = problems(8, seed=1)[:count]
    end = policy.eos_ids[0]
    policy.model.zero_grad()
    logp = policy.logps(some, [[[20, 21, 22, 23, end], [30, 31, end]] for _ in some]).logp
    logp.sum().backward()
    return logp.detach(), [weight.grad.clone() for weight in policy.trainable
                           if weight.grad is not None]


def a_layer(policy, count):
    "The operations of one layer."
    update(policy, count)          # what is made once, and kept, belongs to no layer
    layers = policy.decoder.layers
    found = []
    try:
        for depth in (3, 2):
            policy.decoder.layers = layers[:depth]
            with Counted() as counted:
                update(policy, count)
            found.append(counted.names)
    finally:
        policy.decoder.layers = layers
    whole, cut = found
    return Counter(whole) - Counter(cut)


def as_before(monkeypatch):
    "A mask for each row, from which the kernel makes what it adds, layer by layer."
    monkeypatch.setattr(room, "bias_of", lambda mask, dtype: mask.expand(-1, -1, -1, -1))


@pytest.mark.parametrize("count", [1, 3], ids=["one prompt", "padded prompts"])
def test_a_mask_is_made_once_and_not_in_each_layer(policy, monkeypatch, count):
    now = a_layer(policy, count)
    as_before(monkeypatch)
    before = a_layer(policy, count)
    made = ("where", "scalar_tensor")

    # the padded prompts' own mask is of the kind that it was
    assert sum(now[name] for name in made) == (3 if count == 3 else 0)
    assert sum(before[name] for name in made) == (9 if count == 3 else 6)
    assert sum(before.values()) - sum(now.values()) == 6
    print("operations a layer:", before.total(), "before,", now.total(), "now")
    assert now.total() <= {1: 493, 3: 508}[count]


@pytest.mark.parametrize("count", [1, 3], ids=["one prompt", "padded prompts"])
def test_log_probabilities_and_gradients_stay_the_same_bits(policy, monkeypatch, count):
    logp, grads = update(policy, count)
    as_before(monkeypatch)
    before, grads_before = update(policy, count)
    assert torch.equal(logp, before) and len(grads) > 20
    assert all(torch.equal(*pair) for pair in zip(grads, grads_before, strict=True))


def test_prompts_of_one_length_have_one_mask(policy):
    longest = problems(8, seed=1)[:3]
    same = [policy.prompt(longest[0])]*2
    groups = [[[20, 21], [22]]]*2
    assert policy.packed(same, groups)[0]["own_mask"].shape[0] == 1
    ragged = policy.packed(longest, groups + groups[:1])[0]["own_mask"]
    assert ragged.shape[0] == 3*2 and ragged.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", engine.HALF)
def test_a_gpu_shares_key_heads_without_a_mask(dtype):
    "As with repeated key heads, value and gradients to the rounding of 16 bits."
    torch.manual_seed(0)
    query = torch.randn(2, 8, 64, 64, device="cuda", dtype=dtype, requires_grad=True)
    key, value = (torch.randn(2, 2, 64, 64, device="cuda", dtype=dtype, requires_grad=True)
                  for _ in range(2))

    def run(key, value):
        out = engine.attend(query, key, value, None, .125)
        return out, torch.autograd.grad(out.float().square().sum(), (query, *leaves))
    leaves = (key, value)
    shared, slopes = run(key, value)
    repeated, others = run(key.repeat_interleave(4, 1), value.repeat_interleave(4, 1))
    torch.testing.assert_close(shared, repeated, atol=2e-2, rtol=2e-2)
    for a, b in zip(slopes, others, strict=True):
        torch.testing.assert_close(a, b, atol=1e-1, rtol=5e-2)
