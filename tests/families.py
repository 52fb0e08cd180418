"""Tiny random models of many families, built without a network, saved as any model folder is."""
from pathlib import Path

import torch
from tiny_models import make, tokenizer

IDS = dict(eos_token_id=2, pad_token_id=1, bos_token_id=None)
TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=512, **IDS)
FULL, SLIDING = "full_attention", "sliding_attention"

# The layers of a model whose state runs along the sequence
DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
             linear_value_head_dim=16, linear_conv_kernel_dim=4,
             layer_types=["linear_attention", "linear_attention", "linear_attention", FULL])
MAMBA = dict(mamba_n_heads=8, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=16, mamba_d_conv=4,
             mamba_expand=2, mamba_chunk_size=16)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
WINDOW = dict(sliding_window=24)
TWO_WINDOWS = dict(**WINDOW, layer_types=[SLIDING, FULL, SLIDING, FULL])

# What each text family has beside `TEXT`
TEXTS = {
    "llama": {},
    "mistral": WINDOW,
    "ministral": TWO_WINDOWS,
    "qwen2": {},
    "qwen2 with windows": dict(use_sliding_window=True, **TWO_WINDOWS),
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "granite": dict(logits_scaling=8., residual_multiplier=.5, embedding_multiplier=6.),
    "phi3": WINDOW,
    "smollm3": {},
    "olmo2": {},
    "olmo3": TWO_WINDOWS,
    "glm4": {},
    "starcoder2": WINDOW,
    "cohere2": dict(logit_scale=.0625, **TWO_WINDOWS),
    "gemma2": dict(final_logit_softcapping=3., query_pre_attn_scalar=16, **TWO_WINDOWS),
    "gemma3_text": TWO_WINDOWS,
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, **TWO_WINDOWS),
    "llama4_text": dict(attention_chunk_size=16, num_local_experts=2, intermediate_size_mlp=96,
                        layer_types=["chunked_attention", FULL]*2, attn_temperature_tuning=False),
    "qwen3_next": EXPERTS | DELTA | dict(shared_expert_intermediate_size=32),
    "qwen3_5_text": DELTA,
    "lfm2": dict(layer_types=["conv", FULL]*2, conv_L_cache=3),
    "granitemoehybrid": MAMBA | dict(layer_types=["mamba", "attention"]*2, num_local_experts=0,
                                     shared_intermediate_size=96, logits_scaling=4.),
    "bamba": MAMBA | dict(attn_layer_indices=[1, 3]),
    "falcon_h1": MAMBA | dict(mamba_d_ssm=128, lm_head_multiplier=.5),
    "nemotron_h": dict(mamba_num_heads=8, mamba_head_dim=16, n_groups=1, ssm_state_size=16,
                       conv_kernel=4, chunk_size=16,
                       layers_block_type=["mamba", "attention", "mlp", "mamba"]),
}


# Families that are not packed or not run at all, for the table
OTHERS = {
    "jamba": dict(num_experts=1, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=16,
                  use_mamba_kernels=False),
    "opt": {},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {},
    "mamba": {},
}


def text_model(name, folder):
    "Save a tiny model that reads text only."
    import transformers as hf
    tok = tokenizer("", [])
    family = name.split()[0]
    config = hf.AutoConfig.for_model(family, **TEXT | dict(vocab_size=len(tok))
                                      | (TEXTS | OTHERS)[name])
    return save(hf.AutoModelForCausalLM.from_config(config), tok, folder)


def save(model, processor, folder):
    "Save a model, its weights larger than usual so that mistakes show, and its processor."
    g = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data += .1*torch.randn(weight.shape, generator=g)
        elif name.endswith("_gate"):
            weight.data += .5                  # a gate that is closed would hide what is behind it
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


# What each vision-language family is made of, beside a vision tower and a language model
CLIP = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=56, patch_size=14)
QWEN_SIZE = dict(size={"shortest_edge": 28*28, "longest_edge": 84*84}, patch_size=14, merge_size=2)
SMALL = {"height": 56, "width": 56}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2],
         "mrope_interleaved": True}


