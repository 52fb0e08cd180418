"""Each rival method as one training step: its gradient against the formula written out here, and whole groups against micro-batches."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from calibrl.geometry import problems
from calibrl.loss import EXPERT_TOKENS, OBJECTIVES, OFF, hybrid_loss
from calibrl.rollout import Policy, expert_rows, rollout, stack, with_experts
from calibrl.train import ROWS, Config, overlong_penalty, refill, train, train_step

REQUIRED = {"grpo", "dr_grpo", "dapo", "gspo", "cppo", "luffy", "rl_plus", "calibrl", "sft", "grpo_sft", "luffy_calibrl", "calibrl_dr_grpo", "calibrl_gspo", "calibrl_cppo"}
B, n, LIMIT = 4, 4, 48
right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()


@pytest.fixture(scope="module")
def ro(tiny):
    "Real responses whose verdicts are set by hand; the last problem has no expert."
    policy = Policy.from_pretrained(tiny, bits=4)
    ps = problems(B, seed=11)
    out = rollout(policy, ps[:3] + [replace(ps[3], expert=None)], n=n, seed=2)
    return replace(out, correct=right.flatten(), rewards=right.flatten() + 0.1*torch.tensor([s.formatted for s in out.scores])
                   + .01*(torch.arange(B*n) % n)*(torch.arange(B*n)//n != 2))     # no two |A| alike, and one group without signal


def step(tiny, ro, method, **kw):
    "The gradient of one update, taken from plain SGD with learning rate 1."
    policy = Policy.from_pretrained(tiny, bits=4)
    before = [w.detach().clone() for w in policy.trainable]
    cfg = Config(**{**dict(method=method, prompts=B, responses=n, mini_batches=1, max_grad_norm=1e9, max_new_tokens=LIMIT), **kw})
    m = train_step(policy, torch.optim.SGD(policy.trainable, lr=1.), ro, cfg)
    return torch.cat([(b - w.detach()).flatten() for b, w in zip(before, policy.trainable)]), m


def by_hand(tiny, ro, method):
    "The same gradient from the published formula at ratio 1, with loops over groups and the numbers written out."
    policy = Policy.from_pretrained(tiny, bits=4)
    own = policy.logps(ro.problems, ro.grouped)
    experts = [p.expert for p in ro.problems[:3]]
    theirs = policy.logps(ro.problems[:3], experts)
    terms, expert_terms = [], []                       # one number a row, tokens not yet reduced
    lengths = own.mask.sum(1)
    for g in range(B):
        R = ro.rewards[g*n:(g + 1)*n]
        R_all = torch.cat([R, torch.tensor([1.1])]) if g < 3 and method in ("luffy", "rl_plus") else R
        if method == "dapo": R = R_all = R - ((lengths[g*n:(g + 1)*n] - 0.8*LIMIT)/(0.2*LIMIT)).clamp(0, 1)
        A = (R_all - R_all.mean())/(R_all.std() + 1e-6 if method in ("grpo", "dapo", "gspo", "cppo", "grpo_sft") else 1.)
        if R_all.std() < 1e-4: A = torch.zeros_like(R_all)
        kept = A[:n].abs().argsort(descending=True, stable=True)[:n//2].tolist() if method.endswith("cppo") else range(n)
        for i in sorted(kept):
            row = g*n + i
            lp = own.logp[row][own.mask[row]]
            ratio = (lp - lp.detach()).exp() if method != "gspo" else (lp.mean() - lp.mean().detach()).exp().expand(len(lp))
            terms.append(-A[i]*ratio)
        if g < 3 and method in ("luffy", "rl_plus", "luffy_calibrl", "grpo_sft", "sft"):
            lp = theirs.logp[g][theirs.mask[g]]
            p, a = lp.exp(), A[-1] if method in ("luffy", "rl_plus") else 1.1 - R.mean()
            q = p.detach()
            expert_terms.append({"luffy": lambda: -a*p/(p + .1), "luffy_calibrl": lambda: -a*p/(p + .1), "sft": lambda: -lp, "grpo_sft": lambda: -2.*lp,
                                 "rl_plus": lambda: -a*(1 - q)**.5*2*p/(q + .5*(q + 1))}[method]())
    if method == "sft": terms = []
    rows = terms + expert_terms
    if method in ("dr_grpo", "luffy", "rl_plus"): total = sum(r.sum() for r in rows)/LIMIT/(B*n + (method != "dr_grpo")*B)
    elif method in ("gspo", "cppo"): total = sum(r.mean() for r in rows)/len(rows)
    else: total = torch.cat(rows).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, policy.trainable)])


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "dapo", "gspo", "cppo", "luffy", "luffy_calibrl", "rl_plus", "sft", "grpo_sft"])
def test_one_update_follows_the_published_formula(tiny, ro, method):
    got, m = step(tiny, ro, method, expert_weight=2.)
    want = by_hand(tiny, ro, method)
    assert want.norm() > 0 and (got - want).norm() < 1e-4*want.norm()
    assert m["first_ratio_error"] < 1e-4 and math.isfinite(m["loss"])


@pytest.mark.parametrize("method", ["dr_grpo", "dapo", "gspo", "cppo", "luffy", "rl_plus", "luffy_calibrl", "grpo_sft", "sft", "calibrl_dr_grpo", "calibrl_gspo", "calibrl_cppo", "calibrl_reference", "calibrl_live"])
def test_micro_batches_add_up(tiny, ro, method):
    whole, m1 = step(tiny, ro, method, alpha=1.)
    split, m2 = step(tiny, ro, method, alpha=1., micro_tokens=1)
    assert whole.norm() > 0 and (whole - split).norm() < 1e-4*whole.norm()
    assert m1["loss"] == pytest.approx(m2["loss"], abs=1e-5)


@pytest.mark.parametrize("base", ["dr_grpo", "gspo", "cppo"])
def test_the_exploration_term_adds_its_own_gradient(tiny, ro, base):
    plain, with_zero, strong = step(tiny, ro, base)[0], step(tiny, ro, f"calibrl_{base}", weight=0.)[0], step(tiny, ro, f"calibrl_{base}", weight=2.)[0]
    assert torch.equal(plain, with_zero) and (strong - plain).norm() > .1*plain.norm()
    assert torch.equal(plain, step(tiny, ro, base, weight=5.)[0])                     # the plain method has no such term


def test_every_name_is_there_and_says_where_from():
    assert REQUIRED <= set(OBJECTIVES)
    for name, o in OBJECTIVES.items():
        cfg = Config(method=name).settled()
        assert None not in (cfg.norm_std, cfg.reduce, cfg.clip_low, cfg.clip_high, cfg.dual_clip, cfg.prune, cfg.tries, cfg.overlong)
        assert o.rows in (*ROWS, "own") and cfg.settled() == cfg
    assert Config(method="dapo", clip_high=.5).settled().clip_high == .5 and Config(method="dapo").settled().clip_high == .28
    assert replace(Config(method="dapo"), method="grpo").settled().clip_high == .2      # nothing of the first method is left


def test_a_live_expert_is_heard_where_nobody_is_right(ro, tiny):
    wrong = replace(ro, rewards=ro.rewards*0, correct=ro.correct & False)
    frozen, live = (step(tiny, wrong, m, gap="sequence")[0].norm() for m in ("calibrl", "calibrl_live"))
    assert frozen == 0 < live
    lies = replace(wrong, problems=[replace(p, answer="-1") for p in ro.problems])                     # and is not, if the verifier rejects it
    assert step(tiny, lies, "calibrl_live", gap="sequence")[0].norm() == 0


def test_an_expert_judged_wrong_teaches_luffy_to_avoid_it(ro, tiny):
    policy = Policy.from_pretrained(tiny, bits=4)
    liar = replace(ro, problems=[replace(p, answer="-1") for p in ro.problems])
    both, adv = ROWS["expert-in"](policy, liar, torch.zeros(B, n), Config(method="luffy").settled())
    assert not both.correct[both.from_expert].any() and (adv[:2, -1] < 0).all() and (adv[3] == 0).sum() >= 1


def test_rows_of_experts(ro, tiny):
    policy = Policy.from_pretrained(tiny, bits=4)
    both, alone = with_experts(policy, ro), expert_rows(policy, ro)
    assert both.n == n + 1 and both.from_expert.view(B, n + 1).tolist() == [[False]*n + [True]]*B
    assert [len(r) for r in both.responses] == both.mask.sum(1).tolist() and both.responses[-1] == [] and alone.texts[3] == ""
    own = both.pick([i for i in range(B*(n + 1)) if i % (n + 1) < n], ro.problems, n)
    assert own.responses == ro.responses and torch.equal(own.old_logp, ro.old_logp) and torch.equal(own.rewards, ro.rewards)
    wide = stack([ro, replace(ro, **{k: F.pad(getattr(ro, k), (0, 3)) for k in ("mask", "old_logp", "expert_logp", "expert_mask", "entropy")})])
    assert wide.mask.shape == (2*B*n, ro.mask.shape[1] + 3) and wide.mask.sum() == 2*ro.mask.sum()


def test_without_any_expert_sft_learns_nothing_and_the_others_go_on(tiny, ro):
    bare = replace(ro, problems=[replace(p, expert=None) for p in ro.problems], expert_mask=ro.expert_mask & False, expert_logp=ro.expert_logp*0, has_expert=ro.has_expert & False)
    assert step(tiny, bare, "sft")[0].norm() == 0
    for method in ("luffy", "grpo_sft"): assert step(tiny, bare, method)[0].norm() > 0


def test_entropy_and_accuracy_leave_the_expert_out(tiny, ro):
    a, b = step(tiny, ro, "grpo")[1], step(tiny, ro, "luffy")[1]
    assert all(a[k] == b[k] for k in ("entropy", "accuracy", "reward", "tokens", "length"))
    assert a["silent_groups"] == .25 and b["silent_groups"] == 0.                     # the unsolved group has signal once the expert counts


def test_dynamic_sampling_drops_refills_and_gives_up(ro):
    cfg, asked = Config(method="dapo", prompts=B, responses=n), []
    def draw(k): asked.append(k); return ro
    got, drawn = refill(ro, draw, cfg)
    assert asked == [1] and drawn == 2*B and len(got.problems) == B and not (got.correct.view(B, n) == got.correct.view(B, n)[:, :1]).all(1).any()
    got, drawn = refill(ro, draw, replace(cfg, tries=1)); assert (got.responses, drawn) == (ro.responses, B)
    dull = replace(ro, correct=ro.correct & False)
    asked.clear(); got, drawn = refill(dull, lambda k: asked.append(k) or dull, replace(cfg, tries=3))
    assert asked == [1, 2] and drawn == 3*B and len(got.problems) == B                # the cap: one step without signal, not an endless loop
    some = refill(dull, lambda k: ro if k == 1 else dull, replace(cfg, tries=3))[0]
    assert len(some.problems) == 3                                                    # fewer than asked for is better than none


def test_cppo_draws_what_it_will_drop(ro):
    got, drawn = refill(ro, lambda k: ro, Config(method="cppo", prompts=B, responses=n, prune=.75))
    assert drawn == 4*B == len(got.problems)
    kept, adv = ROWS["largest"](None, ro, torch.tensor([[3., -1., 0., 2.]]*B), Config(method="cppo", responses=n).settled())
    assert kept.n == 2 and adv.tolist() == [[3., 2.]]*B and kept.responses[:2] == [ro.responses[0], ro.responses[3]]


def test_overlong_penalty():
    assert overlong_penalty([0, 40, 44, 48, 50], 50, .2).tolist() == pytest.approx([0, 0, -.4, -.8, -1])
    assert overlong_penalty([50], 50, 0.).tolist() == [0.]


@pytest.mark.parametrize("method", ["dapo", "cppo", "luffy", "sft", "grpo_sft", "gspo", "calibrl_reference", "calibrl_live"])
def test_the_generator_runs_every_kind(tiny, method):
    rows = list(train(Policy.from_pretrained(tiny, bits=4), problems(16, seed=3), Config(method=method, prompts=2, responses=3, steps=2, tries=2 if method == "dapo" else None)))
    assert len(rows) == 2 and all(math.isfinite(r["loss"]) and r["groups_drawn"] >= 2 for r in rows)
    if method == "cppo": assert rows[0]["groups_drawn"] == 4


@pytest.mark.parametrize("option, value, message", [("prune", 1.0, "share below 1"), ("overlong", 2.0, "share below 1"), ("tries", 0, "whole number of at least 1"), ("clip_low", -.1, "clip_low must be"), ("expert_weight", math.nan, "expert_weight must be")])
def test_bad_method_options_are_named(option, value, message):
    with pytest.raises(ValueError, match=message): Config(method="dapo", **{option: value})


def test_what_is_off_is_off():
    assert math.exp(20) < OFF and set(EXPERT_TOKENS) == {"sft", "luffy", "rl_plus"}
    lp, old, mask = torch.tensor([[0., -30.]]), torch.tensor([[-19., 0.]]), torch.ones(1, 2).bool()
    loss, k = hybrid_loss(lp, old, lp*0, torch.ones(1), [True], mask, weight=0., clip_low=1., clip_high=OFF, dual_clip=OFF)
    assert loss.item() == pytest.approx(-(math.exp(19) + math.exp(-20))/2, rel=1e-5) and k["clip_fraction"] == 0


def test_the_reference_is_the_policy_without_its_adapter(tiny, ro):
    policy, base = Policy.from_pretrained(tiny, bits=4), Policy.from_pretrained(tiny, bits=4, lora_rank=0)
    for w in policy.trainable: w.data += .02*torch.randn_like(w)
    rows, adv = ROWS["reference"](policy, ro, torch.ones(B, n), Config(method="calibrl_reference").settled())
    with torch.no_grad(): own, want = policy.logps(ro.problems, ro.grouped), base.logps(ro.problems, ro.grouped)
    T = want.logp.shape[1]
    torch.testing.assert_close(rows.expert_logp[:, :T], want.logp, atol=1e-5, rtol=1e-4)
    assert (own.logp - want.logp).abs().max() > .01 and torch.equal(rows.expert_mask, ro.mask) and rows.has_expert.all() and adv.sum() == B*n
    assert torch.equal(rows.expert_logp[~ro.mask], torch.zeros_like(rows.expert_logp[~ro.mask]))


def test_text_only_models_take_the_same_path(checkpoint):
    "A text-only policy and sums without pictures: what learns from experts raises their log-probability."
    from calibrl.tasks import Problem
    ps = [Problem(f"{a}+{b}=", str(a + b), expert=f"<think>{a}+{b}={a + b}</think><answer>{a + b}</answer>") for a in range(2, 4) for b in range(5, 7)]
    for method, rises in (("sft", True), ("grpo_sft", True), ("luffy", True), ("calibrl", False)):
        policy = Policy.from_pretrained(checkpoint("qwen2"))
        with torch.no_grad(): before = policy.logps(ps, [p.expert for p in ps]).logp.sum()
        rows = list(train(policy, ps, Config(method=method, prompts=4, responses=2, mini_batches=1, steps=2, lr=1e-2, max_new_tokens=8)))
        with torch.no_grad(): after = policy.logps(ps, [p.expert for p in ps]).logp.sum()
        assert (after > before) == rises, method
        assert rows[0]["solved_groups"] == 0 and (rows[0]["grad_norm"] > 0) == rises                  # CalibRL hears nothing from groups that are all wrong
