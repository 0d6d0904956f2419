"""Directions in latent space, in files: what a probe exports and the gated edit reads. Reading executes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.policies.weights_file import read_pt

_MAX_BYTES = 1 << 24
_MAX_TAU = 1e30


@dataclass(frozen=True)
class Direction:
    """A direction in latent space, and the score above which a state counts as showing the concept."""

    vector: torch.Tensor
    """Of unit length. Shape: (H,), float32."""
    tau: float | None = None
    """Threshold of the score z·vector, if it was exported."""


def save_direction(path: Path, direction: Direction) -> None:
    """Write a direction as a dict of tensors, `direction` (H,) and, if there is one, `tau` ()."""
    content = {"direction": direction.vector}
    if direction.tau is not None:
        content["tau"] = torch.tensor(direction.tau, dtype=torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def load_direction(path: Path, latent_size: int) -> Direction:
    """Read a direction for latents of one size; whatever its length in the file, the result is a unit vector.

    A threshold belongs to the vector as stored: it is divided by that vector's length too.

    Raises:
        ValueError: The file is missing or foreign, or the direction is of another size, all zeros or not finite.
    """
    content = _read(path)
    vector, tau = content.get("direction"), content.get("tau")
    if not isinstance(vector, torch.Tensor) or vector.numel() != latent_size:
        size = vector.numel() if isinstance(vector, torch.Tensor) else "none"
        raise ValueError(f"{path}: the direction has size {size}, but the policy's latent has {latent_size}.")
    vector = vector.flatten().double()
    length = float(vector.norm())
    if not 0.0 < length < float("inf"):
        raise ValueError(f"{path}: the direction is all zeros or not finite; export it again from a fitted probe.")
    return Direction((vector / length).float(), None if tau is None else _number(tau, path) / length)


def _number(tau: object, path: Path) -> float:
    number = tau.item() if isinstance(tau, torch.Tensor) and tau.numel() == 1 else tau
    if not isinstance(number, float | int) or not abs(number) <= _MAX_TAU:
        raise ValueError(f"{path}: its tau is no finite number; export it again from a fitted probe.")
    return float(number)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} was not found; make it with `lightning-unlearn probe export`.")
    return read_pt(path, _MAX_BYTES)
