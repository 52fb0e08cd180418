"The drawn world: problems, splits, drawing, tokenizer, the tiny checkpoint and its rebuild."
import importlib.resources
import math
import random
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st

from calibrl import geometry
from calibrl.geometry import (blind, build_checkpoint, expert, image_blind_bound, layout, paint,
                              pool, problems, tiny_checkpoint)
from calibrl.tasks import INSTRUCTION, Problem, messages, score
from calibrl.worlds.drawing import SIZE
from calibrl.worlds.drawn import FAMILIES
from calibrl.worlds.kit import run_recipe
from calibrl.worlds.solutions import demonstrate
from calibrl.worlds.tiny_vl import tiny_processor

SPLITS = ("train", "test", "hard")
TRUTH = {                                             # the answers once more, without recipes
    "rect_area": lambda w, h: w*h,
    "rect_perim": lambda w, h: 2*(w + h),
    "tri_area": lambda b, h: b*h/2,
    "tri_perim": lambda a, b, c: a + b + c,
    "angle": lambda a, b: 180 - a - b,
    "hypotenuse": lambda a, b: math.hypot(a, b),
    "leg": lambda a, c: math.sqrt(c*c - a*a),
    "similar": lambda a, b, c: b*c/a,
    "ell": lambda w, h, a, b: w*h - a*b,
    "trap": lambda a, b, h: (a + b)/2*h,
    "cut": lambda w, h, a, b: w*h - a*b/2,
    "back": lambda p, w: w*(p/2 - w),
}


def test_counts():
    sizes = {split: len(pool(split)) for split in SPLITS}
    assert sum(sizes.values()) >= 2000 and sizes["train"] >= 1500 and min(sizes.values()) >= 100
    assert len(FAMILIES) >= 6
    easy = {family.name for family in FAMILIES.values() if not family.hard}
    assert {family.name for family, _ in pool("test")} == easy
    hard_share = sum(family.hard for family, _ in pool("train"))/sizes["train"]
    assert .1 < hard_share < .25
    for family in FAMILIES.values():
        assert len(set(family.pool)) == len(family.pool)


def test_splits_are_disjoint_even_for_mirror_images():
    seen = {}
    ids = set()
    for split in SPLITS:
        for family, numbers in pool(split):
            assert seen.setdefault((family.name, *sorted(numbers)), split) == split
        ids |= {p.id for p in problems(len(pool(split)), split=split)}
    assert len(ids) == sum(len(pool(split)) for split in SPLITS)


@pytest.mark.parametrize("name", list(TRUTH))
def test_answers_follow_from_the_numbers_and_experts_are_right(name):
    family = FAMILIES[name]
    for numbers in family.pool:
        text, answer = expert(family, numbers)
        assert float(answer) == pytest.approx(TRUTH[name](*numbers)) and float(answer) > 0
    verdict = score(text, answer)
    assert verdict.correct and verdict.formatted


def test_expert_solutions_score_through_the_verifier():
    for split in SPLITS:
        for p in problems(25, seed=1, split=split):
            verdict = score(p.expert, p.answer)
            assert verdict.correct and verdict.formatted, p.id


def test_the_sizes_stand_only_in_the_picture():
    for family in FAMILIES.values():
        assert not re.search(r"\d", family.ask)
    for p in problems(12):                             # and the picture shows those of the id
        name, *digits = p.id.split("-")
        numbers = tuple(map(int, digits))
        labels = layout(FAMILIES[name], numbers, random.Random(0))["labels"]
        shown = [int(re.sub(r"\D", "", text)) for _, text, _, _ in labels if text != "?"]
        assert sorted(shown) == sorted(numbers)


def as_bytes(some):
    "What tells two lists of problems apart."
    return [(p.id, p.answer, p.images[0].tobytes()) for p in some]


