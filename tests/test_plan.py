"""The plan against what really happens: bytes stored, peaks the kernel saw, tokens, operations; and its one-line refusals."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from calibrl.speed import bench_groups, bench_model, bench_problem, bench_processor
from calibrl.plan import Meter, gpu_bytes, most, on_paper, paired_steps, peaks, plan, sampling_bytes, traced, update_bytes, weights, work
from calibrl.rollout import Policy, model_config

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("qwen2_5_vl", "qwen3_vl", "internvl", "qwen2", "qwen3")
MEASURE = """
import ctypes, gc, torch
from calibrl.speed import bench_groups, bench_problem, peak
from calibrl.rollout import Policy
torch.set_num_threads(1)
P, R, T, groups, bits, gradient_checkpointing = {case}
policy = Policy.from_pretrained({folder!r}, bits=bits, gradient_checkpointing=gradient_checkpointing)
def work(problems, responses): policy.logps(problems, responses).logp.sum().backward()
work([bench_problem(policy.processor, 90, 5)], bench_groups(1, 2, 5))
policy.model.zero_grad()
problems, responses = [bench_problem(policy.processor, P, T, seed) for seed in range(groups)], bench_groups(groups, R, T)
gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0)
print("MiB", peak(lambda: work(problems, responses)))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "small(width, layers): the folder of a Qwen2.5-VL with random weights, in which matrices outweigh the rest."
    made = {}
    def make(width, layers):
        if (width, layers) not in made:
            made[width, layers], processor = tmp_path_factory.mktemp("small"), bench_processor()
            bench_model(processor, width, layers).save_pretrained(made[width, layers]); processor.save_pretrained(made[width, layers])
        return made[width, layers]
    return make


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize("width, layers, groups, bits, gradient_checkpointing", [(256, 4, 3, None, False), (384, 4, 2, 4, True), (512, 4, 2, 4, True)])
def test_what_is_said_is_what_the_kernel_saw(small, width, layers, groups, bits, gradient_checkpointing):
    folder, (P, R, T) = small(width, layers), (512, 8, 64)
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MEASURE.format(folder=str(folder), case=(P, R, T, groups, bits, gradient_checkpointing))], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    config = model_config(folder)
    said = update_bytes(config, P, R, T, int(.75*P), bits, largest=weights(on_paper(config), 4)["largest"], gradient_checkpointing=gradient_checkpointing)(groups)/2**20
    assert abs(said/float(done.stdout.split()[-1]) - 1) < .2


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_bytes_are_those_of_the_loaded_policy(checkpoint, kind):
    for bits in (4, None):
        policy = Policy.from_pretrained(checkpoint(kind), bits=bits, lora_rank=4)
        said, stored, wide = weights(on_paper(model_config(checkpoint(kind)), 4, torch.float32), bits, wide=4), 0, 0
        trained = {id(w) for w in policy.trainable}
        for m in policy.model.modules():
            if type(m).__name__ == "Linear4bit" and not hasattr(m, "lora_A"): stored += m.weight.nbytes + m.weight.quant_state.absmax.nbytes + m.weight.quant_state.state2.absmax.nbytes
        wide = sum(w.nbytes for w in policy.model.parameters() if id(w) not in trained and w.dtype != torch.uint8)
        assert said["trained"] == sum(w.numel() for w in policy.trainable) and said["adapter"] == sum(w.nbytes for w in policy.trainable)
        if bits: assert wide == said["rest"] + said["vision"] and stored == pytest.approx(said["packed"], rel=.06)      # tiny matrices end amid a block of scales
        else: assert wide == said["packed"] + said["rest"] + said["vision"] and said["parameters"]*4 == wide
        assert (said["vision"] > 0) == ("vl" in kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_trace_allocates_what_the_real_pass_does(checkpoint, kind, gradient_checkpointing):
    "The same meter over real tensors, text only: the same blocks, a few small masks apart."
    from calibrl.tasks import Problem
    policy = Policy.from_pretrained(checkpoint(kind), lora_rank=4, gradient_checkpointing=gradient_checkpointing)
    problem, R, T = Problem("x"*40, "1"), 3, 30
    P = policy.prompts([problem])[0]["input_ids"].shape[1]
    responses = [[policy.tokens("a"*T)[:T]]*R]
    with Meter([*policy.model.parameters(), *policy.model.buffers(), policy.no_chance]) as meter: policy.logps([problem], responses).logp.sum().backward()
    said = traced(model_config(checkpoint(kind)), 1, P, R, T, 4, torch.float32, 2, gradient_checkpointing).peak
    assert said == pytest.approx(meter.peak, rel=.12)


def test_a_meter_counts_blocks_once_and_lets_go():
    a = torch.zeros(1000)
    with Meter([a]) as meter:
        b = a + 1; assert meter.now == 4000
        c = b.view(10, 100); d = b[:5]; assert meter.now == 4000            # views take nothing
        a.add_(1); assert meter.now == 4000
        del b, c; assert meter.now == 4000
        del d; assert meter.now == 0 and meter.peak == 4000


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_layers_and_groups_extrapolate(small, gradient_checkpointing):
    config = model_config(small(256, 4))
    said, all_of_it = peaks(config, 120, 4, 30, gradient_checkpointing=gradient_checkpointing)(5, 4), traced(config, 4, 120, 4, 30, layers=5, gradient_checkpointing=gradient_checkpointing).peak
    assert said == pytest.approx(all_of_it, rel=.05)


def test_recomputation_and_16_bits_take_less():
    config = _qwen(8)
    kept, again = (traced(config, 1, 200, 4, 50, layers=4, gradient_checkpointing=c).peak for c in (False, True))
    assert again < .6*kept and traced(config, 1, 200, 4, 50, layers=4, gradient_checkpointing=False, dtype=torch.float32).peak > kept


def _qwen(layers, width=512):
    from transformers import Qwen3Config
    return Qwen3Config(hidden_size=width, intermediate_size=3*width, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=2, head_dim=64, vocab_size=8000)


def test_sampling_real_and_said(small):
    "All prompts read at once, two at a time, one at a time."
    policy = Policy.from_pretrained(small(256, 4))
    problems, peak = [bench_problem(policy.processor, 200, 30, seed) for seed in range(3)], []
    for read_tokens in (8192, 500, 230):
        with Meter([*policy.model.parameters(), *policy.model.buffers()]) as meter: policy.sample(problems, 8, max_new_tokens=30, experts=[p.expert for p in problems], read_tokens=read_tokens)
        said = sampling_bytes(model_config(small(256, 4)), 3, 8, 200, 30, 150, torch.float32, read_tokens=read_tokens)
        assert most(said, host=True) == pytest.approx(meter.peak, rel=.15)
        peak.append(meter.peak)
    assert peak[2] < .8*peak[1] < .8**2*peak[0]


def test_work_counts_tokens_and_what_sharing_saves():
    config = _qwen(4)
    paper = on_paper(config, 8)
    ours, theirs = (work(paper, config, 16, 8, 500, 100, shared=x) for x in (True, False))
    assert ours["tokens"] == 16*(500 + 100) + 16*8*100 + 16*(500 + 8*100)
    assert theirs["tokens"] == 16*8*500 + 16*(500 + 100) + 16*8*100 + 16*8*(500 + 100)
    assert theirs["update"] > 2.5*ours["update"] and theirs["sampling"] > 2*ours["sampling"]
    alone, repeated = (work(paper, config, 16, 1, 500, 100, shared=x) for x in (True, False))
    assert alone["update"] == repeated["update"]                                              # nothing to share
    assert work(paper, config, 16, 8, 500, 100, gradient_checkpointing=False)["update"] < ours["update"]


def test_plan_of_a_folder(small, capsys):
    f = plan(str(small(512, 4)), "1GB", prompts=8, responses=4, prompt_tokens=200, max_new_tokens=50)
    text = capsys.readouterr().out
    for word in ("qwen2_5_vl:", "trained (LoRA rank 16)", "language model in 4 bits", "vision tower", "activations recomputed", "largest micro-batch: ", "PFLOP", "1GB less a margin of 10%"): assert word in text
    assert f["fits"] and f["micro_tokens"] == f["largest"]*(200 + 4*50) and f["room"] == .9*2**30
    config = model_config(small(512, 4))
    at = lambda g: f["always"] + update_bytes(config, 200, 4, 50, 150, 4, torch.bfloat16, f["fixed"]["largest"], gradient_checkpointing=True)(g)
    assert at(f["largest"]) <= f["room"] and (f["largest"] == 8 or at(f["largest"] + 1) > f["room"])
    tight = plan(str(small(512, 4)), "0.04GB", prompts=8, responses=4, prompt_tokens=200, max_new_tokens=50)
    assert not tight["fits"] and tight["largest"] == 0 and "not one group fits" in capsys.readouterr().out
    asked = plan(str(small(512, 4)), "1GB", prompts=8, responses=4, prompt_tokens=200, max_new_tokens=50, micro_tokens=800)
    assert asked["groups"] == 2 and asked["update"] < f["update"]


@pytest.mark.parametrize("options, line", [
    (dict(gpu="big"), "gpu must be its memory, such as 24GB"), (dict(gpu="0GB"), "gpu must be"), (dict(bits=3), "bits must be 4, 8 or 16"), (dict(responses=0), "responses must be at least 1"),
    (dict(lora_rank=0), "lora_rank must be at least 1"), (dict(micro_tokens=-1), "micro_tokens must be at least 1"), (dict(image_tokens=2000), "image_tokens must be between 0 and prompt_tokens")])
def test_mistakes_get_one_line(small, options, line):
    with pytest.raises(ValueError, match=line): plan(str(small(256, 4)), **options)


def test_gpu_sizes():
    assert gpu_bytes("24GB") == gpu_bytes("24 GiB") == gpu_bytes(24) == 24*2**30 and gpu_bytes("79.6gb") == 79.6*2**30


def test_steps_in_four_bits_are_timed_in_pairs(checkpoint):
    from calibrl.tasks import Problem
    taken = paired_steps(checkpoint("qwen3"), [Problem("1 + 1 = ?", "2", expert="<answer>2</answer>")], runs=3, responses=2, max_new_tokens=4)
    assert len(taken["pairs"]) == 3 and all(a > 0 and b > 0 for a, b in taken["pairs"]) and taken["nf4"] in [a for a, _ in taken["pairs"]]


def test_the_record_is_five_pairs():
    rows = json.loads((ROOT/"benchmarks/nf4.json").read_text())
    for r in rows: assert len(r["pairs"]) == 5 and r["unit"] == "CPU seconds" and r["machine"] and r["ratio"] == sorted(a/b for a, b in r["pairs"])[2]


@pytest.mark.parametrize("flag, on", [(None, True), ("--gradient-checkpointing", True), ("--no-gradient-checkpointing", False)])
def test_plan_and_train_see_the_same_recomputation(small, flag, on, monkeypatch, tmp_path, capsys):
    "One function settles it for both. The device is the only thing that is pretended: a GPU in place of the CPU."
    from calibrl import cli, plan as P, policy as loads, rollout as handed_on
    from calibrl.runs import start
    settle, planned, trained = loads.recomputes, [], []
    for room in (loads, handed_on, P, start):
        if hasattr(room, "recomputes"):
            monkeypatch.setattr(room, "recomputes", lambda asked, device: settle(asked, "cuda"))
    traced_figures = P.figures
    monkeypatch.setattr(P, "figures", lambda *a: planned.append(a[-1]) or traced_figures(*a))
    monkeypatch.setattr(start, "run_in_folder", lambda policy, problems, cfg, out, tracker: trained.append((policy, cfg)) or [])
    flags = [flag] if flag else []
    assert cli.main(["plan", str(small(256, 4)), "--gpu", "1GB", "--prompts", "2", "--max-new-tokens", "8", *flags]) == 0
    recomputed = capsys.readouterr().out.count("activations recomputed")
    assert cli.main(["train", "--steps", "1", "--out", str(tmp_path/"run"), *flags]) == 0
    (policy, cfg), = trained
    assert cfg.gradient_checkpointing == {None: None, "--gradient-checkpointing": True, "--no-gradient-checkpointing": False}[flag]
    assert planned == [on] and policy.model.get_base_model().is_gradient_checkpointing == on and recomputed == on


def test_a_run_may_go_on_with_activations_kept_or_recomputed(tmp_path):
    "No number of a run depends on it, so a resumed run may change it; in Python the configuration wins over how a policy was loaded."
    from calibrl.runs.folder import other_options
    from calibrl.geometry import problems, tiny_checkpoint
    from calibrl.train import Config, save_config, train
    cfg = Config(steps=1, prompts=2, responses=2, mini_batches=1, gradient_checkpointing=True)
    save_config(cfg, tmp_path/"config.toml")
    assert not other_options(tmp_path, Config(steps=1, prompts=2, responses=2, mini_batches=1), {})
    policy = Policy.from_pretrained(tiny_checkpoint())
    assert not policy.model.get_base_model().is_gradient_checkpointing
    next(train(policy, problems(2), cfg))
    assert policy.model.get_base_model().is_gradient_checkpointing
