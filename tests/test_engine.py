"""Packed rows against rows of their own, for every architecture and setting.

The same log-probabilities, entropies and gradients; and the head against full logits."""
import pytest
import torch
from PIL import Image

from calibrl.engine import collate, encode, head_logps, pack
from calibrl.policy import Policy
from calibrl.tasks import Problem

KINDS = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl", "qwen2", "qwen3")
PICTURE = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl")


def square(colour, size=(56, 56)):
    return Image.new("RGB", size, colour)


def load(folder, **options):
    "A policy whose adapter does something."
    policy = Policy.from_pretrained(folder, lora_rank=4, **options)
    torch.manual_seed(1)
    for w in policy.trainable:
        w.data += 0.1*torch.randn_like(w)
    return policy


def some_problems(pictures):
    "Ragged prompts: with one image, several and none, or all without."
    if not pictures:
        questions = ("Find x.", "How long is it, then?", "And now?")
        return [Problem(question, str(i)) for i, question in enumerate(questions, 1)]
    two = (square("blue", (84, 56)), square("green"))
    return [Problem("Find x.", "1", (square("red"),)),
            Problem("How long is it, then?", "2", two),
            Problem("no picture", "3")]


def batch(policy, pictures):
    "Ragged prompts with ragged groups of ragged random responses."
    g = torch.Generator().manual_seed(0)
    allowed = (~policy.no_chance).nonzero()[:, 0]

    def response(length):
        return allowed[torch.randint(len(allowed), (length,), generator=g)].tolist()

    groups = [[response(n) for n in lengths] for lengths in [(7, 3), (5, 9, 2), (4,)]]
    return some_problems(pictures), groups


def own_rows(policy, problems, groups):
    "The reference: each response in an unpadded row of its own, full logits, library softmax."
    logps, entropies = [], []
    index = torch.cumsum(~policy.no_chance, 0) - 1
    policy.model.eval()
    for problem, group in zip(problems, groups, strict=True):
        for response in group:
            inputs = collate([encode(policy.processor, problem)], [response], policy.pad_id)
            logits = policy.model(**inputs, use_cache=False).logits[0, -len(response)-1:-1].float()
            dist = torch.distributions.Categorical(logits=logits[:, ~policy.no_chance])
            logps.append(dist.log_prob(index[torch.tensor(response)]))
            entropies.append(dist.entropy())
    return [torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (logps, entropies)]


def gradient(policy, logp):
    weights = torch.linspace(-1, 1, logp.numel()).view_as(logp)
    parts = torch.autograd.grad((logp*weights).sum(), policy.trainable)
    return torch.cat([part.flatten() for part in parts])


def check(policy, pictures, atol=1e-5, rtol=1e-4):
    problems, groups = batch(policy, pictures)
    ours = policy.logps(problems, groups)
    logp, entropy = own_rows(policy, problems, groups)
    assert ours.mask.sum(1).tolist() == [len(r) for group in groups for r in group]
    assert (ours.logp - logp).abs().max() < atol
    assert (ours.entropy - entropy).abs().max() < 10*atol
    a, b = gradient(policy, ours.logp), gradient(policy, logp)
    assert b.norm() > 0 and (a - b).norm() < rtol*b.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(checkpoint, kind):
    check(load(checkpoint(kind)), kind in PICTURE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_in_four_bits(checkpoint, kind):
    check(load(checkpoint(kind), bits=4), kind in PICTURE)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "internvl", "qwen3"])
def test_activation_checkpointing(checkpoint, kind):
    check(load(checkpoint(kind), gradient_checkpointing=True), kind in PICTURE)


def test_bfloat16_differs_only_by_its_rounding(checkpoint):
    policy = load(checkpoint("qwen2_5_vl"))
    policy.model.to(torch.bfloat16)
    policy = Policy(policy.model, policy.processor)
    check(policy, True, atol=0.05, rtol=0.05)


def test_a_prompt_alone_in_the_batch_with_a_single_token(checkpoint):
    policy = load(checkpoint("qwen2_5_vl"))
    problem = Problem("x", "1", (square("red"),))
    response = [policy.tokens("7")[0]]
    want = own_rows(policy, [problem], [[response]])[0]
    got = policy.logps([problem], [[response]]).logp
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_notes_what_teacher_forcing_finds(checkpoint, kind):
    policy = load(checkpoint(kind))
    problems = some_problems(kind in PICTURE)
    out = policy.sample(problems, n=3, max_new_tokens=10, seed=2)
    with torch.no_grad():
        again = policy.logps(problems, [out.ids[i:i+3] for i in range(0, 9, 3)])
    assert (out.logp - again.logp).abs().max() < 1e-5
    assert (out.entropy - again.entropy).abs().max() < 1e-4


def test_responses_do_not_see_each_other(checkpoint):
    policy = load(checkpoint("qwen2_5_vl"))
    problem = Problem("x", "1", (square("red"),))
    a, b, c = (policy.tokens(text) for text in ("first", "second", "third one"))
    with torch.no_grad():
        x = policy.logps([problem], [[a, b]]).logp
        y = policy.logps([problem], [[a, c]]).logp
    torch.testing.assert_close(x[0, :len(a)], y[0, :len(a)], atol=1e-6, rtol=0)


def test_pack_lays_out_and_masks():
    packed = pack([[[1, 2], [3]], [[4]]], torch.tensor([[0, 1], [1, 1]]), fill=9)
    assert packed["ids"].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]
    assert packed["mask"].int().tolist() == [[[1, 1], [1, 0]], [[1, 0], [0, 0]]]
    prompt, own = packed["prompt_mask"].int(), packed["own_mask"].int()
    assert prompt[0, 0].tolist() == [[1, 0], [0, 1]]
    assert prompt[1, 0].tolist() == [[1, 0], [1, 1]]
    assert own[0, 0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]
    assert own.shape == (4, 1, 2, 4)


@pytest.mark.parametrize("tile", [1, 13, 64, 1000])
def test_head_against_full_logits(tile):
    torch.manual_seed(0)
    h = torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    W = torch.randn(200, 16, dtype=torch.float64)
    y = torch.randint(5, 200, (9,))
    banned = torch.zeros(200, dtype=torch.bool)
    banned[:5] = True

    def slope(logp):
        return torch.autograd.grad((logp*torch.arange(9)).sum(), h)[0]

    dist = torch.distributions.Categorical(logits=(h @ W.T/0.8)[:, 5:])
    want = slope(dist.log_prob(y - 5))
    logp, entropy = head_logps(h, W, y, banned, 0.8, tile)
    torch.testing.assert_close(logp, dist.log_prob(y - 5))
    torch.testing.assert_close(entropy, dist.entropy())
    torch.testing.assert_close(slope(logp), want)
    assert not entropy.requires_grad
    assert torch.autograd.gradcheck(lambda h: head_logps(h, W, y, banned, 0.8, tile)[0], h)


@pytest.mark.parametrize("scale", [0.0, 1e4, 1e12])
def test_head_stays_finite(scale):
    h, W = torch.randn(4, 8)*scale, torch.randn(50, 8)
    h.requires_grad_()
    logp, entropy = head_logps(h, W, torch.arange(4), tile=7)
    logp.sum().backward()
    assert logp.isfinite().all() and entropy.isfinite().all() and h.grad.isfinite().all()


def test_a_trained_head_is_refused():
    W = torch.randn(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match="frozen head"):
        head_logps(torch.randn(1, 2), W, torch.tensor([0]))
