"""What a run is told of its data and its prompts, and that all of it is asked alike."""
import json

import pytest

from calibrl import train as T
from calibrl.algebra import tiny_checkpoint
from calibrl.cli import main
from calibrl.config import Config
from calibrl.eval import evaluate
from calibrl.rollout import Policy
from calibrl.tasks import Problem
from calibrl.verify import sandbox

ONE_STEP = ["--steps", "1", "--prompts", "2", "--responses", "2", "--mini-batches", "1",
            "--max-new-tokens", "4"]


# ---------------------------------------------------------------- which data

def sums(path, start):
    rows = [{"question": f"Solve x+{i}={2*i}.", "answer": str(i)} for i in range(start, start + 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_train_reads_the_split_and_configuration_that_data_check_reads(tmp_path, capsys):
    for name, start in (("easy", 1), ("hard", 40)):
        (tmp_path/"data"/name).mkdir(parents=True)
        sums(tmp_path/"data"/name/"train.jsonl", start)
        sums(tmp_path/"data"/name/"test.jsonl", start + 20)
    card = ["---", "configs:"]
    for name in ("easy", "hard"):
        card += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (tmp_path/"data"/"README.md").write_text("\n".join([*card, "---", ""]))

    which = ["--data", str(tmp_path/"data"), "--name", "hard", "--split", "test"]
    options = ["train", "--model", str(tiny_checkpoint()), *ONE_STEP, "--out", str(tmp_path/"run")]
    assert main([*options, *which]) == 0, capsys.readouterr().err
    assert "4 problems of 4 rows" in capsys.readouterr().out
    config = (tmp_path/"run"/"config.toml").read_text()
    assert 'name = "hard"' in config and 'split = "test"' in config

    # another one is another run
    assert main([*options, *which[:-1], "train"]) == 2
    assert "split was 'test' and is 'train' now" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--map", "--split", "--name", "--root"])
def test_the_embedded_world_has_no_columns_or_splits(option, tmp_path, capsys):
    assert main(["train", option, "x=y", "--out", str(tmp_path/"run"), *ONE_STEP]) == 2
    assert f"{option} is about a file or data set" in capsys.readouterr().err


# ---------------------------------------------------------------- the judge

LATEX = [Problem("How long is the diagonal?", r"2\sqrt{3}")]*2
PLAIN = [Problem("How long is the side?", "2")]*2


@pytest.fixture
def judge_starts(monkeypatch):
    "The list of what happens: the judge starts, responses are sampled."
    happened = []
    monkeypatch.setattr(sandbox.JUDGES, "control", None)
    monkeypatch.setattr(sandbox.JUDGES, "warm", lambda: happened.append("judge"))
    monkeypatch.setattr(Policy, "sample", sampled(Policy.sample, happened))
    return happened


def sampled(sample, happened):
    def noted(*args, **options):
        happened.append("sample")
        return sample(*args, **options)
    return noted


@pytest.mark.parametrize("problems, first", [(LATEX, ["judge", "sample"]), (PLAIN, ["sample"])])
def test_the_judge_starts_before_the_first_step_if_it_will_be_asked(judge_starts, problems, first):
    policy = Policy.from_pretrained(tiny_checkpoint(), lora_rank=2)
    cfg = Config(steps=1, prompts=2, responses=2, mini_batches=1, max_new_tokens=2)
    list(T.train(policy, problems, cfg))
    assert judge_starts[:len(first)] == first and judge_starts.count("judge") == len(first) - 1


@pytest.mark.parametrize("problems, first", [(LATEX, ["judge", "sample"]), (PLAIN, ["sample"])])
def test_the_judge_starts_before_the_first_answer(judge_starts, problems, first):
    policy = Policy.from_pretrained(tiny_checkpoint(), lora_rank=0)
    evaluate(policy, problems, max_new_tokens=2)
    assert judge_starts == first
