"""Global state of a Python process: what a command sets for itself, and what a library call leaves as it was."""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

VARIABLES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RL_LOGGING_LEVEL": "WARNING",
    "GOMP_SPINCOUNT": "10000",  # threads that spin for each other for long stand still where other work wants the cores
}
"""Environment variables of libraries, set where the user has not; some are read when the library is imported."""
_QUIET = ("mlflow", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric", "alembic")
_LEVELS = {name: logging.ERROR for name in _QUIET} | {
    name: logging.INFO for name in ("lightning.pytorch.callbacks", "lightning.pytorch.profilers")
}
"""Log levels: no advertisements, but everything that a callback or a profiler was asked to print.

Lightning's messages come from `pytorch_lightning` once that is imported, as `mlflow.autolog` does.
"""
_CHATTER = ("`isinstance\\(treespec, LeafSpec\\)` is deprecated", ".*does not have many workers.*")
"""Warnings of Lightning that nothing here can act on."""


def set_variables() -> None:
    """Set the environment variables that are not set yet."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


def quieten() -> None:
    """Silence messages of libraries about themselves. Call it after they are imported: imports set log levels."""
    warnings.filterwarnings("once", "Unverified HTTPS request")  # at every request otherwise
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def same_environment() -> Iterator[None]:
    """Restore the environment variables after the block."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def ordinary_modes() -> Iterator[None]:
    """Create float32 tensors on the CPU and record gradients, whatever the program's defaults and modes are.

    Use it around a block, or as a decorator. The program's defaults and modes are restored after it.
    """
    import torch

    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # the context intercepts every call of PyTorch: only where needed
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def same_process() -> Iterator[None]:
    """Restore the process's global state after the block; inside, libraries are quiet and gradients are computed.

    This covers environment variables, the random streams of Python, NumPy and PyTorch (CPU), PyTorch's threads and
    modes, warning filters, log levels and the handler of Ctrl-C.
    """
    import numpy as np
    import torch

    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (the global ones)
    threads = torch.get_num_threads()
    levels = {name: logging.getLogger(name).level for name in _LEVELS}
    interrupt = signal.getsignal(signal.SIGINT)
    with same_environment(), warnings.catch_warnings(), ordinary_modes():
        set_variables()
        quieten()
        torch.set_grad_enabled(True)
        try:
            yield
        finally:
            random.setstate(streams[0])
            np.random.set_state(streams[1])  # noqa: NPY002
            torch.set_rng_state(streams[2])
            torch.set_num_threads(threads)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
