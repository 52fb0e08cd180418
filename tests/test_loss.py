"The loss against independent scalar re-derivations, over random batches and at its edges."
import inspect
import itertools
import math
import subprocess
import sys

import pytest
import torch

from calibrl.loss import (GAPS, OBJECTIVES, REDUCTIONS, Objective, alpha_gate, calibrl_loss,
                          clipped_surrogate, expert_gap, exploration_loss, group_advantages,
                          grpo_loss, masked_mean, reduce_loss)
from calibrl.loss.live import live_loss
from calibrl.loss.rivals import hybrid_loss

MODES = list(itertools.product(GAPS, REDUCTIONS))
inf, nan = math.inf, math.nan


# ---- the definition once more, one scalar at a time, from the formulas alone
def token_loss(p, o, A, lo, hi, c):
    "Return minus PPO's objective, which is the smaller of the two, with its dual clip."
    r = math.exp(p - o)
    keep = min(r*A, min(max(r, 1 - lo), 1 + hi)*A)
    return -max(keep, c*A) if A < 0 else -keep


def scalar_gap(row, expert, gap):
    "Return the gap of each token of a row."
    if gap == "token":
        there = dict(enumerate(expert))
        return [p - there.get(t, 0.) for t, p in enumerate(row)]
    if gap == "sequence":
        return [math.fsum(row) - math.fsum(expert)]*len(row)
    if not row:
        return []
    of_expert = math.fsum(expert)/len(expert) if expert else 0.
    return [math.fsum(row)/len(row) - of_expert]*len(row)


def scalar_total(rows, width, reduce):
    "Return token losses as one number."
    everything = sum(sum(row) for row in rows)
    if reduce == "token-mean":
        return everything/max(1, sum(len(row) for row in rows))
    if reduce == "seq-mean-token-mean":
        return sum(sum(row)/len(row) for row in rows if row)/len(rows)
    return everything/(len(rows) if reduce == "seq-mean-token-sum" else width)


def scalar_loss(  # noqa: PLR0913
        own, old, expert, A, right, width, *, alpha=.5, weight=.1, clip_low=.2, clip_high=.2,
        dual_clip=3., gap="token", reduce="token-mean", weigh_by_adv=True, has_expert=None):
    "Return policy loss, exploration loss and total of lists of lists without padding."
    policy = []
    explore = []
    for i, row in enumerate(own):
        pairs = zip(row, old[i], strict=True)
        policy.append([token_loss(p, o, A[i], clip_low, clip_high, dual_clip) for p, o in pairs])
        size = abs(A[i]) if weigh_by_adv else 1.
        if has_expert is not None and not has_expert[i]:
            size = 0.
        sign = -1 if right[i] else 1
        due = [sign*D for D in scalar_gap(row, expert[i], gap)]
        explore.append([size*max(x, 0) + size*alpha*min(x, 0) for x in due])
    policy_loss = scalar_total(policy, width, reduce)
    exploration = scalar_total(explore, width, reduce)
    return policy_loss, exploration, policy_loss + weight*exploration


def ragged(seed, rows=7, T=11):
    "Return a random batch as lists; the first row is always empty, the second has one token."
    g = torch.Generator().manual_seed(seed)
    def rand(n):
        return torch.rand(n, generator=g, dtype=torch.float64)

    # Lengths of responses and of experts, then their log-probs.
    lengths = [0, 1] + torch.randint(0, T + 1, (rows - 2,), generator=g).tolist()
    of_experts = torch.randint(0, T + 1, (rows,), generator=g).tolist()
    own = [(-4*rand(n)).tolist() for n in lengths]
    old = []
    for row in own:
        steps = rand(len(row)).tolist()
        old.append([p + 3.5*(u - .5) for p, u in zip(row, steps, strict=True)])
    expert = [(-3*rand(n) - 1e-3).tolist() for n in of_experts]
    A = (2*rand(rows) - 1).tolist()
    right = (rand(rows) < .5).tolist()
    return dict(own=own, old=old, expert=expert, A=A, right=right, width=T)


