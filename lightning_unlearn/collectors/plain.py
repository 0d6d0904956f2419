"""Nested state between the simulators, which compute in numpy, and checkpoints, which hold tensors and plain values."""

from typing import Any

import numpy as np
import torch


def to_tensors(state: Any) -> Any:
    """The same nest of dicts and lists with arrays as tensors (copies), and numpy's numbers as Python's."""
    if isinstance(state, dict):
        return {key: to_tensors(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [to_tensors(value) for value in state]
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    return state.item() if isinstance(state, np.generic) else state


def to_arrays(state: Any) -> Any:
    """The same nest with tensors as arrays (copies)."""
    if isinstance(state, dict):
        return {key: to_arrays(value) for key, value in state.items()}
    if isinstance(state, list):
        return [to_arrays(value) for value in state]
    return state.numpy().copy() if isinstance(state, torch.Tensor) else state
