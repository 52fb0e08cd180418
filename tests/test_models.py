"""Every served architecture as it is used, and one clear line for what cannot be used.

Loaded in 4 bits, sampled, trained, saved, loaded by others."""
import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from calibrl.base import export, fingerprint, load_base
from calibrl.engine import encode
from calibrl.policy import Policy
from calibrl.rollout import rollout
from calibrl.tasks import Problem
from calibrl.train import Config, train_step

KINDS = ("qwen2_5_vl", "qwen3_vl", "internvl", "qwen2", "qwen3")
EXPERT = "<think>1+1=2</think><answer>2</answer>"


def some(kind):
    "Two problems with an expert: with a picture each, where the model can see."
    made = []
    for question, colour in (("1 + 1 = ?", "red"), ("How long is x?", "blue")):
        pictures = (Image.new("RGB", (56, 56), colour),) if "vl" in kind else ()
        made.append(Problem(question, "2", pictures, expert=EXPERT))
    return made


def by_peft_alone(folder, adapter, policy, problem, bits, n):
    "Greedy tokens from transformers and peft, none of our code but the prompt."
    import transformers as hf
    from peft import PeftModel
    auto = hf.AutoModelForImageTextToText if problem.images else hf.AutoModelForCausalLM
    quant = hf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=[r".*(?:visual|vision_tower|projector|lm_head)"])
    model = auto.from_pretrained(folder, dtype=torch.float32,
                                 quantization_config=quant if bits == 4 else None)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    inputs = encode(policy.processor, problem)
    never = policy.no_chance.nonzero()[:, 0].tolist()
    out = model.eval().generate(**inputs, do_sample=False, max_new_tokens=n, suppress_tokens=never)
    return out[0, inputs["input_ids"].shape[1]:].tolist()


def stir(policy, by=.3):
    "An adapter that does something."
    g = torch.Generator().manual_seed(1)
    for w in policy.trainable:
        w.data += by*torch.randn(w.shape, generator=g)
    return policy


def kinds_of_layers(policy):
    "The classes of the linear layers that an adapter may stand beside."
    return {type(module).__name__ for name, module in policy.model.named_modules()
            if name.endswith("_proj.base_layer")}


def no_pickles(folder):
    return not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def greedy(policy, problems):
    return policy.sample(problems, temperature=0, max_new_tokens=12).ids


def one_step(policy, problems, **more):
    "The metrics of a step. A random model solves nothing, so the verdicts are given."
    ro = rollout(policy, problems, n=3, max_new_tokens=6, seed=1)
    ro.rewards = torch.tensor([1.1, 0, .1]*len(problems))
    ro.correct = torch.tensor([True, False, False]*len(problems))
    cfg = Config(prompts=len(problems), responses=3, mini_batches=1, max_new_tokens=6, lr=1e-2,
                 **more)
    return train_step(policy, torch.optim.AdamW(policy.trainable, lr=cfg.lr), ro, cfg)


@pytest.mark.parametrize("kind", KINDS)
def test_in_four_bits_from_loading_to_plain_peft(checkpoint, kind, tmp_path):
    folder, problems = checkpoint(kind), some(kind)
    policy = stir(Policy.from_pretrained(folder, bits=4, lora_rank=4))
    assert kinds_of_layers(policy) == {"Linear4bit"}
    trained = [name for name, w in policy.model.named_parameters() if w.requires_grad]
    assert all("lora_" in name and "vis" not in name for name in trained)
    before = [w.detach().clone() for w in policy.trainable]
    metrics = one_step(policy, problems)
    assert metrics["expert_rows"] == 6 and metrics["grad_norm"] > 0
    assert metrics["first_ratio_error"] < 1e-5 and not metrics["skipped_updates"]
    for a, b in zip(before, policy.trainable, strict=True):
        assert not torch.equal(a, b)                           # every matrix of the adapter moved
    policy.save(tmp_path/"adapter")
    assert no_pickles(tmp_path/"adapter")

    # The same answers from disk, by us and by others; other ones without the adapter
    want = greedy(policy, problems)
    again = Policy.from_pretrained(folder, bits=4, adapter=tmp_path/"adapter")
    assert greedy(again, problems) == want
    assert greedy(Policy.from_pretrained(folder, bits=4, lora_rank=0), problems) != want
    assert [by_peft_alone(folder, tmp_path/"adapter", policy, p, 4, 12) for p in problems] == want


