"""The plan against what really happens: bytes stored, peaks the kernel saw, tokens, operations;
and its one-line refusals."""
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calibrl.base import model_config
from calibrl.draws import AT_ONCE, drawer, luck_of
from calibrl.plan import (
    Group, Meter, Plan, copy_size, gpu_bytes, on_paper, paired_steps, peaks, plan, sampling_bytes,
    sampling_peak, step_flops, traced, update_bytes, weights)
from calibrl.policy import Policy, next_token
from calibrl.sampling_copy import SamplingCopy, copy_bytes
from calibrl.speed import bench_model, bench_problem, bench_processor

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("qwen2_5_vl", "qwen3_vl", "internvl", "qwen2", "qwen3")
MEASURE = """
import ctypes, gc, torch
from calibrl.speed import bench_groups, bench_problem, peak
from calibrl.rollout import Policy
torch.set_num_threads(1)
P, R, T, groups, bits, gradient_checkpointing = {case}
policy = Policy.from_pretrained({folder!r}, bits=bits,
                                gradient_checkpointing=gradient_checkpointing)
def work(problems, responses):
    policy.logps(problems, responses).logp.sum().backward()
work([bench_problem(policy.processor, 90, 5)], bench_groups(1, 2, 5))
policy.model.zero_grad()
problems = [bench_problem(policy.processor, P, T, seed) for seed in range(groups)]
responses = bench_groups(groups, R, T)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
print("MiB", peak(lambda: work(problems, responses)))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """small(width, layers): the folder of a Qwen2.5-VL with random weights, in which matrices
    outweigh the rest."""
    made = {}

    def make(width, layers):
        if (width, layers) not in made:
            folder = tmp_path_factory.mktemp("small")
            processor = bench_processor()
            bench_model(processor, width, layers).save_pretrained(folder)
            processor.save_pretrained(folder)
            made[width, layers] = folder
        return made[width, layers]
    return make


def blocks(policy):
    "The tensors of a policy, which a meter need not count."
    return [*policy.model.parameters(), *policy.model.buffers()]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                    reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize("width, layers, groups, bits, gradient_checkpointing", [
    (256, 4, 3, None, False),
    (384, 4, 2, 4, True),
    (512, 4, 2, 4, True)])
def test_what_is_said_is_what_the_kernel_saw(small, width, layers, groups, bits,
                                             gradient_checkpointing):
    folder = small(width, layers)
    group = Group(512, 8, 64)
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1",
           "PYTHONPATH": str(ROOT)}
    case = (*group, groups, bits, gradient_checkpointing)
    code = MEASURE.format(folder=str(folder), case=case)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    config = model_config(folder)
    largest = weights(on_paper(config), 4)["largest"]
    at = update_bytes(config, group, int(.75*group.P), bits, largest=largest,
                      gradient_checkpointing=gradient_checkpointing)
    said = at(groups)/2**20
    assert abs(said/float(done.stdout.split()[-1]) - 1) < .2


def test_drawing_takes_no_more_memory_for_more_rows():
    "Logits, what is drawn from them and all between, for as many rows as are looked at together."
    words, rows = 49152, 512
    generator = torch.Generator().manual_seed(0)
    policy = SimpleNamespace(head=torch.randn(words, 16, generator=generator), head_scale=1.,
                             no_chance=torch.zeros(words, dtype=torch.bool))
    states = torch.randn(rows, 16, generator=generator)
    with Meter([policy.head, policy.no_chance, states]) as meter:
        tokens, *_ = next_token(policy, states, luck_of(0, rows, 1)[0], drawer(1.), 1.)
    assert len(tokens) == rows and 2*AT_ONCE < rows*words
    assert meter.peak < 1.05*(4 + 4 + 4 + 8 + 8)*AT_ONCE


def stored_bytes(policy):
    "The bytes of all packed matrices and of their scales."
    stored = 0
    for module in policy.model.modules():
        if type(module).__name__ == "Linear4bit" and not hasattr(module, "lora_A"):
            state = module.weight.quant_state
            stored += module.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    return stored


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_bytes_are_those_of_the_loaded_policy(checkpoint, kind):
    for bits in (4, None):
        policy = Policy.from_pretrained(checkpoint(kind), bits=bits, lora_rank=4)
        paper = on_paper(model_config(checkpoint(kind)), 4, torch.float32)
        said = weights(paper, bits, wide=4)
        trained = {id(weight) for weight in policy.trainable}
        wide = sum(weight.nbytes for weight in policy.model.parameters()
                   if id(weight) not in trained and weight.dtype != torch.uint8)
        assert said["trained"] == sum(weight.numel() for weight in policy.trainable)
        assert said["adapter"] == sum(weight.nbytes for weight in policy.trainable)
        if bits:
            # Tiny matrices end amid a block of scales
            assert wide == said["rest"] + said["vision"]
            assert stored_bytes(policy) == pytest.approx(said["packed"], rel=.06)
        else:
            assert wide == said["packed"] + said["rest"] + said["vision"]
            assert said["parameters"]*4 == wide
        assert (said["vision"] > 0) == ("vl" in kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_trace_allocates_what_the_real_pass_does(checkpoint, kind, gradient_checkpointing):
    "The same meter over real tensors, text only: the same blocks, a few small masks apart."
    from calibrl.tasks import Problem
    policy = Policy.from_pretrained(checkpoint(kind), lora_rank=4,
                                    gradient_checkpointing=gradient_checkpointing)
    problem = Problem("x"*40, "1")
    R, T = 3, 30
    P = policy.prompts([problem])[0]["input_ids"].shape[1]
    responses = [[policy.tokens("a"*T)[:T]]*R]
    with Meter([*blocks(policy), policy.no_chance]) as meter:
        policy.logps([problem], responses).logp.sum().backward()
    said = traced(model_config(checkpoint(kind)), 1, Group(P, R, T), 4, torch.float32, 2,
                  gradient_checkpointing).peak
    assert said == pytest.approx(meter.peak, rel=.12)


def test_a_meter_counts_blocks_once_and_lets_go():
    a = torch.zeros(1000)
    with Meter([a]) as meter:
        b = a + 1
        assert meter.now == 4000

        # Views and what is done in place take nothing
        c = b.view(10, 100)
        d = b[:5]
        assert meter.now == 4000
        a.add_(1)
        assert meter.now == 4000

        # A block goes with its last view
        del b, c
        assert meter.now == 4000
        del d
        assert meter.now == 0 and meter.peak == 4000


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_layers_and_groups_extrapolate(small, gradient_checkpointing):
    config = model_config(small(256, 4))
    group = Group(120, 4, 30)
    options = dict(gradient_checkpointing=gradient_checkpointing)
    said = peaks(config, group, **options)(5, 4)
    whole = traced(config, 4, group, layers=5, **options).peak
    assert said == pytest.approx(whole, rel=.05)


def test_recomputation_and_16_bits_take_less():
    def peak(**options):
        return traced(qwen(8), 1, Group(200, 4, 50), layers=4, **options).peak

    kept = peak(gradient_checkpointing=False)
    assert peak(gradient_checkpointing=True) < .6*kept
    assert peak(gradient_checkpointing=False, dtype=torch.float32) > kept


def qwen(layers, width=512):
    from transformers import Qwen3Config
    return Qwen3Config(hidden_size=width, intermediate_size=3*width, num_hidden_layers=layers,
                       num_attention_heads=8, num_key_value_heads=2, head_dim=64, vocab_size=8000)


def test_sampling_real_and_said(small):
    "All prompts read at once, two at a time, one at a time."
    policy = Policy.from_pretrained(small(256, 4))
    config = model_config(small(256, 4))
    problems = [bench_problem(policy.processor, 200, 30, seed) for seed in range(3)]
    experts = [problem.expert for problem in problems]
    peak = []
    for read_tokens in (8192, 500, 230):
        with Meter(blocks(policy)) as meter:
            policy.sample(problems, 8, max_new_tokens=30, experts=experts,
                          read_tokens=read_tokens)
        said = sampling_bytes(config, 3, Group(200, 8, 30), 150, torch.float32,
                              read_tokens=read_tokens)
        assert sampling_peak(said, host=True) == pytest.approx(meter.peak, rel=.15)
        peak.append(meter.peak)
    assert peak[2] < .8*peak[1] < .8**2*peak[0]


def test_a_copy_to_sample_from_is_counted_and_made_where_it_fits(small, capsys):
    "On a card that just holds it, and on one that just does not; in 8 bits on both."
    folder = str(small(512, 4))
    sizes = dict(prompts=4, responses=4, prompt_tokens=200, max_new_tokens=50, micro_tokens=400)
    bare = plan(folder, "8GB", sampling_copy=False, **sizes)
    size = 2*bare["fixed"]["quantised"]
    capsys.readouterr()

    def at(room, **asked):
        needs = plan(folder, f"{(room + 2**20)/.9/2**30:.6f}GB", **sizes | asked)
        return needs, capsys.readouterr().out

    needs, said = at(bare["peak"] + size)
    assert needs["fits"] and needs["copy"] == size == needs["peak"] - bare["peak"] > 2**22
    row = next(row for row in said.splitlines() if "a copy to sample from" in row)
    assert float(row.split()[-1]) == pytest.approx(size/2**30, abs=.01)
    assert "sampling from a copy of the weights: it fits" in said

    # A little less, and there is none; who asks for it is told that it does not fit
    less = bare["peak"] + size - 2**22
    needs, said = at(less)
    assert needs["fits"] and needs["copy"] == 0 and needs["peak"] == bare["peak"]
    assert f"the model itself: a copy of {size/2**30:.2f} GiB does not fit" in said
    for asked in (dict(sampling_copy=True), dict(bits=8)):
        assert at(less - 2**22, **asked)[0]["copy"] == size
    assert not at(less, sampling_copy=True)[0]["fits"]


def test_writing_a_copy_takes_what_is_said(checkpoint):
    "Its size, and what comes and goes while it is written, beside a real one."
    policy = Policy.from_pretrained(checkpoint("qwen2_5_vl"), bits=4, lora_rank=4)
    copied = SamplingCopy(policy.core, torch.float32)
    with Meter([*blocks(policy), *copied.core.parameters()]) as meter:
        copied.fresh()
    config = model_config(checkpoint("qwen2_5_vl"))
    asked = Plan(config, "1GB", 4, 4, 4, 4, 100, 32, 30, 400, True, host=True)
    said = copy_size(asked, on_paper(config, 4))
    assert said.whole == copy_bytes(policy.core, torch.float32)
    assert said.written == pytest.approx(meter.peak, rel=.05)


def test_work_counts_tokens_and_what_sharing_saves():
    config = qwen(4)
    paper = on_paper(config, 8)

    def work(responses, **options):
        return step_flops(paper, config, 16, Group(500, responses, 100), **options)

    ours, theirs = work(8, shared=True), work(8, shared=False)
    assert ours["tokens"] == 16*(500 + 100) + 16*8*100 + 16*(500 + 8*100)
    assert theirs["tokens"] == 16*8*500 + 16*(500 + 100) + 16*8*100 + 16*8*(500 + 100)
    assert theirs["update"] > 2.5*ours["update"] and theirs["sampling"] > 2*ours["sampling"]

    # One response alone has nothing to share
    assert work(1, shared=True)["update"] == work(1, shared=False)["update"]
    assert work(8, gradient_checkpointing=False)["update"] < ours["update"]


def test_plan_of_a_folder(small, capsys):
    folder = str(small(512, 4))
    sizes = dict(prompts=8, responses=4, prompt_tokens=200, max_new_tokens=50)
    needs = plan(folder, "1GB", **sizes)
    text = capsys.readouterr().out
    for words in ("qwen2_5_vl:", "trained (LoRA rank 16)", "language model in 4 bits",
                  "vision tower", "activations recomputed", "largest micro-batch: ", "PFLOP",
                  "1GB less a margin of 10%"):
        assert words in text
    assert needs["fits"] and needs["micro_tokens"] == needs["largest"]*(200 + 4*50)
    assert needs["room"] == .9*2**30

    # One group more than the largest micro-batch does not fit
    update = update_bytes(model_config(folder), Group(200, 4, 50), 150, 4, torch.bfloat16,
                          needs["fixed"]["largest"], gradient_checkpointing=True)
    largest = needs["largest"]
    assert needs["always"] + update(largest) <= needs["room"]
    assert largest == 8 or needs["always"] + update(largest + 1) > needs["room"]

    # Too small a GPU, and a micro-batch that is asked for
    tight = plan(folder, "0.04GB", **sizes)
    assert not tight["fits"] and tight["largest"] == 0
    assert "not one group fits" in capsys.readouterr().out
    asked = plan(folder, "1GB", micro_tokens=800, **sizes)
    assert asked["groups"] == 2 and asked["update"] < needs["update"]


@pytest.mark.parametrize("options, line", [
    (dict(gpu="big"), "gpu must be its memory, such as 24GB"),
    (dict(gpu="0GB"), "gpu must be"),
    (dict(bits=3), "bits must be 4, 8 or 16"),
    (dict(responses=0), "responses must be at least 1"),
    (dict(lora_rank=0), "lora_rank must be at least 1"),
    (dict(micro_tokens=-1), "micro_tokens must be at least 1"),
    (dict(image_tokens=2000), "image_tokens must be between 0 and prompt_tokens")])
def test_mistakes_get_one_line(small, options, line):
    with pytest.raises(ValueError, match=line):
        plan(str(small(256, 4)), **options)


def test_gpu_sizes():
    assert gpu_bytes("24GB") == gpu_bytes("24 GiB") == gpu_bytes(24) == 24*2**30
    assert gpu_bytes("79.6gb") == 79.6*2**30


def test_steps_in_four_bits_are_timed_in_pairs(checkpoint):
    from calibrl.tasks import Problem
    problem = Problem("1 + 1 = ?", "2", expert="<answer>2</answer>")
    taken = paired_steps(checkpoint("qwen3"), [problem], runs=3, responses=2, max_new_tokens=4)
    assert len(taken["pairs"]) == 3
    assert all(nf4 > 0 and full > 0 for nf4, full in taken["pairs"])
    assert taken["nf4"] in [nf4 for nf4, _ in taken["pairs"]]


def test_the_record_is_five_pairs():
    rows = json.loads((ROOT/"benchmarks/nf4.json").read_text())
    for row in rows:
        assert len(row["pairs"]) == 5 and row["unit"] == "CPU seconds" and row["machine"]
        assert row["ratio"] == sorted(nf4/full for nf4, full in row["pairs"])[2]


@pytest.mark.parametrize("flag, asked, on", [
    (None, None, True),
    ("--gradient-checkpointing", True, True),
    ("--no-gradient-checkpointing", False, False)])
def test_plan_and_train_see_the_same_recomputation(small, flag, asked, on, monkeypatch, tmp_path,
                                                   capsys):
    """One function settles it for both. The device is the only thing that is pretended: a GPU in
    place of the CPU."""
    from calibrl import cli, policy as loads, rollout as handed_on
    from calibrl.runs import fit, start
    settle = loads.recomputes
    for room in (loads, handed_on, fit, start):
        if hasattr(room, "recomputes"):
            monkeypatch.setattr(room, "recomputes", lambda asked, device: settle(asked, "cuda"))

    # Note what is planned and what would be trained
    planned, trained = [], []
    estimate = fit.estimate

    def noted_estimate(settings):
        planned.append(settings.gradient_checkpointing)
        return estimate(settings)

    def noted_run(policy, problems, cfg, out, *_):
        trained.append((policy, cfg))
        return []

    monkeypatch.setattr(fit, "estimate", noted_estimate)
    monkeypatch.setattr(start, "run_in_folder", noted_run)
    flags = [flag] if flag else []
    sizes = ["--gpu", "1GB", "--prompts", "2", "--max-new-tokens", "8"]
    assert cli.main(["plan", str(small(256, 4)), *sizes, *flags]) == 0
    recomputed = capsys.readouterr().out.count("activations recomputed")
    assert cli.main(["train", "--steps", "1", "--out", str(tmp_path/"run"), *flags]) == 0
    (policy, cfg), = trained
    assert cfg.gradient_checkpointing == asked
    assert planned == [on] and recomputed == on
    assert policy.model.get_base_model().is_gradient_checkpointing == on


@pytest.mark.parametrize("on", [True, False])
def test_the_switch_is_the_one_that_this_transformers_has(on, monkeypatch):
    from calibrl.base import recompute_activations
    from calibrl.geometry import tiny_checkpoint
    model = Policy.from_pretrained(tiny_checkpoint(), lora_rank=0).model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recompute_activations(model, on)
    called = []
    old = SimpleNamespace(gradient_checkpointing_enable=lambda kwargs: called.append(kwargs),
                          gradient_checkpointing_disable=lambda: called.append(None),
                          disable_input_require_grads=lambda: None)
    recompute_activations(old, on)
    assert called == [{"use_reentrant": False} if on else None]


def test_a_run_may_go_on_with_activations_kept_or_recomputed(tmp_path):
    """No number of a run depends on it, so a resumed run may change it; in Python the
    configuration wins over how a policy was loaded."""
    from calibrl.runs.folder import other_options
    from calibrl.geometry import problems, tiny_checkpoint
    from calibrl.train import Config, save_config, train
    sizes = dict(steps=1, prompts=2, responses=2, mini_batches=1)
    cfg = Config(**sizes, gradient_checkpointing=True)
    save_config(cfg, tmp_path/"config.toml")
    assert not other_options(tmp_path, Config(**sizes), {})
    policy = Policy.from_pretrained(tiny_checkpoint())
    assert not policy.model.get_base_model().is_gradient_checkpointing
    next(train(policy, problems(2), cfg))
    assert policy.model.get_base_model().is_gradient_checkpointing
