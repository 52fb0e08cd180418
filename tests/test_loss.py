"The loss against independent scalar re-derivations, over random batches and at its edges."
import inspect, itertools, math, subprocess, sys
import pytest, torch
from calibrl.loss import (GAPS, OBJECTIVES, REDUCTIONS, Objective, alpha_gate, calibrl_loss, clipped_surrogate, expert_gap,
                          exploration_loss, group_advantages, grpo_loss, masked_mean, reduce_loss)

MODES = list(itertools.product(GAPS, REDUCTIONS))
inf, nan = math.inf, math.nan


# ---- the definition once more, one scalar at a time, from the formulas alone
def token_loss(p, o, A, lo, hi, c):
    r = math.exp(p - o)
    keep = min(r*A, min(max(r, 1 - lo), 1 + hi)*A)  # PPO's objective is the smaller of the two; the loss is minus it
    return -max(keep, c*A) if A < 0 else -keep


def scalar_loss(own, old, expert, A, right, width, *, alpha=.5, weight=.1, clip_low=.2, clip_high=.2, dual_clip=3., gap="token",
                reduce="token-mean", weigh_by_adv=True, has_expert=None):
    "Lists of lists of floats without padding -> policy loss, exploration loss, total"
    policy, explore = [], []
    for i, row in enumerate(own):
        policy.append([token_loss(p, o, A[i], clip_low, clip_high, dual_clip) for p, o in zip(row, old[i])])
        if gap == "token": D = [p - dict(enumerate(expert[i])).get(t, 0.) for t, p in enumerate(row)]
        elif gap == "sequence": D = [math.fsum(row) - math.fsum(expert[i])]*len(row)
        else: D = [math.fsum(row)/len(row) - (math.fsum(expert[i])/len(expert[i]) if expert[i] else 0.)]*len(row) if row else []
        due = [-d if right[i] else d for d in D]
        size = (abs(A[i]) if weigh_by_adv else 1.) * (has_expert is None or has_expert[i])
        explore.append([size*max(x, 0) + size*alpha*min(x, 0) for x in due])
    def total(rows):
        if reduce == "token-mean": return sum(sum(r) for r in rows)/max(1, sum(len(r) for r in rows))
        if reduce == "seq-mean-token-mean": return sum(sum(r)/len(r) for r in rows if r)/len(rows)
        return sum(sum(r) for r in rows)/(len(rows) if reduce == "seq-mean-token-sum" else width)
    return total(policy), total(explore), total(policy) + weight*total(explore)


def ragged(seed, rows=7, T=11):
    "A random batch as lists; the first row is always empty and the second has one token"
    g = torch.Generator().manual_seed(seed)
    rand = lambda n: torch.rand(n, generator=g, dtype=torch.float64)
    n = [0, 1] + torch.randint(0, T + 1, (rows - 2,), generator=g).tolist()
    m = torch.randint(0, T + 1, (rows,), generator=g).tolist()
    own = [(-4*rand(k)).tolist() for k in n]
    old = [[p + 3.5*(u - .5) for p, u in zip(o, rand(len(o)).tolist())] for o in own]
    expert = [(-3*rand(k) - 1e-3).tolist() for k in m]
    return dict(own=own, old=old, expert=expert, A=(2*rand(rows) - 1).tolist(), right=(rand(rows) < .5).tolist(), width=T)


def padded(b, fill=0., dtype=torch.float64):
    pad = lambda rows, fill=0.: torch.tensor([r + [fill]*(b["width"] - len(r)) for r in rows], dtype=dtype)
    return dict(logp=pad(b["own"], fill), old_logp=pad(b["old"], fill), expert_logp=pad(b["expert"]), adv=torch.tensor(b["A"], dtype=dtype),
                correct=torch.tensor(b["right"]), mask=pad([[1.]*len(r) for r in b["own"]]).bool())


