"""Writes the files of each golden test: a tiny checkpoint's config and shapes, and the logits of transformers.

    <env>/bin/python make.py FOLDER [CASE ...]        # with transformers 5.23.0, torch 2.15.0 and numpy

A case is a name in `CASES` or, for an architecture that needs no case of its own, `NAME=CONFIG`: the case NAME with the
config.json CONFIG, such as that of the architecture's synthetic checkpoint. Without a CASE, all of `CASES` are made.

FOLDER/<case>/ gets config.json, tensors.json (name to shape; the values follow from the names, see `weights`) and
expected.safetensors: the inputs under the names of transformers' `forward` (input_ids, attention_mask, position_ids, and
those of a decoder or of images), `logits` of eager attention in f64 for every position (of an encoder-decoder's decoder; of
a dual encoder for each image and text; of a tower's projection for each text or image), a tower's other outputs as
`output.NAME`, and `errors`, the relative L2 at real positions of transformers' own f32, bf16 and f16 logits against the f64
ones.

The f64 logits are computed with every cast to float32 replaced by one to float64, because transformers computes norms,
softmax and rope tables in float32 in every dtype. Unmodified, the oracle would be accurate to 1e-7 only, and NaN with left
padding: float64's lowest value, added to the scores of a row that attends to no key, is -inf in the float32 softmax.
"""

import inspect
import json
import pathlib
import sys

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

