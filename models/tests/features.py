#!/usr/bin/env python3
"""Checks that each feature of the synthetic checkpoints has an effect: switching it off in the config (or in the weights,
for biases and norms) must change transformers' float64 logits.

    features.py CHECKPOINT...

Prints the relative L2 over real positions for 80 tokens per feature, and exits with 1 if one of them is below 1e-3. A
checkpoint is a folder with config.json and model.safetensors. The exact GELU and its tanh approximation differ by less
than 1e-3 for all weights, so their limit is 1e-5.
"""

import copy
import json
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file

import sequences
import truth

LEAST = 1e-3
LEAST_GELU = 1e-5

GELU = {"quick_gelu": "gelu", "gelu": "gelu_new", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu"}


def other_sections(scaling: dict):
    """No scaling; of a rope in three parts, which needs its sections, the same in another order."""
    sections = scaling.get("mrope_section")
    return dict(scaling, mrope_section=sections[::-1]) if sections else None


# Config key -> the value that switches the feature off, given the config.
KEYS = {
    "rms_norm_eps": lambda c: 1e-6,
    "layer_norm_eps": lambda c: 1e-6,
    "layer_norm_epsilon": lambda c: 1e-6,
    "norm_epsilon": lambda c: 1e-6,
    "norm_eps": lambda c: 1e-6,
    "rope_theta": lambda c: 10000.0,
    "rotary_emb_base": lambda c: 10000,
    "global_rope_theta": lambda c: c["local_rope_theta"],
    "local_rope_theta": lambda c: c["global_rope_theta"],
    "rope_local_base_freq": lambda c: c["rope_theta"],
    "rope_scaling": lambda c: other_sections(c["rope_scaling"]),
    "partial_rotary_factor": lambda c: 1.0,
    "rotary_pct": lambda c: 0.5,
    "sliding_window": lambda c: c["sliding_window"] + 1,
    "local_attention": lambda c: c["local_attention"] + 2,
    "use_sliding_window": lambda c: False,
    "max_window_layers": lambda c: c["max_window_layers"] + 1,
    "layer_types": lambda c: ["full_attention"] * len(c["layer_types"]),
    "no_rope_layers": lambda c: [1] * len(c["no_rope_layers"]),
    "attn_logit_softcapping": lambda c: None,
    "final_logit_softcapping": lambda c: None,
    "query_pre_attn_scalar": lambda c: c["head_dim"],
    "embedding_multiplier": lambda c: 1.0,
    "attention_multiplier": lambda c: c["head_dim"] ** -0.5,
    "residual_multiplier": lambda c: 1.0,
    "logits_scaling": lambda c: 1.0,
    "logit_scale": lambda c: 1.0,
    "use_qk_norm": lambda c: False,
    "qk_layernorm": lambda c: False,
    "use_parallel_residual": lambda c: False,
    "parallel_attn": lambda c: False,
    "alibi": lambda c: False,
    "norm_topk_prob": lambda c: not c["norm_topk_prob"],
    "num_experts_per_tok": lambda c: 1,
    "scale_attn_weights": lambda c: not c["scale_attn_weights"],
    "scale_attn_by_inverse_layer_idx": lambda c: False,
    "pad_token_id": lambda c: 0,
    "classifier_pooling": lambda c: {"mean": "cls", "cls": "mean"}[c["classifier_pooling"]],
    "hidden_act": lambda c: GELU[c["hidden_act"]],
    "hidden_activation": lambda c: GELU[c["hidden_activation"]],
    "activation_function": lambda c: GELU[c["activation_function"]],
    "activation": lambda c: GELU[c["activation"]],
    "dense_act_fn": lambda c: {"relu": "silu", "gelu_new": "gelu"}[c["dense_act_fn"]],
    "relative_attention_max_distance": lambda c: c["relative_attention_max_distance"] + 10,
    "tie_word_embeddings": lambda c: False,
    "eos_token_id": lambda c: 7,
}
# Config keys that are not switched off: sizes, which the weights' shapes check; the presence of weights, which WEIGHTS
# changes; keys that 5.x derives from another one; keys that inference does not read. Every other config key of a synthetic
# checkpoint must be in KEYS.
NO_FEATURE = set("""
    architectures model_type torch_dtype id2label label2id text_config vision_config
    vocab_size type_vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim max_position_embeddings dim hidden_dim n_layers n_heads n_embd n_head n_inner n_layer n_ctx n_positions
    d_model d_kv d_ff num_layers num_decoder_layers num_heads relative_attention_num_buckets feed_forward_proj is_gated_act
    encoder_layers encoder_attention_heads encoder_ffn_dim decoder_layers decoder_attention_heads decoder_ffn_dim
    num_mel_bins max_source_positions max_target_positions scale_embedding apply_spec_augment begin_suppress_tokens
    activation_dropout encoder_layerdrop decoder_layerdrop
    depth embed_dim mlp_ratio in_channels spatial_merge_size temporal_patch_size
    image_token_id video_token_id vision_start_token_id vision_end_token_id
    projection_dim num_channels image_size patch_size is_encoder_decoder decoder_start_token_id use_cache
    initializer_factor logit_scale_init_value dropout_rate
    ffn_hidden_size num_kv_heads multi_query new_decoder_architecture num_ln_in_parallel_attn
    num_experts num_local_experts moe_intermediate_size mlp_only_layers decoder_sparse_step
    attention_bias mlp_bias norm_bias bias use_bias use_qkv_bias classifier_bias decoder_bias
    rope_parameters original_max_position_embeddings global_attn_every_n_layers sliding_window_pattern
    no_rope_layer_interval norm_type position_embedding_type sinusoidal_pos_embds classifier_activation
    reorder_and_upcast_attn cache_implementation reference_compile output_router_logits router_jitter_noise
    bos_token_id cls_token_id sep_token_id
    attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout dropout embd_pdrop embedding_dropout
    hidden_dropout hidden_dropout_prob mlp_dropout qa_dropout resid_pdrop residual_dropout seq_classif_dropout
""".split())
# Conditions under which a key has an effect.
ONLY = {
    "pad_token_id": lambda c: "roberta" in c["model_type"],
    "max_window_layers": lambda c: c.get("use_sliding_window"),
    "sliding_window": lambda c: c.get("use_sliding_window", True),
    # Parallel attention and MLP share one norm in stablelm and falcon, so the sequential order would lack weights.
    "use_parallel_residual": lambda c: c["model_type"] == "gpt_neox",
    "parallel_attn": lambda c: False,
    "classifier_pooling": lambda c: "id2label" in c,
    "rope_theta": lambda c: not c.get("alibi"),
    # gemma replaces "gelu" by its tanh approximation; gemma2 has both keys and reads the second.
    "hidden_act": lambda c: c["hidden_act"] in GELU and c["model_type"] not in ("gemma", "gemma2"),
    "hidden_activation": lambda c: c["model_type"] != "gemma",
    "layer_types": lambda c: "sliding_attention" in c["layer_types"],
    # T5's logits have a factor if the config says that the embeddings are tied.
    "tie_word_embeddings": lambda c: c["model_type"] == "t5" and c["architectures"] != ["T5EncoderModel"],
    # Hidden states of all tokens do not depend on where they are pooled.
    "eos_token_id": lambda c: c["model_type"] == "clip_text_model" and c.get("architectures") != ["CLIPTextModel"],
}
# Nested configs, each with keys of its own.
PARTS = ["text_config", "vision_config"]
# Kinds of weights -> what replaces them.
WEIGHTS = {
    "biases": ("bias", torch.zeros_like),
    "norm weights": ("norm.weight", lambda w: torch.full_like(w, float(w.mean().round()))),
}


def without(config: dict, key: str) -> dict:
    """The config with one feature off, in the old keys only: 5.x reads them if `rope_parameters` is missing."""
    changed = copy.deepcopy(config)
    changed.pop("rope_parameters", None)
    changed[key] = KEYS[key](config)
    if key == "use_sliding_window":
        changed.pop("layer_types", None)
    if changed.get("rope_scaling") is None:
        changed.pop("rope_scaling", None)
    return changed


def logits(config: dict, tensors: dict, inputs: dict) -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return truth.compute(folder, inputs, "f64", whole=False)[1]


def main() -> int:
    weak = 0
    for folder in map(pathlib.Path, sys.argv[1:]):
        config = json.loads((folder / "config.json").read_text())
        parts = {name: config[name] for name in PARTS if name in config}
        if unknown := set(config).union(*parts.values()) - KEYS.keys() - NO_FEATURE:
            sys.exit(f"{folder.name}: {', '.join(sorted(unknown))} in neither KEYS nor NO_FEATURE")
        tensors = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, sequences.text_config(config).get("vocab_size", 280), (1, 80), generator=generator)
        inputs = sequences.complete(config, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, generator)
        try:
            base = logits(config, tensors, inputs)
        except (KeyError, ValueError) as error:
            print(f"{folder.name:24} does not load in transformers {transformers.__version__}: {error}", flush=True)
            continue

        def report(feature: str, values: torch.Tensor, least: float = LEAST) -> None:
            nonlocal weak
            moved = ((values - base).norm() / base.norm()).item()
            weak += moved < least
            print(f"{folder.name:24} {feature:44} {moved:.1e}{'  WEAK' if moved < least else ''}", flush=True)

        for name, part in {"": config, **parts}.items():
            for key in KEYS:
                if part.get(key) in (None, False) or not ONLY.get(key, lambda c: True)(part):
                    continue
                changed = without(part, key)
                least = LEAST_GELU if isinstance(changed.get(key), str) and changed[key] in GELU.values() else LEAST
                whole = {**config, name: changed} if name else changed
                report(f"{name}{'.' * bool(name)}{key} -> {changed.get(key)}", logits(whole, tensors, inputs), least)
        for feature, (ending, replace) in WEIGHTS.items():
            if any(name.endswith(ending) for name in tensors):
                plain = {n: replace(t) if n.endswith(ending) else t for n, t in tensors.items()}
                report(feature, logits(config, plain, inputs))
    return int(weak > 0)


if __name__ == "__main__":
    sys.exit(main())