# ---- agreement
@pytest.mark.parametrize("gap,reduce", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_total_agrees_with_scalar_loop(seed, gap, reduce):
    settings = dict(alpha=(.5, 0., .3, .8, 1., 2.)[seed], weight=(.1, 0., 1., 3., .5, .1)[seed], clip_low=.2, clip_high=(.2, .28)[seed % 2], gap=gap,
                    reduce=reduce, dual_clip=(3., 1.5)[seed % 2], weigh_by_adv=seed != 4)
    b = ragged(seed)
    policy, explore, total = scalar_loss(**b, **settings)
    loss, k = calibrl_loss(**padded(b), **settings)
    assert (loss.item(), k["policy_loss"], k["exploration_loss"], k["loss"]) == pytest.approx((total, policy, explore, total), abs=1e-7)


def test_grid_reaches_every_branch():
    seen = [calibrl_loss(**padded(ragged(s)))[1] for s in range(6)]
    for name in ("clip_fraction", "dual_clip_fraction", "gated_fraction"): assert 0 < max(k[name] for k in seen) < 1
    assert any(len(e) > len(o) > 0 for s in range(6) for o, e in zip(ragged(s)["own"], ragged(s)["expert"]))
    assert any(len(o) > len(e) > 0 for s in range(6) for o, e in zip(ragged(s)["own"], ragged(s)["expert"]))


@pytest.mark.parametrize("gap,reduce", MODES)
def test_gradient_agrees_with_finite_differences(gap, reduce):
    b = padded(ragged(3))
    x = b.pop("logp").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: calibrl_loss(x, **b, gap=gap, reduce=reduce, weight=.8)[0], x)


@pytest.mark.parametrize("gap,reduce", MODES)
def test_rows_without_expert_have_no_exploration_term(gap, reduce):
    b = ragged(1)
    has = [i % 2 == 0 for i in range(7)]
    t = padded(b)
    t["expert_logp"][1::2] = nan  # whatever stands there
    t["logp"].requires_grad_()
    loss, k = calibrl_loss(**t, gap=gap, reduce=reduce, has_expert=has)
    loss.backward()
    assert t["logp"].grad.isfinite().all() and all(map(math.isfinite, k.values()))
    assert loss.item() == pytest.approx(scalar_loss(**b, gap=gap, reduce=reduce, has_expert=has)[2], abs=1e-7)
    assert k["expert_rows"] == 4


def test_float32_within_float_precision_of_float64():
    for seed, (gap, reduce) in itertools.product(range(4), MODES):
        b = ragged(seed)
        assert calibrl_loss(**padded(b, dtype=torch.float32), gap=gap, reduce=reduce)[0].item() == pytest.approx(
            scalar_loss(**b, gap=gap, reduce=reduce)[2], rel=2e-5, abs=2e-6)


def test_metrics_by_count():
    b = padded(ragged(2))
    _, k = calibrl_loss(**b, has_expert=[True]*6 + [False])
    m = b["mask"]
    ratio, A = (b["logp"] - b["old_logp"]).exp(), b["adv"][:, None].expand(m.shape)
    clipped = ((A > 0) & (ratio > 1.2)) | ((A < 0) & (ratio < .8))
    assert k["clip_fraction"] == pytest.approx(clipped[m].double().mean().item(), abs=1e-6)
    assert k["dual_clip_fraction"] == pytest.approx(((A < 0) & (ratio > 3))[m].double().mean().item(), abs=1e-6)
    assert k["ratio_mean"] == pytest.approx(ratio[m].mean().item(), abs=1e-6)
    assert k["approx_kl"] == pytest.approx((b["old_logp"] - b["logp"])[m].mean().item(), abs=1e-6)
    D, m = (b["logp"] - b["expert_logp"])[:6], m[:6]
    right_side = torch.where(b["correct"][:6, None], D >= 0, D <= 0)
    assert k["gap_mean"] == pytest.approx(D[m].mean().item(), abs=1e-6)
    assert k["gated_fraction"] == pytest.approx(right_side[m].double().mean().item(), abs=1e-6)
    assert all(type(v) is float for v in k.values())


