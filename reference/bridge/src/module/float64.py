"""float64 throughout: replaces the float32 that transformers uses regardless of the dtype by float64."""

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Replaces every explicit float32 and the default dtype by float64."""

    def __enter__(self):
        self.default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exception):
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
