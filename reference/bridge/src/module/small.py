"""A small model of any `model_type` that the release knows: the defaults of its config, with small sizes."""

import functools
import importlib
import inspect
import pkgutil
import re
import time

import tfcheck_small_inputs as inputs
import torch
import transformers
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
# The values of integers in a config, by name; a smaller default stays.
SIZES = {
    64: "hidden_size d_model n_embd emb_dim dim embed_dim embedding_size hidden_dim out_hidden_size encoder_hidden_size "
    "decoder_hidden_size lru_width text_hidden_size dim_model attention_hidden_size word_embed_proj_dim time_embed_dim upsample_groups",
    112: "intermediate_size d_ff dff ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size n_inner d_inner mlp_dim dim_ff "
    "shared_intermediate_size intermediate_size_mlp expert_ffn_hidden_size",
    48: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size",
    288: "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input entity_vocab_size shape_vocab_size "
    "pronunciation_vocab_size unpadded_vocab_size",
    4: "num_hidden_layers n_layer n_layers num_layers num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads decoder_layers encoder_layers linear_num_value_heads num_decoder_layers depth index_n_heads "
    "num_encoder_layers num_blocks encoder_depth num_filters num_codebooks num_quantizers",
    2: "num_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk moe_k top_k_experts num_mem_blocks attn_layer_period "
    "expert_layer_period encoder_sparse_step decoder_sparse_step full_attention_interval",
    1: "attn_layer_offset expert_layer_offset first_k_dense_replace n_group topk_group num_dense_layers",
    8: "num_experts num_local_experts n_routed_experts moe_num_experts sliding_window attention_window_size mamba_num_heads "
    "qk_rope_head_dim rotary_dim index_topk attention_chunk_size mamba_n_heads n_mamba_heads patch_size",
    16: "head_dim d_kv v_head_dim kv_lora_rank qk_nope_head_dim linear_key_head_dim linear_value_head_dim dim_head kv_channels "
    "mamba_d_head mamba_head_dim mamba_headdim mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size "
    "num_queries hidden_size_per_layer_input global_head_dim index_head_dim q_lora_rank attention_window local_attention num_mel_bins",
    128: "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx context_length mamba_d_ssm max_2d_position_embeddings",
    32: "image_size base_channels",
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

# Keys whose integers are widths, which a whole model can be divided by, and those that only look like them.
WIDTH = re.compile(r"size|upsample_groups|dim|width|channel|feature|hidden|d_model|d_ff|n_embd|inner|rank|filters|planes|units|section|d_kv|proj")
NO_WIDTH = re.compile(
    r"vocab|image|img|patch|kernel|window|codebook_size|chunk|block_size|pool|stride|batch|merge|num_|temporal|tile|crop|input_size|"
    r"grid|sample|sampling|frame|position|length|layer|head_size|type|in_chan|n_mel|mel_bins|tubelet|feature_size|ratio|_idx|index|group_size"
)
# Factors by which widths are divided, and by which pictures are.
SCALES = ((8, 4), (8, 1), (16, 4), (16, 1), (4, 2), (4, 1), (2, 1), (32, 1), (1, 1))
# Counts that are no widths and are as small beside divided widths.
SCARCE = {"num_queries", "num_codebooks", "num_quantizers"}
# Keys that have no default, and what they get.
ABSENT = {"prediction_length": 8, "context_length": 16}
# Seconds for all attempts, and forms of the config whose model is run.
SECONDS = 60
MOST_FED = 6
# Characters of an error.
MOST_SAID = 300
# Layers of a stage where a model has several.
STAGE = 2


def scaled(config, factor, pictures):
    """Values of a config in which all widths are divided by a factor, so that those that must be equal or multiples stay so."""
    defaults = config.to_dict()
    layers = {defaults.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(defaults.get(name), int)}

    def divided(value):
        if isinstance(value, (list, tuple)):
            return [divided(item) for item in value]
        is_size = isinstance(value, int) and not isinstance(value, bool)
        return value // factor if is_size and value % factor == 0 and value // factor > 0 else value

    values = {}
    for name, value in defaults.items():
        nested = vars(config).get(name)
        if isinstance(nested, PretrainedConfig):
            values[name] = backbone(nested) or {**scaled(nested, factor, pictures), "model_type": nested.model_type}
            continue
        values[name] = value
        if name in ABSENT and value is None:
            values[name] = ABSENT[name]
        elif name in ("architectures", "transformers_version") or isinstance(value, (bool, str)) or value is None:
            continue
        elif name.endswith(("_token_id", "_token_index")):
            if isinstance(value, int) and value >= VOCABULARY:
                values[name] = VOCABULARY - 1 - len(values) % 32
        elif name == "per_layer_config" and value:
            values[name] = layered(value)
        elif isinstance(value, dict):
            values[name] = sections(value, divided)
        elif isinstance(value, (list, tuple)) and value and len(value) in layers and len(value) > LAYERS:
            values[name] = (list({repr(kind): kind for kind in value}.values()) * LAYERS)[:LAYERS]
        elif isinstance(value, float):
            values[name] = EPS if "norm" in name and name.endswith(("eps", "epsilon")) else value
        elif name in SCARCE and isinstance(value, int):
            values[name] = min(value, VALUES[name])
        elif "vocab_size" in name and isinstance(value, int):
            values[name] = min(value, VOCABULARY)
        elif re.search(r"layers$|^n_layer|^depth$|encoder_depth|^num_blocks|^layers_", name) and isinstance(value, int):
            values[name] = min(value, LAYERS)
        elif re.search(r"depths|layers|blocks|stage_num", name) and isinstance(value, (list, tuple)) and "size" not in name:
            if all(isinstance(item, int) for item in value) and not name.startswith("out"):
                values[name] = [min(item, STAGE) for item in value]
        elif name in ("image_size", "img_size") and pictures > 1:
            values[name] = [item // pictures for item in value] if isinstance(value, (list, tuple)) else value // pictures if isinstance(value, int) else value
        elif re.search(r"num_(local_)?experts$|n_routed_experts", name) and isinstance(value, int):
            values[name] = min(value, VALUES["num_experts"])
        elif WIDTH.search(name) and not NO_WIDTH.search(name):
            values[name] = divided(value)
    return {**values, **stages(vars(config), values)}


def sections(rope, divided):
    """Rotary parameters, of all layers or by kind of layer, with the sections of a smaller head."""
    return {
        key: sections(item, divided) if isinstance(item, dict) else divided(item) if "section" in str(key) else item
        for key, item in rope.items()
    }


def merged(values, changes):
    """The values with those that are set beside them, nested ones as well."""
    values = dict(values)
    for name, change in changes.items():
        is_nested = isinstance(change, dict) and isinstance(values.get(name), dict)
        values[name] = merged(values[name], change) if is_nested else change
    return values


def forms(model_type, changes):
    """Configs from the smallest sizes to the release's own widths."""
    default = CONFIG_MAPPING[model_type]
    try:
        default()
    except Exception:
        # Some have no valid defaults.
        default = functools.partial(default, **changes)
        default.from_dict = CONFIG_MAPPING[model_type].from_dict

    def named(fill_unset, is_wide=False, is_sectioned=False, heads=None):
        return default(**merged({**small(default(), fill_unset, is_wide, is_sectioned), **(heads or {})}, changes))

    def divided(factor, pictures):
        return default.from_dict(merged(scaled(default(), factor, pictures), changes))

    yield lambda: named(True)
    if any("rope_parameters" in vars(part) for part in inputs.parts(default())):
        yield lambda: named(True, is_wide=True)
        yield lambda: named(True, is_sectioned=True)
    for factor, pictures in SCALES[:2]:
        yield lambda: divided(factor, pictures)
    yield lambda: named(True, heads={"num_key_value_heads": VALUES["num_attention_heads"]})
    yield lambda: named(False)
    for factor, pictures in SCALES[2:]:
        yield lambda: divided(factor, pictures)


def small(config, fill_unset, is_wide=False, is_sectioned=False):
    """Values for the keys of a config with the release's defaults, nested configs as well. Some models divide heads into sections
    that their configs do not state: these get heads as wide as by default, or a config that states sections."""
    defaults = vars(config)
    layers = {defaults.get(name) for name in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(defaults.get(name), int)}
    heads = next((defaults[name] for name in ("num_attention_heads", "n_head", "num_heads") if name in defaults), None)
    values = {}
    for name, value in defaults.items():
        if isinstance(value, PretrainedConfig):
            values[name] = backbone(value) or {**own(value), "model_type": value.model_type, **small(value, fill_unset, is_wide, is_sectioned)}
        elif name.startswith("_") or isinstance(value, bool):
            continue
        elif name in ABSENT and value is None:
            values[name] = ABSENT[name]
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
    values.update(stages(defaults, values))
    if is_wide and "rope_parameters" in defaults and head(defaults):
        values["head_dim"] = head(defaults)
    rope = defaults.get("rope_parameters")
    if is_sectioned and isinstance(rope, dict) and "rope_theta" in rope and "section" not in str(rope) and head(defaults):
        pairs = head({**defaults, **values}) // 2
        stated = {"partial_rotary_factor": 1.0, "mrope_section": narrowed([2, 3, 3], pairs / 8)}
        values["rope_parameters"] = {**rope, **stated}
    for name in ("rope_parameters", "rope_scaling"):
        before, after = head(defaults), head({**defaults, **values})
        if isinstance(defaults.get(name), dict) and "section" in str(defaults[name]) and before and after:
            values[name] = sections(defaults[name], lambda widths: narrowed(widths, after / before))
    return values


def own(config):
    """Switches of a nested config that differ from those of its class, and the stages that a backbone returns."""
    try:
        default = type(config)()
    except Exception:
        return {}
    values = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, (bool, str, float)) and not name.startswith("_") and vars(default).get(name, value) != value
    }
    out = getattr(config, "out_indices", None)
    if out and "num_hidden_layers" not in vars(config) and out != getattr(default, "out_indices", None):
        values["out_indices"] = list(out)
    return values


