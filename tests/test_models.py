"""Every served architecture as it is used: loaded in 4 bits, sampled, trained, saved, loaded by others; and one clear line for what cannot be used."""
import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from calibrl.loss import OBJECTIVES
from calibrl.rollout import Policy, encode, export, fingerprint, load_base, rollout
from calibrl.tasks import Problem
from calibrl.train import Config, train_step

KINDS = ("qwen2_5_vl", "qwen3_vl", "internvl", "qwen2", "qwen3")
EXPERT = "<think>1+1=2</think><answer>2</answer>"


def some(kind):
    "Two problems with an expert: with a picture each, where the model can see."
    pictures = [(Image.new("RGB", (56, 56), c),) if "vl" in kind else () for c in ("red", "blue")]
    return [Problem(q, "2", p, expert=EXPERT) for q, p in zip(("1 + 1 = ?", "How long is x?"), pictures)]


def by_peft_alone(folder, adapter, policy, problem, bits, n):
    "Greedy tokens from transformers and peft, none of our code but the prompt."
    import transformers as hf
    from peft import PeftModel
    auto = hf.AutoModelForImageTextToText if problem.images else hf.AutoModelForCausalLM
    quant = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
                                  llm_int8_skip_modules=[r".*(?:visual|vision_tower|projector|lm_head)"]) if bits == 4 else None
    model = auto.from_pretrained(folder, dtype=torch.float32, quantization_config=quant)
    if adapter: model = PeftModel.from_pretrained(model, adapter)
    inputs = encode(policy.processor, problem)
    out = model.eval().generate(**inputs, do_sample=False, max_new_tokens=n, suppress_tokens=policy.no_chance.nonzero()[:, 0].tolist())
    return out[0, inputs["input_ids"].shape[1]:].tolist()


def stir(policy, by=.3):
    "An adapter that does something."
    g = torch.Generator().manual_seed(1)
    for w in policy.trainable: w.data += by*torch.randn(w.shape, generator=g)
    return policy


def one_step(policy, problems, **more):
    ro = rollout(policy, problems, n=3, max_new_tokens=6, seed=1)
    ro.rewards, ro.correct = torch.tensor([1.1, 0, .1]*len(problems)), torch.tensor([True, False, False]*len(problems))     # a random model solves nothing
    cfg = Config(prompts=len(problems), responses=3, mini_batches=1, max_new_tokens=6, lr=1e-2, **more)
    return train_step(policy, torch.optim.AdamW(policy.trainable, lr=cfg.lr), ro, cfg)


@pytest.mark.parametrize("kind", KINDS)
def test_in_four_bits_from_loading_to_plain_peft(checkpoint, kind, tmp_path):
    folder, problems = checkpoint(kind), some(kind)
    policy = stir(Policy.from_pretrained(folder, bits=4, lora_rank=4))
    layers = {type(m).__name__ for n, m in policy.model.named_modules() if n.endswith("_proj.base_layer") or n.endswith("q_proj.base_layer")}
    assert layers == {"Linear4bit"}
    assert all("lora_" in n and "vis" not in n for n, w in policy.model.named_parameters() if w.requires_grad)
    before = [w.detach().clone() for w in policy.trainable]
    metrics = one_step(policy, problems)
    assert metrics["expert_rows"] == 6 and metrics["grad_norm"] > 0 and metrics["first_ratio_error"] < 1e-5 and not metrics["skipped_updates"]
    assert all(not torch.equal(a, b) for a, b in zip(before, policy.trainable))                  # every matrix of the adapter moved
    policy.save(tmp_path/"adapter")
    assert not [p for p in (tmp_path/"adapter").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    again = Policy.from_pretrained(folder, bits=4, adapter=tmp_path/"adapter")
    want = policy.sample(problems, temperature=0, max_new_tokens=12).ids
    assert again.sample(problems, temperature=0, max_new_tokens=12).ids == want
    assert want != Policy.from_pretrained(folder, bits=4, lora_rank=0).sample(problems, temperature=0, max_new_tokens=12).ids
    assert [by_peft_alone(folder, tmp_path/"adapter", policy, p, 4, 12) for p in problems] == want


def test_eight_bits_train_on_the_cpu(checkpoint):
    policy = stir(Policy.from_pretrained(checkpoint("qwen2_5_vl"), bits=8, lora_rank=4), .1)
    assert "Linear8bitLt" in {type(m).__name__ for m in policy.model.modules()}
    metrics = one_step(policy, some("qwen2_5_vl"))
    assert metrics["grad_norm"] > 0 and metrics["first_ratio_error"] < 0.1            # inputs are rounded to 8 bits, row by row


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "internvl"])
def test_checkpointing_hooks_no_vision_tower(checkpoint, kind):
    "Nothing of a frozen vision tower is kept for the backward pass."
    policy, problems = Policy.from_pretrained(checkpoint(kind), bits=4, lora_rank=4, gradient_checkpointing=True), some(kind)
    touched = []
    for n, m in policy.model.named_modules():
        if ("visual" in n or "vision_tower" in n) and "Linear" in type(m).__name__: m.register_forward_hook(lambda m, i, o: touched.append(o.requires_grad))
    stir(policy)
    policy.logps(problems, [EXPERT]*2).logp.sum().backward()
    assert touched and not any(touched)
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in policy.trainable)


