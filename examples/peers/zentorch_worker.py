# /// script
# requires-python = ">=3.11"
# dependencies = ["zentorch==2.14.0.1", "torch==2.14.*", "transformers==5.23.0", "numpy", "safetensors"]
# ///
"""AMD's zentorch as the backend of torch.compile, with the weights as constants."""

import os

# Read when torch is imported.
os.environ["TORCHINDUCTOR_FREEZING"] = "1"

import zentorch  # registers the backend

from peer import serve
from torch_model import compiled

serve(lambda job: compiled(job, "zentorch", backend="zentorch"), dtypes=("f32", "bf16"))