def with_tokens(written, **named):
    "A tokenizer with special tokens by name; `written` is what its template has for a picture."
    tok = tokenizer(written, [*named.values()])
    tok._set_model_specific_special_tokens(named)
    tok.init_kwargs |= {"extra_special_tokens": named}
    return tok


def ids_of(tok, **names):
    "Ids of special tokens, by the name that a configuration has for them."
    return {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}


def text_of(family, tok, **more):
    "The configuration of a language model, as a part of a larger one."
    return TEXT | dict(model_type=family, vocab_size=len(tok)) | more


def clip_images(hf, **more):
    "An image processor of one square picture."
    return hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SMALL, **more)


def llava(hf):
    tok = with_tokens("<image>", image_token="<image>")
    config = hf.LlavaConfig(text_config=text_of("llama", tok),
                            vision_config=dict(CLIP, model_type="clip_vision_model"),
                            vision_feature_layer=-1, **ids_of(tok, image_token_index="<image>"))
    processor = hf.LlavaProcessor(clip_images(hf), tok, patch_size=14,
                                  num_additional_image_tokens=1,
                                  vision_feature_select_strategy="default",
                                  chat_template=tok.chat_template)
    return hf.LlavaForConditionalGeneration(config), processor


def llava_onevision(hf):
    tok = with_tokens("<image>", image_token="<image>", video_token="<video>")
    grid = [[56, 56], [56, 112], [112, 56]]
    vision = dict(CLIP, model_type="siglip_vision_model")
    config = hf.LlavaOnevisionConfig(
        text_config=text_of("qwen2", tok), vision_config=vision, image_grid_pinpoints=grid,
        **ids_of(tok, image_token_index="<image>", video_token_index="<video>"))
    images = hf.LlavaOnevisionImageProcessor(size=SMALL, image_grid_pinpoints=grid)
    processor = hf.LlavaOnevisionProcessor(
        images, tok, hf.LlavaOnevisionVideoProcessor(size=SMALL), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=tok.chat_template)
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def idefics_tokens():
    "The tokens of Idefics 3 and SmolVLM, with those of a picture in pieces."
    rows = {f"row{i}{j}": f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)}
    return with_tokens("<image>", image_token="<image>", video_token="<video>",
                       fake_image_token="<fake_token_around_image>",
                       global_image_token="<global-img>",
                       end_of_utterance_token="<end_of_utterance>", **rows)


def smolvlm(hf):
    from transformers.models.smolvlm import processing_smolvlm
    processing_smolvlm.num2words = processing_smolvlm.num2words or str    # for videos alone
    tok = idefics_tokens()
    config = hf.SmolVLMConfig(text_config=text_of("llama", tok), vision_config=CLIP,
                              scale_factor=2, **ids_of(tok, image_token_id="<image>"))
    sizes = dict(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**sizes), tok, hf.SmolVLMVideoProcessor(**sizes),
        image_seq_len=4, chat_template=tok.chat_template)
    return hf.SmolVLMForConditionalGeneration(config), processor


def idefics3(hf):
    tok = idefics_tokens()
    config = hf.Idefics3Config(text_config=text_of("llama", tok), vision_config=CLIP,
                               scale_factor=2, **ids_of(tok, image_token_id="<image>"))
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 112},
                                       max_image_size={"longest_edge": 56})
    processor = hf.Idefics3Processor(images, tok, image_seq_len=4,
                                     chat_template=tok.chat_template)
    return hf.Idefics3ForConditionalGeneration(config), processor


