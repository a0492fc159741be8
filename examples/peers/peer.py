"""tfcheck's worker protocol (docs/protocol.md) for an engine that computes one checkpoint on the CPU.

A worker beside this file calls `serve` with a function that loads a checkpoint into the engine. Shapes are those of the
protocol: token ids are i64 `[batch, seq]`, logits are f32 `[batch, seq, vocab]`.
"""

import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
from safetensors.numpy import load_file, save_file

PROTOCOL = 3


class Unsupported(Exception):
    """What the engine cannot compute; the message says why."""


@dataclass
class Job:
    """What a worker is asked to compute."""

    checkpoint: str
    dtype: str
    threads: int
    ids: np.ndarray


@dataclass
class Engine:
    """A loaded checkpoint. `forward` returns the logits of every position of the job's tokens; `decode`, if the engine has a KV
    cache, decodes so many tokens after them and returns the nanoseconds of each."""

    forward: Callable[[], np.ndarray]
    libraries: dict[str, str]
    notes: list[str] = field(default_factory=list)
    decode: Callable[[int], list[int]] | None = None


def serve(load: Callable[[Job], Engine], dtypes: tuple[str, ...]):
    """Answers tfcheck's requests until it asks to exit. `dtypes` are those that `load` takes."""
    requests = os.fdopen(int(os.environ["TFCHECK_REQUEST_FD"]), "r")
    replies = os.fdopen(int(os.environ["TFCHECK_REPLY_FD"]), "w")
    engine = None
    for line in requests:
        request = json.loads(line)
        if request["do"] == "exit":
            break
        try:
            if request["do"] == "load":
                begun = time.perf_counter_ns()
                engine = load(job(request, dtypes))
                elapsed = time.perf_counter_ns() - begun
                reply = {"is": "ready", "libraries": engine.libraries, "load_ns": elapsed, "notes": engine.notes}
            elif request["do"] == "forward":
                reply = forward(engine, request)
            elif request["do"] == "time":
                reply = timed(engine, request)
            else:
                raise Unsupported(f"this worker does not answer `{request['do']}`")
        except Unsupported as error:
            reply = {"is": "failed", "kind": "unsupported", "message": str(error)}
        except MemoryError as error:
            reply = failed("out_of_memory", error)
        except Exception as error:
            reply = failed("exception", error)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def job(request, dtypes):
    """The job of a `load` request, or why it cannot be done."""
    if request["protocol"] != PROTOCOL:
        raise ValueError(f"this worker speaks protocol {PROTOCOL}, not {request['protocol']}")
    if request["device"] != "cpu":
        raise Unsupported(f"this worker computes on the CPU, not on {request['device']}")
    if request["dtype"] not in dtypes:
        raise Unsupported(f"this worker computes in {' and '.join(dtypes)}, not in {request['dtype']}")
    inputs = load_file(request["inputs"])
    if "input_ids" not in inputs or not inputs["attention_mask"].all():
        raise Unsupported("this worker takes texts of equal lengths, without padding")
    return Job(request["checkpoint"], request["dtype"], request["threads"], inputs["input_ids"])


def forward(engine, request):
    if request.get("prefill") is not None or request.get("chunks") is not None:
        raise Unsupported("this worker gives logits of one forward pass only")
    begun = time.perf_counter_ns()
    logits = np.ascontiguousarray(engine.forward(), dtype=np.float32)
    elapsed = time.perf_counter_ns() - begun
    part = request["logits"] + ".partial"
    save_file({"logits": logits}, part)
    os.rename(part, request["logits"])
    return {"is": "forwarded", "elapsed_ns": elapsed, "shape": list(logits.shape), "positions": "all", "peak_bytes": None}


def timed(engine, request):
    def sample():
        begun = time.perf_counter_ns()
        engine.forward()
        return time.perf_counter_ns() - begun

    samples = [sample() for _ in range(request["warm_up"] + request["iterations"])][request["warm_up"] :]
    decoded = engine.decode(request["decode"]) if engine.decode and request.get("decode") else []
    return {"is": "timed", "samples_ns": samples, "decode_ns": decoded, "peak_bytes": None}


def failed(kind, error):
    print(traceback.format_exc(), file=sys.stderr)
    message = (str(error).splitlines() or ["no message"])[0]
    return {"is": "failed", "kind": kind, "error": type(error).__name__, "message": message, "traceback": traceback.format_exc()}
