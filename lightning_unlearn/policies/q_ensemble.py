"""Ensemble of critics Q(s, a) for methods that learn from a replay buffer.

Shapes: N critics, B transitions, O observation size, A action size.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.policies.actor_critic import ObservationNormaliser

_EPSILON = 1e-4
"""Added to the variance of an observation, so that a nearly constant component is not blown up."""
_CLIP = 5.0


class QEnsemble(nn.Module):
    """N networks of equal shape, evaluated in one batched pass, with layer normalisation before each non-linearity.

    Layer normalisation keeps the values of actions outside the data from growing without bound. Source: Ball et al.
    2023.

    Args:
        critics: N.
        observation_size: O.
        action_size: A.
        hidden_sizes: Widths of the hidden layers.
        generator: Random stream of the initial weights.
    """

    def __init__(
        self,
        critics: int,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.normaliser = ObservationNormaliser(observation_size, _EPSILON, _CLIP)
        sizes = [observation_size + action_size, *hidden_sizes, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for wide, narrow in pairwise(sizes):
            bound = 1.0 / math.sqrt(wide)
            for layers, rows in ((self.weights, wide), (self.biases, 1)):
                values = torch.empty(critics, rows, narrow, dtype=torch.float32)
                layers.append(values.uniform_(-bound, bound, generator=generator))

    def normalise_by(self, observation: torch.Tensor) -> None:
        """Set the normaliser to the mean and variance of these observations. Shape: (B, O)."""
        self.normaliser.mean.copy_(observation.mean(0))
        self.normaliser.variance.copy_(observation.var(0, correction=0))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the value of every critic. Shape: (B, O), (B, A) → (N, B)."""
        layers = list(zip(self.weights, self.biases, strict=True))
        hidden = torch.cat([self.normaliser(observation), action], -1).expand(len(self.weights[0]), -1, -1)
        for weight, bias in layers[:-1]:
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = F.layer_norm(hidden, hidden.shape[-1:]).relu_()
        weight, bias = layers[-1]  # with one output, a matrix product takes three times as long as this sum
        return (hidden * weight.transpose(1, 2)).sum(-1) + bias.squeeze(-1)
