"""transformers' model of a checkpoint, for the engines that start from it."""

import importlib.metadata
import os
import tempfile

import torch
import transformers

from peer import Engine, Job

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def model(job: Job, dtype: str, attention: str):
    """The model in evaluation mode, and the job's tokens."""
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        job.checkpoint, dtype=DTYPES[dtype], attn_implementation=attention
    )
    return loaded.eval(), torch.from_numpy(job.ids)


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def compiled(job: Job, engine: str, **options) -> Engine:
    """torch.compile with these options, for one shape; `engine` is the package whose version is recorded."""
    loaded, ids = model(job, job.dtype, "sdpa")
    function = torch.compile(loaded, dynamic=False, **options)
    return Engine(
        forward=lambda: function(input_ids=ids, use_cache=False).logits.float().numpy(),
        libraries=versions(*{engine, "torch", "transformers"}),
    )


class Logits(torch.nn.Module):
    """The model as a function of token ids alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


def onnx_file(job: Job) -> tuple[tempfile.TemporaryDirectory, str]:
    """Exports the model in f32, with eager attention and the job's shape, which the engines then optimise. The file exists as long as
    the folder object."""
    folder = tempfile.TemporaryDirectory(prefix="tfcheck-onnx-")
    path = os.path.join(folder.name, "model.onnx")
    loaded, ids = model(job, "f32", "eager")
    torch.onnx.export(Logits(loaded), (ids,), path, dynamo=True, external_data=True, verbose=False)
    return folder, path
