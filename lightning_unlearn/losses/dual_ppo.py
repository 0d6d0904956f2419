"""Clipped PPO loss with a reward critic and a cost critic, and its gradient written out."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from lightning_unlearn.losses.gaussian import GaussianDraws, Gradient, require_flat


class DualPPOLoss(NamedTuple):
    """The loss and its terms; every field is a scalar tensor."""

    total: torch.Tensor
    policy: torch.Tensor
    reward_critic: torch.Tensor
    cost_critic: torch.Tensor
    approximate_kl: torch.Tensor
    """|mean(old log-prob - new log-prob)|, compared with `target_kl` for the early stop."""
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
        log_prob: log π, of the current policy. Shape: (B,).
        old_log_prob: log π_old, of the behaviour policy. Shape: (B,).
        advantage: Reward and cost advantage, normalised and combined. Shape: (B,).
        values: Reward value and cost value of the current network. Shape of each: (B,).
        targets: Value targets of both critics. Shape of each: (B,).
        entropy: Entropy of the policy. Shape: ().
        clip_epsilon: ε.
        value_coef: c_v.
        entropy_coef: c_e.

    Source: Schulman et al. 2017, equations 7 and 9, with a second critic.
    """
    both = {"reward_value": values[0], "cost_value": values[1], "reward_target": targets[0], "cost_target": targets[1]}
    require_flat(log_prob=log_prob, old_log_prob=old_log_prob, advantage=advantage, **both)
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


def dual_ppo_gradient(
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
    """Return `dual_ppo_loss` and its gradient by the network's output.

    Values and targets, of reward and of cost, are of shape (B, 2); errors count in `units`, of shape (2,).
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
