"""The inputs that a model of more than one sequence needs beside texts: the tokens of a decoder, speech or images."""

import torch

# Sequence lengths of the decoder by row; padding is on the left, or for speech on the right.
DECODER = [20, 13, 7]
# At least as many images, and one for every two texts of a larger batch.
IMAGES = 4


def text_config(config: dict) -> dict:
    """The part of a config that describes the texts."""
    return config.get("text_config", config)


def complete(config: dict, inputs: dict, generator: torch.Generator) -> dict:
    """`inputs`, texts with `input_ids` and `attention_mask`, and the inputs that a model of this config needs beside
    them. Texts of a dual encoder end with the token at which they are pooled. Ids below 5 are special tokens of every
    synthetic vocabulary."""
    rows = len(inputs["input_ids"])
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
    if vision := config.get("vision_config"):
        ids, text = inputs["input_ids"].clone(), text_config(config)
        last = (inputs["attention_mask"] * torch.arange(1, ids.shape[1] + 1)).argmax(-1)
        # An early checkpoint pools at the largest id instead of its id 2.
        ids[torch.arange(rows), last] = text["vocab_size"] - 1 if text["eos_token_id"] == 2 else text["eos_token_id"]
        shape = (max(IMAGES, rows // 2), vision["num_channels"], vision["image_size"], vision["image_size"])
        return {**inputs, "input_ids": ids, "pixel_values": torch.randn(shape, generator=generator)}
    return inputs


def real(inputs: dict) -> torch.Tensor:
    """The real positions of the tokens that the output follows, [batch, seq]."""
    return inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
