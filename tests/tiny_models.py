"""Tiny randomly initialised checkpoints of the served architectures, saved with their processors as any model folder is."""
from pathlib import Path

import torch

TEXT = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'image' %}IMAGE"
            "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tokenizer(image, specials):
    "One token a character, plus the special tokens of a family; `image` is what its template writes for a picture."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = ["<unk>", "<|endoftext|>", "<|im_end|>", "<|im_start|>", *specials, *map(chr, range(32, 127)), "\n"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tok = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", *specials])
    tok.chat_template = TEMPLATE.replace("IMAGE", image)
    return tok


def make(kind, folder):
    "Save a tiny checkpoint of an architecture (a transformers model type) into `folder`."
    import transformers as hf
    torch.manual_seed(0)
    if kind in ("qwen2", "qwen3"):
        tok = tokenizer("", [])
        cls = {"qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM), "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM)}[kind]
        model, processor = cls[1](cls[0](**TEXT, head_dim=16, vocab_size=len(tok), eos_token_id=2, pad_token_id=1, bos_token_id=None)), tok
    elif kind == "internvl":
        tok = tokenizer("<IMG_CONTEXT>", ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"])
        tok.start_image_token, tok.end_image_token, tok.context_image_token, tok.video_token = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
        for name in ("start_image_token", "end_image_token", "context_image_token", "video_token"): setattr(tok, name + "_id", tok.convert_tokens_to_ids(getattr(tok, name)))
        tok.init_kwargs |= {n: getattr(tok, n) for n in ("start_image_token", "end_image_token", "context_image_token", "video_token")}
        text = dict(TEXT, model_type="qwen2", vocab_size=len(tok), eos_token_id=2, pad_token_id=1, bos_token_id=None)
        vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[56, 56], patch_size=[14, 14])
        config = hf.InternVLConfig(text_config=text, vision_config=vision, image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"), downsample_ratio=0.5)
        model = hf.InternVLForConditionalGeneration(config)
        processor = hf.InternVLProcessor(hf.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=False), tok, hf.InternVLVideoProcessor(size={"height": 56, "width": 56}), image_seq_length=4, chat_template=tok.chat_template)
    else:
        marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
        tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", marks)
        ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"), tok.convert_tokens_to_ids(marks)))
        text = dict(TEXT, vocab_size=len(tok), eos_token_id=2, pad_token_id=1, bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]})
        size = dict(size={"shortest_edge": 28*28, "longest_edge": 84*84}, patch_size=14, merge_size=2)
        if kind == "qwen2_vl":
            config = hf.Qwen2VLConfig(text_config=text, vision_config=dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=14), **ids)
            model, processor = hf.Qwen2VLForConditionalGeneration(config), hf.Qwen2VLProcessor(hf.Qwen2VLImageProcessor(**size), tok, hf.Qwen2VLVideoProcessor(), chat_template=tok.chat_template)
        elif kind == "qwen2_5_vl":
            config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=14, window_size=56, fullatt_block_indexes=[1]), **ids)
            model, processor = hf.Qwen2_5_VLForConditionalGeneration(config), hf.Qwen2_5_VLProcessor(hf.Qwen2VLImageProcessor(**size), tok, hf.Qwen2VLVideoProcessor(), chat_template=tok.chat_template)
        else:
            text |= dict(head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True})
            vision = dict(depth=3, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=14, deepstack_visual_indexes=[0, 1], num_position_embeddings=64)
            config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
            model, processor = hf.Qwen3VLForConditionalGeneration(config), hf.Qwen3VLProcessor(hf.Qwen2VLImageProcessor(**size), tok, hf.Qwen3VLVideoProcessor(), chat_template=tok.chat_template)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 1
    model.save_pretrained(folder); processor.save_pretrained(folder)
    return Path(folder)
