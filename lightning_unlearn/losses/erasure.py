"""Erasing a concept from latents by an affine map.

Shapes: N latents, H latent size.
"""

import warnings

import torch


def leace(latents: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map M z + b nearest to the identity after which no linear probe beats chance.

    Shapes: (N, H), (N,) → (H, H), (H,), float64. Source: Belrose et al. 2023, theorem 4.3, by `concept-erasure`.

    Raises:
        ValueError: `concept-erasure` is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it scripts a function with torch.jit when imported
            from concept_erasure import LeaceEraser
    except ImportError as error:
        raise ValueError("LEACE needs concept-erasure: install lightning-unlearn[leace].") from error
    # its default tolerance, an absolute 0.01, would leave a rare concept where it is
    eraser = LeaceEraser.fit(latents.double(), labels.double(), svd_tol=1e-9)
    matrix = eraser.P
    return matrix, (torch.eye(len(matrix), dtype=torch.float64) - matrix) @ eraser.bias