SIZES = dict(vocab_size=41, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-3)
YARN = dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=16)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
# Keys of `SIZES` that an architecture lacks.
NO_LLAMA = dict(num_key_value_heads=None, rms_norm_eps=None)
GPT2 = dict(NO_LLAMA, model_type="gpt2", intermediate_size=None, n_inner=36, layer_norm_epsilon=1e-3)
NEOX = dict(NO_LLAMA, model_type="gpt_neox", layer_norm_eps=1e-3)
FALCON = dict(NO_LLAMA, model_type="falcon", intermediate_size=None, ffn_hidden_size=36, layer_norm_epsilon=1e-3)
# Classifiers have many labels, because the error of a few numbers varies by chance.
BERT = dict(NO_LLAMA, layer_norm_eps=1e-3, auto="AutoModelForMaskedLM")
# Ids of real tokens differ from pad_token_id, and positions count from it, as the model's own positions do.
ROBERTA = dict(BERT, model_type="roberta", pad_token_id=1, max_position_embeddings=66)
DISTILBERT = dict(NO_LLAMA, model_type="distilbert", intermediate_size=None, hidden_dim=36)
MODERNBERT = dict(
    NO_LLAMA, model_type="modernbert", norm_eps=1e-3, local_attention=6, num_hidden_layers=4, global_rope_theta=500.0,
    local_rope_theta=50.0, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
)
# Distances reach the last bucket; the decoder has another number of layers than the encoder, and a head's size does not
# follow from d_model.
T5 = dict(
    dict.fromkeys(SIZES), model_type="t5", vocab_size=41, d_model=24, d_kv=8, d_ff=36, num_layers=2, num_decoder_layers=3, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=10, layer_norm_epsilon=1e-3, decoder_start_token_id=0,
    auto="AutoModelForSeq2SeqLM",
)
# 24 frames of features become 12 positions.
WHISPER = dict(
    dict.fromkeys(SIZES), model_type="whisper", vocab_size=41, num_mel_bins=10, d_model=24, encoder_layers=2, encoder_attention_heads=4,
    encoder_ffn_dim=36, decoder_layers=3, decoder_attention_heads=6, decoder_ffn_dim=40, max_source_positions=12, max_target_positions=16,
    pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=2, auto="AutoModelForSpeechSeq2Seq",
)
# Encoders of other widths, depths and numbers of heads; the patches do not fill the images of 11 pixels.
CLIP_TEXT = dict(
    vocab_size=41, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
    layer_norm_eps=1e-3, eos_token_id=40, pad_token_id=1, bos_token_id=0,
)
CLIP_VISION = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=11, patch_size=3, layer_norm_eps=1e-3
)
CLIP = dict(dict.fromkeys(SIZES), model_type="clip", projection_dim=20, auto="AutoModel", text_config=CLIP_TEXT, vision_config=CLIP_VISION)
# Either encoder by itself.
TOWERS = ["clip_text_model", "clip_vision_model"]
TOWER = dict(dict.fromkeys(SIZES), projection_dim=20)
CLIP_TEXT_MODEL = {**TOWER, **CLIP_TEXT, "model_type": "clip_text_model", "auto": "CLIPTextModel"}
CLIP_VISION_MODEL = {**TOWER, **CLIP_VISION, "model_type": "clip_vision_model", "auto": "CLIPVisionModel"}
# Three parts of different widths are rotated by time, height and width.
QWEN2_VL = dict(
    dict.fromkeys(SIZES), model_type="qwen2_vl", auto="AutoModelForImageTextToText", image_token_id=38, video_token_id=39,
    vision_start_token_id=36, vision_end_token_id=37, tie_word_embeddings=True,
    text_config=dict(
        SIZES, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="default", rope_theta=500.0, mrope_section=[2, 1, 5]),
    ),
    vision_config=dict(
        depth=2, embed_dim=24, num_heads=3, mlp_ratio=2, hidden_size=32, patch_size=2, spatial_merge_size=2, temporal_patch_size=2
    ),
)
# Removes the key of `SIZES` that an architecture with layer norm lacks.
LAYER_NORM = dict(rms_norm_eps=None)
CASES = {
    "gpt2": dict(GPT2),
    "gpt2_layer_scale": dict(GPT2, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False, activation_function="gelu"),
    "gpt_neox": dict(NEOX, rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=3.0, partial_rotary_factor=0.67)),
    "gpt_neox_sequential": dict(NEOX, use_parallel_residual=False, attention_bias=False, rotary_pct=1.0),
    "falcon": dict(FALCON),
    "falcon_new_decoder": dict(FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_one_norm": dict(FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, bias=True),
    # With six heads (not a power of two) the slopes are not a single geometric sequence.
    "falcon_alibi": dict(FALCON, alibi=True, multi_query=False, parallel_attn=False, bias=True, num_attention_heads=6),
    "bert": dict(BERT, model_type="bert"),
    "bert_classifier": dict(BERT, model_type="bert", auto="AutoModelForSequenceClassification", num_labels=24),
    "bert_encoder": dict(BERT, model_type="bert", auto="AutoModel", hidden_act="gelu_new"),
    "roberta": dict(ROBERTA),
    "roberta_classifier": dict(ROBERTA, auto="AutoModelForSequenceClassification", num_labels=24),
    "xlm_roberta": dict(ROBERTA, model_type="xlm-roberta", tie_word_embeddings=False),
    "distilbert": dict(DISTILBERT, auto="AutoModelForMaskedLM"),
    "distilbert_classifier": dict(DISTILBERT, auto="AutoModelForSequenceClassification", num_labels=24),
    "modernbert": dict(MODERNBERT, auto="AutoModelForMaskedLM", norm_bias=True, mlp_bias=True),
    "modernbert_classifier": dict(MODERNBERT, auto="AutoModelForSequenceClassification", num_labels=24, classifier_pooling="mean"),
    "llama": dict(model_type="llama", head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    "llama_biases": dict(model_type="llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, hidden_act="gelu"),
    "llama_llama3": dict(model_type="llama", head_dim=16, rope_parameters=LLAMA3),
    "llama_linear": dict(model_type="llama", head_dim=8, rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=3.0)),
    "llama_dynamic": dict(model_type="llama", head_dim=8, max_position_embeddings=8, rope_parameters=dict(rope_type="dynamic", rope_theta=500.0, factor=3.0)),
    "llama_yarn": dict(model_type="llama", head_dim=16, rope_parameters=YARN),
    "mistral": dict(model_type="mistral", sliding_window=5),
    "qwen2": dict(model_type="qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": dict(model_type="qwen3", head_dim=8, attention_bias=True),
    "gemma3_text": dict(
        model_type="gemma3_text", head_dim=8, query_pre_attn_scalar=12, sliding_window=5, num_hidden_layers=3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"], final_logit_softcapping=3.0,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=900.0, factor=2.0),
            sliding_attention=dict(rope_type="default", rope_theta=50.0),
        ),
    ),
    "gemma": dict(model_type="gemma", head_dim=8, num_key_value_heads=1, hidden_act="gelu", attention_bias=True),
    "gemma2": dict(
        model_type="gemma2", head_dim=8, query_pre_attn_scalar=12, sliding_window=5, num_hidden_layers=3,
        attn_logit_softcapping=1.5, final_logit_softcapping=3.0,
    ),
    "granite": dict(
        model_type="granite", attention_bias=True, mlp_bias=True, embedding_multiplier=3.0, logits_scaling=2.5,
        residual_multiplier=0.7, attention_multiplier=0.4,
    ),
    "olmo2": dict(model_type="olmo2", attention_bias=True),
    "smollm3": dict(
        model_type="smollm3", pad_token_id=0, num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, sliding_window=5,
        attention_bias=True, mlp_bias=True,
    ),
    "qwen3_moe": dict(
        model_type="qwen3_moe", head_dim=8, num_hidden_layers=3, num_experts=5, num_experts_per_tok=2,
        moe_intermediate_size=12, norm_topk_prob=True, mlp_only_layers=[1],
    ),
    "qwen3_moe_raw": dict(
        model_type="qwen3_moe", head_dim=8, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=12,
        decoder_sparse_step=2, use_sliding_window=True, sliding_window=5,
    ),
    "mixtral": dict(model_type="mixtral", num_local_experts=4, sliding_window=5),
    "phi3": dict(model_type="phi3", hidden_size=32, sliding_window=5, partial_rotary_factor=0.75, pad_token_id=0),
    "phi3_longrope": dict(
        model_type="phi3", hidden_size=32, original_max_position_embeddings=8, pad_token_id=0,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=500.0, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 1.5, 2.5, 4.0]
        ),
    ),
    "starcoder2": dict(model_type="starcoder2", sliding_window=5, **LAYER_NORM, norm_epsilon=1e-3),
    "phi": dict(model_type="phi", hidden_size=32, qk_layernorm=True, **LAYER_NORM, layer_norm_eps=1e-3),
    "stablelm": dict(
        model_type="stablelm", hidden_size=32, partial_rotary_factor=0.5, use_qkv_bias=True, qk_layernorm=True, **LAYER_NORM,
        layer_norm_eps=1e-3,
    ),
    "stablelm_parallel": dict(
        model_type="stablelm", hidden_size=32, partial_rotary_factor=0.5, use_parallel_residual=True, **LAYER_NORM,
        layer_norm_eps=1e-3,
    ),
    "t5": dict(T5),
    "t5_gated_untied": dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "t5_hidden_states": dict(T5, feed_forward_proj="gated-silu", auto="AutoModel"),
    "whisper": dict(WHISPER),
    "whisper_hidden_states": dict(WHISPER, auto="AutoModel", activation_function="gelu_new"),
    "clip": dict(CLIP),
    "clip_largest_id": dict(
        CLIP, text_config=dict(CLIP_TEXT, eos_token_id=2, hidden_act="gelu"), vision_config=dict(CLIP_VISION, hidden_act="gelu_new")
    ),
    "clip_text_model": dict(CLIP_TEXT_MODEL),
    "clip_text_model_projection": dict(CLIP_TEXT_MODEL, auto="CLIPTextModelWithProjection", eos_token_id=2, hidden_act="gelu"),
    "clip_vision_model": dict(CLIP_VISION_MODEL),
    "clip_vision_model_projection": dict(CLIP_VISION_MODEL, auto="CLIPVisionModelWithProjection", hidden_act="gelu_new"),
    "t5_encoder": dict(T5, auto="T5EncoderModel"),
    "t5_encoder_gated": dict(T5, auto="T5EncoderModel", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "qwen2_vl": dict(QWEN2_VL),
    "qwen2_vl_hidden_states": dict(QWEN2_VL, auto="AutoModel"),
    "cohere": dict(model_type="cohere", use_qk_norm=True, logit_scale=0.5, attention_bias=True, **LAYER_NORM, layer_norm_eps=1e-3),
}