def stages(defaults, values):
    """The layers that a backbone returns, as many as by default, of fewer layers."""
    out, layers = defaults.get("out_indices") or defaults.get("_out_indices"), values.get("num_hidden_layers")
    if not out or not layers or max(out) <= layers or not hasattr(out, "__len__"):
        return {}
    kept = list(range(layers + 1))[-len(out):]
    return {"out_indices": kept, "out_features": [f"stage{index}" for index in kept]}


def layered(overrides):
    """The settings of single layers, of as many kinds, for fewer layers."""
    kept = {layer: value for layer, value in overrides.items() if int(layer) < LAYERS}
    return kept or {LAYERS - 1: next(iter(overrides.values()))}


def head(values):
    """Width of an attention head, if the config states it."""
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    return values.get("head_dim") or (width // heads if isinstance(width, int) and isinstance(heads, int) else None)


def narrowed(widths, factor):
    """Widths whose sum is smaller by a factor, none of which is 0."""
    total = round(sum(widths) * factor)
    narrow = [max(1, int(width * factor)) for width in widths]
    while sum(narrow) < total:
        narrow[-1 - sum(narrow) % len(narrow)] += 1
    return narrow


def backbone(config):
    """A backbone of transformers in place of one of timm, which is another package."""
    if config.model_type != "timm_backbone":
        return None
    stages = ["stage1", "stage2", "stage3", "stage4"]
    widths = {"embedding_size": 8, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    count = len(getattr(config, "out_indices", None) or stages)
    return {"model_type": "resnet", **widths, "out_features": stages[-count:]}


def classes_of(model_type):
    """The classes of the model: the heads that the release has, the first first, and the model without a head; or else those
    of the config's own package."""
    tables = [getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {}) for head in HEADS.split()]
    others = [names for name, names in vars(modeling_auto).items() if name.startswith("MODEL_") and name.endswith("_NAMES")]
    names = []
    for table in [*tables, modeling_auto.MODEL_MAPPING_NAMES, *others]:
        found = table.get(model_type, ())
        names += [found] if isinstance(found, str) else found[:1]
    classes = [getattr(transformers, name) for name in dict.fromkeys(names) if hasattr(transformers, name)]
    if classes:
        return classes
    config = CONFIG_MAPPING[model_type]
    package = config.__module__.rpartition(".")[0]
    for _, name, _ in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if not name.startswith("modeling_"):
            continue
        module = importlib.import_module(f"{package}.{name}")
        classes += [
            kind
            for kind in vars(module).values()
            if inspect.isclass(kind) and issubclass(kind, PreTrainedModel) and kind.config_class is config
            and kind.__module__ == module.__name__ and kind.forward is not torch.nn.Module.forward
        ]
    return classes[::-1]


def whole_of(model_type):
    """The model types whose configs have this one as a part."""
    config = CONFIG_MAPPING[model_type]
    return [name for name in CONFIG_MAPPING.keys() if config in getattr(CONFIG_MAPPING[name], "sub_configs", {}).values()]


def construct(kind, config):
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{kind.__name__} has {size} parameters with tfcheck's small sizes")
    return kind(config).eval()


def attempts(kind, model_type, changes, seed, end):
    """What each form of the config comes to: a model with inputs and what these are, or the error."""
    fed = 0
    for form in forms(model_type, changes):
        if time.monotonic() > end or fed == MOST_FED:
            return
        torch.manual_seed(seed)
        try:
            model = construct(kind, form())
        except ImportError as error:
            yield None, error
            return
        except Exception as error:
            yield None, error
            continue
        try:
            yield model, inputs.found(model, end)
        except Exception as error:
            fed += 1
            yield model, error


def make(model_type, changes, seed):
    """The model and its inputs, constructed from the first of several forms of the config that works; without inputs if none
    of those that are tried do."""
    release = f"transformers {transformers.__version__}"
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"{release} does not know model_type {model_type}")
    classes = classes_of(model_type)
    if not classes:
        whole = whole_of(model_type)
        if whole:
            raise ValueError(f"{model_type} is a part of {whole[0]} without a model of its own: use synthetic:{whole[0]}")
        raise ValueError(f"{release} has a config and no model of model_type {model_type}")
    end = time.monotonic() + SECONDS
    unbuilt = unfed = None
    for kind in classes:
        for model, found in attempts(kind, model_type, changes, seed, end):
            if not isinstance(found, Exception):
                return model, *found
            if model is None:
                unbuilt = unbuilt or (kind, found)
            else:
                unfed = unfed or (model, {}, f"{type(found).__name__}: {found}")
    if unfed:
        return unfed
    kind, error = unbuilt
    said = " ".join(f"{error}".split())[:MOST_SAID]
    package = re.search(r"requires the (\S+) library|No module named '(\w+)'", said)
    if isinstance(error, ImportError) and package:
        raise ValueError(f"{kind.__name__} needs the package {package[1] or package[2]}, which the environment lacks")
    raise ValueError(f"{kind.__name__} cannot be constructed with small sizes: {type(error).__name__}: {said}")


def save(config, seed, folder):
    """Saves the model, and its inputs if they are more than the tokens that tfcheck draws itself."""
    changes = {name: value for name, value in config.items() if name != "model_type"}
    model, values, _ = make(config["model_type"], changes, seed)
    model.save_pretrained(folder)
    if values and not inputs.are_tokens(model, values):
        save_file({name: value.contiguous() for name, value in values.items()}, f"{folder}/inputs.safetensors")
