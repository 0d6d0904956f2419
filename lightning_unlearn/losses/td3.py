"""TD3 losses: twin critics of reward and of C_forget, and the deterministic policy gradient of the Lagrangian.

Shapes: B macro-actions, A action size. Of the four critics, the first two are of reward and the last two of C_forget.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

CRITICS = 4
"""Twin critics of each signal (Fujimoto et al. 2018)."""


class CriticLoss(NamedTuple):
    """Loss of the critics; every field is a scalar tensor."""

    total: torch.Tensor
    reward_critic: torch.Tensor
    cost_critic: torch.Tensor


class ActorLoss(NamedTuple):
    """The policy's loss and its terms; every field is a scalar tensor."""

    policy: torch.Tensor
    reward_value: torch.Tensor
    """Mean of the lesser reward value of the policy's own actions."""
    cost_value: torch.Tensor
    """Mean of the greater cost value of the policy's own actions."""


def pessimistic(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lesser reward value and the greater cost value. Shape: (4, B) → (B,), (B,)."""
    return torch.minimum(values[0], values[1]), torch.maximum(values[2], values[3])


def td_targets(
    reward: torch.Tensor, c_forget: torch.Tensor, discount: torch.Tensor, next_values: torch.Tensor
) -> torch.Tensor:
    """R + d·min(Q'₁, Q'₂), twice, and c + d·max(Q'₃, Q'₄), twice.

    Args:
        reward: R, discounted reward of a macro-action. Shape: (B,).
        c_forget: c, discounted C_forget of a macro-action. Shape: (B,).
        discount: d, γ to the number of the macro-action's steps; 0 where the episode terminated. Shape: (B,).
        next_values: Q', of the next observation and the policy's action in it. Shape: (4, B).

    Returns:
        Shape: (4, B).

    Source: Fujimoto et al. 2018, algorithm 1, with critics of costs beside those of reward.
    """
    next_reward, next_cost = pessimistic(next_values)
    reward_target, cost_target = reward + discount * next_reward, c_forget + discount * next_cost
    return torch.stack([reward_target, reward_target, cost_target, cost_target])


def critic_loss(values: torch.Tensor, target: torch.Tensor) -> CriticLoss:
    """Σ_k E[h(Q_k − y_k)] with h(x) = ½x² up to |x| = 1 and |x| − ½ beyond. Shape of both: (4, B)."""
    each = F.smooth_l1_loss(values, target, reduction="none").mean(-1)
    return CriticLoss(each.sum(), each[:2].sum(), each[2:].sum())


def actor_loss(values: torch.Tensor, cost_weight: float) -> ActorLoss:
    """−E[min(Q₁, Q₂) − λ·max(Q₃, Q₄)]/(1 + λ).

    Args:
        values: Q, of the policy's own actions. Shape: (4, B).
        cost_weight: λ, in units of reward for one of C_forget.

    Source: Silver et al. 2014, the deterministic policy gradient, of the Lagrangian.
    """
    reward_value, cost_value = (value.mean() for value in pessimistic(values))
    return ActorLoss(-(reward_value - cost_weight * cost_value) / (1.0 + cost_weight), reward_value, cost_value)
