"""What a run is told: each option is a flag, a line of TOML and a line of the run's config.toml,
and what is left out comes from a preset that suits the model."""
import json
import re
import shlex
from dataclasses import asdict, fields, replace

import pytest
import torch
from PIL import Image

from calibrl import base
from calibrl.cli import flag_of, main, make_parser, parameters_of
from calibrl.config import PRESETS, Config, load_config, save_config
from calibrl.geometry import problems, tiny_checkpoint
from calibrl.plan import SIDE, Meter, on_paper, tower_bytes, tower_peak
from calibrl.policy import Policy
from calibrl.runs import fit, options as options_room, start
from calibrl.runs.folder import RunSpec
from calibrl.runs.options import run_options
from calibrl.tasks import Problem

SETTINGS = {field.name: field for kind in (Config, RunSpec) for field in fields(kind)}
OTHER_TEXTS = {"method": "grpo", "gap": "mean", "reduce": "seq-mean-token-sum", "rows": "plain",
               "lr_schedule": "cosine", "on_bad": "fail", "instruction": "Answer in Latin.",
               "system": "You are kind.", "model": "some/model", "engine": "trl",
               "vllm": "colocate", "dial": "alpha", "sampler": "vllm",
               "sampler_url": "http://127.0.0.1:9"}

# What an option goes with: the method that reads it, or another option
CHORD = {"method": "chord"}
HELD = {"target_entropy": .2}
WITH = {"vllm": {"engine": "trl"}, "expert_weight": {"method": "luffy"},
        "verified": {"method": "grpo_sft"}, "mu": CHORD, "mu_end": CHORD, "mu_steps": CHORD,
        "cov_share": {"method": "kl_cov"}, "cov_weight": {"method": "kl_cov"},
        "hard_share": {"method": "relift"},
        "dial": HELD, "dial_rate": HELD, "sampler": {"sampler_url": "http://127.0.0.1:9"},
        "sampler_url": {"sampler": "vllm"}}

OTHER_NUMBERS = {"mini_batches": 4, "prompts": 8, "dual_clip": 2.5, "bits": 4}


def kind_of(name):
    "The kind of a setting: int of `int | None`."
    kind = SETTINGS[name].type
    return getattr(kind, "__args__", (kind,))[0]


def another(name):
    "A value of a setting that is not its default, and means something."
    default = SETTINGS[name].default
    kind = kind_of(name)
    if kind is bool:
        return not default
    if kind is str:
        return OTHER_TEXTS.get(name, "something")
    if name in OTHER_NUMBERS:
        return OTHER_NUMBERS[name]
    if kind is int:
        return (default or 3) + 1
    return (default or .2) + .1


def flags_for(name):
    "The words that set a setting on a command line."
    value = another(name)
    others = [word for other, given in WITH.get(name, {}).items()
              for word in (flag_of(other), str(given))]
    if kind_of(name) is bool:
        return [flag_of(name) if value else "--no-" + flag_of(name)[2:], *others]
    return [flag_of(name), str(value), *others]


def settled(words):
    "What a training command with these words would run."
    return run_options(vars(make_parser("train").parse_args(words)), gpu=False)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_is_a_flag_of_train(name):
    assert name in parameters_of("train")
    model = [] if name == "model" else ["--model", "tiny"]
    cfg, spec = settled([*flags_for(name), *model, "--preset", "demo"])
    assert (asdict(cfg) | asdict(spec))[name] == another(name) != SETTINGS[name].default


@pytest.mark.parametrize("name", [field.name for field in fields(Config)])
def test_each_setting_is_kept_in_the_file_of_a_run(name, tmp_path):
    cfg = load_config(**{name: another(name)}, **WITH.get(name, {}))
    save_config(cfg, tmp_path/"config.toml")
    assert load_config(tmp_path/"config.toml") == cfg != Config()
    assert settled(["--config", str(tmp_path/"config.toml")])[0] == cfg


def test_a_real_model_is_not_trained_like_the_embedded_one(capsys):
    cfg, _ = settled(["--model", "some/model"])
    said = capsys.readouterr().out.splitlines()
    assert cfg == Config(**PRESETS["single-gpu"])
    assert len(said) == 1 and said[0].startswith("preset single-gpu: ")
    assert "1e-05" in said[0] and "1,024 new tokens" in said[0] and len(said[0]) <= 80

    # a preset that is named, and the embedded policy, say nothing
    assert settled(["--model", "some/model", "--preset", "demo"])[0] == Config()
    assert settled([])[0] == Config() and not capsys.readouterr().out


