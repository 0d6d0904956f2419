"""Edits of a latent that a policy's heads read: the gated edit along one direction, and an affine one (LEACE).

Shapes: B latents, H latent size.
"""

import torch
from torch import nn


class GatedEditor(nn.Module):
    """z' = z − α·g·relu(s − τ)·d with the score s = z·d and the gate g = sigmoid(β(s − τ)).

    All four are buffers: they travel with the policy and no optimizer of a policy finds them.

    Args:
        direction: d, of unit length. Shape: (H,).
        alpha: α, strength.
        tau: τ, the score above which a latent is edited.
        beta: β, steepness of the gate.

    Raises:
        ValueError: `direction` is not one vector of unit length.
    """

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
        """An editor that changes nothing, to be filled from a file."""
        return cls(nn.functional.one_hot(torch.tensor(0), latent_size), 0.0, 0.0, 0.0)

    def score(self, latent: torch.Tensor) -> torch.Tensor:
        """The score s = z·d. Shape: (..., H) → (...)."""
        return latent @ self.direction

    def gate(self, latent: torch.Tensor) -> torch.Tensor:
        """The gate g, above ½ exactly where s > τ. Shape: (..., H) → (...)."""
        return (self.beta * (self.score(latent) - self.tau)).sigmoid()

    def suppression(self, latent: torch.Tensor) -> torch.Tensor:
        """How far the score is moved down, α·g·relu(s − τ). Shape: (..., H) → (...)."""
        excess = self.score(latent) - self.tau
        return self.alpha * (self.beta * excess).sigmoid() * excess.relu()

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Edit. Shape: (..., H) → (..., H)."""
        return latent - self.suppression(latent).unsqueeze(-1) * self.direction


class AffineEditor(nn.Module):
    """z' = M z + b, the form of a linear concept erasure.

    Args:
        matrix: M. Shape: (H, H).
        bias: b. Shape: (H,).

    Raises:
        ValueError: The shapes do not belong together.
    """

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
        """An editor that changes nothing, to be filled from a file."""
        return cls(torch.eye(latent_size, dtype=torch.float32), torch.zeros(latent_size, dtype=torch.float32))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Edit. Shape: (..., H) → (..., H)."""
        return latent @ self.matrix.T + self.bias


Editor = GatedEditor | AffineEditor
EDITORS: dict[str, type[GatedEditor] | type[AffineEditor]] = {"gated": GatedEditor, "affine": AffineEditor}
"""Name in a policy's description → class."""


def editor_name(editor: Editor | None) -> str:
    """The name that a policy's description has for an editor; `none` for None."""
    return "none" if editor is None else next(name for name, cls in EDITORS.items() if isinstance(editor, cls))


def require_unit(direction: torch.Tensor) -> None:
    """Refuse what is not one vector of unit length.

    Raises:
        ValueError: It is not.
    """
    length = float(direction.double().norm())
    if direction.ndim != 1 or not abs(length - 1.0) < 1e-4:
        raise ValueError(
            f"an editor's direction must be one vector of length 1, but this one is of shape {tuple(direction.shape)} "
            f"and length {length:.6g}: divide it by its length, and τ with it."
        )
