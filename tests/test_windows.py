"""Windows grouped by length: the bits of transformers' own loop, a tenth of its operations."""
import copy

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from calibrl import windows
from calibrl.engine import register_attention
from calibrl.policy import Policy
from calibrl.tasks import Problem
from calibrl.windows import ByLength, prepare_windows

LOOPING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIZES = ((84, 84), (56, 84), (84, 84), (28, 56), (56, 56))     # pixels: windows of all lengths


class Operations(TorchDispatchMode):
    "Count what computes or copies numbers of a picture, views apart; calls of attention among it."
    def __init__(self):
        super().__init__()
        self.all = self.attention = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(result.alias_info is not None and not result.alias_info.is_write
                      for result in function._schema.returns)
        out = function(*args, **(kwargs or {}))
        numbers = out[0] if isinstance(out, tuple) else out
        self.all += torch.is_tensor(numbers) and numbers.is_floating_point() and not is_view
        self.attention += "attention" in function.__name__
        return out


def pictures():
    "Problems with pictures of noise, of several sizes."
    generator = torch.Generator().manual_seed(0)
    made = []
    for width, height in SIZES:
        pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
        made.append(Problem("1 + 1 = ?", "2", (Image.fromarray(pixels.numpy()),)))
    return made


def as_loaded(policy):
    "The same policy with the layers of transformers' own, looping."
    looping = copy.deepcopy(policy)
    for module in looping.model.modules():
        if isinstance(module, ByLength):
            module.config._attn_implementation = "sdpa"
    return looping


def groups_of(policy):
    "How many layers of a policy's vision tower group their windows."
    return sum(isinstance(module, ByLength) for module in policy.model.modules())


@pytest.mark.parametrize("kind", LOOPING)
def test_bits_of_the_loop_forward_and_backward(checkpoint, kind):
    grouped = Policy.from_pretrained(checkpoint(kind), lora_rank=4, train_vision=True)
    for i, weight in enumerate(grouped.trainable):
        generator = torch.Generator().manual_seed(i)
        weight.data += .2*torch.randn(weight.shape, generator=generator)
    looping = as_loaded(grouped)
    depth = grouped.base.config.vision_config.depth
    assert groups_of(grouped) == depth

    # what rows are scored with, and the gradients of adapters in the tower
    seen = []
    for policy in (grouped, looping):
        with Operations() as operations:
            logp = policy.logps(pictures(), [[20, 21, 22]]*len(SIZES)).logp
        gradient = torch.autograd.grad(logp.sum(), policy.trainable)
        seen.append((logp, gradient, operations.attention))
    (ours, our_slope, calls), (own, own_slope, own_calls) = seen
    assert torch.equal(ours, own) and calls < own_calls
    assert all(torch.equal(a, b) for a, b in zip(our_slope, own_slope, strict=True))
    names = [name for name, weight in grouped.model.named_parameters() if weight.requires_grad]
    in_tower = [g.abs().sum() for name, g in zip(names, our_slope, strict=True) if "visual" in name]
    assert in_tower and min(in_tower) > 0


def large_tower():
    "A vision tower as deep as that of Qwen2.5-VL, and narrow."
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl
    config = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(
        depth=32, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=16)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    tower = modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel(config)
    return tower.requires_grad_(False)


def test_a_tenth_of_the_operations():
    tower = large_tower()
    grids = torch.tensor([[1, 48, 64]]*8)                      # eight pictures of 672 x 896
    patches = torch.randn(int(grids.prod(1).sum()), 1176)
    seen = []
    for _ in range(2):
        with torch.no_grad(), Operations() as operations:
            out = tower(patches, grid_thw=grids).pooler_output
        seen.append((out, operations.all, operations.attention))
        prepare_windows(tower, register_attention())
    (own, before, own_calls), (grouped, after, calls) = seen
    assert torch.equal(grouped, own)
    assert (own_calls, calls) == (10_784, 32)
    assert before > 10*after, (before, after)


class Deaf(torch.nn.Module):
    "A layer that takes no keyword, in place of the one that is known."
    def __init__(self, kind, known):
        super().__init__()
        self.__dict__ |= known.__dict__
        self.kind = kind

    def forward(self, hidden_states, cu_seqlens, position_embeddings=None, **dropped):
        return self.kind.forward(self, hidden_states, cu_seqlens, position_embeddings)


def test_other_code_keeps_its_own_way_and_that_is_said_once(monkeypatch, capsys):
    tower = large_tower()
    for block in tower.blocks:
        block.attn = Deaf(type(block.attn), block.attn)
    monkeypatch.setattr(windows, "SAID", set())
    for _ in range(2):
        prepare_windows(tower, register_attention())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "Deaf" in said[0] and "one after another" in said[0]
    assert not any(isinstance(module, ByLength) for module in tower.modules())
    assert tower.blocks[0].attn.config._attn_implementation == "sdpa"


def test_another_attention_that_was_asked_for_stays():
    tower = large_tower()
    tower.config._attn_implementation = "eager"
    prepare_windows(tower, register_attention())
    assert not any(isinstance(module, ByLength) for module in tower.modules())
