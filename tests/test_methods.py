"""Each rival method as one training step.

Its gradient against the formula written out here, and whole groups against micro-batches.
"""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from calibrl.geometry import problems
from calibrl.loss import OBJECTIVES, group_advantages
from calibrl.loss.rivals import EXPERT_TOKENS, OFF, hybrid_loss
from calibrl.rollout import Policy, expert_rows, rollout, stack, with_experts
from calibrl.tasks import Problem, Score
from calibrl.methods import at_step
from calibrl.train import ROWS, Config, overlong_penalty, refill, train, train_step

REQUIRED = {"chord", "chord_phi", "hpt", "srft", "cispo", "kl_cov", "maxrl", "grpo", "dr_grpo",
            "dapo", "gspo", "cppo", "luffy", "rl_plus", "calibrl", "sft", "grpo_sft",
            "luffy_calibrl", "calibrl_dr_grpo", "calibrl_gspo", "calibrl_cppo", "relift"}
B, n, LIMIT = 4, 4, 48
right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]).bool()


@pytest.fixture(scope="module")
def ro(tiny):
    "Real responses whose verdicts are set by hand; the last problem has no expert."
    policy = Policy.from_pretrained(tiny, bits=4)
    ps = problems(B, seed=11)
    ps[3] = replace(ps[3], expert=None)
    out = rollout(policy, ps, n=n, seed=2)

    # No two |A| alike, and one group without signal.
    formatted = torch.tensor([score.formatted for score in out.scores])
    rows = torch.arange(B*n)
    apart = .01*(rows % n)*(rows//n != 2)
    return replace(out, correct=right.flatten(), rewards=right.flatten() + 0.1*formatted + apart)


def settled(method, **options):
    "Return the configuration of a method with everything that it defines."
    return Config(method=method, **options).resolved()


def step(tiny, ro, method, **options):
    "Return the gradient of one update, taken from plain SGD with learning rate 1."
    policy = Policy.from_pretrained(tiny, bits=4)
    before = [w.detach().clone() for w in policy.trainable]
    usual = dict(method=method, prompts=B, responses=n, mini_batches=1, max_grad_norm=1e9,
                 max_new_tokens=LIMIT)
    cfg = Config(**usual | options)
    metrics = train_step(policy, torch.optim.SGD(policy.trainable, lr=1.), ro, cfg)
    after = [w.detach() for w in policy.trainable]
    moved = [(b - a).flatten() for b, a in zip(before, after, strict=True)]
    return torch.cat(moved), metrics


# ---- the published formulas at ratio 1, with loops over groups and the numbers written out
EXPERT_IN_GROUP = ("luffy", "rl_plus")
HEARS_EXPERTS = ("luffy", "rl_plus", "luffy_calibrl", "grpo_sft", "sft")
DIVIDED = ("grpo", "dapo", "gspo", "cppo", "grpo_sft")


def group_rewards(ro, lengths, g, method):
    "Return the rewards of a group's own rows, and of all that its statistics count."
    rows = slice(g*n, (g + 1)*n)
    R = ro.rewards[rows]
    if method == "dapo":
        R = R - ((lengths[rows] - 0.8*LIMIT)/(0.2*LIMIT)).clamp(0, 1)
    if g < 3 and method in EXPERT_IN_GROUP:
        return R, torch.cat([R, torch.tensor([1.1])])
    return R, R


def advantages(R, method):
    "Return the advantages of the rewards that count."
    if R.std() < 1e-4:
        return torch.zeros_like(R)
    return (R - R.mean())/(R.std() + 1e-6 if method in DIVIDED else 1.)


def kept_rows(A, method):
    "Return which rows of a group the update sees."
    if not method.endswith("cppo"):
        return list(range(n))
    return sorted(A[:n].abs().argsort(descending=True, stable=True)[:n//2].tolist())


def own_term(lp, a, method):
    "Return the losses of an own row's tokens."
    if method == "gspo":
        ratio = (lp.mean() - lp.mean().detach()).exp().expand(len(lp))
    else:
        ratio = (lp - lp.detach()).exp()
    return -a*ratio


def expert_term(lp, a, method):
    "Return the losses of an expert row's tokens, each of weight 2 where there is a weight."
    p = lp.exp()
    q = p.detach()
    if method in ("luffy", "luffy_calibrl"):
        return -2.*a*p/(p + .1)
    if method == "rl_plus":
        return -2.*a*(1 - q)**.5*2*p/(q + .5*(q + 1))
    return -lp if method == "sft" else -2.*lp


def reduced(rows, method):
    "Return token losses of rows as one number."
    if method in ("dr_grpo", *EXPERT_IN_GROUP):
        count = B*n if method == "dr_grpo" else B*n + B
        return sum(row.sum() for row in rows)/LIMIT/count
    if method in ("gspo", "cppo"):
        return sum(row.mean() for row in rows)/len(rows)
    return torch.cat(rows).mean()


def by_hand(tiny, ro, method):
    "Return the gradient from the published formula."
    policy = Policy.from_pretrained(tiny, bits=4)
    own = policy.logps(ro.problems, ro.grouped)
    theirs = policy.logps(ro.problems[:3], [p.expert for p in ro.problems[:3]])
    terms = []
    expert_terms = []
    for g in range(B):
        R, counted = group_rewards(ro, own.mask.sum(1), g, method)
        A = advantages(counted, method)
        for i in kept_rows(A, method):
            lp = own.logp[g*n + i][own.mask[g*n + i]]
            terms.append(own_term(lp, A[i], method))
        if g < 3 and method in HEARS_EXPERTS:
            a = A[-1] if method in EXPERT_IN_GROUP else 1.1 - R.mean()
            expert_terms.append(expert_term(theirs.logp[g][theirs.mask[g]], a, method))
    rows = expert_terms if method == "sft" else terms + expert_terms
    gradient = torch.autograd.grad(reduced(rows, method), policy.trainable)
    return torch.cat([part.flatten() for part in gradient])


WRITTEN_OUT = ["grpo", "dr_grpo", "dapo", "gspo", "cppo", "luffy", "luffy_calibrl", "rl_plus",
               "sft", "grpo_sft"]


# ---- methods that weigh own and expert rows against each other, each written out with loops
def own_rows(ro, own, weight_of):
    "Return minus weight times log-prob for each own row's tokens; no weight: not in the update."
    rows = []
    for g in range(B):
        for i in range(n):
            weight = weight_of(g, i)
            if weight is not None:
                lp = own.logp[g*n + i][own.mask[g*n + i]]
                rows.append(-weight*lp)
    return rows


def written_out(tiny, ro, method):
    "Return the gradient of one update from the published definition."
    policy = Policy.from_pretrained(tiny, bits=4)
    own = policy.logps(ro.problems, ro.grouped)
    theirs = policy.logps(ro.problems[:3], [p.expert for p in ro.problems[:3]])
    experts = [theirs.logp[g][theirs.mask[g]] for g in range(3)]
    R, right = ro.rewards.view(B, n), ro.correct.view(B, n)
    every = torch.cat([ro.entropy[i][ro.mask[i]] for i in range(B*n)])
    H = float(every.sum())/len(every)

    def grpo(g, i):
        return 0. if R[g].std() < 1e-4 else float((R[g, i] - R[g].mean())/(R[g].std() + 1e-6))

    def plain(g, i):
        return None if not right[g].any() else float(R[g, i] - R[g].mean())

    def unlikely(g, i):
        share = float(right[g].float().mean())
        return (float(right[g, i]) - share)/share if share else 0.

    def signed(g, i):
        return .1*math.exp(H) if right[g, i] else -1.

    if method in ("chord", "chord_phi"):
        mu = .9 if method == "chord" else .1
        phi = [lp.detach().exp() for lp in experts]
        phi = [q*(1 - q) if method == "chord_phi" else q*0 + 1 for q in phi]
        taught = torch.cat([-w*lp for w, lp in zip(phi, experts, strict=True)]).mean()
        loss = (1 - mu)*torch.cat(own_rows(ro, own, grpo)).mean() + mu*taught
    elif method == "hpt":
        loss = torch.cat([*own_rows(ro, own, plain), -2.*experts[2]]).mean()
    elif method == "srft":
        taught = []
        for g, lp in enumerate(experts):
            A = 1.1 - (float(R[g].sum()) + 1.1)/(n + 1)
            taught.append(2.*(-A*lp.exp() - .5*math.exp(-H)*lp))
        loss = torch.cat([*own_rows(ro, own, signed), *taught]).mean()
    else:
        loss = torch.cat(own_rows(ro, own, unlikely if method == "maxrl" else grpo)).mean()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, policy.trainable)])


