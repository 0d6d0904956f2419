"""Edits of the latent that a policy's heads read: gated along one direction, or affine (LEACE); and direction files.

Shapes: H latent size.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lightning_unlearn.safe_files.pt import read_pt

_MAX_BYTES = 1 << 24
_MAX_TAU = 1e30


class GatedEditor(nn.Module):
    """z' = z − α·g·relu(s − τ)·d with the score s = z·d and the gate g = sigmoid(β(s − τ)).

    All four are buffers: they are stored with the policy, and no optimizer changes them.

    Args:
        direction: d, of unit length. Shape: (H,).
        alpha: α, strength.
        tau: τ, the score above which a latent is edited.
        beta: β, steepness of the gate.

    Raises:
        ValueError: `direction` is not one vector of unit length.
    """

    name = "gated"
    direction: torch.Tensor
    alpha: torch.Tensor
    tau: torch.Tensor
    beta: torch.Tensor

    def __init__(self, direction: torch.Tensor, alpha: float, tau: float, beta: float) -> None:
        super().__init__()
        require_unit(direction)
        self.register_buffer("direction", direction.detach().clone().float())
        for name, number in (("alpha", alpha), ("tau", tau), ("beta", beta)):
            self.register_buffer(name, torch.tensor(number, dtype=torch.float32))

    @classmethod
    def blank(cls, latent_size: int) -> "GatedEditor":
        """Return an editor that changes nothing, to be filled from a file."""
        return cls(nn.functional.one_hot(torch.tensor(0), latent_size), 0.0, 0.0, 0.0)

    def score(self, latent: torch.Tensor) -> torch.Tensor:
        """Compute the score s = z·d. Shape: (..., H) → (...)."""
        return latent @ self.direction

    def gate(self, latent: torch.Tensor) -> torch.Tensor:
        """Compute the gate g, above ½ exactly where s > τ. Shape: (..., H) → (...)."""
        return (self.beta * (self.score(latent) - self.tau)).sigmoid()

    def suppression(self, latent: torch.Tensor) -> torch.Tensor:
        """Compute how far the score is lowered, α·g·relu(s − τ). Shape: (..., H) → (...)."""
        excess = self.score(latent) - self.tau
        return self.alpha * (self.beta * excess).sigmoid() * excess.relu()

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the edited latent. Shape: (..., H) → (..., H)."""
        return latent - self.suppression(latent).unsqueeze(-1) * self.direction


class AffineEditor(nn.Module):
    """z' = M z + b, as linear concept erasure (LEACE) computes it.

    Args:
        matrix: M. Shape: (H, H).
        bias: b. Shape: (H,).

    Raises:
        ValueError: The shapes do not fit each other.
    """

    name = "affine"
    matrix: torch.Tensor
    bias: torch.Tensor

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        if bias.ndim != 1 or matrix.shape != (len(bias), len(bias)):
            raise ValueError(f"matrix {tuple(matrix.shape)} and bias {tuple(bias.shape)} must be (H, H) and (H,).")
        self.register_buffer("matrix", matrix.detach().clone().float())
        self.register_buffer("bias", bias.detach().clone().float())

    @classmethod
    def blank(cls, latent_size: int) -> "AffineEditor":
        """Return an editor that changes nothing, to be filled from a file."""
        return cls(torch.eye(latent_size, dtype=torch.float32), torch.zeros(latent_size, dtype=torch.float32))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the edited latent. Shape: (..., H) → (..., H)."""
        return latent @ self.matrix.T + self.bias


Editor = GatedEditor | AffineEditor
EDITORS: dict[str, type[GatedEditor] | type[AffineEditor]] = {cls.name: cls for cls in (GatedEditor, AffineEditor)}
"""Name in a policy's description → class."""


def require_unit(direction: torch.Tensor) -> None:
    """Raise a ValueError unless `direction` is one vector of unit length."""
    length = float(direction.double().norm())
    if direction.ndim != 1 or not abs(length - 1.0) < 1e-4:
        raise ValueError(
            f"an editor's direction must be one vector of length 1, but this one is of shape {tuple(direction.shape)} "
            f"and length {length:.6g}: divide it by its length, and τ with it."
        )


@dataclass(frozen=True)
class Direction:
    """A direction in latent space, as a probe exports it and the gated edit reads it."""

    vector: torch.Tensor
    """Unit vector. Shape: (H,), float32."""
    tau: float | None = None
    """Threshold of the score z·vector, if it was exported: above it, a state counts as showing the concept."""


def save_direction(path: Path, direction: Direction) -> None:
    """Write a direction as a dict of tensors, `direction` (H,) and, if there is one, `tau` ()."""
    content = {"direction": direction.vector}
    if direction.tau is not None:
        content["tau"] = torch.tensor(direction.tau, dtype=torch.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def load_direction(path: Path, latent_size: int) -> Direction:
    """Read a direction for latents of one size, and divide it by its length.

    The threshold belongs to the vector as stored, so it is divided by the same length. Reading executes nothing.

    Raises:
        ValueError: The file is missing or is no direction file, or the direction is of another size, all zeros or not
            finite.
    """
    if not path.is_file():
        raise ValueError(f"{path} was not found; make it with `lightning-unlearn probe export`.")
    content = read_pt(path, _MAX_BYTES)
    vector, tau = content.get("direction"), content.get("tau")
    if not isinstance(vector, torch.Tensor) or vector.numel() != latent_size:
        size = vector.numel() if isinstance(vector, torch.Tensor) else "none"
        raise ValueError(f"{path}: the direction has size {size}, but the policy's latent has {latent_size}.")
    vector = vector.flatten().double()
    length = float(vector.norm())
    if not 0.0 < length < float("inf"):
        raise ValueError(f"{path}: the direction is all zeros or not finite; export it again from a fitted probe.")
    unit = (vector / length).float()
    if tau is None:
        return Direction(unit, None)
    number = tau.item() if isinstance(tau, torch.Tensor) and tau.numel() == 1 else tau
    if not isinstance(number, float | int) or not abs(number) <= _MAX_TAU:
        raise ValueError(f"{path}: its tau is no finite number; export it again from a fitted probe.")
    return Direction(unit, float(number) / length)