def padded(b, fill=0., dtype=torch.float64):
    "Return a batch of lists as the tensors that a loss takes."
    def pad(rows, fill=0.):
        wide = [row + [fill]*(b["width"] - len(row)) for row in rows]
        return torch.tensor(wide, dtype=dtype)

    mask = pad([[1.]*len(row) for row in b["own"]]).bool()
    return dict(logp=pad(b["own"], fill), old_logp=pad(b["old"], fill),
                expert_logp=pad(b["expert"]), adv=torch.tensor(b["A"], dtype=dtype),
                correct=torch.tensor(b["right"]), mask=mask)


def finite(loss, gradient, metrics):
    "Are a loss, its gradient and its metrics finite?"
    numbers = [loss.item(), *gradient.flatten().tolist(), *metrics.values()]
    return all(map(math.isfinite, numbers))


# ---- agreement
@pytest.mark.parametrize("gap,reduce", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_total_agrees_with_scalar_loop(seed, gap, reduce):
    settings = dict(
        alpha=(.5, 0., .3, .8, 1., 2.)[seed], weight=(.1, 0., 1., 3., .5, .1)[seed],
        clip_low=.2, clip_high=(.2, .28)[seed % 2], dual_clip=(3., 1.5)[seed % 2],
        gap=gap, reduce=reduce, weigh_by_adv=seed != 4)
    b = ragged(seed)
    policy, explore, total = scalar_loss(**b, **settings)
    loss, k = calibrl_loss(**padded(b), **settings)
    got = (loss.item(), k["policy_loss"], k["exploration_loss"], k["loss"])
    assert got == pytest.approx((total, policy, explore, total), abs=1e-7)


def test_grid_reaches_every_branch():
    seen = [calibrl_loss(**padded(ragged(seed)))[1] for seed in range(6)]
    for name in ("clip_fraction", "dual_clip_fraction", "gated_fraction"):
        assert 0 < max(k[name] for k in seen) < 1
    lengths = []
    for seed in range(6):
        b = ragged(seed)
        lengths += [(len(o), len(e)) for o, e in zip(b["own"], b["expert"], strict=True)]
    assert any(e > o > 0 for o, e in lengths)
    assert any(o > e > 0 for o, e in lengths)


@pytest.mark.parametrize("gap,reduce", MODES)
def test_gradient_agrees_with_finite_differences(gap, reduce):
    b = padded(ragged(3))
    x = b.pop("logp").requires_grad_()
    def loss_of(x):
        return calibrl_loss(x, **b, gap=gap, reduce=reduce, weight=.8)[0]

    assert torch.autograd.gradcheck(loss_of, x)


@pytest.mark.parametrize("gap,reduce", MODES)
def test_rows_without_expert_have_no_exploration_term(gap, reduce):
    b = ragged(1)
    has = [i % 2 == 0 for i in range(7)]
    t = padded(b)
    t["expert_logp"][1::2] = nan  # whatever stands there
    t["logp"].requires_grad_()
    loss, k = calibrl_loss(**t, gap=gap, reduce=reduce, has_expert=has)
    loss.backward()
    assert finite(loss, t["logp"].grad, k)
    want = scalar_loss(**b, gap=gap, reduce=reduce, has_expert=has)[2]
    assert loss.item() == pytest.approx(want, abs=1e-7)
    assert k["expert_rows"] == 4


def test_float32_within_float_precision_of_float64():
    for seed, (gap, reduce) in itertools.product(range(4), MODES):
        b = ragged(seed)
        got = calibrl_loss(**padded(b, dtype=torch.float32), gap=gap, reduce=reduce)[0].item()
        want = scalar_loss(**b, gap=gap, reduce=reduce)[2]
        assert got == pytest.approx(want, rel=2e-5, abs=2e-6)


def test_metrics_by_count():
    b = padded(ragged(2))
    _, k = calibrl_loss(**b, has_expert=[True]*6 + [False])
    m = b["mask"]
    def mean(values):
        return pytest.approx(values.double().mean().item(), abs=1e-6)

    # The clips and the ratio, over all tokens.
    ratio = (b["logp"] - b["old_logp"]).exp()
    A = b["adv"][:, None].expand(m.shape)
    clipped = ((A > 0) & (ratio > 1.2)) | ((A < 0) & (ratio < .8))
    assert k["clip_fraction"] == mean(clipped[m])
    assert k["dual_clip_fraction"] == mean(((A < 0) & (ratio > 3))[m])
    assert k["ratio_mean"] == mean(ratio[m])
    assert k["approx_kl"] == mean((b["old_logp"] - b["logp"])[m])

    # The gap and the gate, over the tokens of rows that have an expert.
    m = m[:6]
    D = (b["logp"] - b["expert_logp"])[:6]
    right_side = torch.where(b["correct"][:6, None], D >= 0, D <= 0)
    assert k["gap_mean"] == mean(D[m])
    assert k["gated_fraction"] == mean(right_side[m])
    assert all(type(v) is float for v in k.values())


# ---- advantages
def test_advantages():
    rewards = [[1.1, .1, .1, 0.], [1., 0., 1.1, 1.1]]
    plain = group_advantages(rewards).tolist()
    scaled = group_advantages(rewards, norm_std=True).tolist()
    for i, row in enumerate(rewards):
        mean = sum(row)/4
        std = math.sqrt(sum((x - mean)**2 for x in row)/3)
        assert plain[i] == pytest.approx([x - mean for x in row], abs=1e-6)
        assert scaled[i] == pytest.approx([(x - mean)/(std + 1e-6) for x in row], abs=1e-5)


@pytest.mark.parametrize("value", [0., .1, 1., 1.1, 1/3])
@pytest.mark.parametrize("n", [1, 2, 7, 11, 16])
def test_equal_rewards_are_exactly_zero(value, n):
    for norm_std in (False, True):
        assert group_advantages([[value]*n], norm_std).tolist() == [[0.]*n]


def test_advantages_take_integers_booleans_and_doubles():
    assert group_advantages([[1, 0]]).tolist() == [[.5, -.5]]
    assert group_advantages(torch.tensor([[True, False]])).tolist() == [[.5, -.5]]
    doubles = torch.tensor([[1., 0.]], dtype=torch.float64)
    assert group_advantages(doubles).dtype == torch.float64
    assert not group_advantages(torch.ones(1, 2, requires_grad=True)).requires_grad


BAD_REWARDS = [[1., 0.], 3., [[1., 0.], [1.]], [[]], [[nan, 1.]], [[inf, 1.]], None, "ab"]


@pytest.mark.parametrize("bad", BAD_REWARDS)
def test_bad_rewards_are_named(bad):
    with pytest.raises(ValueError, match="^rewards: "):
        group_advantages(bad)


@pytest.mark.parametrize("gap", GAPS)
def test_uniform_group_gives_no_signal(gap):
    b = padded(ragged(5))
    b["adv"] = group_advantages([[1.1]*7])[0].double()
    b["logp"].requires_grad_()
    loss, _ = calibrl_loss(**b, gap=gap, weight=1.)
    loss.backward()
    assert loss.item() == 0 and b["logp"].grad.abs().sum() == 0


# ---- the pieces
def test_four_quadrants():
    for correct, D in itertools.product((True, False), (-.7, .7)):
        x = torch.tensor([[-1. + D]], requires_grad=True)
        gap = expert_gap(x, torch.tensor([[-1.]]), torch.ones(1, 1))
        adv = torch.tensor([-.5])
        exploration_loss(gap, adv, torch.tensor([correct]), alpha=.25).sum().backward()
        due = (D < 0) if correct else (D > 0)
        want = (-1 if correct else 1)*.5*(1 if due else .25)
        assert x.grad.item() == pytest.approx(want)


def test_gate_is_leaky_relu():
    x = torch.linspace(-3, 3, 61)
    for alpha in (0., .3, 1., 1.5):
        want = [v if v > 0 else alpha*v for v in x.tolist()]
        assert alpha_gate(x, alpha).tolist() == pytest.approx(want)


@pytest.mark.parametrize("gap,reduce", MODES)
def test_first_order_identity(gap, reduce):
    """At ratio 1 with sign(A) = s: GRPO's gradient with A * (1 + weight * w).

    With the sequence gap w is multiplied by the length.
    """
    b = padded(ragged(4))
    m = b["mask"]
    b["old_logp"] = b["logp"].clone()
    size = b["adv"].abs() + .1
    b["adv"] = torch.where(b["correct"], size, -size)
    def gradient(weight):
        x = b["logp"].clone().requires_grad_()
        settings = dict(weight=weight, alpha=.4, gap=gap, reduce=reduce)
        return torch.autograd.grad(calibrl_loss(**{**b, "logp": x}, **settings)[0], x)[0]

    D = expert_gap(b["logp"], b["expert_logp"], m, gap)
    due = torch.where(b["correct"][:, None], D < 0, D > 0).double()
    w = due + .4*(1 - due)
    n = m.sum(1, keepdim=True) if gap == "sequence" else 1
    factor = gradient(.3)/gradient(0.)
    assert torch.allclose(factor[m], (1 + .3*w*n)[m], rtol=1e-9)


def test_clamped_ratio_changes_nothing():
    x = torch.linspace(-200, 80, 561, dtype=torch.float64)
    for A in (-2., -.1, 0., .1, 2.):
        adv = torch.tensor([A], dtype=torch.float64)
        got = clipped_surrogate(x[None], torch.zeros(1, 561), adv)[0]
        want = [token_loss(v, 0., A, .2, .2, 3.) for v in x.tolist()]
        assert got.tolist() == pytest.approx(want, abs=5e-9)


def test_reduce_ignores_what_is_masked():
    v = torch.tensor([[1., nan, 3.], [inf, nan, -inf]])
    m = torch.tensor([[1, 0, 1], [0, 0, 0]])
    got = [reduce_loss(v, m, reduce).item() for reduce in REDUCTIONS]
    assert got == pytest.approx([2., 1., 2., 4/3])
    assert masked_mean(v, m.float()).item() == pytest.approx(2.)


def test_expert_mask_counts_certain_tokens():
    own = torch.full((1, 4), -1.)
    args = dict(logp=own, old_logp=own, expert_logp=torch.tensor([[-1., 0., -1., 0.]]),
                adv=torch.ones(1), correct=[True], mask=torch.ones(1, 4).bool(), gap="mean")
    assert calibrl_loss(**args)[1]["gap_mean"] == pytest.approx(0.)
    _, k = calibrl_loss(**args, expert_mask=[[1, 1, 1, 0]])
    assert k["gap_mean"] == pytest.approx(-1/3)


# ---- what flows where
def with_gradients(seed):
    "Return a batch all of whose floats ask for a gradient."
    b = padded(ragged(seed))
    return {k: v.requires_grad_() if v.is_floating_point() else v for k, v in b.items()}


def test_gradient_reaches_only_logp_and_only_the_mask():
    b = with_gradients(0)
    calibrl_loss(**b)[0].backward()
    learned = [k for k, v in b.items() if v.is_floating_point() and v.grad is not None]
    assert learned == ["logp"]
    gradient = b["logp"].grad.abs()
    assert gradient[~b["mask"]].sum() == 0 and gradient[b["mask"]].sum() > 0


def test_pieces_freeze_what_is_frozen():
    b = with_gradients(0)
    loss = clipped_surrogate(b["logp"], b["old_logp"], b["adv"]).sum()
    for gap in GAPS:
        D = expert_gap(b["logp"], b["expert_logp"], b["mask"], gap)
        loss = loss + exploration_loss(D, b["adv"], b["correct"]).sum()
    loss.backward()
    assert b["logp"].grad is not None
    assert b["old_logp"].grad is b["expert_logp"].grad is b["adv"].grad is None


@pytest.mark.parametrize("fill", [nan, inf, -inf, 1e30])
@pytest.mark.parametrize("gap,reduce", MODES)
def test_garbage_under_the_mask_changes_nothing(fill, gap, reduce):
    out = []
    for b in (padded(ragged(2)), padded(ragged(2), fill=fill)):
        b["logp"].requires_grad_()
        loss, k = calibrl_loss(**b, gap=gap, reduce=reduce)
        loss.backward()
        out.append((loss.item(), b["logp"].grad.tolist(), k))
    assert out[0] == out[1]


@pytest.mark.parametrize("gap,reduce", MODES)
@pytest.mark.parametrize("adv", [1., -1., 0.])
def test_extreme_log_probs_stay_finite(gap, reduce, adv):
    values = [-1e4, -100., -1e-30, 0.]
    mask = torch.tensor([[1, 1, 0]])
    for p, o, e in itertools.product(values, values, values):
        x = torch.full((1, 3), p, requires_grad=True)
        loss, k = calibrl_loss(
            x, torch.full((1, 3), o), torch.full((1, 3), e), torch.tensor([adv]), [adv > 0],
            mask, gap=gap, reduce=reduce, dual_clip=inf if p == o else 3.)
        loss.backward()
        assert finite(loss, x.grad, k)


@pytest.mark.parametrize("rows,T", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_nothing_to_learn_from(rows, T):
    zeros = torch.zeros(rows, T)
    for gap, reduce in MODES:
        x = torch.zeros(rows, T, requires_grad=True)
        loss, k = calibrl_loss(x, zeros, zeros, torch.ones(rows), torch.zeros(rows), zeros,
                               gap=gap, reduce=reduce)
        loss.backward()
        assert loss.item() == 0 and x.grad.abs().sum() == 0
        assert all(map(math.isfinite, k.values()))


def test_half_precision_is_computed_in_float32():
    b = padded(ragged(0))
    b["logp"] = b["logp"].bfloat16().requires_grad_()
    loss, _ = calibrl_loss(**b)
    loss.backward()
    assert loss.dtype == torch.float32 and b["logp"].grad.dtype == torch.bfloat16


# ---- errors
NAMES = ["logp", "old_logp", "expert_logp", "adv", "correct", "mask", "has_expert", "expert_mask"]


@pytest.mark.parametrize("name", NAMES)
def test_shape_errors_name_the_argument(name):
    b = {**padded(ragged(0)), name: torch.zeros(4)}
    with pytest.raises(ValueError, match=f"^{name}: .*shape"):
        calibrl_loss(**b)


WRONG = [
    ("gap", "tokens", "gap: .*token, sequence, mean"),
    ("reduce", "mean", "reduce: .*token-mean, .*seq-mean-token-sum-norm"),
    ("alpha", -.1, "alpha"),
    ("alpha", nan, "alpha"),
    ("weight", inf, "weight"),
    ("clip_low", -1., "clip_low"),
    ("clip_high", nan, "clip_high"),
    ("dual_clip", 1., "dual_clip"),
    ("expert_logp", None, "expert_logp"),
    ("correct", None, "correct"),
    ("correct", torch.full((7,), 1.1), "correct"),
    ("mask", torch.full((7, 11), .5), "mask"),
    ("old_logp", torch.zeros(7, 11).long(), "old_logp"),
    ("logp", torch.zeros(7, 11).long(), "logp"),
    ("logp", [[1.]], "logp"),
    ("adv", torch.full((7,), nan), "adv"),
    ("adv", "abc", "adv"),
    ("adv", torch.zeros(7, dtype=torch.complex64), "adv")]


@pytest.mark.parametrize("name,value,message", WRONG)
def test_wrong_arguments_are_named(name, value, message):
    with pytest.raises(ValueError, match="^" + message):
        calibrl_loss(**{**padded(ragged(0)), name: value})


@pytest.mark.parametrize("loss_of", [hybrid_loss, live_loss], ids=lambda f: f.__name__)
def test_a_setting_that_a_loss_does_not_take_is_named_with_it(loss_of):
    name = loss_of.__name__
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected .* 'weigh_by_adv'"):
        loss_of(**padded(ragged(0)), weigh_by_adv=True)


@pytest.mark.parametrize("name", ["logp", "old_logp", "expert_logp"])
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_infinite_where_it_counts_is_refused(name, bad):
    b = padded(ragged(0))
    b[name][1, 0] = bad  # the second row has exactly one token
    with pytest.raises(ValueError, match=rf"^{name}: .*\(1, 0\)"):
        calibrl_loss(**b)


# ---- objectives
def test_grpo_is_weight_zero():
    for seed, reduce in itertools.product(range(3), REDUCTIONS):
        b = padded(ragged(seed))
        want = calibrl_loss(**b, weight=0., reduce=reduce)[0].item()
        assert grpo_loss(**b, weight=9., alpha=.1, reduce=reduce)[0].item() == want
        by_scalars = scalar_loss(**ragged(seed), reduce=reduce)[0]
        assert want == pytest.approx(by_scalars, abs=1e-7)
        loss, k = grpo_loss(**{**b, "expert_logp": None, "correct": None}, reduce=reduce)
        assert loss.item() == want and k["exploration_loss"] == k["expert_rows"] == 0


def test_grpo_names_arguments_too():
    with pytest.raises(ValueError, match="^logp"):
        grpo_loss([1.], None, None, None, None, None)
    with pytest.raises(ValueError, match="^old_logp"):
        grpo_loss(**{**padded(ragged(0)), "old_logp": None})


NORM_STD = {"grpo", "dapo", "gspo", "cppo", "grpo_sft", "calibrl_gspo", "calibrl_cppo", "chord",
            "chord_phi", "cispo", "kl_cov"}


def test_objectives():
    assert {"grpo", "calibrl"} <= set(OBJECTIVES)
    b = padded(ragged(0))
    watched = {"policy_loss", "exploration_loss", "gap_mean", "clip_fraction"}
    for name, o in OBJECTIVES.items():
        loss, k = o(**b, alpha=.3, weight=.2, gap="mean", reduce="seq-mean-token-mean")
        assert loss.ndim == 0 and watched <= set(k)
        assert o.source.startswith("arXiv") and o.norm_std is (name in NORM_STD)
    with pytest.raises(AttributeError):
        OBJECTIVES["grpo"].norm_std = False
    assert Objective(lambda x: x + 1, False, "here")(1) == 2


PUBLISHED = dict(alpha=.5, weight=.1, clip_low=.2, clip_high=.2, dual_clip=3., gap="token",
                 reduce="token-mean", weigh_by_adv=True, has_expert=None, expert_mask=None)


def by_keyword(function):
    "Return the defaults of a function's keyword-only parameters."
    parameters = inspect.signature(function).parameters
    return {k: v.default for k, v in parameters.items() if v.kind is v.KEYWORD_ONLY}


def test_published_signature():
    tensors = ["logp", "old_logp", "expert_logp", "adv", "correct", "mask"]
    assert list(inspect.signature(calibrl_loss).parameters)[:6] == tensors
    assert by_keyword(calibrl_loss) == PUBLISHED


@pytest.mark.parametrize("loss_of", [hybrid_loss, live_loss], ids=lambda f: f.__name__)
def test_what_a_loss_shares_with_the_published_one_is_in_its_signature(loss_of):
    shared = {k: v for k, v in PUBLISHED.items() if k != "weigh_by_adv"}
    assert shared.items() <= by_keyword(loss_of).items()
    assert "weigh_by_adv" not in by_keyword(loss_of)


def test_import_is_light():
    heavy = ("transformers", "peft", "bitsandbytes", "datasets", "matplotlib", "PIL",
             "math_verify", "sympy")
    code = ("import torch, sys; before = set(sys.modules); import calibrl.loss; "
            f"print([h for h in {heavy} if h in set(sys.modules) - before])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
