"""What actions are worth: several critics Q(s, a) side by side, for methods that learn from transitions of the past.

Shapes: N critics, B transitions, O observation size, A action size.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.policies.actor_critic import ObservationNormaliser

_EPSILON = 1e-4
"""Added to the variance of an observation: what hardly ever varies is not blown up."""
_CLIP = 5.0
LAYER_NORM_EPSILON = 1e-5
"""PyTorch's default."""


class ActionValues(nn.Module):
    """N networks of one shape, each with layer normalisation before its non-linearities, in one pass.

    The normalisation keeps values of actions that were never taken from growing without bound: Ball et al. 2023.

    Args:
        critics: N.
        observation_size: O.
        action_size: A.
        hidden_sizes: Widths of the hidden layers.
        generator: What the weights are drawn from.
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
        """See observations in units of these. Shape: (B, O)."""
        self.normaliser.mean.copy_(observation.mean(0))
        self.normaliser.variance.copy_(observation.var(0, correction=0))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Every critic's value. Shape: (B, O), (B, A) → (N, B)."""
        layers = list(zip(self.weights, self.biases, strict=True))
        hidden = self.inputs(observation, action)
        for weight, bias in layers[:-1]:
            hidden = torch.baddbmm(bias, hidden, weight)
            hidden = F.layer_norm(hidden, hidden.shape[-1:]).relu_()
        return weighted_sum(hidden, *layers[-1])

    def inputs(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """What the first layer of each critic reads. Shape: (B, O), (B, A) → (N, B, O + A)."""
        return torch.cat([self.normaliser(observation), action], -1).expand(len(self.weights[0]), -1, -1)


class WrittenOutValues:
    """The forward and backward pass of `ActionValues` without autograd: two thirds of its time.

    h₀ = [normalised observation, action], zₖ = hₖ₋₁·Wₖ + bₖ, hₖ = relu(LN(zₖ)), and Q = h·w + b of the last h. With
    G = ∂L/∂zₖ: ∂L/∂Wₖ = hₖ₋₁ᵀ·G, ∂L/∂bₖ = Σ_B G and ∂L/∂hₖ₋₁ = G·Wₖᵀ, of whose last A columns ∂L/∂action is the sum
    over the critics.

    Args:
        values: Its parameters must have gradients to write into wherever `backward` is called.
    """

    def __init__(self, values: ActionValues) -> None:
        self._values = values
        self._kept: list[tuple[torch.Tensor, ...]] = []

    @torch.no_grad()
    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Every critic's value. Shape: (B, O), (B, A) → (N, B)."""
        values = self._values
        inputs, self._kept = values.inputs(observation, action), []
        for weight, bias in zip(values.weights[:-1], values.biases[:-1], strict=True):
            before = torch.baddbmm(bias, inputs, weight)
            normal, mean, precision = torch.native_layer_norm(before, before.shape[-1:], None, None, LAYER_NORM_EPSILON)
            after = normal.relu_()
            self._kept.append((inputs, before, mean, precision, after))
            inputs = after
        return weighted_sum(inputs, values.weights[-1], values.biases[-1])

    @torch.no_grad()
    def backward(self, gradient: torch.Tensor) -> None:
        """Write the parameters' gradients, from that of what `forward` returned last. Shape: (N, B)."""
        last_weight, last_bias = self._values.weights[-1], self._values.biases[-1]
        last = self._kept[-1][-1]
        torch.bmm(last.transpose(1, 2), gradient.unsqueeze(-1), out=last_weight.grad)
        torch.sum(gradient, 1, keepdim=True, out=cast(torch.Tensor, last_bias.grad).squeeze(-1))
        for layer, by_output in self._by_output(gradient):
            torch.bmm(self._kept[layer][0].transpose(1, 2), by_output, out=self._values.weights[layer].grad)
            torch.sum(by_output, 1, keepdim=True, out=self._values.biases[layer].grad)

    @torch.no_grad()
    def by_action(self, gradient: torch.Tensor) -> torch.Tensor:
        """∂L/∂action, from the gradient of what `forward` returned last. Shape: (N, B) → (B, A)."""
        *_, (_, by_output) = self._by_output(gradient)
        observed = self._values.normaliser.mean.numel()
        return torch.bmm(by_output, self._values.weights[0][:, observed:].transpose(1, 2)).sum(0)

    def _by_output(self, gradient: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """∂L/∂zₖ of the hidden layers, the last one first, each with its number. Shape of each: (N, B, width)."""
        weights = self._values.weights
        by_input = gradient.unsqueeze(-1) * weights[-1].transpose(1, 2)
        for layer in reversed(range(len(self._kept))):
            _, before, mean, precision, after = self._kept[layer]
            by_normal = torch.ops.aten.threshold_backward(by_input, after, 0.0)
            by_output, *_ = torch.ops.aten.native_layer_norm_backward(
                by_normal, before, before.shape[-1:], mean, precision, None, None, [True, False, False]
            )
            yield layer, by_output
            if layer:
                by_input = torch.bmm(by_output, weights[layer].transpose(1, 2))


def weighted_sum(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A layer of one output, which takes three times as long as a matrix product. Shape: (N, B, ·) → (N, B)."""
    return (hidden * weight.transpose(1, 2)).sum(-1) + bias.squeeze(-1)
