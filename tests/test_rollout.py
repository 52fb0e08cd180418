"""Log-probabilities against an independent forward pass, sampling against scoring, and groups against their parts."""
from dataclasses import replace

import pytest
import torch

from calibrl.geometry import problems
from calibrl.rollout import Policy, collate, encode, load_base, rollout
from calibrl.tasks import Problem


def by_hand(policy, problem, ids, temperature=1.0):
    "Log-probabilities of one response, token by token: one unpadded forward per prefix, banned ids removed by slicing."
    out, enc = [], encode(policy.processor, problem)
    allowed = [i for i in range(len(policy.head)) if not policy.no_chance[i]]
    for t, token in enumerate(ids):
        prefix = {k: v for k, v in enc.items()}
        tail = torch.tensor([ids[:t]], dtype=torch.long)
        prefix["input_ids"] = torch.cat([enc["input_ids"], tail], 1)
        for key, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if key in enc: prefix[key] = torch.cat([enc[key], torch.full_like(tail, fill)], 1)
        logits = policy.model(**prefix).logits[0, -1, allowed].float() / temperature
        out.append(logits[allowed.index(token)] - logits.logsumexp(0))
    return torch.stack(out)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logps_agree_with_one_forward_per_token(policy, temperature):
    ps = problems(3, split="test", seed=4)
    ids = [policy.tokens(p.expert)[:n] for p, n in zip(ps, (9, 3, 14))]
    with torch.no_grad():
        got = policy.logps(ps, ids, temperature)
        for i, (p, r) in enumerate(zip(ps, ids)):
            torch.testing.assert_close(got.logp[i, :len(r)], by_hand(policy, p, r, temperature), atol=2e-4, rtol=1e-4)
    assert got.mask.sum(1).tolist() == [9, 3, 14]
    assert (got.logp[~got.mask] == 0).all() and (got.entropy[~got.mask] == 0).all()


def test_prompts_without_image_beside_prompts_with_one(policy):
    ps = problems(2, split="test")
    mixed = [ps[0], Problem(question=ps[0].question, answer="3"), ps[1]]
    with torch.no_grad():
        together = policy.logps(mixed, [p.expert or ps[0].expert for p in mixed]).logp.sum(1)
        alone = torch.stack([policy.logps([p], [p.expert or ps[0].expert]).logp.sum() for p in mixed])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)
    assert abs(together[0] - together[1]) > 0.5          # the picture matters


def test_gradient_after_inference(policy):
    "On some processors 4-bit layers repack themselves at the first inference call and lose their gradient; ours must not."
    p = problems(1, split="test")[0]
    with torch.no_grad(): before = policy.logps([p], [p.expert]).logp
    out = policy.logps([p], [p.expert])
    out.logp.sum().backward()
    grads = [w.grad for n, w in policy.model.named_parameters() if "lora_B" in n]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)
    torch.testing.assert_close(out.logp.detach(), before, atol=0, rtol=0)


def test_four_bits_are_real_and_stay_frozen(policy, tiny):
    layers = {n: m for n, m in policy.model.named_modules() if type(m).__name__ == "Linear4bit"}
    assert layers and all("language_model" in n for n in layers)
    packed = {n: m.weight.detach().clone() for n, m in layers.items()}
    assert all(w.dtype == torch.uint8 for w in packed.values())
    p = problems(1, split="test")[0]
    with torch.no_grad():
        full = Policy.from_pretrained(tiny, lora_rank=0).logps([p], [p.expert]).logp
        assert not torch.equal(full, policy.logps([p], [p.expert]).logp)      # quantisation changes something
    optimizer = torch.optim.SGD(policy.trainable, lr=1.0)
    policy.logps([p], [p.expert]).logp.sum().backward(); optimizer.step()
    assert all(torch.equal(m.weight, packed[n]) for n, m in layers.items())


def test_a_group_is_its_parts(policy):
    ps = problems(3, seed=2)
    ps[1] = replace(ps[1], expert=None)
    ro = rollout(policy, ps, n=3, seed=7)
    assert len(ro.texts) == len(ro.responses) == len(ro.scores) == len(ro.rewards) == 9
    assert ro.has_expert.tolist() == [True]*3 + [False]*3 + [True]*3
    with torch.no_grad():
        for g, p in enumerate(ps):
            own = policy.logps([p]*3, ro.grouped[g])
            T = own.logp.shape[1]
            torch.testing.assert_close(ro.old_logp[3*g:3*g+3, :T], own.logp, atol=2e-4, rtol=1e-4)
            assert (ro.old_logp[3*g:3*g+3, T:] == 0).all()
            if p.expert:
                e = policy.logps([p], [p.expert]).logp[0]
                torch.testing.assert_close(ro.expert_logp[3*g, :len(e)], e, atol=2e-4, rtol=1e-4)
                assert (ro.expert_logp[3*g] == ro.expert_logp[3*g+2]).all() and (ro.expert_logp[3*g, len(e):] == 0).all()
            else: assert (ro.expert_logp[3*g:3*g+3] == 0).all() and not ro.expert_mask[3*g:3*g+3].any()
    assert [s.correct for s in ro.scores] == ro.correct.tolist()
    part = ro.groups([1])
    assert part.problems == [ps[1]] and part.texts == ro.texts[3:6] and torch.equal(part.mask, ro.mask[3:6])