def test_eight_bits_train_on_the_cpu(checkpoint):
    policy = stir(Policy.from_pretrained(checkpoint("qwen2_5_vl"), bits=8, lora_rank=4), .1)
    assert "Linear8bitLt" in {type(m).__name__ for m in policy.model.modules()}
    metrics = one_step(policy, some("qwen2_5_vl"))
    assert metrics["grad_norm"] > 0
    assert metrics["first_ratio_error"] < 0.1            # inputs are rounded to 8 bits, row by row


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "internvl"])
def test_checkpointing_hooks_no_vision_tower(checkpoint, kind):
    "Nothing of a frozen vision tower is kept for the backward pass."
    policy = Policy.from_pretrained(checkpoint(kind), bits=4, lora_rank=4,
                                    gradient_checkpointing=True)
    touched = []
    for name, module in policy.model.named_modules():
        of_vision = "visual" in name or "vision_tower" in name
        if of_vision and "Linear" in type(module).__name__:
            module.register_forward_hook(lambda m, i, o: touched.append(o.requires_grad))
    stir(policy)
    policy.logps(some(kind), [EXPERT]*2).logp.sum().backward()
    assert touched and not any(touched)
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in policy.trainable)


@pytest.mark.parametrize("kind, recomputed", [
    ("qwen2_5_vl", False),
    ("qwen2_5_vl", True),
    ("qwen3_vl", False),
    ("internvl", False)])
def test_the_vision_tower_can_be_trained(checkpoint, kind, recomputed, tmp_path):
    policy = Policy.from_pretrained(checkpoint(kind), bits=4, lora_rank=2, train_vision=True,
                                    gradient_checkpointing=recomputed)
    stir(policy, .1)
    named = dict(policy.model.named_parameters())
    vision = [name for name, w in named.items() if w.requires_grad and "vis" in name]
    assert vision and len(vision) < len(policy.trainable)
    assert not any("patch_embed" in name or "merger" in name for name in vision)
    assert one_step(policy, some(kind))["first_ratio_error"] < 1e-5
    assert all(named[name].grad.abs().sum() > 0 for name in vision)
    policy.save(tmp_path)
    again = Policy.from_pretrained(checkpoint(kind), bits=4, adapter=tmp_path)
    assert again.sample(some(kind), 2, seed=3).ids == policy.sample(some(kind), 2, seed=3).ids
    if kind == "qwen3_vl":
        with pytest.raises(ValueError, match="reads text only"):
            Policy.from_pretrained(checkpoint("qwen3"), train_vision=True)


@pytest.fixture
def broken(checkpoint, tmp_path):
    "broken(kind, drop, edit): a copy of a checkpoint with some files missing or changed."
    def make(kind, drop=(), edit=None):
        shutil.copytree(checkpoint(kind), tmp_path/"model")
        for pattern in drop:
            assert list((tmp_path/"model").glob(pattern))
            for path in (tmp_path/"model").glob(pattern):
                path.unlink()
        if edit:
            edit(tmp_path/"model")
        return tmp_path/"model"
    return make


def config_of(text):
    "An edit: a model folder whose configuration says this."
    return lambda folder: (folder/"config.json").write_text(text)


def cut_short(folder):
    weights = folder/"model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def without_weight(folder):
    from safetensors.torch import load_file, save_file
    weights = load_file(folder/"model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder/"model.safetensors", metadata={"format": "pt"})


def as_pickle(folder):
    torch.save({"w": torch.zeros(1)}, folder/"pytorch_model.bin")
    (folder/"model.safetensors").unlink()


TEMPLATE = "has no chat template: take the instruction-tuned version"
ARCHITECTURE = '{"model_type": "zzz"}'
NO_PROCESSOR = "no processor: put the processor and tokenizer files"
LOST = "1 of them are missing, such as model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("kind, edit, line", [
    ("qwen3", config_of('{"model'), "is not a configuration that transformers reads"),
    ("qwen3", config_of(ARCHITECTURE), "does not recognize this architecture"),
    ("qwen3", config_of('{"model_type": "bert"}'), "are not whole: .* of them are missing"),
    ("qwen3", cut_short, "is damaged, copy or download it again"),
    ("qwen3", without_weight, LOST)])
