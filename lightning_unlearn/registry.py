"""The loader that stored models name in their MLmodel file: this address never moves."""

from lightning_unlearn.tracking.model_files import _load_pyfunc

__all__ = ["_load_pyfunc"]
