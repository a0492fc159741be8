"""float64 all the way through: where transformers asks for float32, whatever the dtype, it gets float64."""

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Replaces every float32 that is asked for, and the dtype that is not asked for, by float64."""

    def __enter__(self):
        self.default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *exception):
        torch.set_default_dtype(self.default_dtype)
        return super().__exit__(*exception)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.view:
            # `view(dtype)` reads the same bits as another type: so safetensors gives a weight its own.
            return function(*args, **(kwargs or {}))
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*args, **kwargs)
