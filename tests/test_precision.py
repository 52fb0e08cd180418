"""Half precision: what sampler and scorer say of the same tokens, held against 64 bits."""
import math

import pytest
import torch

from calibrl import policy as policy_room
from calibrl.geometry import problems
from calibrl.engine import head_logps, wide_product
from calibrl.rollout import Policy, ratio_floor, rollout, unfused_attention
from calibrl.train import Config, train

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def trained(tiny):
    "The embedded policy in bf16, its adapter trained for some steps on experts' answers."
    torch.set_num_threads(1)
    policy = Policy.from_pretrained(tiny, dtype=HALF)
    cfg = Config(method="sft", steps=6, prompts=8, responses=2, mini_batches=1, lr=2e-3)
    list(train(policy, problems(48, split="train"), cfg))
    return policy


@pytest.fixture(scope="module")
def drawn(trained):
    "Samples of the trained policy with what the scorer says of them."
    ps = problems(12, split="test")
    ro = rollout(trained, ps, n=4, seed=1)
    with torch.no_grad():
        again = trained.logps(ro.problems, ro.grouped)
    T = again.logp.shape[1]
    return ro, ro.old_logp[:, :T][again.mask], again.logp[again.mask]


@pytest.fixture
def as_on_a_card(monkeypatch):
    """Tensors say that they lie on a card, whose products take two of 16 bits alike and give 32
    (the documentation of `torch.mm` and `torch.bmm`). Returns the widths of those asked for."""
    asked = []

    def product(dimensions):
        def of(a, b, *, out_dtype):
            assert a.ndim == b.ndim == dimensions
            assert a.dtype == b.dtype == HALF and out_dtype == torch.float32
            asked.append(dimensions)
            return a.float() @ b.float()
        return of

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch, "mm", product(2))
    monkeypatch.setattr(torch, "bmm", product(3))
    return asked


def test_what_a_card_would_be_asked_for(trained, drawn, as_on_a_card):
    "Attention and head of the sampler, the head of the scorer: its products, and the same numbers."
    ro, sampled, scored = drawn
    again = rollout(trained, ro.problems, n=4, seed=1)
    assert set(as_on_a_card) == {2, 3}
    assert again.responses == ro.responses
    as_on_a_card.clear()
    logp = trained.logps(ro.problems, ro.grouped)
    assert set(as_on_a_card) == {2}
    assert torch.allclose(again.old_logp, ro.old_logp, atol=1e-5)
    assert torch.allclose(logp.logp[logp.mask], scored, atol=1e-5)


def test_no_log_probability_is_above_zero(drawn):
    _, sampled, scored = drawn
    assert len(sampled) > 800
    assert int((sampled > 0).sum()) == 0 and int((scored > 0).sum()) == 0


def off_by_packing(policy, ro):
    "How far a response's ratios lie from 1 between scored with its group and alone, all in a row."
    heads = policy.core.config.get_text_config().num_attention_heads
    off = []
    for g, (problem, group) in enumerate(zip(ro.problems, ro.grouped, strict=True)):
        together = policy.logps([problem], [group]).logp
        for response, logp in zip(group, together, strict=True):
            with unfused_attention(heads, ro.prompt_tokens[g*ro.n] + len(response)):
                alone = policy.logps([problem], [response]).logp[0]
            off.append((logp[:len(alone)] - alone).expm1().abs())
    return torch.cat(off)


def test_sampler_and_scorer_differ_by_what_packing_alone_does(trained, drawn):
    "The floor: responses scored together and one by one. The alarm rings at four times that."
    ro, sampled, scored = drawn
    off = (scored - sampled).expm1().abs()
    floor = ratio_floor(trained, ro, 1.0, tokens=10**6)
    with torch.no_grad():
        by_packing = off_by_packing(trained, ro)
    assert 0 < floor < 5e-3 and float(by_packing.mean()) == pytest.approx(floor, rel=1e-3)
    assert float(off.mean()) < min(1.3*floor, 2e-3)

    # how many ratios are far off depends on the processor; beside packing alone it does not
    far = float((off > .01).float().mean())
    assert far < 2*float((by_packing > .01).float().mean()) < .2


