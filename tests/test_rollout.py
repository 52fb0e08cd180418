"""Log-probabilities against an independent forward pass, and groups against their parts.

Also what a policy refuses, and what an editor and a reader of docstrings see of it."""
import doctest
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrl import engine, policy as policy_room, rollout as rollout_room
from calibrl.base import load_base
from calibrl.engine import collate, encode
from calibrl.geometry import problems
from calibrl.policy import Policy
from calibrl.rollout import rollout, stack, with_experts
from calibrl.tasks import Problem


def by_hand(policy, problem, ids, temperature=1.0):
    """Log-probabilities of one response, token by token.

    One unpadded forward per prefix, banned ids removed by slicing."""
    out = []
    enc = encode(policy.processor, problem)
    allowed = [i for i in range(len(policy.head)) if not policy.no_chance[i]]
    for t, token in enumerate(ids):
        prefix = dict(enc)
        tail = torch.tensor([ids[:t]], dtype=torch.long)
        prefix["input_ids"] = torch.cat([enc["input_ids"], tail], 1)
        for key, fill in (("attention_mask", 1), ("mm_token_type_ids", 0)):
            if key in enc:
                prefix[key] = torch.cat([enc[key], torch.full_like(tail, fill)], 1)
        logits = policy.model(**prefix).logits[0, -1, allowed].float() / temperature
        out.append(logits[allowed.index(token)] - logits.logsumexp(0))
    return torch.stack(out)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logps_agree_with_one_forward_per_token(policy, temperature):
    ps = problems(3, split="test", seed=4)
    ids = [policy.tokens(p.expert)[:n] for p, n in zip(ps, (9, 3, 14), strict=True)]
    with torch.no_grad():
        got = policy.logps(ps, ids, temperature)
        for i, (p, response) in enumerate(zip(ps, ids, strict=True)):
            want = by_hand(policy, p, response, temperature)
            torch.testing.assert_close(got.logp[i, :len(response)], want, atol=2e-4, rtol=1e-4)
    assert got.mask.sum(1).tolist() == [9, 3, 14]
    assert (got.logp[~got.mask] == 0).all() and (got.entropy[~got.mask] == 0).all()


def test_prompts_without_image_beside_prompts_with_one(policy):
    ps = problems(2, split="test")
    mixed = [ps[0], Problem(question=ps[0].question, answer="3"), ps[1]]
    experts = [p.expert or ps[0].expert for p in mixed]
    with torch.no_grad():
        together = policy.logps(mixed, experts).logp.sum(1)
        alone = [policy.logps([p], [expert]).logp.sum()
                 for p, expert in zip(mixed, experts, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-3, rtol=1e-4)
    assert abs(together[0] - together[1]) > 0.5          # the picture matters


def test_gradient_after_inference(policy):
    """4-bit layers keep their gradient after the first inference call.

    On some processors they repack themselves there and lose it."""
    p = problems(1, split="test")[0]
    with torch.no_grad():
        before = policy.logps([p], [p.expert]).logp
    out = policy.logps([p], [p.expert])
    out.logp.sum().backward()
    grads = [w.grad for name, w in policy.model.named_parameters() if "lora_B" in name]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)
    torch.testing.assert_close(out.logp.detach(), before, atol=0, rtol=0)


def test_four_bits_are_real_and_stay_frozen(policy, tiny):
    layers = {name: module for name, module in policy.model.named_modules()
              if type(module).__name__ == "Linear4bit"}
    assert layers and all("language_model" in name for name in layers)
    packed = {name: module.weight.detach().clone() for name, module in layers.items()}
    assert all(w.dtype == torch.uint8 for w in packed.values())
    p = problems(1, split="test")[0]
    with torch.no_grad():
        full = Policy.from_pretrained(tiny, lora_rank=0).logps([p], [p.expert]).logp
        assert not torch.equal(full, policy.logps([p], [p.expert]).logp)     # it changes something
    optimizer = torch.optim.SGD(policy.trainable, lr=1.0)
    policy.logps([p], [p.expert]).logp.sum().backward()
    optimizer.step()
    assert all(torch.equal(module.weight, packed[name]) for name, module in layers.items())


