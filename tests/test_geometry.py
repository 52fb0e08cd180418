"The embedded world: problems, splits, drawing, tokenizer, the tiny checkpoint and its rebuild."
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from calibrl import geometry
from calibrl.geometry import FAMILIES, SIZE, blind, build_checkpoint, expert, image_blind_bound, layout, paint, pool, problems, split_of, tiny_checkpoint, work
from calibrl.tasks import INSTRUCTION, Problem, messages, score

SPLITS = ("train", "test", "hard")
TRUTH = {                                             # the answers once more, without recipes
    "rect_area": lambda w, h: w*h, "rect_perim": lambda w, h: 2*(w + h), "tri_area": lambda b, h: b*h/2, "tri_perim": lambda a, b, c: a + b + c,
    "angle": lambda a, b: 180 - a - b, "hypotenuse": lambda a, b: math.hypot(a, b), "leg": lambda a, c: math.sqrt(c*c - a*a),
    "similar": lambda a, b, c: b*c/a, "ell": lambda w, h, a, b: w*h - a*b, "trap": lambda a, b, h: (a + b)/2*h,
    "cut": lambda w, h, a, b: w*h - a*b/2, "back": lambda p, w: w*(p/2 - w)}


def test_counts():
    sizes = {s: len(pool(s)) for s in SPLITS}
    assert sum(sizes.values()) >= 2000 and sizes["train"] >= 1500 and min(sizes.values()) >= 100
    assert len(FAMILIES) >= 6 and {f.name for f, _ in pool("test")} == {f.name for f in FAMILIES.values() if not f.hard}
    hard_share = sum(f.hard for f, _ in pool("train"))/sizes["train"]
    assert .1 < hard_share < .25
    for f in FAMILIES.values(): assert len(set(f.pool)) == len(f.pool)


def test_splits_are_disjoint_even_for_mirror_images():
    seen = {}
    for s in SPLITS:
        for f, n in pool(s): assert seen.setdefault((f.name, *sorted(n)), s) == s
    assert len({p.id for s in SPLITS for p in problems(len(pool(s)), split=s)}) == sum(len(pool(s)) for s in SPLITS)


@pytest.mark.parametrize("name", list(TRUTH))
def test_answers_follow_from_the_numbers_and_experts_are_right(name):
    f = FAMILIES[name]
    for n in f.pool:
        text, answer = expert(f, n)
        assert float(answer) == pytest.approx(TRUTH[name](*n)) and float(answer) > 0
    verdict = score(text, answer)
    assert verdict.correct and verdict.formatted


def test_expert_solutions_score_through_the_verifier():
    for s in SPLITS:
        for p in problems(25, seed=1, split=s):
            v = score(p.expert, p.answer)
            assert v.correct and v.formatted, p.id


def test_the_sizes_stand_only_in_the_picture():
    for f in FAMILIES.values(): assert not re.search(r"\d", f.ask)
    for p in problems(12):                             # and the picture shows exactly the numbers of the id
        f, n = FAMILIES[p.id.split("-")[0]], tuple(map(int, p.id.split("-")[1:]))
        labels = layout(f, n, random.Random(0))["labels"]
        assert sorted(int(re.sub(r"\D", "", t)) for _, t, _, _ in labels if t != "?") == sorted(n)


def test_same_seed_same_problems_other_seed_others():
    a, b, c = problems(8, seed=5), problems(8, seed=5), problems(8, seed=6)
    key = lambda ps: [(p.id, p.answer, p.images[0].tobytes()) for p in ps]
    assert key(a) == key(b) != key(c)
    assert key(problems(3, seed=5)) == key(a)[:3]      # a shorter list is a prefix
    assert {p.images[0].size for p in a} == {(SIZE, SIZE)} and {p.images[0].mode for p in a} == {"RGB"}
    assert {p.tags["level"] for p in problems(60)} == {"1", "2", "3"}


def test_problems_are_the_same_in_another_process():
    code = "import hashlib; from calibrl.geometry import problems; print(hashlib.sha1(b''.join(p.images[0].tobytes() + p.id.encode() for p in problems(4))).hexdigest())"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h, "PATH": "/usr/bin:/bin"}).stdout for h in "12"}
    assert len(runs) == 1


def test_more_than_the_split_deals_again_in_new_drawings():
    n = len(pool("hard")); ps = problems(n + 3, split="hard")
    assert len({p.id for p in ps[:n]}) == n and problems(0) == []
    twin = next(p for p in ps[:n] if p.id == ps[n].id)
    assert twin.images[0].tobytes() != ps[n].images[0].tobytes() and twin.answer == ps[n].answer


@pytest.mark.parametrize("bad", ["dev", "", "Train", None])
def test_unknown_split(bad):
    with pytest.raises(ValueError, match="split must be one of train, test, hard"): problems(2, split=bad)


def test_negative_count():
    with pytest.raises(ValueError, match="n must be 0 or more"): problems(-1)


def test_blind():
    p = problems(1)[0]; b = blind(p)
    assert len(b.images[0].getcolors()) == 1 and b.images[0].size == p.images[0].size and (b.id, b.answer, b.question) == (p.id, p.answer, p.question)
    assert image_blind_bound([Problem("a", "1"), Problem("a", "1"), Problem("a", "2"), Problem("b", "7")]) == .75
    for s in SPLITS: assert image_blind_bound([Problem(f.ask, expert(f, n)[1]) for f, n in pool(s)]) < .15
    with pytest.raises(ValueError, match="problems must not be empty"): image_blind_bound([])


