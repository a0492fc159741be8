"""Hooks that write the inputs and outputs of modules during a forward pass, or replace a module's input.

Two steps of an attention module are functions, not modules: the rotary embedding of queries and keys, and the softmax.
They are captured as `rope_q`, `rope_k` and `softmax` below the module's path.
"""

import fnmatch
import functools
import inspect
import os
import sys

import torch
from torch.overrides import TorchFunctionMode

ROTATION = "apply_rotary_pos_emb"
SOFTMAX = {torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax}


class Finished(Exception):
    """Ends a forward pass early, once the replayed output is written."""


class Hooks(TorchFunctionMode):
    """Calls `observer` for every module and step of a forward pass; `observer.enter` may return another input."""

    def __init__(self, model, observer):
        super().__init__()
        self.model = model
        self.observer = observer

    def __enter__(self):
        self.open = []
        self.handles = []
        self.functions = []
        seen = set()
        for path, module in self.model.named_modules():
            if path:
                enter = functools.partial(self.before, path)
                leave = functools.partial(self.after, path)
                self.handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                self.handles.append(module.register_forward_hook(leave))
            if type(module).__module__ not in seen:
                seen.add(type(module).__module__)
                self.wrap_rotation(sys.modules.get(type(module).__module__))
        return super().__enter__()

    def __exit__(self, *exception):
        for handle in self.handles:
            handle.remove()
        for source, function in self.functions:
            setattr(source, ROTATION, function)
        return super().__exit__(*exception)

    def before(self, path, module, args, kwargs):
        self.open.append(path)
        place, value = first_argument(args, kwargs)
        fed = self.observer.enter(path, type(module).__name__, value)
        if fed is value:
            return None
        if isinstance(place, int):
            return (*args[:place], fed, *args[place + 1 :]), kwargs
        return args, {**kwargs, place: fed}

    def after(self, path, module, args, output):
        self.open.pop()
        first = first_tensor(output)
        items = output if isinstance(output, (list, tuple)) else ()
        self.observer.leave(path, first, [value for value in items if isinstance(value, torch.Tensor) and value is not first])

    def wrap_rotation(self, source):
        function = getattr(source, ROTATION, None)
        # GPT-J's function takes one tensor instead of q and k.
        if function is None or list(inspect.signature(function).parameters)[:2] != ["q", "k"]:
            return

        @functools.wraps(function)
        def rotate(q, k, *args, **kwargs):
            if not self.open:
                return function(q, k, *args, **kwargs)
            paths = [f"{self.open[-1]}.rope_{name}" for name in "qk"]
            q, k = (self.observer.enter(path, ROTATION, value) for path, value in zip(paths, (q, k)))
            rotated = function(q, k, *args, **kwargs)
            for path, value in zip(paths, rotated):
                self.observer.leave(path, value)
            return rotated

        setattr(source, ROTATION, rotate)
        self.functions.append((source, function))

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function not in SOFTMAX or not self.open or not args:
            return function(*args, **(kwargs or {}))
        path = f"{self.open[-1]}.softmax"
        scores = self.observer.enter(path, "softmax", args[0])
        weights = function(scores, *args[1:], **(kwargs or {}))
        self.observer.leave(path, weights)
        return weights


class Writer:
    """Writes tensors of the modules that match a glob; skips a tensor that would exceed `max_bytes` in total."""

    def __init__(self, folder, patterns, max_bytes, dtype):
        self.folder = folder
        self.patterns = patterns
        self.room = max_bytes
        self.dtype = dtype
        self.files = 0
        self.records = []
        self.calls = {}
        self.open = {}

    def enter(self, path, name, value):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self.patterns):
            call = self.calls.get(path, 0)
            self.calls[path] = call + 1
            record = {"path": path, "call": call, "class": name, "input": self.write(value), "output": None}
            self.records.append(record)
            self.open.setdefault(path, []).append(record)
        return value

    def leave(self, path, value, more=()):
        if self.open.get(path):
            self.open[path].pop().update(output=self.write(value), more=[self.write(other) for other in more])

    def write(self, value):
        if value is None:
            return None
        tensor = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "file": None}
        size = value.numel() * self.dtype.itemsize
        if size <= self.room:
            self.room -= size
            tensor["file"] = f"{self.files:06}"
            self.files += 1
            write(value, self.dtype, os.path.join(self.folder, tensor["file"]))
        return tensor


class Feeder:
    """Replays one call of a module with a stored tensor, writes its output, and ends the forward pass."""

    def __init__(self, module, call, stored, output, dtype):
        self.module = module
        self.call = call
        self.stored = stored
        self.output = output
        self.dtype = dtype
        self.is_fed = False
        self.shape = None

    def enter(self, path, name, value):
        if path != self.module or value is None:
            return value
        self.call -= 1
        if self.call != -1:
            return value
        self.is_fed = True
        return self.stored.reshape(value.shape).to(device=value.device, dtype=value.dtype)

    def leave(self, path, value, more=()):
        if path == self.module and self.is_fed and value is not None:
            write(value, self.dtype, self.output)
            self.shape = list(value.shape)
            raise Finished


def first_argument(args, kwargs):
    """Position or keyword, and value, of the first tensor among a module's arguments."""
    for place, value in [*enumerate(args), *kwargs.items()]:
        if isinstance(value, torch.Tensor):
            return place, value
    return None, None


def first_tensor(output):
    """The first tensor of a module's output, or None."""
    if isinstance(output, torch.Tensor):
        return output
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return next((tensor for tensor in map(first_tensor, items) if tensor is not None), None)


def write(tensor, dtype, path):
    """Writes the elements in C order, converted to `dtype`."""
    tensor.detach().to(device="cpu", dtype=dtype).contiguous().numpy().tofile(path)


def read(path, dtype):
    return torch.frombuffer(bytearray(open(path, "rb").read()), dtype=dtype)


def same(a, b):
    """Whether all elements are equal; NaN equals NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