class Widen(TorchFunctionMode):
    """Replaces float32 by float64 in every torch call."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        swap = lambda value: torch.float64 if value is torch.float32 else value
        return func(*map(swap, args), **{key: swap(value) for key, value in (kwargs or {}).items()})


def weights(name, shape):
    """Uniform values that depend only on the tensor's name; tests/fast/golden.rs computes the same ones.

    FNV-1a of the name seeds splitmix64, whose 24 high bits give a number in [-1, 1), which is halved. The range is wide
    enough that attention is not uniform; biases are not 0 and norm weights are not 1.
    """
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    count = int(numpy.prod(shape))
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        z = z ^ (z >> numpy.uint64(31))
    unit = (z >> numpy.uint64(40)).astype(numpy.float64) / 2**23 - 1
    return torch.from_numpy((unit * 0.5).astype(numpy.float32)).reshape(shape)


# The names of main outputs, and of those that a tower returns beside one.
MAIN = ["logits", "logits_per_image", "text_embeds", "image_embeds", "last_hidden_state"]
FURTHER = ["pooler_output", "last_hidden_state"]


def outputs(auto, folder, dtype, inputs):
    """The main output at all positions, on the CPU, without a cache, as `logits`; a tower's others as `output.NAME`."""
    model = auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    if model._can_set_experts_implementation():
        # The grouped product that 5.x prefers does not support float64.
        model.set_experts_implementation("eager")
    accepted = inspect.signature(model.forward).parameters
    if "input_features" in inputs:  # not cast by the model, as pixels are
        inputs = dict(inputs, input_features=inputs["input_features"].to(dtype))
    with torch.no_grad():
        out = model(**{key: value for key, value in inputs.items() if key in accepted})
    main = next(name for name in MAIN if name in out)
    further = [name for name in FURTHER if name in out and name != main] if model.config.model_type in TOWERS else []
    return {"logits": out[main].contiguous(), **{f"output.{name}": out[name].contiguous() for name in further}}