def test_a_model_whose_files_are_wrong(broken, kind, edit, line):
    with pytest.raises(ValueError, match=line) as e:
        Policy.from_pretrained(broken(kind, (), edit))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind, drop, line", [
    ("qwen2_5_vl", ["processor_config.json"], NO_PROCESSOR),
    ("internvl", ["processor_config.json"], NO_PROCESSOR),
    ("qwen2_5_vl", ["processor_config.json", "tok*"], "no processor: put"),
    ("qwen3", ["tok*"], "no (tokenizer|processor): put"),
    ("qwen3", ["model.safetensors"], "no weights in .* safetensors only")])
def test_a_model_that_lacks_files(broken, kind, drop, line):
    with pytest.raises(FileNotFoundError, match=line) as e:
        Policy.from_pretrained(broken(kind, drop))
    assert "\n" not in str(e.value)


def test_a_hub_id_without_files_is_not_taken_for_a_folder():
    from calibrl.base import model_processor
    name = "Qwen/Qwen2.5-VL-7B-Instruct"
    with pytest.raises(FileNotFoundError, match="is no folder here, and the hub gave") as e:
        model_processor(name, None)
    assert name in str(e.value) and "into" not in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3"])
def test_a_model_without_chat_template(broken, kind):
    with pytest.raises(ValueError, match=TEMPLATE) as e:
        Policy.from_pretrained(broken(kind, ["chat_template.jinja"]))
    assert "\n" not in str(e.value)


def test_a_model_stored_as_a_pickle(broken):
    with pytest.raises(FileNotFoundError, match="no weights in .* safetensors only") as e:
        Policy.from_pretrained(broken("qwen3", (), as_pickle))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "not a name", ""])
def test_a_wrong_name(name):
    line = "no model at .*: give a save_pretrained folder or a hub id"
    with pytest.raises(FileNotFoundError, match=line):
        load_base(name)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_missing(checkpoint, monkeypatch, bits):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    line = (f"bits={bits} needs bitsandbytes, which does not load here .*: "
            "pip install bitsandbytes, or leave bits out")
    with pytest.raises(ValueError, match=line):
        load_base(checkpoint("qwen3"), bits=bits)
    load_base(checkpoint("qwen3"))


def test_bitsandbytes_unusable(checkpoint, monkeypatch, tmp_path):
    (tmp_path/"bitsandbytes").mkdir()
    text = "raise RuntimeError('libcudart is not there')"
    (tmp_path/"bitsandbytes/__init__.py").write_text(text)
    for name in [m for m in sys.modules if m.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="does not load here .libcudart is not there."):
        load_base(checkpoint("qwen3"), bits=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(checkpoint):
    with pytest.raises(ValueError, match="no GPU that torch can use; leave device out"):
        load_base(checkpoint("qwen3"), device="cuda")


def test_an_adapter_of_another_model(checkpoint, tmp_path):
    import transformers as hf
    adapter = tmp_path/"adapter"
    stir(Policy.from_pretrained(checkpoint("qwen3"), lora_rank=4)).save(adapter)
    sibling = tmp_path/"sibling"                                  # the same shapes, other weights
    shutil.copytree(checkpoint("qwen3"), sibling)
    torch.manual_seed(5)
    hf.Qwen3ForCausalLM(hf.AutoConfig.from_pretrained(sibling)).save_pretrained(sibling)
    for other in (checkpoint("qwen2_5_vl"), checkpoint("qwen2"), sibling):
        with pytest.raises(ValueError, match="belongs to another base model: load it with .*qwen3"):
            Policy.from_pretrained(other, adapter=adapter)

    # The same model in another place fits, in any precision
    elsewhere = tmp_path/"elsewhere"
    shutil.copytree(checkpoint("qwen3"), elsewhere)
    for bits in (None, 4, 8):
        Policy.from_pretrained(elsewhere, adapter=adapter, bits=bits)
    note = json.loads((adapter/"base.json").read_text())
    assert fingerprint(load_base(elsewhere, dtype=torch.bfloat16)[0]) == note["fingerprint"]


def test_an_adapter_without_a_note_must_still_fit(checkpoint, tmp_path):
    stir(Policy.from_pretrained(checkpoint("qwen3"), lora_rank=4)).save(tmp_path)
    (tmp_path/"base.json").unlink()
    for kind in ("qwen2_5_vl", "internvl"):
        with pytest.raises(ValueError, match="does not fit this model.*matrices are not in both"):
            Policy.from_pretrained(checkpoint(kind), adapter=tmp_path)
    again = Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)
    assert len(again.trainable) == 28
    config = json.loads((tmp_path/"adapter_config.json").read_text())
    (tmp_path/"adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ValueError, match="does not fit this model"):
        Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)
    (tmp_path/"adapter_model.safetensors").write_bytes(b"12345678nothing")
    with pytest.raises(ValueError, match="is damaged"):
        Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)
    (tmp_path/"adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"):
        Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)


