# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "openvino==2026.4.0", "onnx", "onnxscript", "torch==2.15.0", "transformers==5.23.0", "numpy", "safetensors",
# ]
# ///
"""OpenVINO, from an ONNX export of transformers' model with the shape of the inputs."""

import openvino

from peer import Engine, Job, serve
from torch_model import onnx_file, versions


def load(job: Job) -> Engine:
    folder, path = onnx_file(job)
    model = openvino.convert_model(path)
    model.reshape(list(job.ids.shape))
    # Without the hint OpenVINO computes in bf16 where the processor can.
    settings = {
        "INFERENCE_PRECISION_HINT": job.dtype,
        "INFERENCE_NUM_THREADS": job.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    folder.cleanup()
    return Engine(
        forward=lambda: request.infer({0: job.ids})[0],
        libraries=versions("openvino", "torch", "transformers"),
        notes=["exported by torch.onnx.export for one shape, without a KV cache"],
    )


serve(load, dtypes=("f32", "bf16"))
