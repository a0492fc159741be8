"""Inputs with which a small model computes something, found by its `forward`'s arguments and its config, each tried in turn."""

import inspect
import itertools
import math
import time

import torch
from transformers import PretrainedConfig

BATCH, LENGTH = 2, 24
# A frame of a video is a picture; a codec's samples are whole frames of most products of strides.
FRAMES, SAMPLES, SPECTRUM = 4, 15_360, 64
# Elements of the largest tensor.
MOST_ELEMENTS = 50_000_000
# Arguments that some models take without naming them.
KEYWORDS = {"target_sizes"}
# Arguments with a default that models cannot do without.
ALWAYS = {"visual_feats", "visual_pos", "visual_embeds", "bbox", "image_embeds_position_mask", "query_embeds"}


def parts(config):
    """The config and its nested ones, outermost first."""
    found, rest = [], [config]
    while rest:
        part = rest.pop(0)
        found.append(part)
        rest += [value for value in vars(part).values() if isinstance(value, PretrainedConfig)]
    return found


def integer(value):
    """An integer of a config's value; of a list, tuple or height and width, the first."""
    if isinstance(value, dict):
        value = value.get("height")
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Sizes:
    """Numbers of a config by name, the first that a part of it has; parts whose name has one of `first` come first."""

    def __init__(self, config, first=()):
        def order(part):
            return not any(word in f"{type(part).__name__} {part.model_type}".lower() for word in first)

        self.parts = sorted(parts(config), key=order)

    def get(self, names, default=None):
        for name in names.split():
            for part in self.parts:
                value = integer(part.__dict__.get(name, getattr(part, name, None)))
                if value:
                    return value
        return default


def wave(*shape):
    """Values between about -1 and 1 without symmetry."""
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"a tensor of {list(shape)} is too large")
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    values = torch.sin(0.37 * index) * torch.cos(0.011 * index + 0.5)
    return values.to(torch.float32).reshape(shape)


def vocabulary(config):
    try:
        text = config.get_text_config()
    except Exception:
        text = config
    return Sizes(text).get("vocab_size text_vocab_size") or Sizes(config).get("vocab_size", 100)


def special(config):
    ids = set()
    for part in parts(config):
        for name, value in vars(part).items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                ids |= {item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, int)}
    return ids


def tokens(config, length=LENGTH, salt=0):
    size, taken = vocabulary(config), special(config)
    length = min(length, Sizes(config, ("text",)).get("max_position_embeddings max_text_length context_length", length))
    plain = [token for token in range(min(3, size - 1), size) if token not in taken] or list(range(size))
    return torch.tensor([[plain[(7 * at + 31 * row + 5 * salt) % len(plain)] for at in range(length)] for row in range(BATCH)])


def patches(channels, patch, frames, merge):
    """Flattened patches of a picture for each row with its grid, the sides multiples of the merged patches."""
    sides = [(2 * merge, 3 * merge), (4 * merge, 2 * merge)][:BATCH]
    count = sum(height * width for height, width in sides)
    grid = torch.tensor([[1, height, width] for height, width in sides])
    return wave(count, channels * frames * patch * patch), grid


