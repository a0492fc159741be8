# /// script
# requires-python = ">=3.11"
# dependencies = ["llama-cpp-python==0.3.36", "numpy", "safetensors"]
# ///
"""llama.cpp on a GGUF file, given as the argument, of the checkpoint that the other variants read.

The file is requantised to the dtype of the cell first. llama.cpp keeps activations in f32 in either dtype; the KV cache, which is f16
unless told otherwise, is f32 here.
"""

import ctypes
import importlib.metadata
import os
import sys
import tempfile
import time

import llama_cpp
import numpy as np

from peer import Engine, Job, Unsupported, serve

TYPES = {"f32": llama_cpp.LLAMA_FTYPE_ALL_F32, "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16}
# Tokens that are decoded after the inputs.
MOST_DECODED = 64


def load(job: Job) -> Engine:
    if len(job.ids) != 1:
        raise Unsupported("this worker computes one text at a time")
    with tempfile.TemporaryDirectory(prefix="tfcheck-gguf-") as folder:
        path = os.path.join(folder, "model.gguf")
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = TYPES[job.dtype]
        settings.allow_requantize = True
        settings.nthread = job.threads
        if llama_cpp.llama_model_quantize(sys.argv[1].encode(), path.encode(), ctypes.byref(settings)) != 0:
            raise RuntimeError(f"llama.cpp cannot requantise {sys.argv[1]}")
        length = job.ids.shape[1]
        llama = llama_cpp.Llama(
            path,
            n_ctx=length + MOST_DECODED,
            n_batch=length,
            n_ubatch=length,
            n_threads=job.threads,
            n_threads_batch=job.threads,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            logits_all=True,
            verbose=False,
        )
    tokens = job.ids[0].tolist()

    def forward():
        llama.reset()
        llama.eval(tokens)
        return llama.scores[None, : len(tokens)]

    def decode(count):
        forward()
        elapsed = []
        for _ in range(min(count, MOST_DECODED)):
            token = int(np.argmax(llama.scores[llama.n_tokens - 1]))
            begun = time.perf_counter_ns()
            llama.eval([token])
            elapsed.append(time.perf_counter_ns() - begun)
        return elapsed

    return Engine(
        forward=forward,
        libraries={"llama-cpp-python": importlib.metadata.version("llama-cpp-python")},
        notes=["reads the GGUF file that is its argument; activations and KV cache are f32"],
        decode=decode,
    )


serve(load, dtypes=("f32", "bf16"))
