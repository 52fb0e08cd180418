"""Tiny randomly initialised checkpoints of the served architectures, saved with their processors as
any model folder is."""
from pathlib import Path

import torch

TEXT = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TOWER = dict(hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64, patch_size=14)


def tokenizer(image, specials):
    """One token a character, plus the special tokens of a family; `image` is what its template
    writes for a picture."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = ["<unk>", "<|endoftext|>", "<|im_end|>", "<|im_start|>", *specials,
             *map(chr, range(32, 127)), "\n"]
    numbers = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<|endoftext|>",
        eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>", *specials])
    tok.chat_template = TEMPLATE.replace("IMAGE", image)
    return tok


def text_config(tok, **more):
    "What the language part of every architecture is made with."
    return dict(TEXT, vocab_size=len(tok), eos_token_id=2, pad_token_id=1, bos_token_id=None) | more


def text_only(kind):
    "Qwen2 and Qwen3, which read no picture."
    import transformers as hf
    tok = tokenizer("", [])
    name = kind.capitalize()
    config = getattr(hf, f"{name}Config")(**text_config(tok, head_dim=16))
    return getattr(hf, f"{name}ForCausalLM")(config), tok


def internvl():
    import transformers as hf
    tok = tokenizer("<IMG_CONTEXT>", ["<IMG_CONTEXT>", "<img>", "</img>", "<video>"])
    marks = dict(start_image_token="<img>", end_image_token="</img>",
                 context_image_token="<IMG_CONTEXT>", video_token="<video>")
    tok.init_kwargs |= marks
    for name, mark in marks.items():
        setattr(tok, name, mark)
        setattr(tok, f"{name}_id", tok.convert_tokens_to_ids(mark))

    # four tokens a picture: 56 pixels in patches of 14, and half of them each way
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                  image_size=[56, 56], patch_size=[14, 14])
    config = hf.InternVLConfig(
        text_config=text_config(tok, model_type="qwen2"), vision_config=vision,
        image_token_id=tok.context_image_token_id, downsample_ratio=0.5)
    size = {"height": 56, "width": 56}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size, crop_to_patches=False), tok,
        hf.InternVLVideoProcessor(size=size), image_seq_length=4, chat_template=tok.chat_template)
    return hf.InternVLForConditionalGeneration(config), processor


def qwen_vl(kind):
    "The three generations of Qwen-VL: one tokenizer, one size of pictures, towers of their own."
    import transformers as hf
    marks = dict(vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
                 image_token_id="<|image_pad|>", video_token_id="<|video_pad|>")
    tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", marks.values())
    marks = {name: tok.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    rope = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3])
    text = text_config(tok, rope_parameters=rope)

    # the towers
    if kind == "qwen2_vl":
        vision = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2,
                      patch_size=14)
    elif kind == "qwen2_5_vl":
        vision = TOWER | dict(depth=2, window_size=56, fullatt_block_indexes=[1])
    else:
        rope |= dict(mrope_section=[4, 2, 2], mrope_interleaved=True)
        text |= dict(head_dim=16)
        vision = TOWER | dict(depth=3, deepstack_visual_indexes=[0, 1], num_position_embeddings=64)

    # the model, and pictures of one to nine tokens
    name = dict(qwen2_vl="Qwen2VL", qwen2_5_vl="Qwen2_5_VL", qwen3_vl="Qwen3VL")[kind]
    config = getattr(hf, f"{name}Config")(text_config=text, vision_config=vision, **marks)
    model = getattr(hf, f"{name}ForConditionalGeneration")(config)
    images = hf.Qwen2VLImageProcessor(
        size={"shortest_edge": 28*28, "longest_edge": 84*84}, patch_size=14, merge_size=2)
    generation = "Qwen3VL" if kind == "qwen3_vl" else "Qwen2VL"
    videos = getattr(hf, f"{generation}VideoProcessor")()
    processor = getattr(hf, f"{name}Processor")(
        images, tok, videos, chat_template=tok.chat_template)
    return model, processor


def make(kind, folder):
    "Save a tiny checkpoint of an architecture (a transformers model type) into `folder`."
    torch.manual_seed(0)
    if kind in ("qwen2", "qwen3"):
        model, processor = text_only(kind)
    elif kind == "internvl":
        model, processor = internvl()
    else:
        model, processor = qwen_vl(kind)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
