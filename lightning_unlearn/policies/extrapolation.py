"""The line through two policies' weights, between them and beyond."""

import math
from copy import deepcopy

import torch

from lightning_unlearn.policies.actor_critic import ActorCritic


def extrapolated(start: ActorCritic, end: ActorCritic, alpha: float) -> ActorCritic:
    """A policy with the weights θ₀ + α·(θ − θ₀): the start with α = 0, the end with 1, in both cases to the last bit.

    Between the two lies less of what training from one to the other changed, beyond the end more of it, and neither
    takes another environment step. Source: Wortsman et al. 2022 (between fine-tuned and original weights); Zheng et al.
    2025 (model extrapolation, beyond).

    Args:
        start: θ₀, such as the expert.
        end: θ, trained from it, such as its repair.
        alpha: α.

    Raises:
        ValueError: The two are not of one architecture, or α is not a finite number of at least 0.
    """
    if not 0.0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} is not possible: use a number of at least 0; 1 is the policy trained last.")
    if start.config != end.config:
        raise ValueError(
            "the two policies are not of one architecture (sizes, activation, normaliser or editor differ), so no line "
            "leads from one to the other: name a policy and the one that it was trained from."
        )
    policy = deepcopy(end)
    with torch.no_grad():
        for weight, first in zip(policy.parameters(), start.parameters(), strict=True):
            weight.copy_(torch.lerp(first, weight, alpha))
    return policy