# ---- advantages
def test_advantages():
    r = [[1.1, .1, .1, 0.], [1., 0., 1.1, 1.1]]
    for row, got, scaled in zip(r, group_advantages(r).tolist(), group_advantages(r, norm_std=True).tolist()):
        mean = sum(row)/4
        std = math.sqrt(sum((x - mean)**2 for x in row)/3)
        assert got == pytest.approx([x - mean for x in row], abs=1e-6)
        assert scaled == pytest.approx([(x - mean)/(std + 1e-6) for x in row], abs=1e-5)


@pytest.mark.parametrize("value", [0., .1, 1., 1.1, 1/3])
@pytest.mark.parametrize("n", [1, 2, 7, 11, 16])
def test_equal_rewards_are_exactly_zero(value, n):
    for norm_std in (False, True): assert group_advantages([[value]*n], norm_std).tolist() == [[0.]*n]


def test_advantages_take_integers_booleans_and_doubles():
    assert group_advantages([[1, 0]]).tolist() == group_advantages(torch.tensor([[True, False]])).tolist() == [[.5, -.5]]
    assert group_advantages(torch.tensor([[1., 0.]], dtype=torch.float64)).dtype == torch.float64
    assert not group_advantages(torch.ones(1, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("bad", [[1., 0.], 3., [[1., 0.], [1.]], [[]], [[nan, 1.]], [[inf, 1.]], None, "ab"])
def test_bad_rewards_are_named(bad):
    with pytest.raises(ValueError, match="^rewards: "): group_advantages(bad)


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
        exploration_loss(gap, torch.tensor([-.5]), torch.tensor([correct]), alpha=.25).sum().backward()
        due = (D < 0) if correct else (D > 0)
        assert x.grad.item() == pytest.approx((-1 if correct else 1)*.5*(1 if due else .25))


def test_gate_is_leaky_relu():
    x = torch.linspace(-3, 3, 61)
    for alpha in (0., .3, 1., 1.5): assert alpha_gate(x, alpha).tolist() == pytest.approx([v if v > 0 else alpha*v for v in x.tolist()])


@pytest.mark.parametrize("gap,reduce", MODES)
def test_first_order_identity(gap, reduce):
    "At ratio 1 with sign(A) = s: GRPO's gradient with A * (1 + weight * w), times the length for the sequence gap"
    b = padded(ragged(4))
    b["old_logp"] = b["logp"].clone()
    b["adv"] = torch.where(b["correct"], b["adv"].abs(), -b["adv"].abs()) + torch.where(b["correct"], .1, -.1)
    grads = []
    for weight in (0., .3):
        x = b["logp"].clone().requires_grad_()
        grads.append(torch.autograd.grad(calibrl_loss(**{**b, "logp": x}, weight=weight, alpha=.4, gap=gap, reduce=reduce)[0], x)[0])
    D = expert_gap(b["logp"], b["expert_logp"], b["mask"], gap)
    due = torch.where(b["correct"][:, None], D < 0, D > 0).double()
    w = due + .4*(1 - due)
    n = b["mask"].sum(1, keepdim=True) if gap == "sequence" else 1
    m = b["mask"]
    assert torch.allclose((grads[1]/grads[0])[m], (1 + .3*w*n)[m], rtol=1e-9)


def test_clamped_ratio_changes_nothing():
    x = torch.linspace(-200, 80, 561, dtype=torch.float64)
    for A in (-2., -.1, 0., .1, 2.):
        got = clipped_surrogate(x[None], torch.zeros(1, 561), torch.tensor([A], dtype=torch.float64))[0]
        assert got.tolist() == pytest.approx([token_loss(v, 0., A, .2, .2, 3.) for v in x.tolist()], abs=5e-9)


def test_reduce_ignores_what_is_masked():
    v, m = torch.tensor([[1., nan, 3.], [inf, nan, -inf]]), torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert [reduce_loss(v, m, r).item() for r in REDUCTIONS] == pytest.approx([2., 1., 2., 4/3])
    assert masked_mean(v, m.float()).item() == pytest.approx(2.)


def test_expert_mask_counts_certain_tokens():
    e, own, mask = torch.tensor([[-1., 0., -1., 0.]]), torch.full((1, 4), -1.), torch.ones(1, 4).bool()
    args = dict(logp=own, old_logp=own, expert_logp=e, adv=torch.ones(1), correct=[True], mask=mask, gap="mean")
    assert calibrl_loss(**args)[1]["gap_mean"] == pytest.approx(0.)
    assert calibrl_loss(**args, expert_mask=[[1, 1, 1, 0]])[1]["gap_mean"] == pytest.approx(-1/3)


# ---- what flows where
def test_gradient_reaches_only_logp_and_only_the_mask():
    b = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in padded(ragged(0)).items()}
    calibrl_loss(**b)[0].backward()
    assert [k for k, v in b.items() if v.is_floating_point() and v.grad is not None] == ["logp"]
    assert b["logp"].grad[~b["mask"]].abs().sum() == 0 and b["logp"].grad[b["mask"]].abs().sum() > 0


def test_pieces_freeze_what_is_frozen():
    b = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in padded(ragged(0)).items()}
    loss = clipped_surrogate(b["logp"], b["old_logp"], b["adv"]).sum()
    for gap in GAPS: loss = loss + exploration_loss(expert_gap(b["logp"], b["expert_logp"], b["mask"], gap), b["adv"], b["correct"]).sum()
    loss.backward()
    assert b["logp"].grad is not None and b["old_logp"].grad is b["expert_logp"].grad is b["adv"].grad is None