@pytest.mark.parametrize("kind, gradient_checkpointing", [("qwen2_5_vl", False), ("qwen2_5_vl", True), ("qwen3_vl", False), ("internvl", False)])
def test_the_vision_tower_can_be_trained(checkpoint, kind, gradient_checkpointing, tmp_path):
    policy = stir(Policy.from_pretrained(checkpoint(kind), bits=4, lora_rank=2, train_vision=True, gradient_checkpointing=gradient_checkpointing), .1)
    vision = [n for n, w in policy.model.named_parameters() if w.requires_grad and "vis" in n]
    assert vision and len(vision) < len(policy.trainable) and not any("patch_embed" in n or "merger" in n for n in vision)
    assert one_step(policy, some(kind))["first_ratio_error"] < 1e-5
    assert all(w.grad.abs().sum() > 0 for n, w in policy.model.named_parameters() if n in vision)
    policy.save(tmp_path)
    again = Policy.from_pretrained(checkpoint(kind), bits=4, adapter=tmp_path)
    assert again.sample(some(kind), 2, seed=3).ids == policy.sample(some(kind), 2, seed=3).ids
    if kind == "qwen3_vl":
        with pytest.raises(ValueError, match="reads text only"): Policy.from_pretrained(checkpoint("qwen3"), train_vision=True)


@pytest.fixture
def broken(checkpoint, tmp_path):
    "broken(kind, drop, edit): a copy of a checkpoint with some files missing or changed."
    def make(kind, drop=(), edit=None):
        shutil.copytree(checkpoint(kind), tmp_path/"model")
        for pattern in drop:
            assert list((tmp_path/"model").glob(pattern))
            for p in (tmp_path/"model").glob(pattern): p.unlink()
        if edit: edit(tmp_path/"model")
        return tmp_path/"model"
    return make


def rewrite(name, text): return lambda folder: (folder/name).write_text(text)


def without_weight(folder):
    from safetensors.torch import load_file, save_file
    weights = load_file(folder/"model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder/"model.safetensors", metadata={"format": "pt"})


def as_pickle(folder):
    torch.save({"w": torch.zeros(1)}, folder/"pytorch_model.bin")
    (folder/"model.safetensors").unlink()


@pytest.mark.parametrize("kind, drop, edit, error, line", [
    ("qwen3", (), rewrite("config.json", '{"model'), ValueError, "is not a configuration that transformers reads"),
    ("qwen3", (), rewrite("config.json", '{"model_type": "zzz"}'), ValueError, "does not recognize this architecture"),
    ("qwen3", (), rewrite("config.json", '{"model_type": "bert"}'), ValueError, "'bert' is not served; known are qwen2_5_vl"),
    ("qwen2_5_vl", ["processor_config.json"], None, FileNotFoundError, "no processor: put the processor and tokenizer files"),
    ("internvl", ["processor_config.json"], None, FileNotFoundError, "no processor: put the processor and tokenizer files"),
    ("qwen2_5_vl", ["processor_config.json", "tok*"], None, FileNotFoundError, "no processor: put"),
    ("qwen3", ["tok*"], None, FileNotFoundError, "no (tokenizer|processor): put"),
    ("qwen2_5_vl", ["chat_template.jinja"], None, ValueError, "has no chat template: take the instruction-tuned version"),
    ("qwen3", ["chat_template.jinja"], None, ValueError, "has no chat template: take the instruction-tuned version"),
    ("qwen3", ["model.safetensors"], None, FileNotFoundError, "no weights in .* safetensors only"),
    ("qwen3", (), as_pickle, FileNotFoundError, "no weights in .* safetensors only"),
    ("qwen3", (), lambda f: (f/"model.safetensors").write_bytes((f/"model.safetensors").read_bytes()[:5000]), ValueError, "is damaged, copy or download it again"),
    ("qwen3", (), without_weight, ValueError, "1 of them are missing, such as model.layers.1.mlp.up_proj.weight")])
def test_a_model_that_cannot_be_used(broken, kind, drop, edit, error, line):
    with pytest.raises(error, match=line) as e: Policy.from_pretrained(broken(kind, drop, edit))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "not a name", ""])
