"""The clipped PPO loss with a reward critic and a cost critic."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class DualPPOLoss(NamedTuple):
    """The loss and what it is made of; every field is a scalar tensor."""

    total: torch.Tensor
    policy: torch.Tensor
    reward_critic: torch.Tensor
    cost_critic: torch.Tensor
    approximate_kl: torch.Tensor
    """|mean(old log-prob - new log-prob)|, what the early stop watches."""
    clip_fraction: torch.Tensor


def dual_ppo_loss(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    values: tuple[torch.Tensor, torch.Tensor],
    targets: tuple[torch.Tensor, torch.Tensor],
    entropy: torch.Tensor,
    *,
    clip_epsilon: float,
    value_coef: float,
    entropy_coef: float,
) -> DualPPOLoss:
    """−E[min(ρA, clip(ρ, 1 ± ε)A)] + c_v·(½MSE(V_r) + ½MSE(V_c)) − c_e·H, with ρ = exp(log π − log π_old).

    Args:
        log_prob: Under the current policy. Shape: (B,).
        old_log_prob: Under the policy that acted. Shape: (B,).
        advantage: Reward and cost advantage, normalised and combined. Shape: (B,).
        values: Reward value and cost value of the current network. Shape of each: (B,).
        targets: What they are fitted to. Shape of each: (B,).
        entropy: Entropy of the policy. Shape: ().
        clip_epsilon: ε.
        value_coef: c_v.
        entropy_coef: c_e.

    Source: Schulman et al. 2017, equations 7 and 9, with a second critic.
    """
    _require_flat(log_prob, old_log_prob, advantage, *values, *targets)
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_epsilon, 1.0 + clip_epsilon)
    policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    reward_critic, cost_critic = (0.5 * F.mse_loss(v, t) for v, t in zip(values, targets, strict=True))
    with torch.no_grad():
        approximate_kl = log_ratio.mean().abs()
        clip_fraction = (ratio != clipped).float().mean()
    total = policy + value_coef * (reward_critic + cost_critic) - entropy_coef * entropy
    return DualPPOLoss(total, policy, reward_critic, cost_critic, approximate_kl, clip_fraction)


def _require_flat(*tensors: torch.Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"every argument must be of one shape (B,), got {shapes}")
