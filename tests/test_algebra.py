"""The world in words: problems, splits, experts, the tiny checkpoint, and the training code that
runs on it unchanged."""
import importlib.resources
import json
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from calibrl import algebra
from calibrl.algebra import (blind_bound, build_checkpoint, expert, pool, problems, tiny_checkpoint,
                             tiny_tokenizer)
from calibrl.rollout import Policy, rollout
from calibrl.tasks import INSTRUCTION, score
from calibrl.train import Config, make_optimizer, train_step
from calibrl.worlds.kit import SPLITS
from calibrl.worlds.worded import FAMILIES

TRUTH = {                                             # the answers once more, without recipes
    "order": lambda a, b, c: a + b*c,
    "bracket": lambda a, b, c: (a + b)*c,
    "two_step": lambda a, b, c: (c - b)/a,
    "both_sides": lambda a, b, c, d: (d - b)/(a - c),
    "insert": lambda x, a, b: a*x + b,
    "square": lambda x, a: x*x + a*x,
    "steps": lambda a, b, n: a + (n - 1)*(b - a),
    "part": lambda k, d, n: k*n/d,
    "mean": lambda a, b, c: (a + b + c)/3,
    "mean_back": lambda a, b, m: 3*m - a - b,
    "system": lambda s, d: (s + d)/2,
    "then": lambda a, b, c, d, e: d*(c - b)/a + e,
    "brackets": lambda a, b, c, d: (a + b)*(c - d),
}

TRANSFER = {                                          # families that are in the exam alone
    "bracket_last": lambda a, b, c: c*(a + b),
    "less": lambda a, b, c: (c + b)/a,
    "turned": lambda a, b, c: (c - b)/a,
    "insert_first": lambda x, a, b: b + a*x,
    "square_more": lambda x, a: x*x + a,
    "part_of": lambda k, d, n: k*n/d,
    "mean_of_two": lambda a, b: (a + b)/2,
    "mean_with": lambda x, a, b: (a + x + b)/3,
}


@pytest.fixture(scope="module")
def policy():
    return Policy.from_pretrained(tiny_checkpoint(), seed=0)


def test_counts_and_splits():
    sizes = {split: len(pool(split)) for split in SPLITS}
    assert sizes["train"] >= 1500 and min(sizes.values()) >= 200
    hard = {family.name for family in FAMILIES.values() if family.hard}
    assert len(hard) >= 2
    assert {family.name for family, _ in pool("test")} == set(FAMILIES) - hard
    assert {family.name for family, _ in pool("hard")} == hard
    assert .15 < sum(family.hard for family, _ in pool("train"))/sizes["train"] < .4
    seen = {}
    asked = []
    for split in SPLITS:
        for family, numbers in pool(split):           # not even the same numbers in another order
            assert seen.setdefault((family.name, *sorted(numbers)), split) == split
        asked += [p.question for p in problems(sizes[split], split=split)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("name", list(TRUTH))
def test_experts_are_right(name):
    for numbers in FAMILIES[name].pool:
        text, answer = expert(FAMILIES[name], numbers)
        assert float(answer) == TRUTH[name](*numbers) > 0
        for step in text.split("</think>")[0].split(";")[1:]:
            left, _, right = step.partition("=")
            assert eval(left) == int(right), step
    verdict = score(text, answer)
    assert verdict.correct and verdict.formatted
    assert set(TRUTH) == set(FAMILIES)


@pytest.mark.parametrize("split, truth", [("larger", TRUTH), ("transfer", TRANSFER)])
def test_further_exams_are_right_and_in_no_training(split, truth):
    asked = problems(len(pool(split)), split=split)
    assert len({p.question for p in asked}) == len(asked) >= 400
    for p in asked:
        name, *numbers = p.id.split("-")
        assert float(p.answer) == truth[name](*map(int, numbers)) > 0
        assert score(p.expert, p.answer).correct
    known = {p.question for s in SPLITS for p in problems(len(pool(s)), split=s)}
    assert not known & {p.question for p in asked}
    assert {p.tags["family"] for p in asked} <= truth.keys()
    assert blind_bound(asked) < .15


def test_the_question_holds_the_numbers():
    for p in problems(60, seed=3):
        name, *numbers = p.id.split("-")
        assert not p.images and p.tags["family"] == name
        assert all(re.search(rf"(?<!\d){number}(?!\d)", p.question) for number in numbers)
        assert score(p.expert, p.answer).correct


def test_same_seed_same_problems_in_any_process():
    first = problems(8, seed=5)
    assert first == problems(8, seed=5) != problems(8, seed=6)
    assert problems(3, seed=5) == first[:3] and problems(0) == []
    code = "from calibrl.algebra import problems; print([p.id for p in problems(8, seed=5)])"
    env = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=env)
    assert done.stdout.strip() == str([p.id for p in first])


