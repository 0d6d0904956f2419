"""Behaviour cloning of chosen transitions: the loss with its gradient, and the returns that the critic is fitted to."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from lightning_unlearn.losses.gaussian import GaussianDraws, Gradient, require_flat


class CloningLoss(NamedTuple):
    """The loss and its terms; every field is a scalar tensor."""

    total: torch.Tensor
    cloning: torch.Tensor
    """Mean negative log-density of the actions."""
    reward_critic: torch.Tensor


def cloning_loss(
    log_prob: torch.Tensor,
    reward_value: torch.Tensor,
    target: torch.Tensor,
    entropy: torch.Tensor,
    *,
    bc_coef: float,
    value_coef: float,
    entropy_coef: float,
) -> CloningLoss:
    """c_b·(−E[log π(a|s)]) + c_v·½MSE(V_r, return) − c_e·H.

    Args:
        log_prob: log π(a|s) of the actions to imitate, of the current policy. Shape: (B,).
        reward_value: V_r of the current network. Shape: (B,).
        target: Discounted returns. Shape: (B,).
        entropy: Entropy of the policy. Shape: ().
        bc_coef: c_b.
        value_coef: c_v.
        entropy_coef: c_e.
    """
    require_flat(log_prob=log_prob, reward_value=reward_value, target=target)
    cloning = -log_prob.mean()
    reward_critic = 0.5 * F.mse_loss(reward_value, target)
    return CloningLoss(bc_coef * cloning + value_coef * reward_critic - entropy_coef * entropy, cloning, reward_critic)


def cloning_gradient(
    draws: GaussianDraws,
    log_slope: torch.Tensor,
    reward_value: torch.Tensor,
    target: torch.Tensor,
    *,
    bc_coef: float,
    value_coef: float,
    entropy_coef: float,
) -> tuple[CloningLoss, Gradient]:
    """Return `cloning_loss` and its gradient by the network's output. Shape of each tensor: (B,).

    `log_slope` is what squashing takes off the log-density.
    ∂L/∂log π = −c_b/B, ∂L/∂V_r = c_v·(V_r − target)/B, ∂H/∂log σ = 1.
    """
    rows = len(target)
    error = reward_value - target
    imitation, critic = (log_slope - draws.log_prob).mean(), 0.5 * error.square().mean()
    total = bc_coef * imitation + value_coef * critic - entropy_coef * draws.entropy
    mean, log_std = draws.gradient(torch.full_like(target, -bc_coef / rows))
    by_value = torch.stack([error * (value_coef / rows), torch.zeros_like(error)], -1)
    return CloningLoss(total, imitation, critic), Gradient(mean, by_value, log_std - entropy_coef)


def discounted_returns(
    reward: torch.Tensor, last: torch.Tensor, final_value: torch.Tensor, gamma: float
) -> torch.Tensor:
    """G_t = r_t + γ·G_{t+1} within an episode, and r_t + γ·final_value_t at its last step.

    Args:
        reward: Rewards of whole episodes, one after the other. Shape: (M,).
        last: True at an episode's last step. Shape: (M,), bool.
        final_value: Bootstrap, read at last steps only: the value of the true final observation, 0 if the episode
            terminated or the simulator failed. Shape: (M,).
        gamma: γ.

    Returns:
        Shape: (M,), of the rewards' dtype; summed in double precision.
    """
    require_flat(reward=reward, last=last, final_value=final_value)
    following, returns = 0.0, []
    backwards = zip(*(t.flip(0).tolist() for t in (reward, last, final_value)), strict=True)
    for earned, is_last, value in backwards:
        following = earned + gamma * (value if is_last else following)
        returns.append(following)
    return torch.tensor(returns, dtype=torch.float64).flip(0).to(reward)
