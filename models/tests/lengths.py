#!/usr/bin/env python3
"""Writes inputs of several lengths and transformers' logits for them in f32 and f64, for `examples/lengths.rs`.

    lengths.py CHECKPOINT FOLDER [BATCHxLENGTH ...]

The default is 1, 2, 3, 4, 6, 8, 16, 64, 128 and 512 tokens, batch 1 and 4. FOLDER gets `BATCHxLENGTH.safetensors` with
`input_ids`, [draws * batch, length], of which `f32` ran `batch` rows at a time; `f32` and `f64` are the logits of every 16th token
of the vocabulary. Existing files are kept. f64 is modified transformers (see `truth.py`).
"""

import pathlib
import sys

import torch
import truth
from safetensors.torch import save_file

STRIDE = 16
DEFAULT = [f"{batch}x{length}" for batch in (1, 4) for length in (1, 2, 3, 4, 6, 8, 16, 64, 128, 512)]


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits[..., ::STRIDE].contiguous()


def draws(batch, length):
    """How many batches. The error of one sequence says little: activations of thousands cancel at the first position, so
    that the rounding of a few values decides."""
    return max(1, min(8, 64 // (batch * length)))


def main():
    checkpoint, folder = map(pathlib.Path, sys.argv[1:3])
    folder.mkdir(parents=True, exist_ok=True)
    narrow, _ = truth.load(checkpoint, torch.float32, "eager")
    with truth.Float64():
        wide = truth.widen(narrow, checkpoint, "eager")
    for name in sys.argv[3:] or DEFAULT:
        path = folder / f"{name}.safetensors"
        if path.exists():
            continue
        batch, length = map(int, name.split("x"))
        generator = torch.Generator().manual_seed(batch * 1000 + length)
        ids = torch.randint(5, narrow.config.vocab_size, (draws(batch, length) * batch, length), generator=generator)
        f32 = torch.cat([logits(narrow, rows) for rows in ids.split(batch)])
        with truth.Float64():
            f64 = torch.cat([logits(wide, rows) for rows in ids.split(max(1, 512 // length))])
        save_file({"input_ids": ids, "f32": f32, "f64": f64}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)
        print(name, f"{(f32.double() - f64).square().mean().sqrt():.2e}", flush=True)


if __name__ == "__main__":
    main()
