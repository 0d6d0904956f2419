"""The line through two policies' weights, between them and beyond."""

import math
from copy import deepcopy

import torch

from lightning_unlearn.policies.actor_critic import ActorCritic


def extrapolate(start: ActorCritic, end: ActorCritic, alpha: float) -> ActorCritic:
    """A weaker or a stronger repair, without training: a policy with the weights θ₀ + α·(θ − θ₀).

    α = 0 gives the start's weights and 1 the end's, both to the last bit. Between lies less of what training changed,
    beyond 1 more of it. Source: Wortsman et al. 2022 (between original and fine-tuned weights); Zheng et al. 2025
    (model extrapolation, beyond).

    Args:
        start: θ₀, the policy that the end was trained from: of a registered repair, its run's tag `source`.
        end: θ. Both stay as they are.
        alpha: α, at least 0.

    Raises:
        ValueError: The two have not the same weights by name and shape, differ in what is not trained, or α is
            impossible.
    """
    if not 0.0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} is not possible: use a number of at least 0; 1 is the policy trained last.")
    if start.config != end.config or _shapes(start) != _shapes(end) or not _same_frame(start, end):
        raise ValueError(
            "the two policies differ in more than trained weights (sizes, activation, normaliser or editor): no line "
            "leads from one to the other. Name a policy and the one that it was trained from."
        )
    policy = deepcopy(end)
    with torch.no_grad():
        for weight, first in zip(policy.parameters(), start.parameters(), strict=True):
            weight.copy_(torch.lerp(first, weight, alpha))
    return policy


def _shapes(policy: ActorCritic) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in policy.named_parameters()}


def _same_frame(start: ActorCritic, end: ActorCritic) -> bool:
    """Whether observation normaliser and editor, whose numbers no gradient moves, are equal."""
    one, other = _frame(start), _frame(end)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _frame(policy: ActorCritic) -> dict[str, torch.Tensor]:
    return {name: numbers for name, numbers in policy.named_buffers() if name.startswith(("normaliser.", "editor."))}
