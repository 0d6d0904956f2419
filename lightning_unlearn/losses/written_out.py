"""Losses of a Gaussian policy and its critics, with their gradients by the network's output written out.

The formulas are those of `dual_ppo_loss`, `kept_kl` and `cloning_loss`, whose autograd the tests hold these to.
Shapes: B transitions, A action size.
"""

import math
from typing import NamedTuple

import torch

from lightning_unlearn.losses.cloning import CloningLoss
from lightning_unlearn.losses.dual_ppo import DualPPOLoss

_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class Gradient(NamedTuple):
    """∂L by what the network puts out, and by log σ."""

    mean: torch.Tensor
    """Shape: (B, A)."""
    values: torch.Tensor
    """Of reward and of cost. Shape: (B, 2)."""
    log_std: torch.Tensor
    """Shape: (A,)."""


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
        """Of one Gaussian, the sum of log std + ½ + log √(2π). Shape: ()."""
        self.log_prob = torch.sub(0.5 * size - self.entropy, self._z_squared.sum(-1), alpha=0.5)
        """Shape: (B,)."""

    def gradient(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """∂(Σ_B w·log N)/∂μ = w·z/σ, and by log σ = Σ_B w·(z² − 1). Shapes: (B,) → (B, A), (A,)."""
        return weight[:, None] * self._z * self._precision, weight @ self._z_squared - weight.sum()


def dual_ppo(
    draws: GaussianDraws,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    values: torch.Tensor,
    targets: torch.Tensor,
    units: torch.Tensor,
    *,
    clip_epsilon: float,
    value_coef: float,
    entropy_coef: float,
) -> tuple[DualPPOLoss, Gradient]:
    """`dual_ppo_loss` of values and targets, reward's and cost's of shape (B, 2), in these units of shape (2,).

    ∂L/∂log π = −ρA/B where ρA ≤ clip(ρ, 1 ± ε)·A, else 0; ∂L/∂V = c_v·(V − target)/(B·unit²); ∂H/∂log σ = 1.
    """
    rows = len(advantage)
    log_ratio = draws.log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_epsilon, 1.0 + clip_epsilon)
    share = advantage * (-1.0 / rows)  # of each transition in the loss
    term, clipped_term = ratio * share, clipped * share
    policy = torch.maximum(term, clipped_term).sum()
    error = (values - targets) / units
    reward_critic, cost_critic = (0.5 * error.square().mean(0)).unbind()
    total = policy + value_coef * (reward_critic + cost_critic) - entropy_coef * draws.entropy
    kl, outside = log_ratio.mean().abs(), (ratio != clipped).float().mean()
    mean, log_std = draws.gradient((term >= clipped_term) * term)
    gradient = Gradient(mean, error * (value_coef / rows / units), log_std - entropy_coef)
    return DualPPOLoss(total, policy, reward_critic, cost_critic, kl, outside), gradient


def kept_kl(
    mean: torch.Tensor,
    log_std: torch.Tensor,
    expert_mean: torch.Tensor,
    expert_log_std: torch.Tensor,
    c_forget: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`kept_kl` of KL(N(μ, σ)‖N(μ', σ')), and its gradients by μ and by log σ.

    With k the share of a row in the mean, ∂/∂μ = k·(μ − μ')/σ'² and ∂/∂log σ = Σ_B k·(σ²/σ'² − 1).
    Shapes: (B, A), (A,), (B, A), (A,), (B,) → (), (B, A), (A,).
    """
    kept = (c_forget == 0).to(mean.dtype)
    share, precision = kept / kept.sum().clamp(min=1.0), (-expert_log_std).exp()
    away, log_ratio = (mean - expert_mean) * precision, log_std - expert_log_std
    excess = (2.0 * log_ratio).exp() - 1.0
    kl = 0.5 * (share @ away.square() + share.sum() * (excess - 2.0 * log_ratio)).sum()
    return kl, share[:, None] * away * precision, share.sum() * excess


def cloning(
    draws: GaussianDraws,
    log_slope: torch.Tensor,
    reward_value: torch.Tensor,
    target: torch.Tensor,
    *,
    bc_coef: float,
    value_coef: float,
    entropy_coef: float,
) -> tuple[CloningLoss, Gradient]:
    """`cloning_loss`; `log_slope` is what squashing takes off the log-density. Shape of each tensor: (B,).

    ∂L/∂log π = −c_b/B, ∂L/∂V_r = c_v·(V_r − target)/B, ∂H/∂log σ = 1.
    """
    rows = len(target)
    error = reward_value - target
    imitation, critic = (log_slope - draws.log_prob).mean(), 0.5 * error.square().mean()
    total = bc_coef * imitation + value_coef * critic - entropy_coef * draws.entropy
    mean, log_std = draws.gradient(torch.full_like(target, -bc_coef / rows))
    by_value = torch.stack([error * (value_coef / rows), torch.zeros_like(error)], -1)
    return CloningLoss(total, imitation, critic), Gradient(mean, by_value, log_std - entropy_coef)
