"""A small model of any `model_type` that the release knows: the defaults of its config, with small sizes."""

import torch
import transformers
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# The values of integers in a config, by name; a smaller default stays.
SIZES = {
    64: "hidden_size d_model n_embd emb_dim dim embed_dim embedding_size hidden_dim out_hidden_size encoder_hidden_size "
    "decoder_hidden_size lru_width text_hidden_size dim_model attention_hidden_size word_embed_proj_dim time_embed_dim",
    112: "intermediate_size d_ff dff ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size n_inner d_inner mlp_dim dim_ff "
    "shared_intermediate_size intermediate_size_mlp expert_ffn_hidden_size",
    48: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size",
    288: "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input entity_vocab_size shape_vocab_size "
    "pronunciation_vocab_size",
    4: "num_hidden_layers n_layer n_layers num_layers num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads decoder_layers encoder_layers linear_num_value_heads num_decoder_layers depth index_n_heads "
    "num_encoder_layers num_blocks encoder_depth",
    2: "num_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk moe_k top_k_experts num_mem_blocks attn_layer_period "
    "expert_layer_period encoder_sparse_step decoder_sparse_step full_attention_interval",
    1: "attn_layer_offset expert_layer_offset first_k_dense_replace n_group topk_group num_dense_layers",
    8: "num_experts num_local_experts n_routed_experts moe_num_experts sliding_window attention_window_size mamba_num_heads "
    "qk_rope_head_dim rotary_dim index_topk attention_chunk_size mamba_n_heads n_mamba_heads patch_size",
    16: "head_dim d_kv v_head_dim kv_lora_rank qk_nope_head_dim linear_key_head_dim linear_value_head_dim dim_head kv_channels "
    "mamba_d_head mamba_head_dim mamba_headdim mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size "
    "hidden_size_per_layer_input global_head_dim index_head_dim q_lora_rank attention_window local_attention num_mel_bins",
    128: "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx context_length mamba_d_ssm max_2d_position_embeddings",
    32: "image_size",
}
VALUES = {name: size for size, names in SIZES.items() for name in names.split()}
# Names that get their value even where the default is None: some models fail with their own defaults.
UNSET = {"head_dim", "num_key_value_heads", "n_routed_experts", "hidden_size", "vocab_size", "intermediate_size"}
LAYERS = 4
VOCABULARY = 288
# An eps that shows.
EPS = 0.003
# The first head that the release has for the model.
HEADS = (
    "IMAGE_TEXT_TO_TEXT SPEECH_SEQ_2_SEQ SEQ_TO_SEQ_CAUSAL_LM MASKED_LM CAUSAL_LM CTC ZERO_SHOT_IMAGE_CLASSIFICATION "
    "IMAGE_CLASSIFICATION AUDIO_CLASSIFICATION"
)
# More is no small model: some sizes are in no table.
MOST_PARAMETERS = 30_000_000


def small(config, fill_unset):
    """Values for the keys of a config with the release's defaults, nested configs as well."""
    defaults = vars(config)
    layers = {defaults.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers")}
    heads = next((defaults[name] for name in ("num_attention_heads", "n_head", "num_heads") if name in defaults), None)
    values = {}
    for name, value in defaults.items():
        if isinstance(value, PretrainedConfig):
            values[name] = {"model_type": value.model_type, **small(value, fill_unset)}
        elif name.startswith("_") or isinstance(value, bool):
            continue
        elif name == "head_dim" and "qk_rope_head_dim" in defaults:
            # Latent attention rotates this part of a head.
            values[name] = VALUES["qk_rope_head_dim"]
        elif name == "num_key_value_heads" and value == heads:
            # The model may have no grouped-query attention.
            values[name] = VALUES["num_attention_heads"]
        elif name in VALUES and (isinstance(value, int) or value is None and fill_unset and name in UNSET):
            values[name] = VALUES[name] if value is None else min(value, VALUES[name])
        elif isinstance(value, list) and value and len(value) in layers:
            # One value for each layer: every kind in turn.
            kinds = list({repr(kind): kind for kind in value}.values())
            kinds = [min(kind, VALUES[name]) if isinstance(kind, int) and name in VALUES else kind for kind in kinds]
            values[name] = (kinds * LAYERS)[:LAYERS]
        elif isinstance(value, float) and "norm" in name and name.endswith(("eps", "epsilon")):
            values[name] = EPS
        elif isinstance(value, int) and name.endswith(("_token_id", "_token_index")) and value >= VOCABULARY:
            # Distinct ids at the vocabulary's end.
            values[name] = VOCABULARY - 1 - len(values) % 32
    return values


def class_of(model_type):
    """The class of the first head that the release has, or of the model without a head."""
    for head in HEADS.split():
        name = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {}).get(model_type)
        if name:
            return name
    others = [names for name, names in vars(modeling_auto).items() if name.startswith("MODEL_") and name.endswith("_NAMES")]
    name = next((names[model_type] for names in [modeling_auto.MODEL_MAPPING_NAMES, *others] if model_type in names), None)
    if name is None:
        raise ValueError(f"transformers {transformers.__version__} has a config and no model of model_type {model_type}")
    return name if isinstance(name, str) else name[0]


def construct(model_type, values):
    """The model; one of tokens must compute something."""
    config = CONFIG_MAPPING[model_type](**values)
    name = class_of(model_type)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in getattr(transformers, name)(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{name} has {size} parameters with tfcheck's small sizes")
    model = getattr(transformers, name)(config).eval()
    if name.endswith(("ForCausalLM", "ForMaskedLM")) and not any(isinstance(value, dict) for value in values.values()):
        tokens = torch.arange(2, 34).unsqueeze(0)
        with torch.inference_mode():
            model(input_ids=tokens)
    return model


def make(model_type, seed):
    """The model, constructed from the first of several forms of the config that works."""
    if model_type not in CONFIG_MAPPING:
        raise KeyError(f"transformers {transformers.__version__} does not know model_type {model_type}")
    problem = None
    for fill_unset, changes in [(True, {}), (True, {"num_key_value_heads": VALUES["num_attention_heads"]}), (False, {})]:
        torch.manual_seed(seed)
        try:
            return construct(model_type, {**small(CONFIG_MAPPING[model_type](), fill_unset), **changes})
        except Exception as error:
            problem = problem or error
    raise problem