def test_a_wrong_name(name):
    with pytest.raises(FileNotFoundError, match="no model at .*: give a save_pretrained folder or a hub id"): load_base(name)


def test_unsupported_models_are_refused_before_their_weights_are_read(broken):
    folder = broken("qwen3", ["model.safetensors"], rewrite("config.json", '{"model_type": "gemma2"}'))
    with pytest.raises(ValueError, match="'gemma2' is not served"): Policy.from_pretrained(folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_missing(checkpoint, monkeypatch, bits):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=f"bits={bits} needs bitsandbytes, which does not load here .*: pip install bitsandbytes, or leave bits out"): load_base(checkpoint("qwen3"), bits=bits)
    load_base(checkpoint("qwen3"))


def test_bitsandbytes_unusable(checkpoint, monkeypatch, tmp_path):
    (tmp_path/"bitsandbytes").mkdir(); (tmp_path/"bitsandbytes/__init__.py").write_text("raise RuntimeError('libcudart is not there')")
    for name in [m for m in sys.modules if m.split(".")[0] == "bitsandbytes"]: monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="does not load here .libcudart is not there."): load_base(checkpoint("qwen3"), bits=4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(checkpoint):
    with pytest.raises(ValueError, match="no GPU that torch can use; leave device out"): load_base(checkpoint("qwen3"), device="cuda")


def test_an_adapter_of_another_model(checkpoint, tmp_path):
    import transformers as hf
    adapter = tmp_path/"adapter"
    stir(Policy.from_pretrained(checkpoint("qwen3"), lora_rank=4)).save(adapter)
    sibling = tmp_path/"sibling"                                       # the same shapes, other weights
    shutil.copytree(checkpoint("qwen3"), sibling)
    torch.manual_seed(5)
    hf.Qwen3ForCausalLM(hf.AutoConfig.from_pretrained(sibling)).save_pretrained(sibling)
    for other in (checkpoint("qwen2_5_vl"), checkpoint("qwen2"), sibling):
        with pytest.raises(ValueError, match="belongs to another base model: load it with .*qwen3"): Policy.from_pretrained(other, adapter=adapter)
    moved = tmp_path/"moved"
    shutil.copytree(checkpoint("qwen3"), moved)
    for bits in (None, 4, 8): Policy.from_pretrained(moved, adapter=adapter, bits=bits)      # the same model in another place, in any precision
    assert fingerprint(load_base(moved, dtype=torch.bfloat16)[0]) == json.loads((adapter/"base.json").read_text())["fingerprint"]


def test_an_adapter_without_a_note_must_still_fit(checkpoint, tmp_path):
    stir(Policy.from_pretrained(checkpoint("qwen3"), lora_rank=4)).save(tmp_path)
    (tmp_path/"base.json").unlink()
    for kind in ("qwen2_5_vl", "internvl"):
        with pytest.raises(ValueError, match="does not fit this model.*matrices are not in both"): Policy.from_pretrained(checkpoint(kind), adapter=tmp_path)
    again = Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)
    assert len(again.trainable) == 28
    config = json.loads((tmp_path/"adapter_config.json").read_text())
    (tmp_path/"adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ValueError, match="does not fit this model"): Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)
    (tmp_path/"adapter_model.safetensors").write_bytes(b"12345678nothing")
    with pytest.raises(ValueError, match="is damaged"): Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)
    (tmp_path/"adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"): Policy.from_pretrained(checkpoint("qwen3"), adapter=tmp_path)


