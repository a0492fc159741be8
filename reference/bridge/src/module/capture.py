"""Hooks that write the inputs and outputs of modules during a forward pass, or replace a module's inputs.

Two steps of an attention module are functions, not modules: the rotary embedding of queries and keys, and the softmax.
They are captured as `rope_q`, `rope_k` and `softmax` below the module's path.
"""

import fnmatch
import functools
import hashlib
import inspect
import os
import sys

import torch
from torch.overrides import TorchFunctionMode

ROTATION = "apply_rotary_pos_emb"
SOFTMAX = {torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax}
# Names of the tensors of a tuple; the tensors of any other are numbered.
PARTS = {"position_embeddings": ("cos", "sin")}


class Finished(Exception):
    """Ends a forward pass early, once the replayed output is written."""


class Hooks(TorchFunctionMode):
    """Calls `observer` for every module and step of a forward pass.

    `observer.enter(path, class, tensors)` gets the tensors among the arguments as (name, tensor), the main input first,
    and may return others to compute with in their places.
    """

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
        return self.enter(path, type(module).__name__, module.forward, args, kwargs)

    def enter(self, path, name, function, args, kwargs):
        """Shows the arguments of a function to the observer; the arguments with its tensors, None if it changes none."""
        found = tensors(function, args, kwargs)
        fed = self.observer.enter(path, name, [(name, value) for name, _, value in found])
        if fed is None:
            return None
        args, kwargs = list(args), dict(kwargs)
        for (_, (place, *inner), _), value in zip(found, fed):
            holder = args if isinstance(place, int) else kwargs
            if inner:
                items = list(holder[place])
                items[inner[0]] = value
                value = tuple(items)
            holder[place] = value
        return tuple(args), kwargs

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
            fed = self.enter(paths[0], ROTATION, function, (q, None, *args), kwargs)
            if fed:
                (q, _, *args), kwargs = fed
            fed = self.enter(paths[1], ROTATION, function, (None, k, *args), kwargs)
            if fed:
                (_, k, *args), kwargs = fed
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
        fed = self.observer.enter(path, "softmax", [("scores", args[0])])
        weights = function(*(fed or args[:1]), *args[1:], **(kwargs or {}))
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
        # Files of further inputs by content, because every layer gets the same mask and tables.
        self.known = {}

    def enter(self, path, name, tensors):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self.patterns):
            call = self.calls.get(path, 0)
            self.calls[path] = call + 1
            value, further = (tensors[0][1], tensors[1:]) if tensors else (None, [])
            record = {"path": path, "call": call, "class": name, "input": self.write(value), "output": None}
            record["further"] = [{"name": name, "tensor": self.write(value, shared=True)} for name, value in further]
            self.records.append(record)
            self.open.setdefault(path, []).append(record)

    def leave(self, path, value, more=()):
        if self.open.get(path):
            self.open[path].pop().update(output=self.write(value), more=[self.write(other) for other in more])

    def write(self, value, shared=False):
        if value is None:
            return None
        tensor = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "file": None}
        if value.numel() * self.dtype.itemsize > self.room:
            return tensor
        data = elements(value, self.dtype)
        key = hashlib.sha256(data).digest() if shared else None
        if key in self.known:
            tensor["file"] = self.known[key]
            return tensor
        self.room -= data.nbytes
        tensor["file"] = f"{self.files:06}"
        self.files += 1
        data.tofile(os.path.join(self.folder, tensor["file"]))
        if shared:
            self.known[key] = tensor["file"]
        return tensor


class Feeder:
    """Replays one call of a module with stored tensors, writes its output, and ends the forward pass.

    `stored` replaces the main input, `further` other arguments by their names.
    """

    def __init__(self, module, call, stored, further, output, dtype):
        self.module = module
        self.call = call
        self.stored = stored
        self.further = further
        self.output = output
        self.dtype = dtype
        self.is_fed = False
        self.shape = None

    def enter(self, path, name, tensors):
        if path != self.module or not tensors:
            return None
        self.call -= 1
        if self.call != -1:
            return None
        self.is_fed = True
        stored = [self.stored, *(self.further.get(name) for name, _ in tensors[1:])]
        return [
            value if other is None else other.reshape(value.shape).to(device=value.device, dtype=value.dtype)
            for other, (_, value) in zip(stored, tensors)
        ]

    def leave(self, path, value, more=()):
        if path == self.module and self.is_fed and value is not None:
            elements(value, self.dtype).tofile(self.output)
            self.shape = list(value.shape)
            raise Finished


def tensors(function, args, kwargs):
    """The tensors among the arguments, those of tuples too, as (name, place, tensor); the first that stands alone is first.

    A place is an index or a keyword, and an index inside of a tuple.
    """
    names = list(parameters(function))
    found = []
    for place, value in [*enumerate(args), *kwargs.items()]:
        name = names[place] if isinstance(place, int) and place < len(names) else str(place)
        if isinstance(value, torch.Tensor):
            found.append((name, (place,), value))
        elif isinstance(value, (tuple, list)):
            parts = dict(enumerate(PARTS.get(name, ())))
            for at, item in enumerate(value):
                if isinstance(item, torch.Tensor):
                    found.append((f"{name}.{parts.get(at, at)}", (place, at), item))
    main = next((at for at, (_, place, _) in enumerate(found) if len(place) == 1), None)
    return [] if main is None else [found[main], *found[:main], *found[main + 1 :]]


@functools.lru_cache(maxsize=None)
def signature(function):
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def parameters(function):
    """The names of a function's parameters, without `self`."""
    plain = getattr(function, "__func__", None)
    return signature(function) if plain is None else signature(plain)[1:]


def first_tensor(output):
    """The first tensor of a module's output, or None."""
    if isinstance(output, torch.Tensor):
        return output
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return next((tensor for tensor in map(first_tensor, items) if tensor is not None), None)


def elements(tensor, dtype):
    """The elements in C order, converted to `dtype`, as a numpy array."""
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous().numpy()


def read(path, dtype, shape):
    return torch.frombuffer(bytearray(open(path, "rb").read()), dtype=dtype).reshape(shape)


def same(a, b):
    """Whether all elements are equal; NaN equals NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
