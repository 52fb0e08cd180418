"""What is left of the method where the policy is surer of every answer than of its expert's."""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrl import algebra
from calibrl.cli import main
from calibrl.files import read_jsonl
from calibrl.loss.law import negatives_weight
from calibrl.rollout import Policy, rollout
from calibrl.train import Config, gap_positive, make_optimizer, train_step

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"tools"))
import growth_record


def foreign(problem):
    "The same problem, its expert told in words that the policy knows and never writes."
    thought = re.search(r"<think>(.*)</think>", problem.expert)[1]
    told = re.sub(r"([^=;]+)=(\d+)", r"Find(\1), \2 is(\1).", thought)
    return replace(problem, expert=problem.expert.replace(thought, told.replace(";", " ")))


@pytest.fixture(scope="module")
def problems():
    return [foreign(p) for p in algebra.problems(4, seed=3)]


@pytest.fixture(scope="module")
def policy():
    return Policy.from_pretrained(algebra.tiny_checkpoint())


def write(problems, path):
    "Write problems as a data file; return it."
    rows = [{"question": p.question, "answer": p.answer, "expert": p.expert} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_says_that_its_experts_are_not_read(problems, tmp_path, capsys):
    data = write(problems, tmp_path/"foreign.jsonl")
    out = tmp_path/"run"
    words = ["train", "--model", str(algebra.tiny_checkpoint()), "--data", str(data), "--preset",
             "demo", "--prompts", "2", "--responses", "2", "--steps", "6", "--gap", "sequence",
             "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert " ".join(said.split()).count("step 5: the expert is not read") == 1
    assert [row["gap_positive"] for row in read_jsonl(out/"metrics.jsonl")] == [1.]*6
    assert "the expert is not read" in (out/"report.html").read_text(encoding="utf-8")


def test_experts_in_the_style_of_the_policy_are_read(policy):
    own = rollout(policy, algebra.problems(8, seed=3), n=4, seed=1)
    assert 0 < gap_positive(own, "sequence")["gap_positive"] < .9


def moved(groups, optimizer=make_optimizer, **settings):
    "What one step makes of the adapter: its weights as one tensor, less what they were."
    policy = Policy.from_pretrained(algebra.tiny_checkpoint())
    cfg = Config(prompts=len(groups.problems), mini_batches=1, **settings)
    before = [w.detach().clone() for w in policy.trainable]
    train_step(policy, optimizer(policy, cfg), groups, cfg)
    pairs = zip(policy.trainable, before, strict=True)
    return torch.cat([(w.detach() - b).flatten() for w, b in pairs])


def test_where_no_expert_is_read_a_step_is_grpo_with_its_wrong_answers_weighted(policy, problems):
    groups = rollout(policy, problems, n=8, seed=1)
    ours = dict(gap="mean", weight=.8, alpha=.3)
    assert gap_positive(groups, "mean")["gap_positive"] == 1 and groups.correct.any()

    # other experts, even less likely: the same to the last bit
    step = moved(groups, **ours)
    other = replace(groups, expert_logp=groups.expert_logp*3)
    assert torch.equal(step, moved(other, **ours))

    # no expert: the same gradient but for its length, which Adam does not see, to within rounding
    def descend(policy, cfg):
        return torch.optim.SGD(policy.trainable, lr=1.)
    nobody = replace(groups, has_expert=torch.zeros_like(groups.has_expert))
    step = moved(groups, descend, **ours)
    longer = 1 + .8*.3
    weighted = moved(nobody, descend, weight=0., neg_weight=negatives_weight(.3, .8))
    assert float((step - longer*weighted).norm()) < 1e-4*float(step.norm())
    unweighted = moved(nobody, descend, weight=0.)
    assert float((step - longer*unweighted).norm()) > 1e-2*float(step.norm())


def test_the_record_of_growth_has_its_settings_and_a_row_for_each_batch(tmp_path):
    out = tmp_path/"growth.jsonl"
    growth_record.main(["--world", "algebra", "--stages", "0", "--batches", "2", "--problems", "2",
                        "--responses", "4", "--out", str(out)])
    settings, *rows = read_jsonl(out)
    assert (settings["world"], settings["stages"], settings["batches"]) == ("algebra", [0], 2)
    assert [(row["stage"], row["batch"]) for row in rows] == [(0, 0), (0, 1)]
    kept = read_jsonl(Path(growth_record.__file__).parent.parent/"nbs/records/growth/algebra.jsonl")
    assert rows[0].keys() == kept[1].keys() and settings.keys() == kept[0].keys()