def test_nothing_to_save(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="no adapter to save"): Policy.from_pretrained(checkpoint("qwen3"), lora_rank=0).save(tmp_path)


def adapter_of(folder, path, **kw):
    "A run folder with an adapter that does something."
    stir(Policy.from_pretrained(folder, lora_rank=4, **kw)).save(path/"run/adapter")
    return path/"run"


@pytest.mark.parametrize("kind", KINDS)
def test_export_serves_what_base_and_adapter_say(checkpoint, kind, tmp_path):
    problems, run = some(kind), adapter_of(checkpoint(kind), tmp_path)
    export(run, tmp_path/"served", dtype="fp32")
    policy = Policy.from_pretrained(checkpoint(kind), adapter=run/"adapter")
    want = policy.sample(problems, temperature=0, max_new_tokens=12).ids
    assert [by_peft_alone(tmp_path/"served", None, policy, p, None, 12) for p in problems] == want
    assert want != Policy.from_pretrained(checkpoint(kind), lora_rank=0).sample(problems, temperature=0, max_new_tokens=12).ids
    assert Policy.from_pretrained(tmp_path/"served").tokenizer.chat_template == policy.tokenizer.chat_template


def test_a_run_in_four_bits_is_exported_from_the_16_bit_base(checkpoint, tmp_path, capsys):
    from safetensors.torch import load_file
    run = adapter_of(checkpoint("qwen2_5_vl"), tmp_path, bits=4)
    export(run=str(run), out=str(tmp_path/"served"))
    assert str(tmp_path/"served") in capsys.readouterr().out and not list(tmp_path.glob("*.part"))
    assert "quantization_config" not in json.loads((tmp_path/"served/config.json").read_text())
    assert not [p for p in (tmp_path/"served").iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    base, merged, lora = load_file(checkpoint("qwen2_5_vl")/"model.safetensors"), load_file(tmp_path/"served/model.safetensors"), load_file(run/"adapter/adapter_model.safetensors")
    assert base.keys() == merged.keys() and {w.dtype for w in merged.values()} == {torch.bfloat16}
    moved = 0
    for name, w in base.items():
        key = next((k for k in lora if k.endswith("lora_A.weight") and k.removeprefix("base_model.model.").replace("language_model.", "").removesuffix(".lora_A.weight") == name.removesuffix(".weight")), None)
        want = w.bfloat16()
        if key: want, moved = want + 2*(lora[key.replace("lora_A", "lora_B")] @ lora[key]), moved + 1          # lora_alpha is twice the rank
        assert (merged[name].float() - want.float()).abs().max() <= 2**-7*want.float().abs().max(), name      # the sum is rounded twice
    assert moved == len(lora)/2 == 14


def test_export_refuses(checkpoint, tmp_path, monkeypatch):
    run = adapter_of(checkpoint("qwen3"), tmp_path)
    (tmp_path/"full").mkdir(); (tmp_path/"full/mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not an empty folder"): export(run, tmp_path/"full")
    with pytest.raises(FileNotFoundError, match="no adapter in"): export(tmp_path/"full", tmp_path/"out")
    with pytest.raises(ValueError, match="dtype must be one of bf16, fp16, fp32"): export(run, tmp_path/"out", dtype="nf4")
    with pytest.raises(ValueError, match="belongs to another base model"): export(run, tmp_path/"out", model=str(checkpoint("qwen2")))
    with pytest.raises(FileNotFoundError, match="no model at"): export(run, tmp_path/"out", model="/no/such/model")
    quantised = tmp_path/"quantised"
    shutil.copytree(checkpoint("qwen3"), quantised)
    config = json.loads((quantised/"config.json").read_text())
    (quantised/"config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}))
    with pytest.raises(ValueError, match="is stored quantised: name its 16-bit original"): export(run, tmp_path/"out", model=str(quantised))
    settings = json.loads((run/"adapter/adapter_config.json").read_text())
    (run/"adapter/adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say which base"): export(run, tmp_path/"out")
    assert not (tmp_path/"out").exists()