@pytest.mark.parametrize("words, gpu, bits", [
    (["--model", "a/b"], True, 4), (["--model", "a/b"], False, None),
    (["--model", "a/b", "--bits", "16"], True, None), (["--model", "a/b", "--bits", "8"], True, 8),
    (["--model", "a/b", "--preset", "paper"], True, None), ([], True, None)])
def test_a_real_model_has_four_bits_on_a_gpu(words, gpu, bits):
    options = vars(make_parser("train").parse_args(words))
    assert run_options(options, gpu)[1].bits == bits


def test_the_file_of_a_run_brings_its_model_and_data(tmp_path):
    "And a run that was in full precision stays so, whatever the preset would choose."
    spec = RunSpec(model="some/model", data="sums.jsonl", lora_rank=4)
    about = asdict(spec) | {"identity": {"base": "0"}}
    save_config(Config(lr=.1), tmp_path/"config.toml", **about)
    options = vars(make_parser("train").parse_args(["--config", str(tmp_path/"config.toml")]))
    assert run_options(options, True) == (Config(lr=.1), spec)
    changed = run_options(options | {"data": "more.jsonl", "bits": 4}, True)[1]
    assert (changed.data, changed.bits, changed.model) == ("more.jsonl", 4, "some/model")


def test_an_adapter_brings_the_model_it_was_trained_on(tmp_path):
    (tmp_path/"adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path/"adapter"/name).write_text("{}")
    save_config(Config(), tmp_path/"config.toml", model="some/model")
    assert settled(["--adapter", str(tmp_path)])[1].model == "some/model"


def test_a_file_with_a_wrong_option_for_the_run_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"mine.toml").write_text('[run]\nbits = "four"\n')
    assert main(["train", "--config", "mine.toml"]) == 2
    assert "mine.toml: bits must be a whole number" in capsys.readouterr().err


# The same line with plan or train in front

class Noted(Exception):
    "Raised where a test has seen enough."


def noting(seen):
    "A function that notes its first arguments and goes no further."
    def note(*args, **kwargs):
        seen.append(args[:2])
        raise Noted
    return note


def test_plan_takes_every_option_of_train():
    assert parameters_of("train").keys() < parameters_of("plan").keys()
    for name, parameter in parameters_of("train").items():
        assert name == "model" or parameters_of("plan")[name] == parameter


@pytest.mark.parametrize("name", SETTINGS)
def test_plan_and_train_see_the_same_setting(name, monkeypatch):
    """Each option by its flag, later ones unasked: what is planned for is what would be trained."""
    planned, trained = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)      # a plan is of a GPU
    monkeypatch.setattr(fit, "planned_lengths", noting(planned))
    monkeypatch.setattr(start, "start", lambda out, *rest: noting(trained)(*rest))
    words = ["--model", "tiny", *flags_for(name)]
    for command in ("plan", "train"):
        with pytest.raises(Noted):
            main([command, *words])
    assert planned == trained
    assert asdict(planned[0][0]) | asdict(planned[0][1]) != asdict(Config()) | asdict(RunSpec())


def test_the_plan_that_is_shown_is_the_one_that_a_run_is_held_to(monkeypatch, tmp_path):
    "Both ways to the same bytes: only what the device has free may differ."
    made = []
    estimate = fit.estimate

    def note(plan):
        made.append(plan)
        return estimate(plan)

    monkeypatch.setattr(fit, "estimate", note)
    monkeypatch.setattr(fit, "is_embedded", lambda model: False)
    monkeypatch.setattr(fit, "recomputes", lambda asked, device: True)
    options = {"model": "tiny", "data": "geometry", "prompts": 4, "sample_prompts": 2,
               "micro_tokens": 500, "max_new_tokens": 16, "preset": "demo"}
    monkeypatch.setattr(options_room, "is_embedded", lambda model: False)
    cfg, spec = run_options(options, gpu=True)
    model = tiny_checkpoint()
    lengths = fit.measure(problems(40), fit.prompter(fit.processor_at_hand(model)))
    fit.plan_run(options, "24GB", lengths.prompt, lengths.image)
    monkeypatch.setattr(fit, "free_memory", lambda device: 24*2**30)
    fit.check_fit(cfg, spec, model, problems(40), "cpu")
    shown, held = made
    assert held.host and not shown.host
    assert shown.sampled == held.sampled == 2 and shown.micro_tokens == 500
    same = dict(host=False, gpu="24GB", config=None)
    assert replace(shown, **same) == replace(held, **same)


