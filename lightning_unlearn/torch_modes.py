"""PyTorch's global modes, which the program that uses this package may have set for itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def ordinary_modes() -> Iterator[None]:
    """Create float32 tensors on the CPU and record gradients, whatever the program's defaults and modes are.

    Use it around a block, or as a decorator. The program's defaults and modes are restored after it.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # the context intercepts every call of PyTorch: only where needed
            stack.enter_context(torch.device("cpu"))
        yield
