"""Diagonal Gaussian policies: log-density and entropy with their gradients, and KL divergence.

Shapes: B transitions, A action size.
"""

import math
from typing import NamedTuple

import torch

_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class Gradient(NamedTuple):
    """Gradient of a loss by the network's output and by the log-std."""

    mean: torch.Tensor
    """By the means. Shape: (B, A)."""
    values: torch.Tensor
    """By the reward value and the cost value. Shape: (B, 2)."""
    log_std: torch.Tensor
    """By the log-std. Shape: (A,)."""


class GaussianDraws:
    """Draws u of Gaussians N(μ, σ), with z = (u − μ)/σ and log N = −½Σ_A z² − Σ_A log σ − A·log √(2π).

    Args:
        mean: μ. Shape: (B, A).
        log_std: log σ. Shape: (A,).
        draw: u. Shape: (B, A).
    """

    def __init__(self, mean: torch.Tensor, log_std: torch.Tensor, draw: torch.Tensor) -> None:
        self._precision = (-log_std).exp()
        self._z = (draw - mean) * self._precision
        self._z_squared = self._z.square()
        size = draw.shape[-1]
        self.entropy = log_std.sum() + size * (0.5 + _LOG_SQRT_TWO_PI)
        """Entropy of one Gaussian, the sum of log-std + ½ + log √(2π). Shape: ()."""
        self.log_prob = torch.sub(0.5 * size - self.entropy, self._z_squared.sum(-1), alpha=0.5)
        """log N. Shape: (B,)."""

    def gradient(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """∂(Σ_B w·log N)/∂μ = w·z/σ, and by log σ = Σ_B w·(z² − 1). Shapes: (B,) → (B, A), (A,)."""
        return weight[:, None] * self._z * self._precision, weight @ self._z_squared - weight.sum()


class Locality(NamedTuple):
    """KL divergence over states, split by their distance to the concept."""

    overall: float
    near: float
    """Mean over states nearer than the median distance."""
    far: float
    """Mean over the other states."""
    ratio: float
    """near / (far + 1e-8)."""


def gaussian_kl(mean_p: torch.Tensor, std_p: torch.Tensor, mean_q: torch.Tensor, std_q: torch.Tensor) -> torch.Tensor:
    """KL(p‖q) of each component: log σ_q/σ_p + (σ_p² + (μ_p − μ_q)²)/(2σ_q²) − ½.

    Means are of shape (B, A), standard deviations (A,); the result is of shape (B, A).
    """
    if mean_p.shape != mean_q.shape or std_p.shape != std_q.shape or mean_p.shape[-1:] != std_p.shape:
        raise ValueError(f"shapes differ: {[tuple(t.shape) for t in (mean_p, std_p, mean_q, std_q)]}")
    return (std_q / std_p).log() + (std_p.square() + (mean_p - mean_q).square()) / (2.0 * std_q.square()) - 0.5


def kept_kl(kl: torch.Tensor, c_forget: torch.Tensor) -> torch.Tensor:
    """Mean KL of the joint Gaussian over the transitions with C_forget = 0; 0 if there are none. Shape: ().

    Args:
        kl: KL of each action component; the joint Gaussian's is their sum. Shape: (B, A).
        c_forget: 1 where the transition shows the behaviour to forget, else 0. Shape: (B,).
    """
    if kl.ndim != 2 or kl.shape[:1] != c_forget.shape:
        raise ValueError(f"kl must be of shape (B, A), c_forget (B,), got {tuple(kl.shape)}, {tuple(c_forget.shape)}")
    kept = (c_forget == 0).to(kl.dtype)
    return (kl.sum(-1) * kept).sum() / kept.sum().clamp(min=1.0)


def kept_kl_gradient(
    mean: torch.Tensor,
    log_std: torch.Tensor,
    expert_mean: torch.Tensor,
    expert_log_std: torch.Tensor,
    c_forget: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `kept_kl` of KL(N(μ, σ)‖N(μ', σ')), and its gradients by μ and by log σ.

    With k the share of a row in the mean, ∂/∂μ = k·(μ − μ')/σ'² and ∂/∂log σ = Σ_B k·(σ²/σ'² − 1).
    Shapes: (B, A), (A,), (B, A), (A,), (B,) → (), (B, A), (A,).
    """
    kept = (c_forget == 0).to(mean.dtype)
    share, precision = kept / kept.sum().clamp(min=1.0), (-expert_log_std).exp()
    away, log_ratio = (mean - expert_mean) * precision, log_std - expert_log_std
    excess = (2.0 * log_ratio).exp() - 1.0
    kl = 0.5 * (share @ away.square() + share.sum() * (excess - 2.0 * log_ratio)).sum()
    return kl, share[:, None] * away * precision, share.sum() * excess


def locality(kl: torch.Tensor, distance: torch.Tensor) -> Locality:
    """Split KL values at the median distance: near is distance < median. Shapes: (B,), (B,).

    Distances may be infinite. The mean of an empty part is NaN, and so is the ratio then.
    """
    if kl.shape != distance.shape or kl.ndim != 1:
        raise ValueError(f"kl and distance must be of one shape (B,), got {tuple(kl.shape)}, {tuple(distance.shape)}")
    ordered = distance.sort().values
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    is_near = distance < (low if low == high else 0.5 * (low + high))  # `quantile` makes NaN of infinite distances
    near, far = kl[is_near].mean().item(), kl[~is_near].mean().item()
    return Locality(kl.mean().item(), near, far, near / (far + 1e-8))


def require_flat(**tensors: torch.Tensor) -> None:
    """Refuse tensors that are not all of one shape (B,): others would be broadcast silently."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"every argument must be of one shape (B,), got {shapes}")