@pytest.mark.parametrize("temperature, card", [(1.0, False), (0.7, False), (1.0, True)])
def test_head_in_half_precision_against_64_bits(trained, drawn, temperature, card, request):
    "Log-probability, entropy and gradient from bf16 states and weights, as exact as 32 bits are."
    asked = request.getfixturevalue("as_on_a_card") if card else []
    torch.manual_seed(0)
    W = trained.head
    N = 64
    h = torch.randn(N, W.shape[1]).to(HALF).requires_grad_()
    likely = (h.detach().float() @ W.float().T).topk(3).indices
    targets = likely[torch.arange(N), torch.randint(3, (N,))]
    z = (h.detach().double() @ W.double().T/temperature).masked_fill(trained.no_chance, -math.inf)
    exact = z.log_softmax(-1)
    want = exact.gather(1, targets[:, None])[:, 0]
    entropy = -(exact.exp()*exact.masked_fill(trained.no_chance, 0.)).sum(-1)
    want_grad = (W[targets].double() - exact.exp() @ W.double())/temperature
    logp, got_entropy = head_logps(h, W, targets, trained.no_chance, temperature, tile=64)
    gradient, = torch.autograd.grad(logp.sum(), h)
    chosen = ~trained.no_chance[targets]
    assert logp.dtype == torch.float32
    assert float((logp.detach() - want)[chosen].square().mean().sqrt()) < 1e-5
    assert float((got_entropy - entropy).abs().max()) < 1e-5
    error = (gradient - want_grad)[chosen].norm()/want_grad[chosen].norm()
    assert float(error) < 2**-8                                              # it is stored in bf16
    assert set(asked) == ({2} if card else set())


def test_sampler_draws_from_logits_of_32_bits(trained, monkeypatch):
    "What the sampler draws from is the product in 64 bits, rounded to 32."
    errors = []

    def noted(h, W):
        z = wide_product(h, W)
        assert W is trained.head
        errors.append(float((z - h.double() @ W.double().T).abs().max()))
        return z

    monkeypatch.setattr(policy_room, "wide_product", noted)
    trained.sample(problems(3, split="test"), n=2, max_new_tokens=4)
    assert len(errors) == 4
    assert max(errors) < 1e-4


def test_run_in_half_precision_is_not_stopped(trained):
    "Five steps in bf16; the alarm is silent, and nearly no ratio is off before the first update."
    cfg = Config(method="grpo", steps=5, prompts=8, lr=1e-4)
    rows = list(train(trained, problems(40, split="train", seed=1), cfg))
    assert len(rows) == 5
    assert max(row["first_ratio_error"] for row in rows) < 5e-3


def test_alarm_rings_where_sampler_and_scorer_disagree(trained, monkeypatch):
    "A sampler whose logits are a tenth too small is found."
    monkeypatch.setattr(policy_room, "wide_product", lambda h, W: .9*wide_product(h, W))
    line = "do not agree .*; its own forward pass is .* nats off scoring, .* off sampling"
    with pytest.raises(RuntimeError, match=line):
        next(train(trained, problems(8, split="train"), Config(method="grpo", steps=1, prompts=8)))


def test_alarm_measures_the_floor_only_where_it_might_ring(tiny):
    "In 32 bits nothing is measured: the error is below any bound."
    policy = Policy.from_pretrained(tiny)
    cfg = Config(method="grpo", steps=1, prompts=4, responses=2, mini_batches=1)
    row = next(train(policy, problems(4, split="train"), cfg))
    assert row["first_ratio_error"] < 1e-4 and policy.ratio_floor is None


def test_alarm_ignores_a_step_that_is_broken(trained):
    "A step without a finite ratio has its own diagnosis."
    from calibrl.train import check_agreement
    ro = rollout(trained, problems(1, split="test"), n=2, max_new_tokens=4)
    check_agreement(trained, ro, Config(), 1, float("nan"))
