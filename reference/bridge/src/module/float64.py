"""float64 throughout: replaces the float32 that transformers uses regardless of the dtype by float64."""

import sys

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Replaces every explicit float32 and the default dtype by float64."""

    def __enter__(self):
        self.default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        self.scripted = list(scripted())
        for names, name, function in self.scripted:
            names[name] = function._torchdynamo_inline
        return super().__enter__()

    def __exit__(self, *exception):
        for names, name, function in self.scripted:
            names[name] = function
        torch.set_default_dtype(self.default_dtype)
        return super().__exit__(*exception)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.view:
            # `view(dtype)` reinterprets bits, as safetensors does to load a float32 weight; it must keep the dtype.
            return function(*args, **(kwargs or {}))
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def scripted():
    """The functions of transformers under `torch.jit.script`, as (globals of a module, name, function).

    TorchScript runs them outside of Python, so a mode cannot see their float32; the Python function that each was made
    from (torch keeps it as `_torchdynamo_inline`, torch/jit/_script.py of 2.15) computes the same.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "transformers":
            names = vars(module)
            for name, value in list(names.items()):
                if isinstance(value, torch.jit.ScriptFunction) and hasattr(value, "_torchdynamo_inline"):
                    yield names, name, value


def widen(model):
    """Makes every floating-point parameter and buffer float64; returns the names and dtypes of those that were not.

    Raises where one has fewer than two bytes: a quantised weight is not its own value.
    """
    others = [
        (name, tensor.dtype)
        for tensors in (model.named_parameters(), model.named_buffers())
        for name, tensor in tensors
        if tensor.is_floating_point() and tensor.dtype is not torch.float64
    ]
    for name, dtype in others:
        if dtype.itemsize < 2:
            raise TypeError(f"{name} is {dtype}, which cannot be widened to float64")
    if others:
        torch.nn.Module.double(model)
    return [(name, str(dtype).removeprefix("torch.")) for name, dtype in others]