NEWER = ["chord", "chord_phi", "hpt", "srft", "cispo", "kl_cov", "maxrl"]


@pytest.mark.parametrize("method, gradient", [*((method, by_hand) for method in WRITTEN_OUT),
                                              *((method, written_out) for method in NEWER)])
def test_one_update_follows_the_published_formula(tiny, ro, method, gradient):
    options = {"expert_weight": 2.} if "expert_weight" in OBJECTIVES[method].takes else {}
    got, m = step(tiny, ro, method, **options)
    want = gradient(tiny, ro, method)
    assert want.norm() > 0 and (got - want).norm() < 1e-4*want.norm()
    assert m["first_ratio_error"] < 1e-4 and math.isfinite(m["loss"])


def test_kl_cov_marks_the_tokens_with_the_largest_product(ro):
    adv = group_advantages(ro.rewards.view(B, n))
    rows, _ = ROWS["kl_cov"](None, ro, adv, settled("kl_cov", cov_share=.05))
    tokens = [(i, t) for i in range(B*n) for t in range(int(ro.mask[i].sum()))]
    A = [float(adv.flatten()[i]) for i, t in tokens]
    lp = [float(ro.old_logp[i, t]) for i, t in tokens]
    mean_A, mean_lp = sum(A)/len(A), sum(lp)/len(lp)
    product = [(a - mean_A)*(b - mean_lp) for a, b in zip(A, lp, strict=True)]
    count = int(.05*len(tokens))
    largest = sorted(range(len(tokens)), key=lambda k: -product[k])[:count]
    found = {tuple(place) for place in rows.extra["marked"].nonzero().tolist()}
    smallest = min(product[k] for k in largest)
    assert len(found) == count > 3
    assert all(product[tokens.index(place)] >= smallest - 1e-6 for place in found)

    # In a larger model there may be fewer: at least one token is held.
    rows, _ = ROWS["kl_cov"](None, ro, adv, settled("kl_cov"))
    assert rows.extra["marked"].sum() == 1 and not rows.groups([0, 1]).extra["marked"].all()