def test_more_than_the_split_deals_again():
    n = len(pool("hard"))
    ids = [p.id for p in problems(n + 2, split="hard")]
    assert len(set(ids[:n])) == n and ids[n] in ids[:n]


def test_mistakes_are_named():
    for bad in ("dev", "", None):
        with pytest.raises(ValueError, match="split must be one of train, test, hard"):
            problems(2, split=bad)
    with pytest.raises(ValueError, match="n must be 0 or more"):
        problems(-1)


def test_a_constant_answer_does_badly():
    for split in SPLITS:
        assert blind_bound(problems(len(pool(split)), split=split)) < .15
    two = problems(2)
    assert blind_bound(two) == 1. or two[0].tags["family"] == two[1].tags["family"]


def test_demonstrations_are_imperfect():
    rng = random.Random(0)
    for family in FAMILIES.values():
        numbers = family.pool[len(family.pool)//2]
        answer = expert(family, numbers)[1]
        said = [algebra.demonstrate(family, numbers, rng) for _ in range(200)]
        verdicts = [score(text, answer) for text in said]
        assert len(set(said)) > 3 and all(verdict.formatted for verdict in verdicts)
        assert not any(re.search(r";[a-z]=", text) for text in said)
        right = sum(verdict.correct for verdict in verdicts)
        assert right < 16 if family.hard else 10 < right < 160


def test_checkpoint_is_small_and_standard(policy):
    from transformers import AutoTokenizer
    path = tiny_checkpoint()
    assert sum(file.stat().st_size for file in path.iterdir()) < 3*2**20
    own = [w.numel() for name, w in policy.model.named_parameters() if "lora" not in name]
    assert sum(own) < 600_000
    tok = AutoTokenizer.from_pretrained(path)
    vocabulary = tok.get_vocab()                                   # the folder is this code's
    assert vocabulary == tiny_tokenizer().get_vocab() == policy.tokenizer.get_vocab()
    assert len(tok(INSTRUCTION).input_ids) == 1
    for split in SPLITS:
        for p in problems(120, split=split):
            for text in (p.expert, p.question):
                ids = tok(text).input_ids
                assert tok.decode(ids) == text and tok.unk_token_id not in ids and len(ids) < 64
    for layer in policy.core.modules():
        if type(layer) is torch.nn.Linear and "lora" not in str(layer):
            assert all(d % 16 == 0 for d in layer.weight.shape)


def test_the_start_knows_the_steps_and_seldom_the_way(policy):
    easy = rollout(policy, problems(96, split="test"), n=4, seed=0)
    hard = rollout(policy, problems(96, split="hard"), n=4, seed=0)
    accuracy = easy.correct.float().mean()
    assert .1 < accuracy < .3
    assert sum(verdict.formatted for verdict in easy.scores)/len(easy.scores) > .95
    assert .002 <= hard.correct.float().mean() < .05
    best_of_4 = easy.correct.view(96, 4).any(1).float().mean()
    assert best_of_4 > accuracy + .15                      # something to sharpen


def test_a_step_trains_on_text_alone():
    torch.manual_seed(0)
    policy = Policy.from_pretrained(tiny_checkpoint(), seed=0)
    cfg = Config(prompts=4, responses=4, mini_batches=1, gap="sequence")
    said = rollout(policy, problems(4, seed=3), n=4, seed=5)
    before = [w.detach().clone() for w in policy.trainable]
    got = train_step(policy, make_optimizer(policy, cfg), said, cfg)
    assert got["first_ratio_error"] < 1e-4 and got["grad_norm"] > 0
    assert any((w != was).any() for w, was in zip(policy.trainable, before, strict=True))
    assert said.has_expert.all()


def test_short_rebuild_is_deterministic_and_loads(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses, weights = {}, {}
    try:
        for name, seed in (("one", 3), ("two", 3), ("other", 4)):
            losses[name] = build_checkpoint(tmp_path/name, steps=4, seed=seed, progress=False)
            weights[name] = (tmp_path/name/"model.safetensors").read_bytes()
    finally:
        torch.set_num_threads(threads)
    assert losses["one"] == losses["two"] != losses["other"]
    assert weights["one"] == weights["two"] != weights["other"]
    assert losses["one"][-1] < losses["one"][0]
    said = rollout(Policy.from_pretrained(tmp_path/"one"), problems(1), n=2, max_new_tokens=4)
    assert said.mask.any() and not list(tmp_path.glob("*.part*"))


def test_checkpoint_falls_back_to_the_cache(tmp_path, monkeypatch):
    built = []
    def fake(path):
        built.append(path)
        path.mkdir(parents=True)
        (path/"model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path/"package")
    monkeypatch.setattr(algebra, "build_checkpoint", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    assert tiny_checkpoint() == tiny_checkpoint() == tmp_path/"cache"/"calibrl"/"algebra"
    assert len(built) == 1


def test_the_command_wants_one_folder():
    command = [sys.executable, "-m", "calibrl.algebra"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "usage: python -m calibrl.algebra OUT" in done.stderr


SMALL = Config(steps=1, prompts=2, responses=2, mini_batches=1)


def test_compare_runs_here_too_and_never_mixes_worlds(tmp_path, monkeypatch):
    from calibrl import compare
    from calibrl.compare import many
    record = compare.one_run("grpo", 0, SMALL, tmp_path, size=2, k=2, world="algebra")
    assert record["world"] == "algebra" and len(record["curve"]) == 1
    assert record["exam"]["hard"]["n"] == 1
    monkeypatch.setattr(many, "run_in_parallel", lambda *a: pytest.fail("a run began"))
    def again(method, **kw):
        exam = dict(size=2, k=2)
        return compare.compare([method], [0], SMALL, tmp_path, show=None, **exam, **kw)
    assert again("grpo", world="algebra")[0]["seeds"] == 1
    with pytest.raises(ValueError, match="holds records of the world algebra, not geometry"):
        again("grpo")
    # A record from before there were worlds is one of the drawn world
    old = {key: value for key, value in record.items() if key != "world"}
    (tmp_path/"grpo-0.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="holds records of the world geometry"):
        again("luffy", world="algebra")


@pytest.mark.parametrize("call", [
    lambda compare, out: compare.compare(["grpo"], [0], SMALL, out, world="chess"),
    lambda compare, out: compare.one_run("grpo", 0, SMALL, out, world="chess"),
    lambda compare, out: compare.compare_methods("grpo", world="chess", out=str(out)),
], ids=["compare", "one_run", "compare_methods"])
def test_an_unknown_world_is_named(call, tmp_path):
    from calibrl import compare
    with pytest.raises(ValueError, match="world: must be one of geometry, algebra, not 'chess'"):
        call(compare, tmp_path)


@pytest.mark.parametrize("kind", ["noisy", "wrong"])
def test_no_experts_are_swapped_where_questions_differ(kind, tmp_path):
    from calibrl import compare
    with pytest.raises(ValueError, match="none do"):
        compare.compare([f"luffy:experts={kind}"], [0], replace(SMALL, seed=0), tmp_path,
                        world="algebra")