@pytest.mark.parametrize("fill", [nan, inf, -inf, 1e30])
@pytest.mark.parametrize("gap,reduce", MODES)
def test_garbage_under_the_mask_changes_nothing(fill, gap, reduce):
    clean, dirty = padded(ragged(2)), padded(ragged(2), fill=fill)
    out = []
    for b in (clean, dirty):
        b["logp"].requires_grad_()
        loss, k = calibrl_loss(**b, gap=gap, reduce=reduce)
        loss.backward()
        out.append((loss.item(), b["logp"].grad.tolist(), k))
    assert out[0] == out[1]


@pytest.mark.parametrize("gap,reduce", MODES)
@pytest.mark.parametrize("adv", [1., -1., 0.])
def test_extreme_log_probs_stay_finite(gap, reduce, adv):
    values = [-1e4, -100., -1e-30, 0.]
    for p, o, e in itertools.product(values, values, values):
        x = torch.full((1, 3), p, requires_grad=True)
        loss, k = calibrl_loss(x, torch.full((1, 3), o), torch.full((1, 3), e), torch.tensor([adv]), [adv > 0], torch.tensor([[1, 1, 0]]), gap=gap, reduce=reduce, dual_clip=inf if p == o else 3.)
        loss.backward()
        assert loss.isfinite() and x.grad.isfinite().all() and all(map(math.isfinite, k.values()))


@pytest.mark.parametrize("rows,T", [(0, 0), (0, 5), (3, 0), (3, 5)])
def test_nothing_to_learn_from(rows, T):
    for gap, reduce in MODES:
        x = torch.zeros(rows, T, requires_grad=True)
        loss, k = calibrl_loss(x, torch.zeros(rows, T), torch.zeros(rows, T), torch.ones(rows), torch.zeros(rows), torch.zeros(rows, T), gap=gap, reduce=reduce)
        loss.backward()
        assert loss.item() == 0 and x.grad.abs().sum() == 0 and all(map(math.isfinite, k.values()))


def test_half_precision_is_computed_in_float32():
    b = padded(ragged(0))
    b["logp"] = b["logp"].bfloat16().requires_grad_()
    loss, _ = calibrl_loss(**b)
    loss.backward()
    assert loss.dtype == torch.float32 and b["logp"].grad.dtype == torch.bfloat16


# ---- errors
@pytest.mark.parametrize("name", ["logp", "old_logp", "expert_logp", "adv", "correct", "mask", "has_expert", "expert_mask"])
def test_shape_errors_name_the_argument(name):
    b = {**padded(ragged(0)), name: torch.zeros(4)}
    with pytest.raises(ValueError, match=f"^{name}: .*shape"): calibrl_loss(**b)