def test_what_is_held_goes_less_far(tiny, ro):
    "After two updates the held tokens have moved less than without the penalty."
    def moved(weight):
        policy = Policy.from_pretrained(tiny, bits=4)
        cfg = Config(method="kl_cov", prompts=B, responses=n, mini_batches=2, max_grad_norm=1e9,
                     cov_share=.2, cov_weight=weight, max_new_tokens=LIMIT)
        whole = ro.groups([0, 1, 0, 1])
        adv = group_advantages(whole.rewards.view(B, n), True)
        marked = ROWS["kl_cov"](None, whole, adv, cfg.resolved())[0].extra["marked"]
        train_step(policy, torch.optim.SGD(policy.trainable, lr=.5), whole, cfg)
        with torch.no_grad():
            now = policy.logps(whole.problems, whole.grouped).logp
        marked = marked[:, :now.shape[1]]
        return float((now - whole.old_logp[:, :now.shape[1]])[marked].abs().mean())

    # The slope of the penalty does not shrink near 0: with weight 5 a step of this size overshoots
    free, held = moved(0.), moved(1.)
    assert held < .5*free


def test_only_what_the_verifier_accepts_is_imitated(tiny, ro):
    lies = replace(ro, problems=[replace(p, answer="-1") for p in ro.problems])
    alone = step(tiny, ro, "grpo")[0]
    verified = step(tiny, lies, "grpo_sft", verified=True)[0]
    assert (verified - alone).norm() < 1e-4*alone.norm()
    assert (step(tiny, lies, "grpo_sft")[0] - alone).norm() > .1*alone.norm()

    # True ones stay.
    believed = step(tiny, ro, "grpo_sft", verified=True)[0]
    assert torch.equal(believed, step(tiny, ro, "grpo_sft")[0])


