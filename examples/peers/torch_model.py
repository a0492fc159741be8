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
    config = transformers.AutoConfig.from_pretrained(job.checkpoint)
    loaded = getattr(transformers, config.architectures[0]).from_pretrained(
        job.checkpoint, dtype=DTYPES[dtype], attn_implementation=attention
    )
    return loaded.eval(), torch.from_numpy(job.ids)


def main_output(outputs):
    """The logits, or the hidden states of a model without a head, such as `BertModel`."""
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def without_cache(model) -> dict[str, bool]:
    """The argument that switches off the KV cache of a model that has one."""
    return {"use_cache": False} if model.can_generate() else {}


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def compiled(job: Job, engine: str, **options) -> Engine:
    """torch.compile with these options, for one shape; `engine` is the package whose version is recorded."""
    loaded, ids = model(job, job.dtype, "sdpa")
    function = torch.compile(loaded, dynamic=False, **options)
    return Engine(
        forward=lambda: main_output(function(input_ids=ids, **without_cache(loaded))).float().numpy(),
        libraries=versions(*{engine, "torch", "transformers"}),
    )


class Logits(torch.nn.Module):
    """The model as a function of token ids alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return main_output(self.model(input_ids=input_ids, **without_cache(self.model)))


def onnx_file(job: Job) -> tuple[tempfile.TemporaryDirectory, str]:
    """Exports the model in f32, with eager attention and the job's shape, which the engines then optimise. The file exists as long as
    the folder object."""
    folder = tempfile.TemporaryDirectory(prefix="tfcheck-onnx-")
    path = os.path.join(folder.name, "model.onnx")
    loaded, ids = model(job, "f32", "eager")
    torch.onnx.export(Logits(loaded), (ids,), path, dynamo=True, external_data=True, verbose=False)
    return folder, path