def test_same_seed_same_problems_other_seed_others():
    first = problems(8, seed=5)
    assert as_bytes(first) == as_bytes(problems(8, seed=5)) != as_bytes(problems(8, seed=6))
    assert as_bytes(problems(3, seed=5)) == as_bytes(first)[:3]      # a shorter list is a prefix
    assert {p.images[0].size for p in first} == {(SIZE, SIZE)}
    assert {p.images[0].mode for p in first} == {"RGB"}
    assert {p.tags["level"] for p in problems(60)} == {"1", "2", "3"}


def test_problems_are_the_same_in_another_process():
    code = ("import hashlib; from calibrl.geometry import problems; "
            "drawn = b''.join(p.images[0].tobytes() + p.id.encode() for p in problems(4)); "
            "print(hashlib.sha1(drawn).hexdigest())")
    runs = set()
    for seed in "12":
        env = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              check=True, env=env)
        runs.add(done.stdout)
    assert len(runs) == 1


def test_more_than_the_split_deals_again_in_new_drawings():
    n = len(pool("hard"))
    dealt = problems(n + 3, split="hard")
    assert len({p.id for p in dealt[:n]}) == n and problems(0) == []
    twin = next(p for p in dealt[:n] if p.id == dealt[n].id)
    assert twin.images[0].tobytes() != dealt[n].images[0].tobytes()
    assert twin.answer == dealt[n].answer


@pytest.mark.parametrize("bad", ["dev", "", "Train", None])
def test_unknown_split(bad):
    with pytest.raises(ValueError, match="split must be one of train, test, hard"):
        problems(2, split=bad)


def test_negative_count():
    with pytest.raises(ValueError, match="n must be 0 or more"):
        problems(-1)


def test_blind():
    p = problems(1)[0]
    unseen = blind(p)
    assert len(unseen.images[0].getcolors()) == 1
    assert unseen.images[0].size == p.images[0].size
    assert (unseen.id, unseen.answer, unseen.question) == (p.id, p.answer, p.question)


def test_what_can_be_had_without_eyes():
    asked = [Problem(question, answer) for question, answer in ("a1", "a1", "a2", "b7")]
    assert image_blind_bound(asked) == .75
    for split in SPLITS:
        asked = [Problem(family.ask, expert(family, n)[1]) for family, n in pool(split)]
        assert image_blind_bound(asked) < .15
    with pytest.raises(ValueError, match="problems must not be empty"):
        image_blind_bound([])


