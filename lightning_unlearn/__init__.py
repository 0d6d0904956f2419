"""Targeted unlearning for control agents."""

import os
from importlib import import_module
from typing import Any

# MLflow reads these when it is imported, and everything that imports it imports this first.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

__all__ = ["ModelCard", "evaluate", "extrapolate", "load_policy", "repair", "save_policy", "wrap"]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used: what this package needs takes seconds to load."""
    if name in __all__:
        return getattr(import_module("lightning_unlearn.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