def test_the_experts_share_falls_with_the_steps(tiny):
    cfg = Config(method="chord", mu_steps=4, steps=8)
    shares = [at_step(cfg, k).mu for k in range(1, 9)]
    assert shares[0] == .9 and shares[4:] == [pytest.approx(.05)]*4
    assert shares == sorted(shares, reverse=True)
    assert at_step(replace(cfg, mu_steps=0), 9).mu == pytest.approx(.05)


SPLIT = ["chord", "hpt", "srft", "kl_cov", "dr_grpo", "dapo", "gspo", "cppo", "luffy", "rl_plus",
         "luffy_calibrl", "grpo_sft", "sft", "calibrl_dr_grpo", "calibrl_gspo", "calibrl_cppo",
         "calibrl_reference", "calibrl_live"]


@pytest.mark.parametrize("method", SPLIT)
def test_micro_batches_add_up(tiny, ro, method):
    whole, m1 = step(tiny, ro, method, alpha=1.)
    split, m2 = step(tiny, ro, method, alpha=1., micro_tokens=1)
    assert whole.norm() > 0 and (whole - split).norm() < 1e-4*whole.norm()
    assert m1["loss"] == pytest.approx(m2["loss"], abs=1e-5)


@pytest.mark.parametrize("base", ["dr_grpo", "gspo", "cppo"])
def test_the_exploration_term_adds_its_own_gradient(tiny, ro, base):
    plain = step(tiny, ro, base)[0]
    with_zero = step(tiny, ro, f"calibrl_{base}", weight=0.)[0]
    strong = step(tiny, ro, f"calibrl_{base}", weight=2.)[0]
    assert torch.equal(plain, with_zero) and (strong - plain).norm() > .1*plain.norm()

    # The plain method has no such term.
    assert torch.equal(plain, step(tiny, ro, base, weight=5.)[0])


def test_every_name_is_there_and_says_where_from():
    assert REQUIRED <= set(OBJECTIVES)
    names = ("norm_std", "reduce", "clip_low", "clip_high", "dual_clip", "prune", "tries",
             "overlong")
    for method in OBJECTIVES:
        cfg = settled(method)
        assert None not in [getattr(cfg, name) for name in names]
        assert cfg.resolved() == cfg
    assert settled("dapo", clip_high=.5).clip_high == .5
    assert settled("dapo").clip_high == .28

    # Nothing of the first method is left.
    assert replace(Config(method="dapo"), method="grpo").resolved().clip_high == .2


def test_what_a_method_does_to_rows_is_what_its_objective_expects(ro, tiny):
    policy = Policy.from_pretrained(tiny, bits=4)
    adv = group_advantages(ro.rewards.view(B, n))
    for method, change in ROWS.items():
        rows, _ = change(policy, ro, adv, settled(method))
        assert rows.from_expert.any() == OBJECTIVES[method].expert_rows
    assert not any(o.expert_rows for method, o in OBJECTIVES.items() if method not in ROWS)


def test_a_live_expert_is_heard_where_nobody_is_right(ro, tiny):
    wrong = replace(ro, rewards=ro.rewards*0, correct=ro.correct & False)
    def push(rows, method):
        return step(tiny, rows, method, gap="sequence")[0].norm()

    assert push(wrong, "calibrl") == 0 < push(wrong, "calibrl_live")

    # And is not, if the verifier rejects it.
    lies = replace(wrong, problems=[replace(p, answer="-1") for p in ro.problems])
    assert push(lies, "calibrl_live") == 0


def test_an_expert_judged_wrong_teaches_luffy_to_avoid_it(ro, tiny):
    policy = Policy.from_pretrained(tiny, bits=4)
    liar = replace(ro, problems=[replace(p, answer="-1") for p in ro.problems])
    both, adv = ROWS["luffy"](policy, liar, torch.zeros(B, n), settled("luffy"))
    assert not both.correct[both.from_expert].any()
    assert (adv[:2, -1] < 0).all() and (adv[3] == 0).sum() >= 1