@pytest.mark.parametrize("change,word", [
    (dict(gap="tokens"), "gap: .*token, sequence, mean"), (dict(reduce="mean"), "reduce: .*token-mean, .*seq-mean-token-sum-norm"),
    (dict(alpha=-.1), "alpha"), (dict(alpha=nan), "alpha"), (dict(weight=inf), "weight"), (dict(clip_low=-1.), "clip_low"), (dict(clip_high=nan), "clip_high"),
    (dict(dual_clip=1.), "dual_clip"), (dict(expert_logp=None), "expert_logp"), (dict(correct=None), "correct"), (dict(correct=torch.full((7,), 1.1)), "correct"),
    (dict(mask=torch.full((7, 11), .5)), "mask"), (dict(old_logp=torch.zeros(7, 11).long()), "old_logp"), (dict(logp=torch.zeros(7, 11).long()), "logp"), (dict(logp=[[1.]]), "logp"),
    (dict(adv=torch.full((7,), nan)), "adv"), (dict(adv="abc"), "adv"), (dict(adv=torch.zeros(7, dtype=torch.complex64)), "adv")])
def test_wrong_arguments_are_named(change, word):
    with pytest.raises(ValueError, match="^"+word): calibrl_loss(**{**padded(ragged(0)), **change})


@pytest.mark.parametrize("name", ["logp", "old_logp", "expert_logp"])
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_infinite_where_it_counts_is_refused(name, bad):
    b = padded(ragged(0))
    b[name][1, 0] = bad  # the second row has exactly one token
    with pytest.raises(ValueError, match=rf"^{name}: .*\(1, 0\)"): calibrl_loss(**b)


# ---- objectives
def test_grpo_is_weight_zero():
    for seed, reduce in itertools.product(range(3), REDUCTIONS):
        b = padded(ragged(seed))
        want = calibrl_loss(**b, weight=0., reduce=reduce)[0].item()
        assert grpo_loss(**b, weight=9., alpha=.1, reduce=reduce)[0].item() == want == pytest.approx(scalar_loss(**ragged(seed), reduce=reduce)[0], abs=1e-7)
        loss, k = grpo_loss(**{**b, "expert_logp": None, "correct": None}, reduce=reduce)
        assert loss.item() == want and k["exploration_loss"] == k["expert_rows"] == 0


def test_grpo_names_arguments_too():
    with pytest.raises(ValueError, match="^logp"): grpo_loss([1.], None, None, None, None, None)
    with pytest.raises(ValueError, match="^old_logp"): grpo_loss(**{**padded(ragged(0)), "old_logp": None})


def test_objectives():
    assert {"grpo", "calibrl"} <= set(OBJECTIVES)
    b = padded(ragged(0))
    for name, o in OBJECTIVES.items():
        loss, k = o(**b, alpha=.3, weight=.2, gap="mean", reduce="seq-mean-token-mean")
        assert loss.ndim == 0 and {"policy_loss", "exploration_loss", "gap_mean", "clip_fraction"} <= set(k)
        assert o.source.startswith("arXiv") and o.norm_std is (name in ("grpo", "dapo", "gspo", "cppo", "grpo_sft", "calibrl_gspo", "calibrl_cppo"))
    with pytest.raises(AttributeError): OBJECTIVES["grpo"].norm_std = False
    assert Objective(lambda x: x + 1, False, "here")(1) == 2


def test_published_signature():
    p = inspect.signature(calibrl_loss).parameters
    assert list(p)[:6] == ["logp", "old_logp", "expert_logp", "adv", "correct", "mask"]
    assert {k: v.default for k, v in p.items() if v.kind is v.KEYWORD_ONLY} == dict(alpha=.5, weight=.1, clip_low=.2, clip_high=.2, dual_clip=3., gap="token",
        reduce="token-mean", weigh_by_adv=True, has_expert=None, expert_mask=None)


def test_import_is_light():
    heavy = "transformers", "peft", "bitsandbytes", "datasets", "matplotlib", "PIL", "math_verify", "sympy"
    code = f"import torch, sys; before = set(sys.modules); import calibrl.loss; print([h for h in {heavy} if h in set(sys.modules) - before])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