def easy_estimate(plan):
    "Needs by simple rules, in place of traces: what is made of them is what is tested here."
    always = 2.**30
    update = 2.**20*(plan.responses*plan.max_new_tokens + plan.prompt_tokens/2)/2
    sampled = 2.**28*plan.sampled
    peak = always + max(update, sampled)
    return {"always": always, "update": update, "sampled": sampled, "peak": peak, "largest": 1,
            "room": plan.room, "micro_tokens": 1, "fits": peak <= plan.room,
            "work": {"update": 1e15}}


@pytest.fixture
def easy(monkeypatch):
    monkeypatch.setattr(fit, "estimate", easy_estimate)
    monkeypatch.setattr(fit, "plan_lines",
                        lambda plan, needs: [f"at most {needs['peak']}, fits: {needs['fits']}"])


QWEN = "plan Qwen/Qwen3-VL-2B-Instruct --prompt-tokens 512"


def test_a_plan_ends_with_the_command_that_fits(easy, capsys):
    "The command is read again by the same parser, and its plan is the one that was shown."
    words = [*QWEN.split(), "--gpu", "6GB", "--max-new-tokens", "256", "--price", "2"]
    assert main([*words, "--sample-prompts", "32", "--prompts", "32"]) == 0
    shown = capsys.readouterr().out
    assert all(len(row) <= 80 for row in shown.splitlines())
    assert " hours for 200 steps, " in shown and "not measured on this card" in shown
    command = shown[shown.index("calibrl train"):].replace("\\\n", " ").splitlines()[0]
    again = shlex.split(command)[2:]
    assert again[again.index("--max-prompt-tokens") + 1] == "512"
    assert again[again.index("--sample-prompts") + 1] == "16"
    assert main(["plan", *again, "--gpu", "6GB"]) == 0
    then = capsys.readouterr().out
    assert "made to fit" in shown and "made to fit" not in then
    peak = re.findall("^at most .*$", shown, flags=re.M)
    assert peak and peak == re.findall("^at most .*$", then, flags=re.M)


def test_a_plan_of_trls_loop_samples_all_at_once(easy, capsys):
    "No slice is named that TRL would not take, neither by the preset nor to make it fit."
    line = [*QWEN.split(), "--engine", "trl", "--responses", "2"]
    assert main([*line, "--gpu", "80GB"]) == 0
    shown = capsys.readouterr().out
    assert "have not been measured" in shown
    command = shown[shown.index("calibrl train"):].replace("\\\n", " ").splitlines()[0]
    assert settled(shlex.split(command)[2:])[1].engine == "trl"
    assert main([*line, "--gpu", "6GB"]) == 1
    assert main([*QWEN.split(), "--responses", "2", "--gpu", "6GB"]) == 0      # ours, in slices
    assert main(["plan", *line[1:], "--sample-prompts", "4"]) == 2


def test_a_plan_that_cannot_be_made_to_fit_says_what_would_have_to_give(easy, capsys):
    line = [*QWEN.split(), "--gpu", "4GB"]
    assert main(line) == 1
    shown = capsys.readouterr().out
    assert "fits: False" in shown and "calibrl train" not in shown
    given = [row.strip() for row in shown.partition("alone would do:\n")[2].splitlines()]
    assert [row.split()[0] for row in given] == ["--max-new-tokens", "--responses", "a"]
    for row in given[:-1]:
        assert main([*line, *row.split()]) == 0      # each alone does
    larger = given[-1].removeprefix("a GPU of ").removesuffix(" GB")
    assert main([*line, "--gpu", f"{larger}GB"]) == 0
    assert main([*line, "--gpu", f"{int(larger) - 1}GB"]) == 1


def test_train_refuses_in_one_line_what_cannot_fit(monkeypatch, tmp_path, capsys):
    "Before a weight is loaded, and no folder stays behind."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit, "is_embedded", lambda model: False)
    monkeypatch.setattr(start, "load_policy", noting([]))
    words = ["train", "--model", str(tiny_checkpoint()), "--steps", "1", "--prompts", "16"]
    free = []
    monkeypatch.setattr(fit, "free_memory", lambda device: free[0])
    free[:] = [2**20]
    assert main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "this run needs " in error[0] and "calibrl plan" in error[0]
    assert not any(tmp_path.iterdir())

    # with room, or where it is not asked, it goes on to the weights
    for more in (["--no-memory-check"], []):
        free[:] = [2**20 if more else 2**36]
        with pytest.raises(Noted):
            main([*words, *more])


