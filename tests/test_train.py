"""One step against a hand-made gradient, runs against their repetition, and configurations against
nonsense."""
import math
from dataclasses import fields, replace

import pytest
import torch

from calibrl.geometry import problems
from calibrl.rollout import Policy, rollout
from calibrl.train import Config, batches, load_config, save_config, train, train_step


def mixed_rollouts(policy, n=4, B=4):
    "Real responses whose verdicts are set by hand, so that every group has signal."
    ro = rollout(policy, problems(B, seed=11), n=n, seed=2)
    correct = torch.tensor([(i % n) < 1 + (i//n) % 2 for i in range(B*n)])
    return replace(ro, correct=correct, rewards=correct.float() + 0.1)


def weights_of(policy):
    return [w.detach().clone() for w in policy.trainable]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def sgd(policy, lr=0.1):
    return torch.optim.SGD(policy.trainable, lr=lr)


def test_one_update_follows_the_formula(policy):
    """The parameter change of plain SGD equals minus lr times the gradient of the published loss,
    written out here."""
    ro = mixed_rollouts(policy)
    cfg = Config(prompts=4, responses=4, mini_batches=1, alpha=0.3, weight=0.7, max_grad_norm=1e9)
    logp = policy.logps(ro.problems, ro.grouped).logp
    T = logp.shape[1]
    mask, old, e = ro.mask[:, :T], ro.old_logp[:, :T], ro.expert_logp[:, :T]
    rewards = ro.rewards.view(4, 4)
    adv = (rewards - rewards.mean(1, keepdim=True)).flatten()[:, None]
    s = torch.where(ro.correct, 1.0, -1.0)[:, None]
    x = -s*(logp - e)

    # ratio 1: nothing is clipped
    gate = torch.where(x > 0, x, 0.3*x)
    total = (-adv*(logp - old).exp() + 0.7*adv.abs()*gate)[mask].mean()
    grads = torch.autograd.grad(total, policy.trainable)
    before = weights_of(policy)
    m = train_step(policy, sgd(policy), ro, cfg)
    for w, b, g in zip(policy.trainable, before, grads, strict=True):
        torch.testing.assert_close(w.detach(), b - 0.1*g, atol=1e-6, rtol=1e-4)
    assert m["loss"] == pytest.approx(total.item(), abs=1e-5)
    assert m["first_ratio_error"] < 1e-4
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
    assert m["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_grpo_ignores_the_expert(policy, tiny):
    ro = mixed_rollouts(policy)
    cfg = Config(method="grpo", prompts=4, responses=4, mini_batches=2)
    other = replace(ro, expert_logp=ro.expert_logp*0 - 3.0)
    after = []
    for r in (ro, other):
        p = Policy.from_pretrained(tiny, bits=4)
        train_step(p, sgd(p), r, cfg)
        after.append(weights_of(p))
    assert equal(*after)
    p = Policy.from_pretrained(tiny, bits=4)
    train_step(p, sgd(p), other, replace(cfg, method="calibrl", weight=1.0))
    assert not equal(after[0], p.trainable)


def test_second_mini_batch_is_off_policy(policy):
    ro = mixed_rollouts(policy)
    m = train_step(policy, sgd(policy, 30.), ro, Config(prompts=4, responses=4, mini_batches=2))
    assert m["first_ratio_error"] < 1e-4 and abs(m["approx_kl"]) > 1e-6


def test_a_broken_gradient_changes_nothing_and_is_counted(policy):
    ro = mixed_rollouts(policy)
    hook = policy.trainable[0].register_hook(lambda g: g*float("nan"))
    before = weights_of(policy)
    m = train_step(policy, sgd(policy, 1.), ro, Config(prompts=4, responses=4))
    hook.remove()
    assert m["skipped_updates"] == 1.0 and equal(policy.trainable, before)


def test_entropy_counts_the_policys_own_tokens_only(policy):
    ro = rollout(policy, problems(2, seed=5), n=2, seed=1)
    m = train_step(policy, sgd(policy, 0.), ro, Config(prompts=2, responses=2, mini_batches=1))
    with torch.no_grad():
        own = policy.logps(ro.problems, ro.grouped)
    assert m["entropy"] == pytest.approx(float(own.entropy[own.mask].mean()), rel=1e-4)
    assert m["tokens"] == sum(map(len, ro.responses))


def test_a_sampler_that_disagrees_with_the_scorer_stops_the_run(policy, monkeypatch):
    sample = Policy.sample

    def off(self, *args, **kw):
        out = sample(self, *args, **kw)
        out.logp -= 0.1*(out.logp != 0)
        return out

    monkeypatch.setattr(Policy, "sample", off)
    steps = train(policy, problems(8), Config(prompts=4, responses=2, steps=1))
    with pytest.raises(RuntimeError, match="sampling and scoring do not agree"):
        next(steps)


def run(tiny, seed, **kw):
    policy = Policy.from_pretrained(tiny, bits=4, seed=seed)
    cfg = Config(prompts=4, responses=4, steps=3, seed=seed, **kw)
    rows = train(policy, problems(32), cfg)
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


def test_the_seed_decides_everything(tiny):
    a = run(tiny, 0)
    assert a == run(tiny, 0) != run(tiny, 1)
    assert [r["step"] for r in a] == [1, 2, 3]
    numbers = ("loss", "reward", "accuracy", "entropy", "gap", "clip_fraction", "grad_norm",
               "tokens")
    for key in numbers:
        assert math.isfinite(a[0][key])


def test_problems_without_expert_train_with_the_plain_surrogate(tiny):
    bare = [replace(p, expert=None) for p in problems(8)]
    policy = Policy.from_pretrained(tiny, bits=4)
    rows = list(train(policy, bare, Config(prompts=4, responses=4, steps=1)))
    assert rows[0]["expert_rows"] == 0 and rows[0]["exploration_loss"] == 0


def test_batches_visit_everything_once_an_epoch():
    stream = batches(list(range(7)), 3, seed=0)
    seen = sum((next(stream) for _ in range(7)), [])
    assert all(sorted(seen[i:i+7]) == list(range(7)) for i in (0, 7, 14))
    with pytest.raises(ValueError, match="problems is empty"):
        next(batches([], 2))


def test_nothing_to_train_is_said(tiny):
    steps = train(Policy.from_pretrained(tiny, lora_rank=0), problems(4), Config())
    with pytest.raises(ValueError, match="nothing to train"):
        next(steps)


@pytest.mark.parametrize("option, value, message", [
    ("method", "ppo", "method must be one of"),
    ("gap", "x", "gap must be one of"),
    ("reduce", "mean", "reduce must be one of"),
    ("alpha", -1.0, "alpha must be"),
    ("alpha", float("inf"), "alpha must be"),
    ("lr", "fast", "lr must be"),
    ("steps", 1.5, "steps must be"),
    ("steps", True, "steps must be"),
    ("prompts", 0, "prompts must be"),
    ("prompts", 3, "multiple of mini_batches"),
    ("temperature", 0.0, "temperature must be a number from 0.05"),
    ("seed", -1, "seed must be")])
def test_bad_options_are_named(option, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{option: value})


def kinds():
    "(option, its kind, whether it may be None) of every option."
    for f in fields(Config):
        yield f.name, getattr(f.type, "__args__", (f.type,))[0], f.default is None


WRONG = {bool: ["no", "false", 0, 1, 0.0, []], str: [True, 3, ["grpo"]], int: ["3", True, 1.5, [1]],
         float: ["0.5", True, [.5], float("nan")]}


def test_every_option_has_a_kind_that_is_checked():
    assert {kind for _, kind, _ in kinds()} == set(WRONG)


@pytest.mark.parametrize("option, kind, none", kinds(),
                         ids=lambda v: getattr(v, "__name__", str(v)))
def test_values_of_another_kind_are_refused_by_name(option, kind, none):
    "In TOML, `weigh_by_adv = \"no\"` is a text, and every text is true."
    for value in WRONG[kind] + ([] if none else [None]):
        with pytest.raises(ValueError, match=f"^{option} must be"):
            Config(**{option: value})
    if kind is bool:
        # an option that only some methods read is set with one of them
        method = "sft" if option == "verified" else "calibrl"
        kept = {getattr(Config(**{option: value, "method": method}), option)
                for value in (True, False)}
        assert kept == {True, False}


def test_a_text_for_a_truth_value_is_refused_in_a_file(tmp_path):
    (tmp_path/"c.toml").write_text('weigh_by_adv = "no"\n')
    with pytest.raises(ValueError, match="weigh_by_adv must be true or false, not 'no'"):
        load_config(tmp_path/"c.toml")


def test_configuration_files(tmp_path):
    path = tmp_path/"c.toml"
    save_config(Config(alpha=0.8, norm_std=True), path, model="m", bits=None)
    assert load_config(path) == Config(alpha=0.8, norm_std=True)
    assert load_config(path, steps=3, gap=None).steps == 3
    for text, said in (("alpha = =", "is not TOML"), ("beta = 1", "unknown option 'beta'")):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            load_config(path)
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        load_config(tmp_path/"none.toml")
