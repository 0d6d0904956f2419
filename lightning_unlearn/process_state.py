"""Global state of a Python process: what a command sets for itself, and what a library call leaves as it was."""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Silence what libraries say about themselves. Call it after they are imported: imports set log levels."""
    warnings.filterwarnings("once", "Unverified HTTPS request")  # at every request otherwise
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def same_environment() -> Iterator[None]:
    """Context manager: environment variables are afterwards what they were before."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def not_autologged() -> Iterator[None]:
    """Context manager: nothing is logged by `mlflow.autolog` and its like, which would write to the program's run.

    MLflow's own `disable_autologging` ends with autologging on, also inside another one.
    """
    from mlflow.utils import autologging_utils

    before = autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
    autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED = True
    try:
        yield
    finally:
        autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED = before


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context manager and decorator of a library call: global state is afterwards what it was before.

    This covers environment variables, MLflow's stores, the random streams of Python, NumPy and PyTorch (CPU), PyTorch's
    threads and gradient mode, warning filters, log levels and the handler of Ctrl-C. Inside, libraries are quiet,
    gradients are computed, and MLflow logs nothing by itself.
    """
    import numpy as np
    import torch
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking

    from lightning_unlearn.torch_modes import ordinary_modes

    stores = tracking._tracking_uri, registry._registry_uri
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (the global ones)
    threads = torch.get_num_threads()
    levels = {name: logging.getLogger(name).level for name in _LEVELS}
    interrupt = signal.getsignal(signal.SIGINT)
    with same_environment(), warnings.catch_warnings(), ordinary_modes(), not_autologged():
        set_variables()
        quieten()
        torch.set_grad_enabled(True)
        try:
            yield
        finally:
            tracking.set_tracking_uri(stores[0])  # type: ignore[arg-type]
            registry.set_registry_uri(stores[1])  # type: ignore[arg-type]
            random.setstate(streams[0])
            np.random.set_state(streams[1])  # noqa: NPY002
            torch.set_rng_state(streams[2])
            torch.set_num_threads(threads)
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)
