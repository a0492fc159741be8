"""The inputs that a model of more than one sequence needs beside texts: the tokens of a decoder, speech or images."""

import torch

# Sequence lengths of the decoder by row; padding is on the left, or for speech on the right.
DECODER = [20, 13, 7]
# At least as many images, and one for every two texts of a larger batch.
IMAGES = 4
# Tokens of the images that stand in a text, from top to bottom and from left to right, by row: two of different sizes, one, none.
PLACED = [[(2, 3), (4, 2)], [(4, 2)], []]


def text_config(config: dict) -> dict:
    """The part of a config that describes the texts."""
    return config.get("text_config", config)


def complete(config: dict, inputs: dict, generator: torch.Generator) -> dict:
    """`inputs`, texts with `input_ids` and `attention_mask`, and the inputs that a model of this config needs beside
    them. Texts of a dual encoder end with the token at which they are pooled. Ids below 5 are special tokens of every
    synthetic vocabulary."""
    rows = len(inputs["input_ids"])
    if config["model_type"] == "clip_vision_model":
        shape = (max(IMAGES, rows), config["num_channels"], config["image_size"], config["image_size"])
        # The output's positions: the class token and the patches.
        mask = torch.ones(shape[0], 1 + (config["image_size"] // config["patch_size"]) ** 2, dtype=torch.int64)
        return {"input_ids": mask.clone(), "attention_mask": mask, "pixel_values": torch.randn(shape, generator=generator)}
    if config["architectures"] == ["T5EncoderModel"]:
        return inputs
    if config.get("is_encoder_decoder"):
        width = DECODER[0]
        mask = torch.stack([(torch.arange(width) >= width - DECODER[row % len(DECODER)]).long() for row in range(rows)])
        ids = torch.randint(5, config["vocab_size"], (rows, width), generator=generator)
        if frames := config.get("max_source_positions"):
            # Positions of Whisper's decoder count padding on the left too.
            mask = mask.flip(-1)
            shape = (rows, config["num_mel_bins"], 2 * frames)
            inputs = {**inputs, "input_features": torch.randn(shape, generator=generator)}
        return {**inputs, "decoder_input_ids": ids.masked_fill(mask == 0, 0), "decoder_attention_mask": mask}
    if "image_token_id" in config:
        return {**inputs, **place(config, inputs, generator)}
    vision = config.get("vision_config")
    if vision or config["model_type"] == "clip_text_model":
        ids, text = inputs["input_ids"].clone(), text_config(config)
        last = (inputs["attention_mask"] * torch.arange(1, ids.shape[1] + 1)).argmax(-1)
        # An early checkpoint pools at the largest id instead of its id 2.
        ids[torch.arange(rows), last] = text["vocab_size"] - 1 if text["eos_token_id"] == 2 else text["eos_token_id"]
        if not vision:
            return {**inputs, "input_ids": ids}
        shape = (max(IMAGES, rows // 2), vision["num_channels"], vision["image_size"], vision["image_size"])
        return {**inputs, "input_ids": ids, "pixel_values": torch.randn(shape, generator=generator)}
    return inputs


def place(config: dict, inputs: dict, generator: torch.Generator) -> dict:
    """Qwen2-VL's images: image tokens after the first real token of each row, between two tokens that mark them, and their
    patches. Other tokens stand for no image. A single row has the images of the first."""
    vision, ids, mask = config["vision_config"], inputs["input_ids"].clone(), inputs["attention_mask"]
    merge = vision["spatial_merge_size"]
    special = [config[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end")]
    ids[ids >= min(special)] -= len(special) + 100
    grids = []
    for row in range(len(ids)):
        at = int(mask[row].argmax()) + 1
        for height, width in PLACED[row % len(PLACED)]:
            tokens = [config["vision_start_token_id"], *[config["image_token_id"]] * (height * width), config["vision_end_token_id"]]
            ids[row, at : at + len(tokens)] = torch.tensor(tokens)
            at += len(tokens)
            grids.append([1, height * merge, width * merge])
    values = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    grids = torch.tensor(grids)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config["image_token_id"]).long(),
        "image_grid_thw": grids,
        "pixel_values": torch.randn((int(grids.prod(-1).sum()), values), generator=generator),
    }


def real(inputs: dict) -> torch.Tensor:
    """The real positions of the tokens that the output follows, [batch, seq]."""
    return inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
