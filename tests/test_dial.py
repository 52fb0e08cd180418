"""Entropy on a dial: it turns, is traced, goes on after a stop as if there had been none, and is
refused where it moves nothing."""
import pytest

from calibrl import algebra
from calibrl.cli import main
from calibrl.compare.pull import pull_now
from calibrl.config import Config, save_config
from calibrl.dial import DAMPING, DIALS
from calibrl.files import read_jsonl
from calibrl.growth import entropy_on
from calibrl.rollout import Policy, rollout
from calibrl.runs.loop import run_in_folder
from calibrl.train import make_optimizer, train_step

SMALL = dict(prompts=2, responses=4, mini_batches=1, save_every=2)


def run(out, steps, cfg):
    "A run of so many steps in a folder, or the rest of one; its metrics, but for the clock."
    out.mkdir(exist_ok=True)
    cfg = Config(**{**SMALL, **cfg, "steps": steps})
    save_config(cfg, out/"config.toml")
    policy = Policy.from_pretrained(algebra.tiny_checkpoint())
    run_in_folder(policy, algebra.problems(6), cfg, out)
    return [{k: v for k, v in row.items() if k != "seconds"}
            for row in read_jsonl(out/"metrics.jsonl")]


@pytest.mark.parametrize("dial, start", [("alpha", "alpha"), ("bonus", "entropy_bonus")])
def test_a_dial_goes_on_where_it_stood(tmp_path, dial, start):
    cfg = dict(target_entropy=.5, dial=dial)
    whole = run(tmp_path/"whole", 4, cfg)
    stopped = run(tmp_path/"parts", 2, cfg)
    assert stopped == whole[:2]
    assert run(tmp_path/"parts", 4, cfg) == whole

    # the first step is as told, and each further one turns by what was missing, and by its change
    knob = DIALS[dial]
    assert whole[0]["dial"] == getattr(Config(), start)
    entropies = [row["entropy"] for row in whole]
    means = [sum(entropies[:n])/n for n in (1, 1, 2, 3)]
    for step, (before, after) in enumerate(zip(whole, whole[1:], strict=False)):
        change = means[step] - means[step + 1]
        turn = knob.up*knob.rate*(.5 - means[step + 1] + DAMPING*change)
        wanted = min(knob.most, max(knob.least, before["dial"] + turn))
        assert after["dial"] == pytest.approx(wanted, abs=1e-9)
    assert whole[-1]["dial"] != whole[0]["dial"]


def test_what_relift_waits_for_is_known_after_a_stop(tmp_path):
    "Which questions nobody solved follows from the metrics, so a resumed run goes on as one."
    whole = run(tmp_path/"whole", 3, dict(method="relift"))
    assert run(tmp_path/"parts", 2, dict(method="relift")) == whole[:2]
    assert run(tmp_path/"parts", 3, dict(method="relift")) == whole
    assert any(row["unsolved"] for row in whole) and whole[-1]["fine_tuned"] == 1


def test_the_bonus_lifts_entropy():
    asked = algebra.problems(8, seed=2)
    after = {}
    for bonus in (0., 1.):
        policy = Policy.from_pretrained(algebra.tiny_checkpoint())
        ro, fresh = [rollout(policy, some, n=4, seed=1) for some in (asked[:4], asked[4:])]
        cfg = Config(prompts=4, mini_batches=1, entropy_bonus=bonus)
        train_step(policy, make_optimizer(policy, cfg), ro, cfg)
        after[bonus] = entropy_on(policy, fresh, cfg)
    assert after[1.] > after[0.] + 1e-3


def test_a_dial_that_moves_nothing_is_refused_before_anything_is_loaded(tmp_path, capsys,
                                                                        monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, said in ((["--dial", "alpha"], "target_entropy"),
                        (["--target-entropy", ".2", "--dial", "alpha", "--method", "grpo"],
                         "moves nothing in the method grpo"),
                        (["--target-entropy", ".2", "--dial", "volume"], "bonus, alpha")):
        assert main(["train", *words]) == 2
        assert said in capsys.readouterr().err
        assert not any(tmp_path.iterdir())


def test_the_term_of_grpo_holds_the_policy_near_its_start():
    asked = algebra.problems(4, seed=2)
    moved = {}
    for weight in (0., 5.):
        policy = Policy.from_pretrained(algebra.tiny_checkpoint())
        ro = rollout(policy, asked, n=4, seed=1)
        cfg = Config(prompts=4, mini_batches=1, kl_weight=weight, micro_tokens=300)
        optimizer = make_optimizer(policy, cfg)
        for _ in range(4):
            train_step(policy, optimizer, ro, cfg)
        logp = policy.logps(ro.problems, ro.grouped).logp.detach()
        moved[weight] = float((logp - ro.old_logp)[ro.mask].abs().mean())
    assert 0 < moved[5.] < .9*moved[0.]


def test_the_term_goes_with_whoever_takes_gradients_of_a_step():
    policy = Policy.from_pretrained(algebra.tiny_checkpoint())
    cfg = Config(method="grpo_sft", prompts=8, responses=8, kl_weight=1.)
    assert pull_now(policy, algebra.problems(8), cfg, 0) > 0
    with pytest.raises(ValueError, match="kl_weight: the method sft"):
        Config(method="sft", kl_weight=1.)
