"""Forward and backward pass of the default policy without autograd, which takes twice as long.

Shapes: B observations, O observation size, A action size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from lightning_unlearn.policies.actor_critic import ActorCritic


class Layer(NamedTuple):
    """Weight (out, in) and bias (out,) of a linear layer, and the tensors that their gradients are written to."""

    weight: torch.Tensor
    weight_gradient: torch.Tensor
    bias: torch.Tensor
    bias_gradient: torch.Tensor


class SharedTrunk:
    """A tanh trunk and the linear heads that all read it.

    h₀ = observation, hₖ = tanh(hₖ₋₁·Wₖᵀ + bₖ); the heads' output y = h·Wᵀ + b has A columns of means and one of each
    value. With G = ∂L/∂(h·Wᵀ + b) of a layer: ∂L/∂W = Gᵀ·h, ∂L/∂b = Σ_B G, and ∂L/∂h = G·W, which times 1 − h² is the
    G of the layer before. tanh x is computed as 2·sigmoid(2x) − 1, in a third of the time on a CPU. The layers'
    tensors must not require gradients of autograd.

    Args:
        hidden: The trunk's layers, in order.
        heads: Mean, reward value and cost value as one layer.
    """

    def __init__(self, hidden: Sequence[Layer], heads: Layer) -> None:
        self._hidden, self._heads = hidden, heads
        self._inputs: list[torch.Tensor] = []

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute the means and both values. Shape: (B, O) → (B, A + 2)."""
        self._inputs = [observation]
        for layer in self._hidden:
            double = torch.addmm(layer.bias, self._inputs[-1], layer.weight.t(), beta=2.0, alpha=2.0)
            self._inputs.append(double.sigmoid_().mul_(2.0).sub_(1.0))
        return torch.addmm(self._heads.bias, self._inputs[-1], self._heads.weight.t())

    def backward(self, gradient: torch.Tensor) -> None:
        """Write the parameters' gradients, given the gradient of `forward`'s last output. Shape: (B, A + 2)."""
        for layer, inputs in zip(reversed([*self._hidden, self._heads]), reversed(self._inputs), strict=True):
            torch.mm(gradient.t(), inputs, out=layer.weight_gradient)
            torch.sum(gradient, 0, out=layer.bias_gradient)
            if inputs is not self._inputs[0]:
                gradient = torch.ops.aten.tanh_backward(gradient @ layer.weight, inputs)


def has_shared_trunk(policy: ActorCritic) -> bool:
    """Return whether `SharedTrunk` computes a policy: plain tanh layers, no normaliser, editor or separate critics."""
    plain = policy.normaliser is None and policy.critic_trunk is None and policy.editor is None
    trunk = policy.trunk if isinstance(policy.trunk, nn.Sequential) else ()
    kinds = [type(layer) for layer in trunk]
    linear = [*kinds[::2], type(policy.action_mean), type(policy.reward_value), type(policy.cost_value)]
    return plain and set(linear) == {nn.Linear} and set(kinds[1::2]) == {nn.Tanh} and len(kinds) % 2 == 0
