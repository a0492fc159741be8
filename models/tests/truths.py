#!/usr/bin/env python3
"""Writes inputs and reference logits of many checkpoints in one process, for `examples/judge.rs`.

    truths.py FOLDER...

Each FOLDER holds a checkpoint, for example one written by `models::synthetic::write`. It gets seeded inputs,
`inputs_<shape>.safetensors`, and for each of them `logits_<shape>.<dtype>.safetensors`, computed by `truth.py`. Existing
files are kept.

The shapes: one row; three rows padded on the left, and on the right; one row longer than every window. A batch of 64 rows
is added for models whose 16-bit error varies by chance: classifiers, dual encoders and projections, which give few numbers, and mixtures
of experts, whose near-ties (router scores closer than rounding explains) send tokens to other experts. If rope frequencies
depend on the length of the forward pass, decoding from a KV cache differs from a full-sequence forward pass, and
`logits_<shape>_by_<chunk>.f64.safetensors` is computed chunk by chunk.
"""

import json
import pathlib
import sys

import sequences
import torch
import transformers
import truth
from safetensors.torch import load_file, save_file

# Name, sequence lengths, padded length, whether padding is on the left.
SHAPES = [
    ("b1", [48], 48, True),
    ("b3", [48, 37, 21], 48, True),
    ("long", [80], 80, True),
    ("right", [48, 37, 21], 48, False),
]
# Without padding, because a classifier that pools the first position would read it.
MANY = ("many", [48] * 64, 48, True)


def make_inputs(folder: pathlib.Path):
    config = json.loads((folder / "config.json").read_text())
    is_classifier = config["architectures"][0].endswith("ForSequenceClassification")
    has_router = any("experts" in key for key in config)
    is_dual = config["architectures"][0] == "CLIPModel" or config["architectures"][0].endswith("WithProjection")
    text = sequences.text_config(config)
    padding, vocab_size = text.get("pad_token_id") or 0, text.get("vocab_size", 280)
    generator = torch.Generator().manual_seed(1)
    for name, lengths, width, left in SHAPES + [MANY] * (is_classifier or has_router or is_dual):
        ids = torch.full((len(lengths), width), padding)
        mask = torch.zeros(len(lengths), width, dtype=torch.int64)
        for row, length in enumerate(lengths):
            where = slice(width - length, width) if left else slice(0, length)
            # Ids below 5 are the special tokens of every synthetic vocabulary.
            ids[row, where] = torch.randint(5, vocab_size, (length,), generator=generator)
            mask[row, where] = 1
        path = folder / f"inputs_{name}.safetensors"
        if not path.exists():
            positions = truth.default_position_ids(mask)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            save_file(sequences.complete(config, inputs, generator), path)


def make_truths(folder: pathlib.Path):
    for inputs in sorted(folder.glob("inputs_*.safetensors")):
        for dtype in truth.DTYPES:
            path = folder / f"logits_{inputs.stem.removeprefix('inputs_')}.{dtype}.safetensors"
            if not path.exists():
                make_truth(folder, inputs, path, dtype)
        for chunk in (7, 1) if follows_length(folder) else ():
            path = folder / f"logits_{inputs.stem.removeprefix('inputs_')}_by_{chunk}.f64.safetensors"
            if not path.exists():
                make_truth(folder, inputs, path, "f64", chunk)


def make_truth(folder, inputs, path, dtype, chunk=None):
    name, values = truth.compute(folder, load_file(inputs), dtype, chunk=chunk)
    partial = path.with_suffix(".partial")
    save_file({name: values}, partial, metadata={"transformers": transformers.__version__, "dtype": dtype})
    partial.rename(path)


def follows_length(folder):
    config = json.loads((folder / "config.json").read_text())
    scaling = config.get("rope_scaling") or {}
    return scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope", "su")


def main():
    for folder in map(pathlib.Path, sys.argv[1:]):
        make_inputs(folder)
        try:
            make_truths(folder)
            print(folder.name, flush=True)
        except Exception as error:  # A checkpoint that this release does not load is skipped.
            print(f"{folder.name}: {error}", flush=True)


if __name__ == "__main__":
    main()
