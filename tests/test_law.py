"""What is left of the method where the policy is surer of every answer than of its expert's."""
import json
import re
from dataclasses import replace

import pytest

from calibrl import algebra
from calibrl.cli import main
from calibrl.files import read_jsonl
from calibrl.rollout import Policy, rollout
from calibrl.train import gap_positive


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
