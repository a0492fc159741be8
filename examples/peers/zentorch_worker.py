# /// script
# requires-python = ">=3.11"
# dependencies = ["zentorch==2.14.0.1", "torch==2.14.*", "transformers==5.23.0", "numpy", "safetensors"]
# ///
"""AMD's zentorch as the backend of torch.compile, with the weights as constants."""

import os

# Read when torch is imported.
os.environ["TORCHINDUCTOR_FREEZING"] = "1"

import torch
import zentorch  # registers the backend

from peer import Engine, Job, serve
from torch_model import model, versions


def load(job: Job) -> Engine:
    loaded, ids = model(job, job.dtype, "sdpa")
    compiled = torch.compile(loaded, backend="zentorch", dynamic=False)
    return Engine(
        forward=lambda: compiled(input_ids=ids, use_cache=False).logits.float().numpy(),
        libraries=versions("zentorch", "torch", "transformers"),
    )


serve(load, dtypes=("f32", "bf16"))