def gemma3(hf):
    tok = with_tokens("<boi>", image_token="<img>", boi_token="<boi>", eoi_token="<eoi>")
    text = text_of("gemma3_text", tok, **TWO_WINDOWS)
    vision = dict(CLIP, model_type="siglip_vision_model")
    ids = ids_of(tok, image_token_index="<img>", boi_token_index="<boi>", eoi_token_index="<eoi>")
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **ids)
    processor = hf.Gemma3Processor(hf.Gemma3ImageProcessor(size=SMALL), tok, image_seq_length=4,
                                   chat_template=tok.chat_template)
    return hf.Gemma3ForConditionalGeneration(config), processor


def paligemma(hf):
    tok = with_tokens("", image_token="<image>")
    vision = dict(CLIP, model_type="siglip_vision_model", projection_dim=64)
    config = hf.PaliGemmaConfig(text_config=text_of("gemma", tok), vision_config=vision,
                                projection_dim=64, **ids_of(tok, image_token_index="<image>"))
    images = hf.SiglipImageProcessor(size=SMALL)
    images.image_seq_length = 16
    tok.add_special_tokens({"bos_token": "<|im_start|>"})
    processor = hf.PaliGemmaProcessor(images, tok, chat_template=tok.chat_template)
    return hf.PaliGemmaForConditionalGeneration(config), processor


def mllama(hf):
    tok = with_tokens("<|image|>", image_token="<|image|>", python_token="<|python_tag|>")
    text = text_of("mllama_text_model", tok, cross_attention_layers=[1], eos_token_id=2,
                   pad_token_id=1, bos_token_id=3)
    text.pop("head_dim")
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_global_layers=1,
                  attention_heads=2, image_size=56, patch_size=14, max_num_tiles=2,
                  intermediate_layers_indices=[0], vision_output_dim=64,
                  supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]])
    ids = ids_of(tok, image_token_index="<|image|>")
    config = hf.MllamaConfig(text_config=text, vision_config=vision, **ids)
    tok.add_special_tokens({"bos_token": "<|im_start|>"})
    images = hf.MllamaImageProcessor(size=SMALL, max_image_tiles=2)
    processor = hf.MllamaProcessor(images, tok, chat_template=tok.chat_template)
    return hf.MllamaForConditionalGeneration(config), processor


def qwen_parts(hf):
    "Tokenizer, processor and ids as Qwen3-VL has them."
    marks = dict(vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
                 image_token_id="<|image_pad|>", video_token_id="<|video_pad|>")
    tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", [*marks.values()])
    processor = hf.Qwen3VLProcessor(hf.Qwen2VLImageProcessor(**QWEN_SIZE), tok,
                                    hf.Qwen3VLVideoProcessor(), chat_template=tok.chat_template)
    return tok, processor, ids_of(tok, **marks)


QWEN_VISION = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64,
                   patch_size=14, num_position_embeddings=64)


def qwen3_5(hf):
    tok, processor, ids = qwen_parts(hf)
    text = text_of("qwen3_5_text", tok, **DELTA, rope_parameters=MROPE)
    config = hf.Qwen3_5Config(text_config=text, vision_config=QWEN_VISION, **ids)
    return hf.Qwen3_5ForConditionalGeneration(config), processor


def qwen3_5_moe(hf):
    tok, processor, ids = qwen_parts(hf)
    text = text_of("qwen3_5_moe_text", tok, **DELTA, **EXPERTS, rope_parameters=MROPE,
                   shared_expert_intermediate_size=32)
    config = hf.Qwen3_5MoeConfig(text_config=text, vision_config=QWEN_VISION, **ids)
    return hf.Qwen3_5MoeForConditionalGeneration(config), processor


def lfm2_vl(hf):
    tok = with_tokens("<image>", image_token="<image>", image_start_token="<|image_start|>",
                      image_end_token="<|image_end|>", image_thumbnail="<|img_thumbnail|>")
    text = text_of("lfm2", tok, **TEXTS["lfm2"])
    vision = dict(CLIP, model_type="siglip2_vision_model", num_patches=64)
    config = hf.Lfm2VlConfig(text_config=text, vision_config=vision, projector_hidden_size=64,
                             **ids_of(tok, image_token_id="<image>"))
    images = hf.Lfm2VlImageProcessor(
        encoder_patch_size=14, downsample_factor=2, do_image_splitting=False, min_image_tokens=4,
        max_image_tokens=16, max_num_patches=64, tile_size=56)
    processor = hf.Lfm2VlProcessor(images, tok, chat_template=tok.chat_template)
    return hf.Lfm2VlForConditionalGeneration(config), processor


