"""Where a policy differs from another: KL divergence near the behaviour to forget, and far from it."""

from typing import NamedTuple

import torch


class Locality(NamedTuple):
    """KL divergence over states, split by how near they are to the concept."""

    overall: float
    near: float
    """Over states nearer than the median distance."""
    far: float
    ratio: float
    """near / (far + 1e-8)."""


def gaussian_kl(mean_p: torch.Tensor, std_p: torch.Tensor, mean_q: torch.Tensor, std_q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) of diagonal Gaussians, one value per component: log σ_q/σ_p + (σ_p² + (μ_p − μ_q)²)/(2σ_q²) − ½.

    Means are of shape (B, A), standard deviations (A,); the result is of shape (B, A).
    """
    if mean_p.shape != mean_q.shape or std_p.shape != std_q.shape or mean_p.shape[-1:] != std_p.shape:
        raise ValueError(f"shapes differ: {[tuple(t.shape) for t in (mean_p, std_p, mean_q, std_q)]}")
    return (std_q / std_p).log() + (std_p.square() + (mean_p - mean_q).square()) / (2.0 * std_q.square()) - 0.5


def locality(kl: torch.Tensor, distance: torch.Tensor) -> Locality:
    """Split KL values at the median distance: near is distance < median. Shapes: (B,), (B,)."""
    if kl.shape != distance.shape or kl.ndim != 1:
        raise ValueError(f"kl and distance must be of one shape (B,), got {tuple(kl.shape)}, {tuple(distance.shape)}")
    is_near = distance < distance.quantile(0.5)
    near, far = kl[is_near].mean().item(), kl[~is_near].mean().item()
    return Locality(kl.mean().item(), near, far, near / (far + 1e-8))