@given(st.sampled_from([f for f in FAMILIES.values()]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_labels_are_inside_and_apart(family, seed):
    rng = random.Random(seed); scene = layout(family, rng.choice(family.pool), rng)
    spots = [(x, y) for *_, x, y in scene["labels"]]
    assert all(6 < c < SIZE - 6 for s in spots for c in s)
    assert all(abs(a[0] - b[0]) >= 14 or abs(a[1] - b[1]) >= 14 for i, a in enumerate(spots) for b in spots[:i])
    assert paint(scene, rng).size == (SIZE, SIZE)


def test_recipes():
    assert work("a-b A*A", dict(a=7, b=3)) == ["7-3=4", "4*4=16"]
    for recipe, v in (("a-b", dict(a=1, b=2)), ("a/b", dict(a=1, b=0)), ("√a", dict(a=5))):
        with pytest.raises(ArithmeticError): work(recipe, v)


def test_demonstrations_are_imperfect_and_never_right_in_hard_families():
    rng = random.Random(0)
    for f in FAMILIES.values():
        n = f.pool[len(f.pool)//2]; answer = expert(f, n)[1]
        said = [geometry.demonstrate(f, n, rng, misread=0, guess=0) for _ in range(100)]
        assert len(set(said)) > 4 and all(score(s, answer).formatted for s in said)
        right = sum(score(s, answer).correct for s in said)
        assert right == 0 if f.hard else 10 < right < 90
        steps = [re.findall(r"(?:√?\d+)(?:[-+*/]\d+)?=\d+", s.split("</think>")[0]) for s in said]
        for t in (t for ts in steps for t in ts if not t.startswith("√")):          # wrong recipes, right arithmetic
            m = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", t)
            if m: assert eval(f"{m[1]}{m[2]}{m[3]}") == int(m[4]), t


@pytest.fixture(scope="module")
def loaded():
    from transformers import AutoModelForImageTextToText, AutoProcessor
    path = tiny_checkpoint()
    return AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)


def test_checkpoint_is_small_and_standard(loaded):
    model, processor = loaded; path = tiny_checkpoint()
    assert sum(f.stat().st_size for f in path.iterdir()) < 4*2**20
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration" and type(processor).__name__ == "Qwen2_5_VLProcessor"
    tok = processor.tokenizer
    assert tok.get_vocab() == geometry.tiny_processor().tokenizer.get_vocab()          # the shipped folder is this code's
    assert len(tok(INSTRUCTION).input_ids) == 1 and model.config.text_config.eos_token_id == tok.eos_token_id
    for m in model.model.language_model.modules():
        if isinstance(m, torch.nn.Linear): assert all(d % 64 == 0 for d in m.weight.shape)


def test_tokens_round_trip_and_prompts_are_short(loaded):
    _, processor = loaded; tok = processor.tokenizer
    for s in SPLITS:
        for f, n in pool(s)[::7]:
            text = expert(f, n)[0]; ids = tok(text).input_ids
            assert tok.decode(ids, skip_special_tokens=True) == text and len(ids) < 56 and tok.unk_token_id not in ids
    p = problems(1)[0]
    x = processor.apply_chat_template(messages(p), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    assert x["input_ids"].shape[1] <= 40 and tok.unk_token_id not in x["input_ids"] and "mm_token_type_ids" in x


def test_the_start_reads_formats_and_seldom_succeeds(loaded):
    from calibrl.rollout import Policy, rollout
    torch.manual_seed(0)
    ro = rollout(Policy.from_pretrained(tiny_checkpoint(), lora_rank=16), problems(64, seed=9, split="test"), n=4, max_new_tokens=56, seed=0)
    accuracy = float(ro.correct.float().mean())
    assert .1 < accuracy < .4 and sum(s.formatted for s in ro.scores)/len(ro.scores) > .9
    assert float(ro.correct.view(64, 4).any(1).float().mean()) > accuracy + .15          # something to sharpen


def test_short_rebuild_is_deterministic_learns_and_loads(tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try: one, two, other = (build_checkpoint(tmp_path/n, steps=6, pictures=48, seed=s, progress=False) for n, s in (("one", 3), ("two", 3), ("other", 4)))
    finally: torch.set_num_threads(threads)
    weights = lambda n: (tmp_path/n/"model.safetensors").read_bytes()
    assert one == two != other and weights("one") == weights("two") != weights("other")
    assert one["talk"][-1] < one["talk"][0] and one["look"][-1] < one["look"][0] and len(one["talk"]) == 6 and len(one["look"]) == 3
    AutoModelForImageTextToText.from_pretrained(tmp_path/"one"); AutoProcessor.from_pretrained(tmp_path/"one")
    assert not list(tmp_path.glob("*.part*"))


def test_checkpoint_falls_back_to_the_cache(tmp_path, monkeypatch):
    built = []
    def fake(path):
        built.append(path); path.mkdir(parents=True); (path/"model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(geometry.importlib.resources, "files", lambda _: tmp_path/"package")
    monkeypatch.setattr(geometry, "build_checkpoint", fake); monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    assert tiny_checkpoint() == tiny_checkpoint() == tmp_path/"cache"/"calibrl"/"tiny" and len(built) == 1


def test_the_command_wants_one_folder():
    r = subprocess.run([sys.executable, "-m", "calibrl.geometry"], capture_output=True, text=True)
    assert r.returncode and "usage: python -m calibrl.geometry OUT" in r.stderr