def mistral3(hf):
    tok = with_tokens("[IMG]", image_token="[IMG]", image_break_token="[IMG_BREAK]",
                      image_end_token="[IMG_END]")
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                  num_attention_heads=2, head_dim=16, image_size=112, patch_size=14,
                  model_type="pixtral")
    config = hf.Mistral3Config(text_config=text_of("mistral", tok, sliding_window=None),
                               vision_config=vision, **ids_of(tok, image_token_index="[IMG]"))
    images = hf.PixtralImageProcessor(size={"longest_edge": 112}, patch_size=14)
    processor = hf.PixtralProcessor(images, tok, patch_size=14, spatial_merge_size=2,
                                    chat_template=tok.chat_template)
    return hf.Mistral3ForConditionalGeneration(config), processor


def glm4v(hf):
    marks = dict(image_start_token_id="<|begin_of_image|>", image_end_token_id="<|end_of_image|>",
                 video_start_token_id="<|begin_of_video|>", video_end_token_id="<|end_of_video|>")
    tok = with_tokens("<|begin_of_image|><|image|><|end_of_image|>", image_token="<|image|>",
                      video_token="<|video|>", **{name[:-3]: m for name, m in marks.items()})
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
            "partial_rotary_factor": 1.0}
    text = text_of("glm4v_text", tok, rope_parameters=rope)
    vision = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=64,
                  patch_size=14, image_size=112)
    ids = ids_of(tok, image_token_id="<|image|>", video_token_id="<|video|>", **marks)
    config = hf.Glm4vConfig(text_config=text, vision_config=vision, **ids)
    images = hf.Glm4vImageProcessor(size={"shortest_edge": 28*28*2, "longest_edge": 84*84*2},
                                    patch_size=14)
    processor = hf.Glm4vProcessor(images, tok, hf.Glm4vVideoProcessor(),
                                  chat_template=tok.chat_template)
    return hf.Glm4vForConditionalGeneration(config), processor


def aya_vision(hf):
    marks = dict(start_of_img="<|START_OF_IMG|>", end_of_img="<|END_OF_IMG|>",
                 patch="<|IMG_PATCH|>", line="<|IMG_LINE_BREAK|>", tile="TILE",
                 whole="TILE_GLOBAL")
    tok = with_tokens("<image>", image_token="<image>", **marks)
    config = hf.AyaVisionConfig(
        text_config=text_of("cohere2", tok, **TEXTS["cohere2"]),
        vision_config=dict(CLIP, model_type="siglip_vision_model"),
        **ids_of(tok, image_token_index="<|IMG_PATCH|>"))
    images = hf.GotOcr2ImageProcessor(size=SMALL, crop_to_patches=False)
    processor = hf.AyaVisionProcessor(images, tok, patch_size=14, img_size=56, downsample_factor=2,
                                      chat_template=tok.chat_template)
    return hf.AyaVisionForConditionalGeneration(config), processor


VISION = {build.__name__: build for build in (
    aya_vision, gemma3, glm4v, idefics3, lfm2_vl, llava, llava_onevision, mistral3, mllama,
    paligemma, qwen3_5, qwen3_5_moe, smolvlm)}
OLD = ("internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")    # which `tiny_models` makes


def family(name, folder):
    "Save a tiny model of a family, by its name in `TEXTS`, `OTHERS`, `VISION` or `OLD`."
    import transformers as hf
    torch.manual_seed(0)
    if name in TEXTS or name in OTHERS:
        return text_model(name, folder)
    if name in VISION:
        return save(*VISION[name](hf), folder)
    return make(name, folder)
