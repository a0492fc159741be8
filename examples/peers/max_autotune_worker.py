# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy", "safetensors"]
# ///
"""torch.compile with mode max-autotune and the weights as constants: inductor tries its own kernels beside those of oneDNN."""

import os

# Read when torch is imported.
os.environ["TORCHINDUCTOR_FREEZING"] = "1"

import torch

from peer import Engine, Job, serve
from torch_model import model, versions


def load(job: Job) -> Engine:
    loaded, ids = model(job, job.dtype, "sdpa")
    compiled = torch.compile(loaded, mode="max-autotune", dynamic=False)
    return Engine(
        forward=lambda: compiled(input_ids=ids, use_cache=False).logits.float().numpy(),
        libraries=versions("torch", "transformers"),
    )


serve(load, dtypes=("f32", "bf16"))
