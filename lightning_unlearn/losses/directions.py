"""Unit directions in latent space: where a probe, a mean difference or nothing at all says the concept lies.

Shapes: N latents, H latent size.
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


class ProbeDirection(NamedTuple):
    """A linear probe in raw latent space: it says "concept" exactly where z·vector > tau."""

    vector: torch.Tensor
    """Of unit length. Shape: (H,), float32."""
    tau: float


def unit(vector: torch.Tensor) -> torch.Tensor:
    """The vector divided by its length. Shape: (H,) → (H,), float32.

    Raises:
        ValueError: It is all zeros or not finite.
    """
    length = float(vector.double().norm())
    if vector.ndim != 1 or not 0.0 < length < float("inf"):
        raise ValueError(f"a vector of shape {tuple(vector.shape)} and length {length} gives no direction.")
    return (vector.double() / length).float()


def random_direction(latent_size: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform on the unit sphere, as a normalised Gaussian is. Shape: (H,)."""
    return unit(torch.randn(latent_size, generator=generator, dtype=torch.float32))


def flipped(direction: torch.Tensor) -> torch.Tensor:
    """The same line, the other way. Shape: (H,) → (H,)."""
    return -direction


def mean_difference(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The direction from the mean of the other latents to that of the concept's. Shapes: (N, H), (N,) bool → (H,)."""
    require_both_classes(latents, labels)
    return unit(latents[labels].double().mean(0) - latents[~labels].double().mean(0))


def probe_direction(latents: torch.Tensor, labels: torch.Tensor) -> ProbeDirection:
    """Fit a logistic regression on standardised latents, classes balanced. Shapes: (N, H), (N,) bool."""
    require_both_classes(latents, labels)
    scaler, regression = StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")
    regression.fit(scaler.fit_transform(latents.double().numpy()), labels.numpy())
    return from_standardised(regression.coef_[0], float(regression.intercept_[0]), scaler.mean_, scaler.scale_)


def from_standardised(coefficient: np.ndarray, intercept: float, mean: np.ndarray, scale: np.ndarray) -> ProbeDirection:
    """A probe of standardised latents, c·(z − m)/σ + b > 0, in raw latent space with unit direction.

    With w = c/σ it says "concept" where z·w > m·w − b, that is, where z·(w/‖w‖) > (m·w − b)/‖w‖. Shapes: (H,).
    """
    weight = np.asarray(coefficient, np.float64) / scale
    vector = unit(torch.from_numpy(weight))
    return ProbeDirection(vector, (float(mean @ weight) - intercept) / float(np.linalg.norm(weight)))


def require_both_classes(latents: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse labels that do not belong to the latents, or that are all alike. Shapes: (N, H), (N,) bool.

    Raises:
        ValueError: No direction can be read off them.
    """
    if labels.shape != latents.shape[:1] or labels.dtype != torch.bool:
        raise ValueError(f"labels must be bool of shape ({len(latents)},), got {labels.dtype} {tuple(labels.shape)}.")
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        raise ValueError(f"{positives} of {len(labels)} states show the concept: a direction needs some of each kind.")