def test_same_seed_same_responses_and_truncation_is_seen(policy):
    ps = problems(2)
    assert policy.sample(ps, n=2, seed=3).ids == policy.sample(ps, n=2, seed=3).ids != policy.sample(ps, n=2, seed=4).ids
    state = torch.random.get_rng_state()
    ro = rollout(policy, ps, n=2, max_new_tokens=4, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())                    # sampling leaves the caller's generator alone
    assert ro.truncated.all() and not ro.correct.any()
    assert all(not set(r) & set(policy.banned) for r in policy.sample(ps, n=16, temperature=5.0, seed=1).ids)


def test_adapter_round_trip_with_plain_peft(policy, tiny, tmp_path):
    from peft import PeftModel
    torch.manual_seed(0)
    for w in policy.trainable: w.data += 0.05*torch.randn_like(w)
    policy.save(tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]
    plain = Policy(PeftModel.from_pretrained(load_base(tiny, bits=4)[0], str(tmp_path)).eval(), policy.processor)
    again = Policy.from_pretrained(tiny, bits=4, adapter=tmp_path)
    ps = problems(4, split="test")
    want = policy.sample(ps, n=2, seed=5).ids
    assert plain.sample(ps, n=2, seed=5).ids == want == again.sample(ps, n=2, seed=5).ids
    assert Policy.from_pretrained(tiny, bits=4).sample(ps, n=2, seed=5).ids != want
    assert again.trainable and not plain.trainable


def test_text_only_models_take_the_same_path(checkpoint):
    policy = Policy.from_pretrained(checkpoint("qwen2"), lora_rank=4)
    p = Problem("1 + 1 = ?", "2", expert="<think>1+1=2</think><answer>2</answer>")
    ids = policy.tokens(p.expert)
    with torch.no_grad(): torch.testing.assert_close(policy.logps([p], [ids]).logp[0], by_hand(policy, p, ids), atol=1e-4, rtol=1e-4)
    ro = rollout(policy, [p], n=2, max_new_tokens=8)
    assert ro.old_logp.shape[0] == 2 and ro.has_expert.all()
    with pytest.raises(ValueError, match="reads text only"): policy.logps(problems(1), ["<answer>1</answer>"])


def test_bad_input_is_named(policy, tiny, tmp_path):
    p = problems(1)[0]
    with pytest.raises(ValueError, match="differ in length: 1 and 2"): policy.logps([p], ["a", "b"])
    with pytest.raises(ValueError, match="no policy may write"): policy.logps([p], ["<|image_pad|>"])
    with pytest.raises(ValueError, match="no policy may write"): rollout(policy, [replace(p, expert="<|image_pad|>")], n=2)
    with pytest.raises(FileNotFoundError, match="no model at"): Policy.from_pretrained(tmp_path/"none")
    with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"): Policy.from_pretrained(tiny, adapter=tmp_path)
    with pytest.raises(ValueError, match="bits must be"): Policy.from_pretrained(tiny, bits=2)


@pytest.mark.parametrize("bits", [None, 4])
def test_reading_the_prompts_in_parts_samples_the_same(tiny, bits):
    "To the last bit, with prompts of unequal length and one without an expert."
    policy, ps = Policy.from_pretrained(tiny, bits=bits), problems(5, seed=3)
    experts = [None, *(p.expert for p in ps[1:])]
    whole = policy.sample(ps, 4, seed=5, experts=experts)
    for tokens in (1, 200):                                           # one prompt at a time, and two
        parts = policy.sample(ps, 4, seed=5, experts=experts, read_tokens=tokens)
        assert parts.ids == whole.ids and not whole.expert_mask[0].any()
        for name in ("logp", "entropy", "expert_logp", "expert_mask"): assert torch.equal(getattr(parts, name), getattr(whole, name)), name


def test_collate_pads_left_and_right():
    a, b = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}, {"input_ids": torch.tensor([[8]]), "attention_mask": torch.ones(1, 1).long()}
    out = collate([a, b], [[1], [2, 3]], pad_id=0)
    assert out["input_ids"].tolist() == [[5, 6, 7, 1, 0], [0, 0, 8, 2, 3]]
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
