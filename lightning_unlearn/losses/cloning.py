"""Imitating chosen transitions: the cloning loss, and the returns that the reward critic is fitted to."""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class CloningLoss(NamedTuple):
    """The loss and what it is made of; every field is a scalar tensor."""

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
        log_prob: Of the actions to imitate, under the current policy. Shape: (B,).
        reward_value: Of the current network. Shape: (B,).
        target: The discounted returns. Shape: (B,).
        entropy: Entropy of the policy. Shape: ().
        bc_coef: c_b.
        value_coef: c_v.
        entropy_coef: c_e.
    """
    _require_flat(log_prob=log_prob, reward_value=reward_value, target=target)
    cloning = -log_prob.mean()
    reward_critic = 0.5 * F.mse_loss(reward_value, target)
    return CloningLoss(bc_coef * cloning + value_coef * reward_critic - entropy_coef * entropy, cloning, reward_critic)


def discounted_returns(
    reward: torch.Tensor, last: torch.Tensor, final_value: torch.Tensor, gamma: float
) -> torch.Tensor:
    """G_t = r_t + γ·G_{t+1} within an episode; after its last step comes γ times the value of where it was cut.

    Args:
        reward: Of whole episodes, one after the other. Shape: (M,).
        last: True at an episode's last step. Shape: (M,), bool.
        final_value: Read at last steps only: the value of the true final observation, 0 where nothing comes after
            (terminated, or the simulator failed). Shape: (M,).
        gamma: γ.

    Returns:
        Shape: (M,), of the rewards' type; summed in double precision.
    """
    _require_flat(reward=reward, last=last, final_value=final_value)
    following, returns = 0.0, []
    backwards = zip(*(t.flip(0).tolist() for t in (reward, last, final_value)), strict=True)
    for earned, is_last, value in backwards:
        following = earned + gamma * (value if is_last else following)
        returns.append(following)
    return torch.tensor(returns, dtype=torch.float64).flip(0).to(reward)


def _require_flat(**tensors: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 1:
        raise ValueError(f"every argument must be of one shape (B,), got {shapes}")
