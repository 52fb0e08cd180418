"The world in words: problems, splits, experts, the tiny checkpoint, and the training code that runs on it unchanged."
import importlib.resources, random, re, subprocess, sys
from dataclasses import replace

import pytest
import torch

from calibrl import algebra as A
from calibrl.rollout import Policy, rollout
from calibrl.tasks import INSTRUCTION, score
from calibrl.train import Config, make_optimizer, train_step

TRUTH = {                                             # the answers once more, without recipes
    "order": lambda a, b, c: a + b*c, "bracket": lambda a, b, c: (a + b)*c, "two_step": lambda a, b, c: (c - b)/a, "both_sides": lambda a, b, c, d: (d - b)/(a - c),
    "insert": lambda x, a, b: a*x + b, "square": lambda x, a: x*x + a*x, "steps": lambda a, b, n: a + (n - 1)*(b - a), "part": lambda k, d, n: k*n/d, "mean": lambda a, b, c: (a + b + c)/3,
    "mean_back": lambda a, b, m: 3*m - a - b, "system": lambda s, d: (s + d)/2, "then": lambda a, b, c, d, e: d*(c - b)/a + e,
    "brackets": lambda a, b, c, d: (a + b)*(c - d)}


@pytest.fixture(scope="module")
def policy(): return Policy.from_pretrained(A.tiny_checkpoint(), seed=0)


def test_counts_and_splits():
    sizes = {s: len(A.pool(s)) for s in A.SPLITS}
    assert sizes["train"] >= 1500 and min(sizes.values()) >= 200 and sum(f.hard for f in A.FAMILIES.values()) >= 2
    assert {f.name for f, _ in A.pool("test")} == {f.name for f in A.FAMILIES.values() if not f.hard} and {f.name for f, _ in A.pool("hard")} == {f.name for f in A.FAMILIES.values() if f.hard}
    assert .15 < sum(f.hard for f, _ in A.pool("train"))/sizes["train"] < .4
    seen = {}
    for s in A.SPLITS:
        for f, n in A.pool(s): assert seen.setdefault((f.name, *sorted(n)), s) == s          # not even the same numbers in another order
    asked = [p.question for s in A.SPLITS for p in A.problems(sizes[s], split=s)]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("name", list(TRUTH))
def test_experts_are_right(name):
    f = A.FAMILIES[name]
    for n in f.pool:
        text, answer = A.expert(f, n)
        assert float(answer) == TRUTH[name](*n) > 0
        for step in text.split("</think>")[0].split(";")[1:]:
            left, _, right = step.partition("="); assert eval(left) == int(right), step
    verdict = score(text, answer); assert verdict.correct and verdict.formatted
    assert set(TRUTH) == set(A.FAMILIES)


def test_the_question_holds_the_numbers():
    for p in A.problems(60, seed=3):
        name, *numbers = p.id.split("-"); f = A.FAMILIES[name]
        assert not p.images and all(re.search(rf"(?<!\d){n}(?!\d)", p.question) for n in numbers) and p.tags["family"] == name
        assert score(p.expert, p.answer).correct


def test_same_seed_same_problems_in_any_process():
    a, b, c = (A.problems(8, seed=s) for s in (5, 5, 6))
    assert a == b != c and A.problems(3, seed=5) == a[:3] and A.problems(0) == []
    code = "from calibrl.algebra import problems; print([p.id for p in problems(8, seed=5)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"})
    assert done.stdout.strip() == str([p.id for p in a])
    n = len(A.pool("hard")); ps = A.problems(n + 2, split="hard"); assert len({p.id for p in ps[:n]}) == n and ps[n].id in {p.id for p in ps[:n]}


def test_mistakes_are_named():
    for bad in ("dev", "", None):
        with pytest.raises(ValueError, match="split must be one of train, test, hard"): A.problems(2, split=bad)
    with pytest.raises(ValueError, match="n must be 0 or more"): A.problems(-1)


def test_a_constant_answer_does_badly():
    for s in A.SPLITS: assert A.blind_bound(A.problems(len(A.pool(s)), split=s)) < .15
    two = A.problems(2); assert A.blind_bound(two) == 1. or two[0].tags["family"] == two[1].tags["family"]


