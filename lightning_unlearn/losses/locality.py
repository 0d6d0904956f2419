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


def kept_kl(kl: torch.Tensor, c_forget: torch.Tensor) -> torch.Tensor:
    """Mean KL of the joint Gaussian over the transitions with C_forget = 0; 0 where there is none. Shape: ().

    Args:
        kl: KL of each action component; the joint Gaussian's is their sum. Shape: (B, A).
        c_forget: 1 where the transition shows the behaviour to forget, else 0. Shape: (B,).
    """
    if kl.ndim != 2 or kl.shape[:1] != c_forget.shape:
        raise ValueError(f"kl must be of shape (B, A), c_forget (B,), got {tuple(kl.shape)}, {tuple(c_forget.shape)}")
    kept = (c_forget == 0).to(kl.dtype)
    return (kl.sum(-1) * kept).sum() / kept.sum().clamp(min=1.0)


def locality(kl: torch.Tensor, distance: torch.Tensor) -> Locality:
    """Split KL values at the median distance: near is distance < median. Shapes: (B,), (B,).

    Distances may be infinite. A part without states, and then the ratio, is NaN.
    """
    if kl.shape != distance.shape or kl.ndim != 1:
        raise ValueError(f"kl and distance must be of one shape (B,), got {tuple(kl.shape)}, {tuple(distance.shape)}")
    is_near = distance < _median(distance)
    near, far = kl[is_near].mean().item(), kl[~is_near].mean().item()
    return Locality(kl.mean().item(), near, far, near / (far + 1e-8))


def _median(values: torch.Tensor) -> torch.Tensor:
    """The middle value, or the mean of the two; `quantile` makes NaN of infinite ones. Shape: (B,) → ()."""
    ordered, middle = values.sort().values, len(values) // 2
    low, high = ordered[(len(values) - 1) // 2], ordered[middle]
    return low if low == high else 0.5 * (low + high)