def pictures(config, taken):
    """Forms of pictures, each with the arguments that go with it."""
    sizes = Sizes(config, ("vision", "image", "vit", "video", "visual"))
    channels = sizes.get("num_channels in_channels in_chans num_image_channels", 3)
    size = sizes.get("image_size img_size input_size crop_size", 64)
    patch = sizes.get("patch_size spatial_patch_size", 8)
    frames = sizes.get("num_frames frames_per_clip", FRAMES)
    if pool := sizes.get("pooling_kernel_size"):
        size = 2 * pool * patch
    stated = next((part.image_size for part in sizes.parts if getattr(part, "image_size", None)), None)
    wide = stated[1] if isinstance(stated, (list, tuple)) and len(stated) == 2 and isinstance(stated[1], int) else size
    plain = wave(BATCH, channels, size, wide)
    tiles = sizes.get("max_num_tiles", 4)
    mask = torch.ones(BATCH, size, size, dtype=torch.int64)
    area = torch.full((BATCH, 2), size)
    merge, depth = sizes.get("spatial_merge_size merge_size window_size merge_kernel_size", 2), sizes.get("temporal_patch_size", 1)
    count = (size // patch) ** 2
    forms = []
    grids = taken & {"image_grid_thw", "grid_thw", "image_grid_hw", "image_grid_hws"}
    for depth in dict.fromkeys([depth, 1, 2]) if grids else ():
        for width in dict.fromkeys([merge, 2, 1]):
            flat, grid = patches(channels, patch, depth, width)
            forms.append({"pixel_values": flat, "image_grid_thw": grid})
            forms.append({"pixel_values": flat, "grid_thw": grid})
            forms.append({"hidden_states": flat, "grid_thw": grid})
            forms.append({"pixel_values": flat, "image_grid_thw": grid, "image_grid_hw": grid[:, 1:]})
            small = flat.reshape(-1, depth, channels, patch, patch)[:, 0]
            forms.append({"pixel_values": small, "image_grid_thw": grid})
            forms.append({"pixel_values": small.unsqueeze(0), "image_grid_thw": grid, "grid_thw": grid})
            forms.append({"pixel_values": small, "image_grid_hws": grid[:, 1:], "grid_thw": grid})
    side = size // patch if patch else 1
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(1, -1, 2)
    places = places.expand(BATCH, -1, -1).contiguous()
    flat = wave(BATCH, count, channels * patch * patch)
    square = torch.full((BATCH, 2), side)
    forms += [
        {"pixel_values": plain, "image_sizes": area},
        {"pixel_values": plain},
        {"pixel_values": plain, "pixel_mask": mask},
        {"pixel_values": plain.unsqueeze(1), "pixel_attention_mask": mask.unsqueeze(1)},
        {"pixel_values": plain, "pixel_attention_mask": mask},
        {"pixel_values": plain.unsqueeze(1), "image_sizes": area},
        {"pixel_values": torch.stack([plain] * 2, 1)},
        {"pixel_values": torch.stack([plain] * 5, 1), "image_sizes": 2 * area},
        {"pixel_values": torch.stack([plain] * 3, 1), "image_sizes": area},
        {"pixel_values": flat, "pixel_attention_mask": torch.ones(BATCH, count, dtype=torch.int64), "spatial_shapes": square},
        {"pixel_values": flat, "image_position_ids": places, "pixel_position_ids": places},
        {"pixel_values": flat},
        {"flattened_patches": torch.cat([places.float() + 1, flat], -1)},
        {"pixel_values": wave(BATCH, frames, channels, size, size)},
        {"pixel_values_videos": wave(BATCH, frames, channels, size, size)},
        {"pixel_values": plain, "bool_masked_pos": torch.ones(BATCH, count).bool()},
        {
            "pixel_values": torch.stack([plain] * tiles, 1).unsqueeze(1),
            "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.int64),
            "aspect_ratio_mask": torch.ones(BATCH, 1, tiles, dtype=torch.int64),
        },
        {"pixel_values": plain, "target_sizes": square},
        {"pixel_values": plain, "prompt_pixel_values": plain, "prompt_masks": plain},
        {"image": plain},
        {"hidden_states": plain},
    ]
    forms += [{"pixel_values": wave(BATCH, channels, side, side)} for side in (64, 128, 224) if side > size]
    return [form for form in forms if len(form) == 1 or form.keys() & taken - {"pixel_values", "hidden_states"}]


def sounds(config, taken):
    """Forms of sounds: spectra and samples."""
    sizes = Sizes(config, ("audio", "speech", "encoder"))
    bins = sizes.get("feature_projection_input_dim num_mel_bins mel_bins n_mels num_mels feature_size input_feat_per_channel input_dim input_size", 80)
    positions = sizes.get("max_source_positions n_window max_length", 0)
    forms = []
    lengths = [2 * positions, positions] if 0 < positions < 3_000 else []
    for bins, frames in itertools.product(dict.fromkeys([bins, 128, 80]), dict.fromkeys([*lengths, SPECTRUM, 200])):
        mask = torch.ones(BATCH, frames, dtype=torch.int64)
        up, across = wave(BATCH, bins, frames), wave(BATCH, frames, bins)
        flat = (up, across, up.unsqueeze(1), across.unsqueeze(1))
        for values in flat[::-1] if sizes.get("spec_size") else flat:
            for name in ("input_features", "audio_input_features", "input_values"):
                forms.append({name: values})
                forms.append({name: values, "input_features_mask": mask, "attention_mask": mask, "feature_attention_mask": mask})
    spectra, forms = forms, []
    for values in (wave(BATCH, SAMPLES), wave(BATCH, 1, SAMPLES)):
        whole = torch.ones(BATCH, SAMPLES, dtype=torch.int64)
        if {"input_values", "input_features"} <= taken:
            frames = wave(BATCH, SAMPLES // 320, bins)
            forms.append({"input_values": values, "input_features": frames})
            forms.append({"input_values": values, "input_features": frames.transpose(1, 2)})
        forms += [{"input_values": values}, {"input_values": values, "padding_mask": whole}, {"input_features": values}]
    lengths = {"feature_lens": torch.full((BATCH,), SPECTRUM), "aftercnn_lens": torch.full((BATCH,), SPECTRUM // 2)}
    if "feature_lens" in taken:
        spectra.insert(0, {"input_features": wave(sizes.get("num_mel_bins", 80), BATCH * SPECTRUM), **lengths})
    # A codec hears samples.
    return forms + spectra if sizes.get("upsampling_ratios audio_channels sampling_rate") else spectra + forms


def others(config):
    """Single arguments that some models require, and no other form has."""
    sizes = Sizes(config)
    width = sizes.get("hidden_size d_model embed_dim n_embd dim", 64)
    context = sizes.get("context_length seq_length", 32)
    lags = max(getattr(config, "lags_sequence", None) or [0])
    inputs = sizes.get("num_input_channels input_size input_dim", 1)
    series = wave(BATCH, context + lags, inputs) if inputs > 1 or not hasattr(config, "lags_sequence") else wave(BATCH, context + lags)
    times = sizes.get("num_time_features", 0) or 0
    ahead = sizes.get("prediction_length", 8)
    bins = sizes.get("model_in_dim num_mel_bins mel_dim num_mels input_dim", 80)
    ids = tokens(config)
    return {
        "hidden_states": wave(BATCH, LENGTH, width),
        "inputs_embeds": wave(BATCH, LENGTH, width),
        "encoder_hidden_states": wave(BATCH, LENGTH, sizes.get("encoder_hidden_size cross_attention_hidden_size", width)),
        "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.int64),
        "past_values": series,
        "past_observed_mask": torch.ones_like(series),
        "past_time_features": wave(BATCH, context + lags, times),
        "future_values": wave(BATCH, ahead, inputs) if series.ndim == 3 else wave(BATCH, ahead),
        "future_time_features": wave(BATCH, ahead, times),
        "past_values_padding": torch.zeros(BATCH, context, dtype=torch.int64),
        "spectrogram": wave(BATCH, SPECTRUM, bins),
        "mel_spectrogram": wave(BATCH, bins, SPECTRUM),
        "input_features_mask": torch.ones(BATCH, SPECTRUM, dtype=torch.int64),
        "qformer_input_ids": ids,
        "bbox": torch.zeros(BATCH, LENGTH, 4, dtype=torch.int64),
        "input_points": torch.tensor([[[[10.0, 20.0]]]] * BATCH),
        "image_embeds_position_mask": (torch.arange(LENGTH) < sizes.get("latent_query_num", 0)).long().expand(BATCH, -1).contiguous(),
        "task_inputs": tokens(config, sizes.get("task_seq_len", LENGTH)),
        "merge_sizes": torch.full((BATCH,), 2),
        "mask": torch.ones(BATCH, LENGTH).bool(),
        "freq": torch.zeros(BATCH, 1, dtype=torch.int64),
        "states": wave(BATCH, LENGTH, sizes.get("state_dim", 8)),
        "actions": wave(BATCH, LENGTH, sizes.get("act_dim", 4)),
        "rewards": wave(BATCH, LENGTH, 1),
        "returns_to_go": wave(BATCH, LENGTH, 1),
        "timesteps": torch.arange(LENGTH).repeat(BATCH, 1),
        "visual_feats": wave(BATCH, 8, sizes.get("visual_feat_dim", 64)),
        "visual_pos": wave(BATCH, 8, sizes.get("visual_pos_dim", 4)),
        "visual_embeds": wave(BATCH, 8, sizes.get("visual_embedding_dim", 64)),
        "context_hidden_states": wave(BATCH, LENGTH, width),
        "noise_embeds": wave(BATCH, LENGTH, width),
        "audio_mel": wave(BATCH, SPECTRUM, sizes.get("input_feat_size", 80)),
        "audio_mel_mask": torch.zeros(BATCH, SPECTRUM).bool(),
        "query_embeds": wave(BATCH, LENGTH, width),
        "context": wave(BATCH, LENGTH, width),
        "latents": wave(BATCH, LENGTH, sizes.get("latent_dim latent_channels acoustic_hidden_size hidden_size", 64)),
        "image_features": wave(BATCH, LENGTH, width),
        "audio_input_ids": ids,
        "patch_embeds": wave(BATCH, 16, width),
        "audio_codes": torch.arange(BATCH * 8 * sizes.get("num_quantizers num_codebooks", 4)).reshape(BATCH, -1, 8) % 16,
    }


def arguments(model):
    signature = inspect.signature(model.forward).parameters
    taken = {name for name, parameter in signature.items() if parameter.kind in (0, 1, 3)}
    required = {name for name in taken if signature[name].default is inspect.Parameter.empty}
    if any(parameter.kind == 4 for parameter in signature.values()):
        taken |= KEYWORDS
    return taken, required


def candidates(model):
    """Sets of arguments, the most telling first."""
    config = model.config
    taken, required = arguments(model)
    views = taken & {"pixel_values", "pixel_values_videos", "flattened_patches", "image"}
    if not views and ("grid_thw" in taken or hasattr(config, "patch_size")):
        views = taken & {"hidden_states"}
    sees = [form for form in pictures(config, taken) if form.keys() & views] if views else []
    tones = taken & {"input_features", "audio_input_features", "input_values"}
    hears = [form for form in sounds(config, taken) if form.keys() & tones] if tones else []
    ids = {"input_ids": tokens(config)} if "input_ids" in taken else {}
    decoder = {}
    if "decoder_input_ids" in taken:
        decoder = {"decoder_input_ids": tokens(config, LENGTH + LENGTH // 4, 3)}
    fill = others(config)
    media = sees + hears
    sets = []
    if ids:
        sets += [("placed", {**form, **ids}) for form in media]
        sets += [("beside", {**form, **ids, **decoder}) for form in media]
        sets += [("beside", {**form, **ids}) for form in media] if decoder else []
    sets += [("alone", {**form, **decoder}) for form in media]
    sets += [("alone", form) for form in media]
    if ids:
        sets += [("tokens", {**ids, **decoder}), ("tokens", ids)]
        books = Sizes(config).get("num_codebooks num_channels n_codes n_q num_quantizers")
        if books:
            codes = torch.stack([ids["input_ids"] % 30] * (books + 1), -1)
            if decoder:
                rows = {name: value.repeat_interleave(books, 0) % 30 for name, value in decoder.items()}
                sets.append(("codes", {**ids, **rows}))
            sets += [("codes", {"input_ids": ids["input_ids"][:, :length]}) for length in (books, 2)]
            sets += [("codes", {"input_ids": codes[..., :-1], **decoder}), ("codes", {"input_ids": codes}), ("codes", {"input_ids": codes[..., :-1].transpose(1, 2)})]
    sets += [("others", {}), ("across", {}), ("samples", {}), ("frames", {}), ("everything", ids)]
    seen = set()
    for kind, values in sets:
        values = {name: value for name, value in values.items() if name in taken}
        for name in (required | taken & ALWAYS) - values.keys():
            if name in fill:
                values[name] = fill[name]
        if kind == "across":
            # Channels before positions.
            values = {name: value.transpose(1, 2) if value.is_floating_point() and value.ndim == 3 else value for name, value in values.items()}
        if kind == "everything":
            values |= {name: value for name, value in fill.items() if name in taken and name not in values}
        if kind == "frames" and "hidden_states" in values:
            values["hidden_states"] = wave(BATCH, SPECTRUM, Sizes(config).get("input_size num_mel_bins input_dim", 80))
            values |= {name: torch.ones(BATCH, SPECTRUM).bool() for name in {"mask"} & values.keys()}
        if kind == "samples" and "hidden_states" in values:
            values["hidden_states"] = wave(BATCH, 1, SAMPLES)
        if kind == "samples" and "past_values" in values:
            values["past_values"] = values["past_values"][..., 0].contiguous() if values["past_values"].ndim == 3 else values["past_values"]
        if required - values.keys() or not values:
            continue
        key = (kind, *sorted((name, tuple(value.shape)) for name, value in values.items()))
        if key not in seen:
            seen.add(key)
            yield kind, values


def placed(model, values):
    """The values with tokens that stand for the pictures or sounds in the texts; None where the model states no number."""
    config = model.config
    hears = any(name.startswith(("input_", "audio")) and name != "input_ids" for name in values)
    words = ("audio", "speech", "sound") if hears else ("image", "img", "video")
    names = [f"{word}_token_{kind}" for word in words for kind in ("id", "index")]
    token = next((value for part in parts(config)[:1] for name in names if isinstance(value := getattr(part, name, None), int)), None)
    find = next((method for word in ("audio" if hears else "image", "video", "multimodal") if (method := getattr(model, f"get_{word}_features", None))), None)
    if token is None or find is None:
        return None
    own = inspect.signature(find).parameters
    given = {name: value for name, value in values.items() if name in own}
    found = find(**given)
    found = getattr(found, "pooler_output", None) if not isinstance(found, (torch.Tensor, list, tuple)) and getattr(found, "pooler_output", None) is not None else found
    if not isinstance(found, (torch.Tensor, list, tuple)):
        found = found.last_hidden_state if getattr(found, "last_hidden_state", None) is not None else found[0]
    if isinstance(found, torch.Tensor):
        count = found.numel() // found.shape[-1]
        counts = [count // BATCH] * BATCH
        if count % BATCH:
            return None
    else:
        counts = [item.numel() // item.shape[-1] for item in found]
    if len(counts) != BATCH:
        counts = [sum(counts) // BATCH] * BATCH
    ids = values["input_ids"]
    longest = max(counts)
    rows = [torch.cat([ids[row, :1], torch.full((counts[row],), token), ids[row, 1:], ids[row, 2:2 + longest - counts[row]].repeat(longest)[:longest - counts[row]]]) for row in range(BATCH)]
    placed = {**values, "input_ids": torch.stack(rows)}
    kinds = (placed["input_ids"] == token).long()
    taken, _ = arguments(model)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in taken:
            placed[name] = 3 * kinds if hears and name == "mm_token_type_ids" else kinds
    return placed


def finite(output):
    """Whether an output has numbers, all of which are finite."""
    found, rest = [], [output]
    while rest:
        value = rest.pop()
        if isinstance(value, torch.Tensor):
            found += [value] if value.is_floating_point() else []
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += value
    return any(value.numel() for value in found) and all(bool(torch.isfinite(value).all()) for value in found)


def found(model, end, most=80):
    """The first inputs that the model computes finite numbers of, as their kind and the arguments."""
    taken, _ = arguments(model)
    problem = None
    for kind, values in itertools.islice(candidates(model), most):
        if time.monotonic() > end:
            break
        try:
            with torch.inference_mode():
                if kind == "placed":
                    values = placed(model, values)
                    if values is None:
                        continue
                more = {"use_cache": False} if "use_cache" in taken else {}
                output = model(**values, **more)
            if finite(output):
                return values, kind
            problem = problem or ValueError("its outputs are not finite")
        except Exception as error:
            problem = problem or error
    raise problem or ValueError(f"no inputs are known for the arguments {', '.join(sorted(arguments(model)[1] or taken))}")


def are_tokens(model, values):
    """Whether tfcheck makes such inputs by itself: tokens, and those of a decoder."""
    config = model.config
    names = {"input_ids", "decoder_input_ids"} if getattr(config, "is_encoder_decoder", False) else {"input_ids"}
    return values.keys() == names and values["input_ids"].shape == (BATCH, LENGTH) and isinstance(getattr(config, "vocab_size", None), int)
