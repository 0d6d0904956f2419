"""A policy's mean in numpy, for worker processes that step environments without PyTorch.

Shapes: n environments, O observation size, A action size, H latent size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

BLOCK = 8
"""Environments in one matrix product. It always has this many rows, and each environment its own row, so that an
action does not depend, to the bit, on how many environments share a process."""


class Linear(NamedTuple):
    """x W + b."""

    weight: np.ndarray
    """W. Shape: (in, out), float32."""
    bias: np.ndarray
    """b. Shape: (out,), float32."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Compute x W + b. Shape: (..., in) → (..., out)."""
        product = x @ self.weight
        product += self.bias
        return product


class Normaliser(NamedTuple):
    """(observation − mean) / √(variance + epsilon), clipped to ±clip, computed in the type of mean and variance."""

    mean: np.ndarray
    """Shape: (O,)."""
    variance: np.ndarray
    """Shape: (O,)."""
    epsilon: float
    clip: float

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Normalise observations, in the precision of the statistics. Shape: (n, O) → (n, O)."""
        epsilon = self.mean.dtype.type(self.epsilon)
        normalised = (observation.astype(self.mean.dtype) - self.mean) / np.sqrt(self.variance + epsilon)
        return np.clip(normalised, -self.clip, self.clip)


class GatedEdit(NamedTuple):
    """z' = z − α·g·relu(s − τ)·d with the score s = z·d and the gate g = sigmoid(β(s − τ))."""

    direction: np.ndarray
    """d. Shape: (H,), float32."""
    alpha: float
    tau: float
    beta: float

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Edit latents. Shape: (..., H) → (..., H), float32."""
        excess = (latent @ self.direction)[..., None] - np.float32(self.tau)
        gate = _sigmoid(np.float32(self.beta) * excess)
        return latent - np.float32(self.alpha) * gate * np.maximum(excess, 0) * self.direction


@dataclass(frozen=True)
class NumpyActor:
    """Mean and squashing of an `ActorCritic` with linear layers, equal to it up to float32 rounding."""

    portable = True

    hidden: Sequence[Linear]
    activation: str
    """A name in `ACTIVATIONS`."""
    output: Linear
    """Layer from the latent to the mean."""
    action_low: np.ndarray
    """Shape: (A,), float32."""
    action_high: np.ndarray
    """Shape: (A,), float32."""
    squashing: Literal["tanh", "none", "scale"]
    normaliser: Normaliser | None = None
    editor: GatedEdit | Linear | None = None

    @np.errstate(over="ignore", invalid="ignore")  # the caller checks that the mean is finite
    def mean(self, observation: np.ndarray, first: int = 0) -> np.ndarray:
        """Compute the mean of the Gaussian before squashing. Shape: (n, O) float64 → (n, A) float32.

        Args:
            observation: Observations of n consecutive environments.
            first: Index of the first one among all environments.
        """
        count, size = observation.shape
        start = first % BLOCK
        blocks = -(-(start + count) // BLOCK)
        x = np.zeros((blocks, BLOCK, size), np.float32)
        x.reshape(-1, size)[start : start + count] = (
            observation if self.normaliser is None else self.normaliser(observation)
        )
        activation = ACTIVATIONS[self.activation]
        for layer in self.hidden:
            x = activation(layer(x))
        if self.editor is not None:
            x = self.editor(x)
        return self.output(x).reshape(blocks * BLOCK, -1)[start : start + count]

    def squash(self, pre_tanh: np.ndarray) -> np.ndarray:
        """Map the Gaussian draw to an action inside the bounds. Shape: (n, A) → (n, A), float32."""
        low, high = self.action_low, self.action_high
        if self.squashing == "tanh":
            return low + self._half_range * (np.tanh(pre_tanh) + 1)
        if self.squashing == "scale":
            pre_tanh = low + (high - low) * (pre_tanh + 1) / 2
        return np.minimum(np.maximum(pre_tanh, low), high)

    @cached_property
    def _half_range(self) -> np.ndarray:
        """Shape: (A,), float32."""
        return np.float32(0.5) * (self.action_high - self.action_low)


@dataclass
class OffsetActor:
    """An actor whose sensors are off by a constant in each environment."""

    actor: Any
    """The `envs.rollout.Actor` that reads the disturbed observations."""
    offset: np.ndarray
    """Added to the observations of each environment. Shape: (E, O), float64."""

    def __post_init__(self) -> None:
        """Act in worker processes if the actor can."""
        self.portable: bool = self.actor.portable

    def mean(self, observation: np.ndarray, first: int) -> np.ndarray:
        """See `Actor.mean`."""
        return self.actor.mean(observation + self.offset[first : first + len(observation)], first)

    def squash(self, pre_tanh: np.ndarray) -> np.ndarray:
        """See `Actor.squash`."""
        return self.actor.squash(pre_tanh)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + 1)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return np.float32(0.5) * x * (1 + erf(x * np.float32(0.5**0.5)))


_SELU_SCALE, _SELU_ALPHA = np.float32(1.0507009873554804934193349852946), np.float32(1.6732632423543772848170429916717)

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.maximum(x, 0) + np.expm1(np.minimum(x, 0)),
    "leaky_relu": lambda x: np.maximum(x, np.float32(0.01) * x),
    "selu": lambda x: _SELU_SCALE * (np.maximum(x, 0) + _SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "softplus": _softplus,
    "sigmoid": _sigmoid,
}
"""Name → function: those of `actor_critic.ACTIVATIONS`, with PyTorch's defaults."""