def check_expert(policy, ro, g, p):
    "The expert of group g, in each of its three rows."
    rows = slice(3*g, 3*g + 3)
    if not p.expert:
        assert (ro.expert_logp[rows] == 0).all() and not ro.expert_mask[rows].any()
        return
    want = policy.logps([p], [p.expert]).logp[0]
    got = ro.expert_logp[3*g]
    torch.testing.assert_close(got[:len(want)], want, atol=2e-4, rtol=1e-4)
    assert (got == ro.expert_logp[3*g+2]).all() and (got[len(want):] == 0).all()


def test_a_group_is_its_parts(policy):
    ps = problems(3, seed=2)
    ps[1] = replace(ps[1], expert=None)
    ro = rollout(policy, ps, n=3, seed=7)
    assert {len(x) for x in (ro.texts, ro.responses, ro.scores, ro.rewards)} == {9}
    assert ro.has_expert.tolist() == [True]*3 + [False]*3 + [True]*3
    with torch.no_grad():
        for g, p in enumerate(ps):
            own = policy.logps([p]*3, ro.grouped[g])
            T = own.logp.shape[1]
            old = ro.old_logp[3*g:3*g+3]
            torch.testing.assert_close(old[:, :T], own.logp, atol=2e-4, rtol=1e-4)
            assert (old[:, T:] == 0).all()
            check_expert(policy, ro, g, p)
    assert [s.correct for s in ro.scores] == ro.correct.tolist()
    part = ro.groups([1])
    assert part.problems == [ps[1]] and part.texts == ro.texts[3:6]
    assert torch.equal(part.mask, ro.mask[3:6])


def test_rollouts_know_how_long_their_prompts_are(policy):
    ps = problems(2, seed=2) + [Problem("Find x.", "1")]
    lengths = [encode(policy.processor, p)["input_ids"].shape[1] for p in ps]
    ro = rollout(policy, ps, n=2, max_new_tokens=4)
    assert ro.prompt_tokens == [length for length in lengths for _ in range(2)]
    assert ro.groups([2, 0]).prompt_tokens == [lengths[2]]*2 + [lengths[0]]*2
    assert stack([ro, ro]).prompt_tokens == ro.prompt_tokens*2
    assert with_experts(policy, ro).prompt_tokens == [n for n in lengths for _ in range(3)]
    parts = policy.sample(ps[:2], max_new_tokens=2, read_tokens=1)
    assert parts.prompt_tokens == lengths[:2]


def test_same_seed_same_responses_and_truncation_is_seen(policy):
    ps = problems(2)
    first = policy.sample(ps, n=2, seed=3).ids
    assert policy.sample(ps, n=2, seed=3).ids == first != policy.sample(ps, n=2, seed=4).ids
    state = torch.random.get_rng_state()
    ro = rollout(policy, ps, n=2, max_new_tokens=4, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())      # the caller's generator is alone
    assert ro.truncated.all() and not ro.correct.any()
    hot = policy.sample(ps, n=16, temperature=5.0, seed=1).ids
    assert all(not set(response) & set(policy.banned) for response in hot)


def test_adapter_round_trip_with_plain_peft(policy, tiny, tmp_path):
    from peft import PeftModel
    torch.manual_seed(0)
    for w in policy.trainable:
        w.data += 0.05*torch.randn_like(w)
    policy.save(tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]
    base, _ = load_base(tiny, bits=4)
    plain = Policy(PeftModel.from_pretrained(base, str(tmp_path)).eval(), policy.processor)
    again = Policy.from_pretrained(tiny, bits=4, adapter=tmp_path)
    new = Policy.from_pretrained(tiny, bits=4)
    ps = problems(4, split="test")
    want = policy.sample(ps, n=2, seed=5).ids
    assert plain.sample(ps, n=2, seed=5).ids == want == again.sample(ps, n=2, seed=5).ids
    assert new.sample(ps, n=2, seed=5).ids != want
    assert again.trainable and not plain.trainable


def test_text_only_models_take_the_same_path(checkpoint):
    policy = Policy.from_pretrained(checkpoint("qwen2"), lora_rank=4)
    p = Problem("1 + 1 = ?", "2", expert="<think>1+1=2</think><answer>2</answer>")
    ids = policy.tokens(p.expert)
    with torch.no_grad():
        got = policy.logps([p], [ids]).logp[0]
        torch.testing.assert_close(got, by_hand(policy, p, ids), atol=1e-4, rtol=1e-4)
    ro = rollout(policy, [p], n=2, max_new_tokens=8)
    assert ro.old_logp.shape[0] == 2 and ro.has_expert.all()
    with pytest.raises(ValueError, match="reads text only"):
        policy.logps(problems(1), ["<answer>1</answer>"])