def test_rows_of_experts(ro, tiny):
    policy = Policy.from_pretrained(tiny, bits=4)
    both = with_experts(policy, ro)
    alone = expert_rows(policy, ro)
    assert both.n == n + 1
    assert both.from_expert.view(B, n + 1).tolist() == [[False]*n + [True]]*B
    assert [len(r) for r in both.responses] == both.mask.sum(1).tolist()
    assert both.responses[-1] == [] and alone.texts[3] == ""

    # The own rows come back as they were.
    rows = [i for i in range(B*(n + 1)) if i % (n + 1) < n]
    own = both.pick(rows, ro.problems, n)
    assert own.responses == ro.responses
    assert torch.equal(own.old_logp, ro.old_logp) and torch.equal(own.rewards, ro.rewards)

    # Rows of another width are stacked, too.
    names = ("mask", "old_logp", "expert_logp", "expert_mask", "entropy")
    wider = {name: F.pad(getattr(ro, name), (0, 3)) for name in names}
    wide = stack([ro, replace(ro, **wider)])
    assert wide.mask.shape == (2*B*n, ro.mask.shape[1] + 3)
    assert wide.mask.sum() == 2*ro.mask.sum()


def test_without_any_expert_sft_learns_nothing_and_the_others_go_on(tiny, ro):
    bare = replace(ro, problems=[replace(p, expert=None) for p in ro.problems],
                   expert_mask=ro.expert_mask & False, expert_logp=ro.expert_logp*0,
                   has_expert=ro.has_expert & False)
    assert step(tiny, bare, "sft")[0].norm() == 0
    for method in ("luffy", "grpo_sft"):
        assert step(tiny, bare, method)[0].norm() > 0


def test_entropy_and_accuracy_leave_the_expert_out(tiny, ro):
    a = step(tiny, ro, "grpo")[1]
    b = step(tiny, ro, "luffy")[1]
    assert all(a[k] == b[k] for k in ("entropy", "accuracy", "reward", "tokens", "length"))

    # The unsolved group has signal once the expert counts.
    assert a["silent_groups"] == .25 and b["silent_groups"] == 0.


def test_dynamic_sampling_drops_refills_and_gives_up(ro):
    cfg = Config(method="dapo", prompts=B, responses=n)
    asked = []
    def draw(k):
        asked.append(k)
        return ro

    # Groups without signal are dropped, and others drawn in their place.
    got, drawn = refill(ro, draw, cfg)
    correct = got.correct.view(B, n)
    tokens = int(ro.mask.sum())
    assert drawn == dict(groups_drawn=2*B, tokens_drawn=2*tokens)
    assert asked == [1] and len(got.problems) == B and int(got.mask.sum()) < 2*tokens
    assert not (correct == correct[:, :1]).all(1).any()
    got, drawn = refill(ro, draw, replace(cfg, tries=1))
    assert (got.responses, drawn) == (ro.responses, dict(groups_drawn=B, tokens_drawn=tokens))

    # The cap: one step without signal, not an endless loop.
    dull = replace(ro, correct=ro.correct & False)
    asked.clear()
    def draw_dull(k):
        asked.append(k)
        return dull

    got, drawn = refill(dull, draw_dull, replace(cfg, tries=3))
    assert asked == [1, 2] and drawn["groups_drawn"] == 3*B and len(got.problems) == B

    # Fewer than asked for is better than none.
    some = refill(dull, lambda k: ro if k == 1 else dull, replace(cfg, tries=3))[0]
    assert len(some.problems) == 3


def test_cppo_draws_what_it_will_drop(ro):
    got, drawn = refill(ro, lambda k: ro, Config(method="cppo", prompts=B, responses=n, prune=.75))
    assert drawn["groups_drawn"] == 4*B == len(got.problems)
    assert drawn["tokens_drawn"] == 4*int(ro.mask.sum()) == int(got.mask.sum())
    adv = torch.tensor([[3., -1., 0., 2.]]*B)
    kept, adv = ROWS["cppo"](None, ro, adv, settled("cppo", responses=n))
    assert kept.n == 2 and adv.tolist() == [[3., 2.]]*B
    assert kept.responses[:2] == [ro.responses[0], ro.responses[3]]


