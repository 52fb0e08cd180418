"""Packed rows against rows of their own: the same log-probabilities, entropies and gradients for every architecture and setting."""
import pytest
import torch
from PIL import Image

from calibrl.rollout import MODELS, Policy, collate, encode, head_logps, pack
from calibrl.tasks import Problem

PICTURE = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl")


def square(colour, size=(56, 56)): return Image.new("RGB", size, colour)


def load(folder, **kw):
    "A policy whose adapter does something."
    policy = Policy.from_pretrained(folder, lora_rank=4, **kw)
    torch.manual_seed(1)
    for w in policy.trainable: w.data += 0.1*torch.randn_like(w)
    return policy


def batch(policy, pictures):
    "Ragged prompts (no image, one, several) with ragged groups of ragged random responses."
    problems = [Problem("Find x.", "1", (square("red"),)), Problem("How long is it, then?", "2", (square("blue", (84, 56)), square("green"))), Problem("no picture", "3")]
    if not pictures: problems = [Problem("Find x.", "1"), Problem("How long is it, then?", "2"), Problem("And now?", "3")]
    g, allowed = torch.Generator().manual_seed(0), (~policy.no_chance).nonzero()[:, 0]
    groups = [[allowed[torch.randint(len(allowed), (n,), generator=g)].tolist() for n in ns] for ns in [(7, 3), (5, 9, 2), (4,)]]
    return problems, groups


def own_rows(policy, problems, groups):
    "The reference: each response in an unpadded row of its own, full logits, library softmax."
    logps, entropies = [], []
    policy.model.eval()
    for problem, group in zip(problems, groups):
        for r in group:
            inputs = collate([encode(policy.processor, problem)], [r], policy.pad_id)
            logits = policy.model(**inputs, use_cache=False).logits[0, -len(r)-1:-1].float()
            dist = torch.distributions.Categorical(logits=logits[:, ~policy.no_chance])
            index = torch.cumsum(~policy.no_chance, 0) - 1
            logps.append(dist.log_prob(index[torch.tensor(r)])); entropies.append(dist.entropy())
    return [torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (logps, entropies)]


def gradient(policy, logp):
    weights = torch.linspace(-1, 1, logp.numel()).view_as(logp)
    return torch.cat([g.flatten() for g in torch.autograd.grad((logp*weights).sum(), policy.trainable)])


def check(policy, pictures, atol=1e-5, rtol=1e-4):
    problems, groups = batch(policy, pictures)
    ours = policy.logps(problems, groups)
    logp, entropy = own_rows(policy, problems, groups)
    assert ours.mask.sum(1).tolist() == [len(r) for g in groups for r in g]
    assert (ours.logp - logp).abs().max() < atol and (ours.entropy - entropy).abs().max() < 10*atol
    a, b = gradient(policy, ours.logp), gradient(policy, logp)
    assert b.norm() > 0 and (a - b).norm() < rtol*b.norm()


@pytest.mark.parametrize("kind", MODELS)
def test_every_architecture(checkpoint, kind): check(load(checkpoint(kind)), kind in PICTURE)


@pytest.mark.parametrize("kind", MODELS)
def test_every_architecture_in_four_bits(checkpoint, kind): check(load(checkpoint(kind), bits=4), kind in PICTURE)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "internvl", "qwen3"])
def test_activation_checkpointing(checkpoint, kind): check(load(checkpoint(kind), gradient_checkpointing=True), kind in PICTURE)


def test_bfloat16_differs_only_by_its_rounding(checkpoint):
    policy = load(checkpoint("qwen2_5_vl"))
    policy.model.to(torch.bfloat16)
    policy = Policy(policy.model, policy.processor)
    check(policy, True, atol=0.05, rtol=0.05)


def test_a_prompt_alone_in_the_batch_with_a_single_token(checkpoint):
    policy = load(checkpoint("qwen2_5_vl"))
    p, r = Problem("x", "1", (square("red"),)), [policy.tokens("7")[0]]
    torch.testing.assert_close(policy.logps([p], [[r]]).logp, own_rows(policy, [p], [[r]])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_sampling_notes_what_teacher_forcing_finds(checkpoint, kind):
    policy = load(checkpoint(kind))
    problems, _ = batch(policy, kind in PICTURE)
    out = policy.sample(problems, n=3, max_new_tokens=10, seed=2)
    with torch.no_grad(): again = policy.logps(problems, [out.ids[i:i+3] for i in range(0, 9, 3)])
    assert (out.logp - again.logp).abs().max() < 1e-5 and (out.entropy - again.entropy).abs().max() < 1e-4


def test_responses_do_not_see_each_other(checkpoint):
    policy = load(checkpoint("qwen2_5_vl"))
    p = Problem("x", "1", (square("red"),))
    a, b, c = (policy.tokens(t) for t in ("first", "second", "third one"))
    with torch.no_grad(): x, y = policy.logps([p], [[a, b]]).logp, policy.logps([p], [[a, c]]).logp
    torch.testing.assert_close(x[0, :len(a)], y[0, :len(a)], atol=1e-6, rtol=0)


def test_pack_lays_out_and_masks():
    packed = pack([[[1, 2], [3]], [[4]]], torch.tensor([[0, 1], [1, 1]]), fill=9)
    assert packed["ids"].tolist() == [[1, 2, 3, 9], [4, 9, 9, 9]]
    assert packed["mask"].tolist() == [[[True, True], [True, False]], [[True, False], [False, False]]]
    assert packed["prompt_mask"][0, 0].int().tolist() == [[1, 0], [0, 1]] and packed["prompt_mask"][1, 0].int().tolist() == [[1, 0], [1, 1]]
    assert packed["own_mask"][0, 0].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]] and packed["own_mask"].shape == (4, 1, 2, 4)


def test_models_that_cannot_be_packed_are_refused(tmp_path):
    import transformers as hf
    from tiny_models import TEXT, tokenizer
    tok = tokenizer("", [])
    hf.Gemma2ForCausalLM(hf.Gemma2Config(**TEXT, head_dim=16, vocab_size=len(tok))).save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model type 'gemma2' is not served"): Policy.from_pretrained(tmp_path)


def test_sliding_windows_are_refused(tmp_path):
    import transformers as hf
    from tiny_models import TEXT, tokenizer
    tok = tokenizer("", [])
    hf.Qwen2ForCausalLM(hf.Qwen2Config(**TEXT, vocab_size=len(tok), use_sliding_window=True, sliding_window=8, max_window_layers=0)).save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sliding-window attention"): Policy.from_pretrained(tmp_path)


@pytest.mark.parametrize("tile", [1, 13, 64, 1000])
def test_head_against_full_logits(tile):
    torch.manual_seed(0)
    h, W, y = torch.randn(9, 16, dtype=torch.float64, requires_grad=True), torch.randn(200, 16, dtype=torch.float64), torch.randint(5, 200, (9,))
    banned = torch.zeros(200, dtype=torch.bool); banned[:5] = True
    dist = torch.distributions.Categorical(logits=(h @ W.T/0.8)[:, 5:])
    want = torch.autograd.grad((dist.log_prob(y - 5)*torch.arange(9)).sum(), h)[0]
    logp, entropy = head_logps(h, W, y, banned, 0.8, tile)
    torch.testing.assert_close(logp, dist.log_prob(y - 5)); torch.testing.assert_close(entropy, dist.entropy())
    torch.testing.assert_close(torch.autograd.grad((logp*torch.arange(9)).sum(), h)[0], want)
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
    with pytest.raises(ValueError, match="frozen head"): head_logps(torch.randn(1, 2), torch.randn(3, 2, requires_grad=True), torch.tensor([0]))
