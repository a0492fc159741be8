#!/usr/bin/env python3
"""Measures the metric matrix in numpy, on the files of examples/matrix_scale.rs with the arrays already in memory:

    matrix_numpy.py FOLDER [ROUNDS=3]

Prints seconds for `numpy.linalg.norm(a - b)` over every unordered pair.
"""

import json
import pathlib
import struct
import sys
import time

import numpy as np


def logits(path):
    """The f32 tensor `logits` of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    start, end = header["logits"]["data_offsets"]
    return np.frombuffer(data, "<f4", (end - start) // 4, 8 + length + start)


def main():
    files = sorted(pathlib.Path(sys.argv[1]).glob("logits_*.safetensors"))
    arrays = [logits(path) for path in files]
    pairs = [(a, b) for b in range(len(arrays)) for a in range(b)]
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 3):
        start = time.perf_counter()
        for a, b in pairs:
            np.linalg.norm(arrays[a] - arrays[b])
        print(f"numpy: {time.perf_counter() - start:.3f} s for {len(pairs)} pairs of {len(arrays)} files")


if __name__ == "__main__":
    main()