def test_relift_updates_on_experts_of_what_nobody_solved(tiny):
    "After a step in which nobody solves a thing comes one more: minus the experts' mean log-prob."
    from calibrl import train as rooms
    policy = Policy.from_pretrained(tiny)
    asked = problems(4, seed=5)
    asked[1] = replace(asked[1], expert=None)
    cfg = Config(method="relift", prompts=4, responses=2, mini_batches=1, steps=1,
                 max_grad_norm=1e9)
    def nobody(texts, problems):
        return [Score(False, False) for _ in problems]

    # nothing to reinforce, so the first update leaves the weights as they were
    before = [w.detach().clone() for w in policy.trainable]
    sgd = torch.optim.SGD(policy.trainable, lr=1.)
    row, = train(policy, asked, cfg, sgd, judge=nobody)
    order = next(rooms.batches(asked, 4, cfg.seed))
    hard = [p for p in order if p.expert][:2]
    assert row["unsolved"] == [g for g, p in enumerate(order) if p.expert]
    assert row["fine_tuned"] == 2 and row["tokens_trained"] > row["tokens"]
    moved = [(b - w.detach()).flatten() for b, w in zip(before, policy.trainable, strict=True)]

    # by hand, on a policy of its own
    fresh = Policy.from_pretrained(tiny)
    tokens = [[fresh.tokens(p.expert)] for p in hard]
    found = fresh.logps(hard, tokens)
    (-found.logp[found.mask].mean()).backward()
    want = [w.grad.flatten() for w in fresh.trainable]
    torch.testing.assert_close(torch.cat(moved), torch.cat(want), atol=2e-6, rtol=1e-3)
    assert row["fine_tune_loss"] == pytest.approx(
        -float(found.logp.detach()[found.mask].mean()), abs=1e-5)

    # the third waits for a fourth
    assert rooms.waiting(asked, cfg, [row]) == [p for p in order if p.expert][2:]
    assert rooms.fine_tuned(None, None, asked, cfg, [row | {"unsolved": row["unsolved"][:1]}]) == {}


def test_overlong_penalty():
    lengths = [0, 40, 44, 48, 50]
    assert overlong_penalty(lengths, 50, .2).tolist() == pytest.approx([0, 0, -.4, -.8, -1])
    assert overlong_penalty([50], 50, 0.).tolist() == [0.]


KINDS = ["chord", "hpt", "srft", "kl_cov", "cispo", "maxrl", "dapo", "cppo", "luffy", "sft",
         "grpo_sft", "gspo", "calibrl_reference", "calibrl_live", "relift"]


@pytest.mark.parametrize("method", KINDS)
def test_the_generator_runs_every_kind(tiny, method):
    tries = 2 if method == "dapo" else None
    cfg = Config(method=method, prompts=2, responses=3, steps=2, tries=tries)
    rows = list(train(Policy.from_pretrained(tiny, bits=4), problems(16, seed=3), cfg))
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) and row["groups_drawn"] >= 2 for row in rows)
    if method == "cppo":
        assert rows[0]["groups_drawn"] == 4
    drawn_or_trained = [(row["tokens_drawn"], row["tokens"]) for row in rows]
    assert all(drawn >= tokens > 0 for drawn, tokens in drawn_or_trained)


BAD_OPTIONS = [
    ("prune", 1.0, "below 1"),
    ("overlong", 2.0, "below 1"),
    ("tries", 0, "whole number from 1"),
    ("clip_low", -.1, "clip_low must be"),
    ("expert_weight", math.nan, "expert_weight must be")]


