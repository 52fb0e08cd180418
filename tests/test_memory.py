"""A step makes each prompt once and encodes each picture once; nothing else about it changes."""
import weakref
from collections import Counter
from contextlib import nullcontext
from inspect import signature

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

from calibrl.memory import look
from calibrl.policy import Policy
from calibrl.tasks import Problem
from calibrl.train import Config, train

EXPERT = "<think>1+1=2</think><answer>2</answer>"
SIZES = ((168, 112), (112, 112), (112, 196))      # pixels: 16 tokens and more
CFG = Config(prompts=3, responses=2, mini_batches=1, max_new_tokens=4, steps=2, lr=1e-3,
             method="luffy", max_pixels=196*196)

SEES = "mm_encoder_outputs" in signature(transformers.Qwen2_5_VLModel.forward).parameters
needs_sight = pytest.mark.skipif(not SEES, reason="this transformers takes nothing but pixels")


def test_the_versions_that_are_asked_for_take_what_was_seen():
    assert SEES or Version(transformers.__version__) < Version("5.20")


def some(pictures=1):
    "Problems with pictures of noise, of several sizes; the second has one more."
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, (width, height) in enumerate(SIZES):
        shape = (pictures + (i == 1), height, width, 3)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
        images = tuple(Image.fromarray(picture) for picture in pixels)
        made.append(Problem(f"{i} + 1 = ?", "2", images, expert=EXPERT))
    return made


def stirred(folder, **options):
    "A policy whose adapter does something."
    policy = Policy.from_pretrained(folder, lora_rank=4, **options)
    if hasattr(policy.core, "visual"):
        policy.set_prompts(max_pixels=CFG.max_pixels)
    generator = torch.Generator().manual_seed(1)
    for weight in policy.trainable:
        weight.data += .1*torch.randn(weight.shape, generator=generator)
    return policy


def counted(policy, monkeypatch):
    "Counts of problems that the processor reads and of patches that the tower sees, as they come."
    counts = Counter()
    process, see = type(policy.processor).__call__, policy.core.visual.forward

    def processor(self, *args, **options):
        counts["prompts"] += 1
        return process(self, *args, **options)

    def tower(patches, *args, **options):
        counts["patches"] += len(patches)
        return see(patches, *args, **options)
    monkeypatch.setattr(type(policy.processor), "__call__", processor)
    monkeypatch.setattr(policy.core.visual, "forward", tower)
    return counts


def steps(policy, problems, cfg=CFG):
    "What the steps of a run say, clocks apart, and the weights at its end."
    rows = [{**row, "seconds": 0} for row in train(policy, problems, cfg)]
    return rows, [weight.detach().clone() for weight in policy.trainable]


def patches_of(policy, problems):
    "How many patches the pictures of problems have."
    return sum(len(policy.prompt(problem)["pixel_values"]) for problem in problems)


@needs_sight
@pytest.mark.parametrize("kind,rows", [("qwen2_5_vl", "auto"), ("qwen2_5_vl", "plain"),
                                       ("qwen2_vl", "auto"), ("qwen3_vl", "auto")])
def test_once_a_step_to_the_same_bits(checkpoint, monkeypatch, kind, rows):
    problems = some()
    usual = stirred(checkpoint(kind), rows=rows)
    patches = patches_of(usual, problems)
    usual.remembering = nullcontext
    before = counted(usual, monkeypatch)
    told, weights = steps(usual, problems)
    monkeypatch.undo()

    # plain: to sample, with the expert, and with each row of the update, an expert's among them
    times = 1 + 1 + CFG.responses + 1 if rows == "plain" else 2
    assert before == {"prompts": 2*2*len(problems), "patches": 2*times*patches}
    policy = stirred(checkpoint(kind), rows=rows)
    after = counted(policy, monkeypatch)
    again, moved = steps(policy, problems)
    assert after == {"prompts": 2*len(problems), "patches": 2*patches}
    assert str(again) == str(told)              # as text: a number that is none equals itself
    assert all(torch.equal(a, b) for a, b in zip(moved, weights, strict=True))
    assert all(row["grad_norm"] > 0 for row in told)


@needs_sight
def test_parts_of_a_step_find_what_was_seen(checkpoint, monkeypatch):
    policy = stirred(checkpoint("qwen3_vl"))
    problems = some()
    alone = [policy.logps([problem], [[20, 21]]).logp for problem in problems]
    patches = patches_of(policy, problems)
    counts = counted(policy, monkeypatch)
    with policy.remembering():
        policy.sample(problems, 2, max_new_tokens=2, read_tokens=1)       # one prompt in each pass
        found = [policy.logps([problem], [[20, 21]]).logp for problem in reversed(problems)]
        given = policy.prompts([policy.prompt(problem) for problem in problems])[0]
    assert counts == {"prompts": len(problems), "patches": patches}
    assert "pixel_values" not in given and "mm_encoder_outputs" in given
    assert all(torch.equal(a, b) for a, b in zip(alone, reversed(found), strict=True))


def test_a_tower_that_is_trained_looks_again(checkpoint, monkeypatch):
    policy = stirred(checkpoint("qwen2_5_vl"), train_vision=True)
    problems = some()
    patches = patches_of(policy, problems)
    counts = counted(policy, monkeypatch)
    steps(policy, problems)
    assert counts == {"prompts": 2*len(problems), "patches": 2*2*patches}


@needs_sight
def test_nothing_is_kept_after_a_step(checkpoint):
    policy = stirred(checkpoint("qwen2_5_vl"))
    kept = []
    with pytest.raises(ZeroDivisionError), policy.remembering():
        policy.logps(some(), [[20, 21]]*3)
        kept += [weakref.ref(prompt["input_ids"]) for _, prompt in policy.memory.prompts.values()]
        kept += [weakref.ref(seen.pictures[0]) for seen in policy.memory.seen.values()]
        1/0     # noqa: B018
    assert len(kept) == 6 and not any(one() is not None for one in kept)
    assert policy.memory is None


@pytest.mark.parametrize("kind", ["internvl", "qwen2"])
def test_other_forms_of_pictures_are_seen_as_before(checkpoint, kind):
    pictures = 1 if kind == "internvl" else -1
    problems = [Problem("1 + 1 = ?", "2", (Image.new("RGB", (56, 56), "red"),)*(pictures > 0))]*2
    policy = stirred(checkpoint(kind))
    alone = policy.logps(problems, [[20, 21]]*2).logp
    with policy.remembering():
        assert torch.equal(policy.logps(problems, [[20, 21]]*2).logp, alone)
        assert len(policy.memory.prompts) == 1 and not policy.memory.seen


@needs_sight
def test_a_prompt_of_someone_else_is_left_as_it_is(checkpoint):
    policy = stirred(checkpoint("qwen2_5_vl"))
    prompt = policy.prompt(some()[0])
    alone = policy.prompts([prompt])[0]["pixel_values"]
    with policy.remembering():
        given = policy.prompts([prompt])[0]
        assert "mm_encoder_outputs" in given and not policy.memory.seen
    assert torch.equal(prompt["pixel_values"], alone)
    assert len(look(policy, [prompt])[0].pictures) == 1
