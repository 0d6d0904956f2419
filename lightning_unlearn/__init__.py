"""Targeted unlearning for control agents."""

from importlib import import_module
from typing import Any

from lightning_unlearn.global_state import same_environment, set_variables

__all__ = [
    "ModelCard",
    "elicit",
    "evaluate",
    "extrapolate",
    "load_policy",
    "meta_evaluation",
    "patch",
    "repair",
    "save_policy",
    "weight_path",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used: what this package needs takes seconds to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with same_environment():  # imports set variables of their own; MLflow is imported without its telemetry
        set_variables()
        return getattr(import_module("lightning_unlearn.api"), name)