@pytest.mark.parametrize("option, value, message", BAD_OPTIONS)
def test_bad_method_options_are_named(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(method="grpo_sft" if option == "expert_weight" else "dapo", **{option: value})


def test_what_is_off_is_off():
    assert math.exp(20) < OFF
    assert set(EXPERT_TOKENS) == {"sft", "luffy", "rl_plus", "weighed", "unsure", "likely"}
    lp = torch.tensor([[0., -30.]])
    old = torch.tensor([[-19., 0.]])
    mask = torch.ones(1, 2).bool()
    loss, k = hybrid_loss(lp, old, lp*0, torch.ones(1), [True], mask, weight=0., clip_low=1.,
                          clip_high=OFF, dual_clip=OFF)
    assert loss.item() == pytest.approx(-(math.exp(19) + math.exp(-20))/2, rel=1e-5)
    assert k["clip_fraction"] == 0


def test_the_reference_is_the_policy_without_its_adapter(tiny, ro):
    policy = Policy.from_pretrained(tiny, bits=4)
    base = Policy.from_pretrained(tiny, bits=4, lora_rank=0)
    for w in policy.trainable:
        w.data += .02*torch.randn_like(w)
    cfg = settled("calibrl_reference")
    rows, adv = ROWS["calibrl_reference"](policy, ro, torch.ones(B, n), cfg)
    with torch.no_grad():
        own = policy.logps(ro.problems, ro.grouped)
        want = base.logps(ro.problems, ro.grouped)
    T = want.logp.shape[1]
    torch.testing.assert_close(rows.expert_logp[:, :T], want.logp, atol=1e-5, rtol=1e-4)
    assert (own.logp - want.logp).abs().max() > .01
    assert torch.equal(rows.expert_mask, ro.mask) and rows.has_expert.all()
    assert adv.sum() == B*n and rows.expert_logp[~ro.mask].count_nonzero() == 0


def sums():
    "Return problems without pictures."
    out = []
    for a in range(2, 4):
        for b in range(5, 7):
            expert = f"<think>{a}+{b}={a + b}</think><answer>{a + b}</answer>"
            out.append(Problem(f"{a}+{b}=", str(a + b), expert=expert))
    return out


TEXT_ONLY = [("sft", True), ("grpo_sft", True), ("luffy", True), ("calibrl", False)]


@pytest.mark.parametrize("method, rises", TEXT_ONLY)
def test_text_only_models_take_the_same_path(checkpoint, method, rises):
    "What learns from experts raises their log-probability; all groups here are wrong."
    ps = sums()
    policy = Policy.from_pretrained(checkpoint("qwen2"))
    def of_experts():
        with torch.no_grad():
            return policy.logps(ps, [p.expert for p in ps]).logp.sum()

    cfg = Config(method=method, prompts=4, responses=2, mini_batches=1, steps=2, lr=1e-2,
                 max_new_tokens=8)
    before = of_experts()
    rows = list(train(policy, ps, cfg))
    assert (of_experts() > before) == rises
    assert rows[0]["solved_groups"] == 0 and (rows[0]["grad_norm"] > 0) == rises


@pytest.mark.parametrize("method", ["grpo", "calibrl", "luffy"])
def test_negatives_weigh_what_they_are_told(tiny, ro, method):
    "The gradient is linear in the advantages: twice the step with 2 is one with 1 and one with 3."
    once, twice, thrice = (step(tiny, ro, method, neg_weight=w)[0] for w in (1., 2., 3.))
    assert (twice - once).norm() > .05*once.norm()
    assert (2*twice - once - thrice).norm() < 1e-4*thrice.norm()


def test_negatives_of_zero_leave_the_right_answers(tiny, ro):
    "Against the sum over the answers above their group's mean, written out."
    policy = Policy.from_pretrained(tiny, bits=4)
    own = policy.logps(ro.problems, ro.grouped)
    total = 0.
    for g in range(B):
        R = ro.rewards[g*n:(g + 1)*n]
        A = (R - R.mean())/(R.std() + 1e-6) if R.std() > 1e-4 else R*0
        for i in range(n):
            total = total - max(float(A[i]), 0.)*own.logp[g*n + i][own.mask[g*n + i]].sum()
    want = torch.autograd.grad(total/own.mask.sum(), policy.trainable)
    want = torch.cat([part.flatten() for part in want])
    got = step(tiny, ro, "grpo", neg_weight=0.)[0]
    assert (got - want).norm() < 1e-4*want.norm()


UNREAD = [("sft", "neg_weight", 2.), ("calibrl_live", "neg_weight", 2.),
          ("calibrl", "expert_weight", 2.), ("grpo", "weigh_by_adv", False)]


@pytest.mark.parametrize("method, option, value", UNREAD)
def test_an_option_that_a_method_does_not_read_is_refused(method, option, value):
    with pytest.raises(ValueError, match=f"{option}: the method {method} does not read it"):
        Config(method=method, **{option: value})