def test_demonstrations_are_imperfect():
    rng = random.Random(0)
    for f in A.FAMILIES.values():
        n = f.pool[len(f.pool)//2]; answer = A.expert(f, n)[1]
        said = [A.demonstrate(f, n, rng) for _ in range(200)]
        assert len(set(said)) > 3 and all(score(s, answer).formatted for s in said) and not any(re.search(r";[a-z]=", s) for s in said)
        right = sum(score(s, answer).correct for s in said)
        assert right < 16 if f.hard else 10 < right < 160


def test_checkpoint_is_small_and_standard(policy):
    from transformers import AutoTokenizer
    path = A.tiny_checkpoint()
    assert sum(f.stat().st_size for f in path.iterdir()) < 3*2**20 and sum(w.numel() for n, w in policy.model.named_parameters() if "lora" not in n) < 600_000
    tok = AutoTokenizer.from_pretrained(path)
    assert tok.get_vocab() == A.tiny_tokenizer().get_vocab() == policy.tokenizer.get_vocab() and len(tok(INSTRUCTION).input_ids) == 1       # the shipped folder is this code's
    for s in A.SPLITS:
        for p in A.problems(120, split=s):
            for text in (p.expert, p.question): ids = tok(text).input_ids; assert tok.decode(ids) == text and tok.unk_token_id not in ids and len(ids) < 64
    for m in policy.core.modules():
        if type(m) is torch.nn.Linear and "lora" not in str(m): assert all(d % 16 == 0 for d in m.weight.shape)


def test_the_start_knows_the_steps_and_seldom_the_way(policy):
    easy = rollout(policy, A.problems(96, split="test"), n=4, seed=0)
    hard = rollout(policy, A.problems(96, split="hard"), n=4, seed=0)
    assert .1 < easy.correct.float().mean() < .3 and sum(s.formatted for s in easy.scores)/len(easy.scores) > .95
    assert .002 <= hard.correct.float().mean() < .05
    assert easy.correct.view(96, 4).any(1).float().mean() > easy.correct.float().mean() + .15          # something to sharpen


def test_a_step_trains_on_text_alone():
    torch.manual_seed(0)
    policy, cfg = Policy.from_pretrained(A.tiny_checkpoint(), seed=0), Config(prompts=4, responses=4, mini_batches=1, gap="sequence")
    ro = rollout(policy, A.problems(4, seed=3), n=4, seed=1)
    before = [w.detach().clone() for w in policy.trainable]
    got = train_step(policy, make_optimizer(policy, cfg), ro, cfg)
    assert got["first_ratio_error"] < 1e-4 and got["grad_norm"] > 0 and any((w != b).any() for w, b in zip(policy.trainable, before)) and ro.has_expert.all()


def test_short_rebuild_is_deterministic_and_loads(tmp_path):
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try: one, two, other = (A.build_checkpoint(tmp_path/n, steps=4, seed=s, progress=False) for n, s in (("one", 3), ("two", 3), ("other", 4)))
    finally: torch.set_num_threads(threads)
    weights = lambda n: (tmp_path/n/"model.safetensors").read_bytes()
    assert one == two != other and weights("one") == weights("two") != weights("other") and one[-1] < one[0]
    assert rollout(Policy.from_pretrained(tmp_path/"one"), A.problems(1), n=2, max_new_tokens=4).mask.any() and not list(tmp_path.glob("*.part*"))


def test_checkpoint_falls_back_to_the_cache(tmp_path, monkeypatch):
    built = []
    def fake(path): built.append(path); path.mkdir(parents=True); (path/"model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path/"package")
    monkeypatch.setattr(A, "build_checkpoint", fake); monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    assert A.tiny_checkpoint() == A.tiny_checkpoint() == tmp_path/"cache"/"calibrl"/"algebra" and len(built) == 1


def test_the_command_wants_one_folder():
    r = subprocess.run([sys.executable, "-m", "calibrl.algebra"], capture_output=True, text=True)
    assert r.returncode and "usage: python -m calibrl.algebra OUT" in r.stderr


def test_compare_runs_here_too_and_never_mixes_worlds(tmp_path, monkeypatch):
    from calibrl import compare as C
    small = Config(steps=1, prompts=2, responses=2, mini_batches=1)
    record = C.one_run("grpo", 0, small, tmp_path, size=2, k=2, world="algebra")
    assert record["world"] == "algebra" and len(record["curve"]) == 1 and record["exam"]["hard"]["n"] == 1
    monkeypatch.setattr(C, "_in_parallel", lambda *a: pytest.fail("a run began"))
    assert C.compare(["grpo"], [0], small, tmp_path, show=None, world="algebra")[0]["seeds"] == 1
    with pytest.raises(ValueError, match="holds records of the world algebra, not geometry"): C.compare(["grpo"], [0], small, tmp_path, show=None)
    old = {k: v for k, v in record.items() if k != "world"}; (tmp_path/"grpo-0.json").write_text(__import__("json").dumps(old))      # from before there were worlds
    with pytest.raises(ValueError, match="holds records of the world geometry"): C.compare(["luffy"], [0], small, tmp_path, show=None, world="algebra")
    for call in (lambda: C.compare(["grpo"], [0], small, tmp_path, world="chess"), lambda: C.one_run("grpo", 0, small, tmp_path, world="chess"), lambda: C.compare_methods("grpo", world="chess", out=str(tmp_path))):
        with pytest.raises(ValueError, match="world: must be one of geometry, algebra, not 'chess'"): call()
    for kind in ("noisy", "wrong"):
        with pytest.raises(ValueError, match="none do"): C.compare([f"luffy:experts={kind}"], [0], replace(small, seed=0), tmp_path/kind, world="algebra")