def test_nothing_to_save(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no adapter to save"):
        Policy.from_pretrained(checkpoint("qwen3"), lora_rank=0).save(tmp_path)


def adapter_of(folder, path, **kw):
    "A run folder with an adapter that does something."
    stir(Policy.from_pretrained(folder, lora_rank=4, **kw)).save(path/"run/adapter")
    return path/"run"


@pytest.mark.parametrize("kind", KINDS)
def test_export_serves_what_base_and_adapter_say(checkpoint, kind, tmp_path):
    problems, run = some(kind), adapter_of(checkpoint(kind), tmp_path)
    export(run, tmp_path/"served", dtype="fp32")
    policy = Policy.from_pretrained(checkpoint(kind), adapter=run/"adapter")
    want = greedy(policy, problems)
    assert [by_peft_alone(tmp_path/"served", None, policy, p, None, 12) for p in problems] == want
    assert greedy(Policy.from_pretrained(checkpoint(kind), lora_rank=0), problems) != want
    served = Policy.from_pretrained(tmp_path/"served")
    assert served.tokenizer.chat_template == policy.tokenizer.chat_template


def lora_key(lora, name):
    "The adapter's first matrix beside a weight of the base, or None."
    for key in lora:
        module = key.removeprefix("base_model.model.").replace("language_model.", "")
        if module.removesuffix(".lora_A.weight") == name.removesuffix(".weight"):
            return key


def test_a_run_in_four_bits_is_exported_from_the_16_bit_base(checkpoint, tmp_path, capsys):
    from safetensors.torch import load_file
    run = adapter_of(checkpoint("qwen2_5_vl"), tmp_path, bits=4)
    export(run=str(run), out=str(tmp_path/"served"))
    assert str(tmp_path/"served") in capsys.readouterr().out and not list(tmp_path.glob("*.part"))
    assert "quantization_config" not in json.loads((tmp_path/"served/config.json").read_text())
    assert no_pickles(tmp_path/"served")
    base = load_file(checkpoint("qwen2_5_vl")/"model.safetensors")
    merged = load_file(tmp_path/"served/model.safetensors")
    lora = load_file(run/"adapter/adapter_model.safetensors")
    assert base.keys() == merged.keys()
    assert {w.dtype for w in merged.values()} == {torch.bfloat16}

    # lora_alpha is twice the rank; the sum is rounded twice
    adapted = 0
    for name, w in base.items():
        want = w.bfloat16()
        if key := lora_key(lora, name):
            want = want + 2*(lora[key.replace("lora_A", "lora_B")] @ lora[key])
            adapted += 1
        error = (merged[name].float() - want.float()).abs().max()
        assert error <= 2**-7*want.float().abs().max(), name
    assert adapted == len(lora)/2 == 14


def test_export_refuses(checkpoint, tmp_path):
    run, out = adapter_of(checkpoint("qwen3"), tmp_path), tmp_path/"out"
    full = tmp_path/"full"
    full.mkdir()
    (full/"mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not an empty folder"):
        export(run, full)
    with pytest.raises(FileNotFoundError, match="no adapter in"):
        export(full, out)
    with pytest.raises(ValueError, match="dtype must be one of bf16, fp16, fp32"):
        export(run, out, dtype="nf4")
    with pytest.raises(ValueError, match="belongs to another base model"):
        export(run, out, model=str(checkpoint("qwen2")))
    with pytest.raises(FileNotFoundError, match="no model at"):
        export(run, out, model="/no/such/model")
    assert not out.exists()


def changed(path, **values):
    "Change values in a JSON file."
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_export_refuses_a_base_that_is_no_original(checkpoint, tmp_path):
    run, out = adapter_of(checkpoint("qwen3"), tmp_path), tmp_path/"out"
    quantised = tmp_path/"quantised"
    shutil.copytree(checkpoint("qwen3"), quantised)
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    changed(quantised/"config.json", quantization_config=stored)
    with pytest.raises(ValueError, match="is stored quantised: name its 16-bit original"):
        export(run, out, model=str(quantised))
    changed(run/"adapter/adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not say which base"):
        export(run, out)
    assert not out.exists()