def test_bad_responses_are_named(policy):
    p = problems(1)[0]
    with pytest.raises(ValueError, match="differ in length: 1 and 2"):
        policy.logps([p], ["a", "b"])
    with pytest.raises(ValueError, match="no policy may write"):
        policy.logps([p], ["<|image_pad|>"])
    with pytest.raises(ValueError, match="no policy may write"):
        rollout(policy, [replace(p, expert="<|image_pad|>")], n=2)


def test_what_cannot_be_loaded_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        Policy.from_pretrained(tmp_path/"none")
    with pytest.raises(FileNotFoundError, match="adapter_config.json is missing"):
        Policy.from_pretrained(tiny, adapter=tmp_path)
    with pytest.raises(ValueError, match="bits must be"):
        Policy.from_pretrained(tiny, bits=2)


@pytest.mark.parametrize("bits", [None, 4])
def test_reading_the_prompts_in_parts_samples_the_same(tiny, bits):
    "To the last bit, with prompts of unequal length and one without an expert."
    policy = Policy.from_pretrained(tiny, bits=bits)
    ps = problems(5, seed=3)
    experts = [None, *(p.expert for p in ps[1:])]
    whole = policy.sample(ps, 4, seed=5, experts=experts)
    for tokens in (1, 200):                                    # one prompt at a time, and two
        parts = policy.sample(ps, 4, seed=5, experts=experts, read_tokens=tokens)
        assert parts.ids == whole.ids and not whole.expert_mask[0].any()
        for name in ("logp", "entropy", "expert_logp", "expert_mask"):
            assert torch.equal(getattr(parts, name), getattr(whole, name)), name


def test_collate_pads_left_and_right():
    a = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    b = {"input_ids": torch.tensor([[8]]), "attention_mask": torch.ones(1, 1).long()}
    out = collate([a, b], [[1], [2, 3]], pad_id=0)
    assert out["input_ids"].tolist() == [[5, 6, 7, 1, 0], [0, 0, 8, 2, 3]]
    assert out["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


@pytest.fixture()
def jedi(tmp_path, monkeypatch):
    "The editor's library, with a cache of this test's own: two at once read half-written files."
    found = pytest.importorskip("jedi")
    monkeypatch.setattr(found.settings, "cache_directory", str(tmp_path))
    return found


def editor(jedi, code):
    "What an editor knows at the end of some code."
    root = Path(__file__).resolve().parent.parent
    return jedi.Script(code, path=root/"typed.py", project=jedi.Project(root))


@pytest.mark.parametrize("made", ["Policy(model, processor)", "Policy.from_pretrained('tiny')"])
def test_an_editor_completes_the_methods_of_a_policy(jedi, made):
    script = editor(jedi, f"from calibrl.rollout import Policy\npolicy = {made}\npolicy.")
    names = {completion.name for completion in script.complete()}
    assert {"from_pretrained", "trainable", "save", "decode", "tokens", "prompts", "packed",
            "logps", "sample"} <= names


@pytest.mark.parametrize("method", ["sample", "logps", "trainable", "from_pretrained"])
def test_an_editor_goes_to_the_definition_of_a_method(jedi, method):
    code = f"from calibrl.rollout import Policy\npolicy = Policy(model, processor)\npolicy.{method}"
    places = editor(jedi, code).goto(follow_imports=True)
    assert [place.full_name for place in places] == [f"calibrl.policy.Policy.{method}"]
    lines = inspect.getsource(policy_room).splitlines()
    assert f"def {method}(" in lines[places[0].line - 1]


def test_an_editor_knows_what_comes_back(jedi):
    code = "from calibrl.rollout import Policy\nPolicy(model, processor).sample([]).expert_"
    assert [name.name for name in editor(jedi, code).complete()] == ["expert_logp", "expert_mask"]
    code = "from calibrl.rollout import rollout\nrollout(policy, problems).groups([0]).prompt_"
    assert [name.name for name in editor(jedi, code).complete()] == ["prompt_tokens"]


@pytest.mark.parametrize("room, name", [(engine, "pack"), (rollout_room, "rollout")])
def test_the_example_in_the_docstring_holds(room, name):
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner()
    example, = finder.find(getattr(room, name), name, globs=dict(vars(room)))
    assert len(example.examples) >= 4
    assert runner.run(example).failed == 0
