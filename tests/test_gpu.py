"""The bench of a card, tried without one: each part is measured, or named, and what was measured
stays. No test here looks at a clock. What only a card can show runs where there is one."""
import json

import pytest
import torch

from calibrl import gpu
from calibrl.cli import main
from calibrl.engine import wide_product
from calibrl.geometry import problems
from calibrl.rollout import Policy, rollout
from calibrl.speed import loop_lines
from calibrl.train import Config, train

MEASURED = ["making", "loading", "sampling", "sampling_copied", "kernels_copied",
            "launched_sampling", "step", "step_copied", "tiny", "generated"]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    "The folder of a dry run whose part `kernels` runs out of memory, and what it printed."
    folder = tmp_path_factory.mktemp("bench")/"run"

    def kernels(bench):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    parts = {kernels if part.__name__ == "kernels" else part: seconds
             for part, seconds in gpu.PARTS.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "PARTS", parts)
        patch.setattr(gpu, "find_spec", lambda name: None)
        assert main(["bench", "--gpu", "--dry", "--out", str(folder)]) == 0
    return folder


def rows(folder):
    "The parts of a record by name."
    return {row["name"]: row for row in json.loads((folder/"gpu.json").read_text())["parts"]}


def test_each_part_is_measured_or_named(dry):
    parts = rows(dry)
    measured = [name for name, row in parts.items() if not {"failed", "left_out"} & row.keys()]
    assert measured == MEASURED
    assert parts["kernels"]["failed"] == "out of memory"
    assert "pip install" in parts["trl"]["left_out"]


def test_what_a_step_is_stands_in_its_parts(dry):
    parts = rows(dry)
    size = gpu.TINY.size
    written = size.prompts*size.responses*size.max_new_tokens
    assert parts["sampling"]["tokens"] == written
    step = parts["step"]
    assert step["seconds"] == step["sampling_seconds"] + step["update_seconds"]
    assert step["update_gib"] is None and step["update_gib_planned"] > 0
    assert parts["making"]["parameters"] > 10**6


def test_a_copy_is_measured_beside_the_model(dry):
    "A copy takes fewer operations a token, and the plan of its step counts it."
    parts = rows(dry)
    assert 0 < parts["kernels_copied"]["kernels_per_token"]
    more = (parts["step_copied"]["sampling_gib_planned"]
            - parts["step"]["sampling_gib_planned"])*2**30
    text = gpu.TINY.text
    width, inner, layers = (text[name] for name in ("hidden_size", "intermediate_size",
                                                    "num_hidden_layers"))
    heads = width//text["num_attention_heads"]*text["num_key_value_heads"]
    matrices = layers*(2*width*width + 2*width*heads + 3*width*inner)
    assert more == pytest.approx(2*matrices)


def test_families_that_keep_the_loop_are_named(dry):
    "By the criterion that policies are loaded by, which tests of families hold."
    record = json.loads((dry/"gpu.json").read_text())
    assert "gemma3" in record["loop"] and "qwen2_5_vl" not in record["loop"]
    lines = loop_lines({"a": "it is so", "b": "it is not", "c": "it is so"})
    assert lines[1:] == ["  a, c: it is so", "  b: it is not"]


def test_no_card_is_said_and_nothing_else_is_left(dry):
    record = json.loads((dry/"gpu.json").read_text())
    assert record["card"] is None and record["dry"]
    assert (dry/"gpu.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in dry.iterdir()} <= {"gpu.json", "gpu.png", ".lock"}


@pytest.mark.parametrize("line, word", [
    ("bench --dry", "--dry belongs to --gpu"),
    ("bench --gpu --quick", "--gpu measures other things"),
    ("bench --gpu", "there is no GPU that torch can use")])
def test_options_that_do_not_go_together(line, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(line.split()) == 2
    assert word in capsys.readouterr().err and not (tmp_path/"runs").exists()


def test_a_part_that_could_not_end_in_time_is_not_begun(tmp_path):
    bench = gpu.Bench(gpu.SEVEN_B, "cpu", tmp_path)
    assert "are left" in gpu.try_part(gpu.trl, bench, gpu.PARTS[gpu.trl] - 1)["left_out"]
    assert sum(gpu.PARTS.values()) > gpu.LIMIT            # so that this can happen at all


def test_the_shape_is_that_of_qwen():
    from transformers import AutoModelForImageTextToText

    from calibrl.speed import bench_processor, qwen_config
    config = qwen_config(bench_processor(gpu.SEVEN_B.words), gpu.SEVEN_B.text, gpu.SEVEN_B.vision)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert config.text_config.vocab_size == 152_064
    assert model.num_parameters() == 8_292_166_656        # as published


CARD = pytest.param("cuda", marks=[
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")])


@pytest.mark.parametrize("device", ["cpu", CARD])
@pytest.mark.parametrize("before", [(), (3,), (3, 2)])
def test_products_of_16_bits_have_32(device, before):
    torch.manual_seed(0)
    h = torch.randn(*before, 7, 256).bfloat16().to(device)
    W = torch.randn(*before, 50, 256).bfloat16().to(device)
    z = wide_product(h, W)
    assert z.dtype == torch.float32 and z.shape == (*before, 7, 50)
    assert float((z - h.double() @ W.double().mT).abs().max()) < 1e-3     # of some 50


def moved(tiny, device, dtype):
    "The embedded policy, its adapter moved by the same everywhere."
    policy = Policy.from_pretrained(tiny, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    for weight in policy.trainable:
        weight.data += (.02*torch.randn(weight.shape, generator=generator)).to(weight)
    return policy


@pytest.mark.parametrize("device", ["cpu", CARD])
def test_half_precision_samples_scores_and_learns(tiny, device):
    "No log-probability above 0, sampler and scorer alike, both near 64 bits; then two steps."
    policy = moved(tiny, device, torch.bfloat16)
    assert policy.rows == "packed" and policy.shared
    ro = rollout(policy, problems(6, split="test"), n=4, max_new_tokens=32, seed=1)
    with torch.no_grad():
        scores = policy.logps(ro.problems, ro.grouped)
        exact = moved(tiny, "cpu", torch.float64).logps(ro.problems, ro.grouped)
    T = scores.logp.shape[1]
    sampled, scored, want = [table[scores.mask].cpu().double()
                             for table in (ro.old_logp[:, :T], scores.logp, exact.logp.to(device))]
    assert float(sampled.max()) <= 0 and float(scored.max()) <= 0
    floor = float((want - scored).abs().mean())
    assert 0 < floor < .05
    assert float((scored - sampled).expm1().abs().mean()) < 2*floor
    cfg = Config(steps=2, prompts=4, responses=4, max_new_tokens=32)
    for row in train(policy, problems(8, split="train"), cfg):
        assert row["skipped_updates"] == 0 and row["grad_norm"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_on_a_card_writes_what_the_eager_one_does(tiny, capsys):
    "The same ids from the same luck, graphs captured, and no line that says they were not."
    from calibrl import step as step_room
    policy = Policy.from_pretrained(tiny, bits=4, device="cuda")
    ps = problems(4, split="test")
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.CUDAGraph, "replay",
                      lambda graph: replays.append(1) or replay(graph))
        captured = policy.sample(ps, n=4, seed=1)
    assert replays and "cannot be captured" not in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_room.Captured, "__call__", lambda self: step_room.feed(self.step))
        eager = policy.sample(ps, n=4, seed=1)
    assert captured.ids == eager.ids
    assert torch.equal(captured.logp, eager.logp)