def test_a_model_that_no_plan_knows_is_tried_all_the_same(monkeypatch, capsys):
    def refuse(plan):
        raise NotImplementedError("no such layer")

    monkeypatch.setattr(fit, "estimate", refuse)
    monkeypatch.setattr(fit, "is_embedded", lambda model: False)
    fit.check_fit(Config(), RunSpec(), tiny_checkpoint(), problems(4), "cpu")
    assert "memory was not checked beforehand (no such layer)" in capsys.readouterr().err


def test_prompts_are_measured_where_data_and_processor_are_at_hand(tmp_path):
    rows = [{"question": "1 + 1 = ?" + " and so on"*n, "answer": "2"} for n in range(3)]
    (tmp_path/"sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_checkpoint()
    spec = RunSpec(data=str(tmp_path/"sums.jsonl"))
    found = fit.planned_lengths(Config(), spec, model)
    longer = fit.planned_lengths(Config(system="You are kind and patient."), spec, model)
    assert longer.prompt > found.prompt and found.image == 0
    assert found.about == f"the longest of 3 prompts has {found.prompt} tokens"
    assumed = fit.planned_lengths(Config(), replace(spec, model="a/b"), "a/b")
    assert assumed.prompt == 1024 and "assumed" in assumed.about


@pytest.mark.parametrize("name, billions", [
    ("Qwen2.5-VL-3B-Instruct", 3.75), ("Qwen2.5-VL-7B-Instruct", 8.29),
    ("Qwen3-VL-2B-Instruct", 2.13),
    ("Qwen3-VL-4B-Thinking", 4.44), ("Qwen3-VL-8B-Instruct", 8.77)])
def test_carried_shapes_have_as_many_parameters_as_published(name, billions, monkeypatch):
    "And no network is asked."
    monkeypatch.setattr(base, "model_config", noting([]))
    paper = on_paper(base.shape_config(f"Qwen/{name}"))
    numbers = sum(weight.numel() for key, weight in paper.named_parameters() if "lora_" not in key)
    assert round(numbers/1e9, 2) == billions


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_what_a_trained_tower_keeps_is_what_was_said(kind, checkpoint):
    "The same meter over a real pass, with the tower trained and frozen."
    peak = {}
    for trained in (False, True):
        policy = Policy.from_pretrained(checkpoint(kind), lora_rank=4, train_vision=trained,
                                        gradient_checkpointing=False)
        problem = Problem("What is it?", "1", images=(Image.new("RGB", (448, 448)),))
        ids = policy.prompt(problem)["input_ids"]
        tokens = int((ids == policy.processor.image_token_id).sum())
        known = [*policy.model.parameters(), *policy.model.buffers(), policy.no_chance]
        with Meter(known) as meter:
            policy.logps([problem], ["abc"]).logp.sum().backward()
        peak[trained] = meter.peak
    said = tower_bytes(policy.model.config, tokens, 4, torch.float32, False)(1)
    assert said == pytest.approx(peak[True] - peak[False], rel=.3)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_a_deeper_tower_and_more_pictures_extrapolate(kind, recompute, checkpoint):
    config = base.model_config(checkpoint(kind))
    config.vision_config.depth = 6
    options = (4, torch.float32, recompute)
    added = tower_peak(config, 6, 4, *options) - tower_peak(config, 6, 1, *options)
    merged = config.vision_config.spatial_merge_size**2
    tokens = SIDE**2//merged      # of one small picture
    assert tower_bytes(config, tokens, *options)(3) == pytest.approx(added, rel=.1)


# What --engine trl takes over: by a setting of TRL's, by our recorder, or as the policy is loaded;
# and what only methods or samplers read that it refuses
CARRIED = set("""method alpha weight gap reduce norm_std clip_low clip_high dual_clip weigh_by_adv
    instruction system min_pixels max_pixels steps prompts responses mini_batches temperature
    max_new_tokens micro_tokens gradient_checkpointing rows lr lr_schedule warmup train_vision
    weight_decay max_grad_norm seed sample_every save_every val_every keep""".split())
OF_OTHERS = set("""expert_weight verified hard_share mu mu_end mu_steps cov_share cov_weight dial
    dial_rate sampler_url sampler_cap sampler_timeout""".split())


@pytest.mark.parametrize("name", sorted({f.name for f in fields(Config)} - CARRIED - OF_OTHERS))
def test_the_other_engine_passes_over_no_option_in_silence(name):
    method = WITH.get(name, {})
    refused = options_room.not_carried(Config(**{name: another(name)} | method), {name})
    assert name in refused, f"{name}: TRL's engine neither takes it over nor refuses it"
