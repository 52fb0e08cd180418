"""What a run is told: each option is a flag, a line of TOML and a line of the run's config.toml,
and what is left out comes from a preset that suits the model."""
from dataclasses import asdict, fields

import pytest

from calibrl.cli import flag_of, main, make_parser, parameters_of
from calibrl.config import PRESETS, Config, load_config, save_config
from calibrl.runs.folder import RunSpec
from calibrl.runs.options import run_options

SETTINGS = {field.name: field for kind in (Config, RunSpec) for field in fields(kind)}
OTHER_TEXTS = {"method": "grpo", "gap": "mean", "reduce": "seq-mean-token-sum", "rows": "plain",
               "lr_schedule": "cosine", "on_bad": "fail", "instruction": "Answer in Latin.",
               "system": "You are kind.", "model": "some/model"}

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
    if kind_of(name) is bool:
        return [flag_of(name) if value else "--no-" + flag_of(name)[2:]]
    return [flag_of(name), str(value)]


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
    cfg = load_config(**{name: another(name)})
    save_config(cfg, tmp_path/"config.toml")
    assert load_config(tmp_path/"config.toml") == cfg != Config()
    assert settled(["--config", str(tmp_path/"config.toml")])[0] == cfg


def test_a_real_model_is_not_trained_like_the_embedded_one(capsys):
    cfg, _ = settled(["--model", "some/model"])
    said = capsys.readouterr().out.splitlines()
    assert cfg == Config(**PRESETS["single-gpu"])
    assert len(said) == 1 and said[0].startswith("preset single-gpu for this model: ")
    assert "1e-05" in said[0] and "1,024 new tokens" in said[0]

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