def outputs_f64(auto, folder, inputs):
    torch.set_default_dtype(torch.float64)
    try:
        with Widen():
            return outputs(auto, folder, torch.float64, inputs)
    finally:
        torch.set_default_dtype(torch.float32)


def make_inputs(config, batch=2, seq=12, padding=3, decoder_seq=10, decoder_padding=2):
    mask = torch.ones(batch, seq, dtype=torch.int64)
    mask[1, :padding] = 0
    if config.model_type == "clip" or config.model_type in TOWERS:
        text, vision = (getattr(config, part, config) for part in ["text_config", "vision_config"])
        texts, images = 6, 4
        draw = lambda: torch.randn(images, vision.num_channels, vision.image_size, vision.image_size)
        if config.model_type == "clip_vision_model":
            return dict(pixel_values=draw())
        # Padding is on the right, with the id of the last real token: the first such token ends a text.
        ids = torch.randint(3, text.vocab_size - 1, (texts, seq))
        mask = torch.ones(texts, seq, dtype=torch.int64)
        for row, padding in enumerate(range(texts)):
            ids[row, seq - padding - 1 :] = text.vocab_size - 1
            mask[row, seq - padding :] = 0
        inputs = dict(input_ids=ids, attention_mask=mask)
        return inputs if config.model_type == "clip_text_model" else dict(inputs, pixel_values=draw())
    if config.model_type == "qwen2_vl":
        return make_images(config)
    if config.architectures == ["T5EncoderModel"]:
        return dict(input_ids=torch.randint(0, config.vocab_size, (batch, seq)), attention_mask=mask)
    if config.is_encoder_decoder:
        decoder_mask = torch.ones(batch, decoder_seq, dtype=torch.int64)
        decoder_mask[1, :decoder_padding] = 0
        decoder = dict(
            decoder_input_ids=torch.randint(0, config.vocab_size, (batch, decoder_seq)), decoder_attention_mask=decoder_mask
        )
        if config.model_type == "whisper":
            return dict(input_features=torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions), **decoder)
        return dict(input_ids=torch.randint(0, config.vocab_size, (batch, seq)), attention_mask=mask, **decoder)
    if "roberta" in config.model_type:
        pad = config.pad_token_id
        input_ids = torch.randint(pad + 1, config.vocab_size, (batch, seq)).masked_fill(mask == 0, pad)
        return dict(input_ids=input_ids, attention_mask=mask, position_ids=mask.cumsum(-1) * mask + pad)
    return dict(
        input_ids=torch.randint(0, config.vocab_size, (batch, seq)),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
    )


