# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "transformers==5.23.0", "numpy", "safetensors"]
# ///
"""torch.compile with mode max-autotune and the weights as constants: inductor tries its own kernels beside those of oneDNN."""

import os

# Read when torch is imported.
os.environ["TORCHINDUCTOR_FREEZING"] = "1"

from peer import serve
from torch_model import compiled

serve(lambda job: compiled(job, "torch", mode="max-autotune"), dtypes=("f32", "bf16"))
