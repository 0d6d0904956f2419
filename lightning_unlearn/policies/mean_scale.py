"""Scale of a policy's means before tanh: methods that follow a critic's gradient lower it where tanh saturates.

Shapes: B observations, O observation size.
"""

import torch

from lightning_unlearn.policies.actor_critic import ActorCritic

MEAN_SIZE = 1.5
"""Root mean square of the expert's means before tanh, after they are rescaled."""


@torch.no_grad()
def measured_mean_scale(policy: ActorCritic, observation: torch.Tensor) -> float:
    """Compute the factor, at most 1, that brings the root mean square of the means to `MEAN_SIZE`. Shape: (B, O)."""
    if not isinstance(policy.action_mean, torch.nn.Linear):
        return 1.0  # the means of a wrapped network cannot be scaled
    size = float(policy.mean(observation).square().mean().sqrt())
    return min(1.0, MEAN_SIZE / size) if size else 1.0


@torch.no_grad()
def scale_means(policy: ActorCritic, mean_scale: float) -> None:
    """Multiply the means of a policy in place; no effect without tanh.

    Raises:
        ValueError: The means belong to a wrapped network.
    """
    if policy.config.squash != "tanh" or mean_scale == 1.0:
        return
    if not isinstance(policy.action_mean, torch.nn.Linear):
        raise ValueError(f"model.mean_scale={mean_scale} cannot scale a wrapped network: use 1.")
    policy.action_mean.weight.mul_(mean_scale)
    policy.action_mean.bias.mul_(mean_scale)