def make_images(config, seq=20):
    """An image and a video in the first row, a wide image in the second, which is padded on the left. A grid has groups of
    frames, rows and columns of patches."""
    vision, rows = config.vision_config, [[("image", (1, 4, 2)), ("video", (2, 2, 4))], [("image", (1, 2, 6))]]
    ids = torch.randint(0, config.vision_start_token_id, (len(rows), seq))
    mask, types, grids = torch.ones_like(ids), torch.zeros_like(ids), dict(image=[], video=[])
    mask[1, :3] = 0
    for row, seen in enumerate(rows):
        at = 2 + 3 * row
        for name, grid in seen:
            count = grid[0] * grid[1] * grid[2] // vision.spatial_merge_size**2
            ids[row, at] = config.vision_start_token_id
            ids[row, at + 1 : at + 1 + count] = getattr(config, f"{name}_token_id")
            types[row, at + 1 : at + 1 + count] = dict(image=1, video=2)[name]
            ids[row, at + 1 + count] = config.vision_end_token_id
            grids[name].append(grid)
            at += count + 2
    grids = {name: torch.tensor(grid) for name, grid in grids.items()}
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = {name: torch.randn(int(grid.prod(-1).sum()), values) for name, grid in grids.items()}
    return dict(
        input_ids=ids, attention_mask=mask, mm_token_type_ids=types, image_grid_thw=grids["image"], video_grid_thw=grids["video"],
        pixel_values=pixels["image"], pixel_values_videos=pixels["video"],
    )


def relative(result, oracle, inputs):
    """Relative L2 at the real positions of the tokens that the output follows."""
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    # A classifier gives one vector a row, and images have no padding.
    real = mask.bool() if result.dim() == 3 and mask is not None else slice(None)
    return ((result.double() - oracle)[real].norm() / oracle[real].norm()).item()


def make(folder, case, config):
    if config:
        config = transformers.AutoConfig.from_pretrained(config)
        auto = getattr(transformers, config.architectures[0])
        model = auto(config)
    else:
        settings = {**SIZES, **CASES[case]}
        settings = {key: value for key, value in settings.items() if value is not None}
        auto = getattr(transformers, settings.pop("auto", "AutoModelForCausalLM"))
        # A class by its name has no public constructor from a config.
        from_config = getattr(auto, "from_config", None) or auto._from_config
        model = from_config(transformers.AutoConfig.for_model(**settings))
    model.save_pretrained(folder)
    # Names as in the file, because transformers 5 stacks experts that a checkpoint stores separately.
    tensors = load_file(folder / "model.safetensors")
    if case == "t5_gated_untied":  # 5.23.0 makes and saves T5's head tied, but reads one that differs from the embedding
        tensors["lm_head.weight"] = tensors["shared.weight"]
    tensors = {name: weights(name, tensor.shape) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata=dict(format="pt"))
    torch.manual_seed(1)
    inputs = make_inputs(transformers.AutoConfig.from_pretrained(folder))
    oracles = outputs_f64(auto, folder, inputs)
    oracle = oracles["logits"]
    assert oracle.dtype == torch.float64 and oracle.isfinite().all()
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    errors = [relative(outputs(auto, folder, dtype, inputs)["logits"], oracle, inputs) for dtype in dtypes]
    as_is = relative(outputs(auto, folder, torch.float64, inputs)["logits"], oracle, inputs)
    print(f"{case}: error of f32, bf16, f16: {errors}, of f64 as it is: {as_is}")
    save_file(
        {**inputs, **oracles, "errors": torch.tensor(errors, dtype=torch.float64)},
        folder / "expected.safetensors",
    )
    tensors = load_file(folder / "model.safetensors")
    # The outputs depend neither on a bare encoder's pooler nor on the second bias of an untied roberta's head.
    unused = ["pooler.dense.weight", "pooler.dense.bias"]
    if "roberta" in model.config.model_type and not model.config.tie_word_embeddings:
        unused.append("lm_head.bias")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if name not in unused}
    (folder / "tensors.json").write_text(json.dumps(shapes, indent=0) + "\n")
    for leftover in ["model.safetensors", "generation_config.json"]:
        (folder / leftover).unlink(missing_ok=True)


if __name__ == "__main__":
    for case in sys.argv[2:] or CASES:
        case, _, config = case.partition("=")
        folder = pathlib.Path(sys.argv[1]) / case
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, case, config)
