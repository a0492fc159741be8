# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxruntime==1.32.0", "onnx", "onnxscript", "torch==2.15.0", "transformers==5.23.0", "numpy", "safetensors",
# ]
# ///
"""ONNX Runtime, from an ONNX export of transformers' model with the shape of the inputs."""

import onnxruntime

from peer import Engine, Job, serve
from torch_model import onnx_file, versions


def load(job: Job) -> Engine:
    folder, path = onnx_file(job)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    folder.cleanup()
    name = session.get_inputs()[0].name
    return Engine(
        forward=lambda: session.run(None, {name: job.ids})[0],
        libraries=versions("onnxruntime", "torch", "transformers"),
        notes=["exported by torch.onnx.export for one shape, without a KV cache"],
    )


serve(load, dtypes=("f32",))