@given(st.sampled_from(list(FAMILIES.values())), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_labels_are_inside_and_apart(family, seed):
    rng = random.Random(seed)
    scene = layout(family, rng.choice(family.pool), rng)
    spots = [(x, y) for *_, x, y in scene["labels"]]
    assert all(6 < c < SIZE - 6 for spot in spots for c in spot)
    for i, a in enumerate(spots):
        assert all(abs(a[0] - b[0]) >= 14 or abs(a[1] - b[1]) >= 14 for b in spots[:i])
    assert paint(scene, rng).size == (SIZE, SIZE)


@pytest.mark.parametrize("recipe, numbers", [
    ("a-b", dict(a=1, b=2)),
    ("a/b", dict(a=1, b=0)),
    ("√a", dict(a=5)),
])
def test_recipes_that_do_not_come_out(recipe, numbers):
    assert run_recipe("a-b A*A", dict(a=7, b=3)) == ["7-3=4", "4*4=16"]
    with pytest.raises(ArithmeticError):
        run_recipe(recipe, numbers)


def test_demonstrations_are_imperfect_and_never_right_in_hard_families():
    rng = random.Random(0)
    for family in FAMILIES.values():
        numbers = family.pool[len(family.pool)//2]
        answer = expert(family, numbers)[1]
        said = [demonstrate(family, numbers, rng, misread=0, guess=0) for _ in range(100)]
        verdicts = [score(text, answer) for text in said]
        assert len(set(said)) > 4 and all(verdict.formatted for verdict in verdicts)
        right = sum(verdict.correct for verdict in verdicts)
        assert right == 0 if family.hard else 10 < right < 90
        for text in said:                                  # wrong recipes, right arithmetic
            thought = text.split("</think>")[0]
            for a, sign, b, result in re.findall(r"(?<!√)\b(\d+)([-+*/])(\d+)=(\d+)", thought):
                assert eval(f"{a}{sign}{b}") == int(result), text


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForImageTextToText, AutoProcessor
    path = tiny_checkpoint()
    return AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)


def test_checkpoint_is_small_and_standard(loaded):
    model, processor = loaded
    assert sum(file.stat().st_size for file in tiny_checkpoint().iterdir()) < 4*2**20
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    tok = processor.tokenizer
    assert tok.get_vocab() == tiny_processor().tokenizer.get_vocab()   # the folder is this code's
    assert len(tok(INSTRUCTION).input_ids) == 1
    assert model.config.text_config.eos_token_id == tok.eos_token_id
    for layer in model.model.language_model.modules():
        if isinstance(layer, torch.nn.Linear):
            assert all(d % 64 == 0 for d in layer.weight.shape)


def test_tokens_round_trip_and_prompts_are_short(loaded):
    _, processor = loaded
    tok = processor.tokenizer
    for split in SPLITS:
        for family, numbers in pool(split)[::7]:
            text = expert(family, numbers)[0]
            ids = tok(text).input_ids
            assert tok.decode(ids, skip_special_tokens=True) == text
            assert len(ids) < 56 and tok.unk_token_id not in ids
    prompt = processor.apply_chat_template(
        messages(problems(1)[0]), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt")
    assert prompt["input_ids"].shape[1] <= 40 and tok.unk_token_id not in prompt["input_ids"]
    assert "mm_token_type_ids" in prompt


def test_the_start_reads_formats_and_seldom_succeeds(loaded):
    from calibrl.rollout import Policy, rollout
    torch.manual_seed(0)
    policy = Policy.from_pretrained(tiny_checkpoint(), lora_rank=16)
    test = problems(64, seed=9, split="test")
    said = rollout(policy, test, n=4, max_new_tokens=56, seed=0)
    accuracy = float(said.correct.float().mean())
    assert .1 < accuracy < .4
    assert sum(verdict.formatted for verdict in said.scores)/len(said.scores) > .9
    best_of_4 = float(said.correct.view(64, 4).any(1).float().mean())
    assert best_of_4 > accuracy + .15                      # something to sharpen


def test_short_rebuild_is_deterministic_learns_and_loads(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    losses, weights = {}, {}
    try:
        for name, seed in (("one", 3), ("two", 3), ("other", 4)):
            path = tmp_path/name
            losses[name] = build_checkpoint(path, steps=6, pictures=48, seed=seed, progress=False)
            weights[name] = (path/"model.safetensors").read_bytes()
    finally:
        torch.set_num_threads(threads)
    assert losses["one"] == losses["two"] != losses["other"]
    assert weights["one"] == weights["two"] != weights["other"]
    look, talk = losses["one"]["look"], losses["one"]["talk"]
    assert talk[-1] < talk[0] and look[-1] < look[0] and len(talk) == 6 and len(look) == 3
    AutoModelForImageTextToText.from_pretrained(tmp_path/"one")
    AutoProcessor.from_pretrained(tmp_path/"one")
    assert not list(tmp_path.glob("*.part*"))


def test_checkpoint_falls_back_to_the_cache(tmp_path, monkeypatch):
    built = []
    def fake(path):
        built.append(path)
        path.mkdir(parents=True)
        (path/"model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path/"package")
    monkeypatch.setattr(geometry, "build_checkpoint", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    assert tiny_checkpoint() == tiny_checkpoint() == tmp_path/"cache"/"calibrl"/"tiny"
    assert len(built) == 1


def test_the_command_wants_one_folder():
    command = [sys.executable, "-m", "calibrl.geometry"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "usage: python -m calibrl.geometry OUT" in done.stderr
