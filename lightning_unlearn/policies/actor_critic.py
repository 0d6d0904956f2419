"""A Gaussian policy over a shared trunk, with a reward critic and a cost critic.

Shapes: B observations, O observation size, A action size, H latent size.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.policies.editor import EDITORS, Editor, editor_name

_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
Activation = Literal["tanh", "relu", "elu", "leaky_relu", "selu", "silu", "gelu", "mish", "softplus", "sigmoid"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}
"""Name in a policy's description → layer, with PyTorch's defaults."""
_CHOICES = {
    "activation": tuple(ACTIVATIONS),
    "squash": ("tanh", "none", "scale"),
    "critics": ("shared", "separate"),
    "editor": ("none", *EDITORS),
    "normaliser_dtype": ("float32", "float64"),
    "observation_dtype": ("float32", "float64"),
}
"""Field of `PolicyConfig` → what it may be."""


@dataclass(frozen=True)
class PolicyConfig:
    """The shape of a policy; the JSON description that travels with its weights holds exactly these fields."""

    observation_size: int
    """O."""
    action_low: list[float]
    """Lower bound of each action component, length A."""
    action_high: list[float]
    """Upper bound of each action component, length A."""
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])
    """Widths of the trunk's layers; the last one is the latent size H."""
    activation: Activation = "tanh"
    """Non-linearity after each layer of a trunk."""
    squash: Literal["tanh", "none", "scale"] = "tanh"
    """`tanh`: the Gaussian draw goes through tanh, scaled to the bounds; `none`: it is clipped to them; `scale`: its
    range from -1 to 1 is scaled to the bounds, what lies beyond is clipped."""
    critics: Literal["shared", "separate"] = "shared"
    """Whether the value heads read the policy's trunk, or one of their own."""
    normalise_observation: bool = False
    """Whether observations are normalised by statistics that are part of the policy."""
    editor: Literal["none", "gated", "affine"] = "none"
    """What edits the latent before the heads read it: nothing, a `GatedEditor` or an `AffineEditor`."""
    critic_hidden_sizes: list[int] | None = None
    """Widths of the critics' own trunk, where they have one; null: those of the policy's."""
    normaliser_epsilon: float = 1e-8
    """Added to the variance that observations are normalised by."""
    normaliser_clip: float = 10.0
    """Normalised observations are clipped to ± this."""
    normaliser_dtype: Literal["float32", "float64"] = "float32"
    """What observations are normalised in; the network computes in float32 whatever it is."""
    observation_dtype: Literal["float32", "float64"] = "float32"
    """What observations are rounded to before they are normalised. A policy without normaliser reads float32."""
    log_std_range: list[float] = field(default_factory=lambda: [-5.0, 1.0])
    """What the log-std is clamped to."""

    def __post_init__(self) -> None:
        """Refuse impossible shapes, and names that stand for nothing."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={str(getattr(self, name))[:40]!r} is not one of {allowed}")
        if len(self.action_low) != len(self.action_high) or not self.action_low:
            raise ValueError(f"action_low={self.action_low} and action_high={self.action_high} must pair up.")
        named = {"observation_size": [self.observation_size], "hidden_sizes": self.hidden_sizes}
        if self.critic_hidden_sizes is not None:
            named["critic_hidden_sizes"] = self.critic_hidden_sizes
        for name, sizes in named.items():
            if not sizes or min(sizes) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible: use sizes of at least 1.")

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action_low)

    @property
    def latent_size(self) -> int:
        """H."""
        return self.hidden_sizes[-1]

    @property
    def critic_sizes(self) -> list[int]:
        """Widths of the layers that the value heads read."""
        own = self.critics == "separate" and self.critic_hidden_sizes
        return own or self.hidden_sizes


class PolicyOutput(NamedTuple):
    """One pass of the network."""

    mean: torch.Tensor
    """Mean of the Gaussian before squashing. Shape: (B, A)."""
    reward_value: torch.Tensor
    """Shape: (B,)."""
    cost_value: torch.Tensor
    """Shape: (B,)."""


class ObservationNormaliser(nn.Module):
    """(observation − mean) / √(variance + epsilon), clipped to ±clip; its buffers travel with the policy."""

    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, observation_size: int, epsilon: float, clip: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.epsilon, self.clip = epsilon, clip
        self.register_buffer("mean", torch.zeros(observation_size, dtype=dtype))
        self.register_buffer("variance", torch.ones(observation_size, dtype=dtype))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Normalise in the wider dtype of statistics and observation. Shape: (B, O) → (B, O), float32."""
        normalised = (observation - self.mean) / (self.variance + self.epsilon).sqrt()
        return normalised.clamp(-self.clip, self.clip).float()


class ActorCritic(nn.Module):
    """Trunk O → H, Gaussian action head with a state-independent log-std, two linear value heads."""

    action_low: torch.Tensor
    action_high: torch.Tensor

    def __init__(self, config: PolicyConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.normaliser = _normaliser(config) if config.normalise_observation else None
        self.trunk = _mlp(config, config.hidden_sizes)
        self.critic_trunk = _mlp(config, config.critic_sizes) if config.critics == "separate" else None
        self.editor: Editor | None = (
            None if config.editor == "none" else EDITORS[config.editor].blank(config.latent_size)
        )
        self.action_mean = nn.Linear(config.latent_size, config.action_size, dtype=torch.float32)
        self.log_std = nn.Parameter(torch.zeros(config.action_size, dtype=torch.float32))
        self.reward_value = nn.Linear(config.critic_sizes[-1], 1, dtype=torch.float32)
        self.cost_value = nn.Linear(config.critic_sizes[-1], 1, dtype=torch.float32)
        self.register_buffer("action_low", torch.tensor(config.action_low, dtype=torch.float32), persistent=False)
        self.register_buffer("action_high", torch.tensor(config.action_high, dtype=torch.float32), persistent=False)
        if generator is not None:
            _initialise(self, generator)

    @property
    def observation_dtype(self) -> torch.dtype:
        """What observations have to be handed over in, so that nothing the policy reads is lost."""
        wide = self.normaliser is not None and self.config.observation_dtype == "float64"
        return torch.float64 if wide else self.log_std.dtype

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation before squashing. Shape: (A,)."""
        return self.clamped_log_std.exp()

    @property
    def clamped_log_std(self) -> torch.Tensor:
        """Log of `std`. Shape: (A,)."""
        return self.log_std.clamp(*self.config.log_std_range)

    def latent(self, observation: torch.Tensor) -> torch.Tensor:
        """The trunk's output. Shape: (B, O) → (B, H)."""
        return self.trunk(self._normalised(observation))

    def operative_latent(self, observation: torch.Tensor) -> torch.Tensor:
        """What the heads read: the latent, after the editor where there is one. Shape: (B, O) → (B, H)."""
        latent = self.latent(observation)
        return latent if self.editor is None else self.editor(latent)

    def with_editor(self, editor: Editor) -> "ActorCritic":
        """A copy whose heads read the latent through `editor`; one that this policy has already is replaced."""
        return self._with(editor)

    def without_editor(self) -> "ActorCritic":
        """A copy whose heads read the latent itself."""
        return self._with(None)

    def mean(self, observation: torch.Tensor) -> torch.Tensor:
        """Mean of the Gaussian before squashing. Shape: (B, O) → (B, A)."""
        return self.action_mean(self.operative_latent(observation))

    def forward(self, observation: torch.Tensor) -> PolicyOutput:
        """Mean and both values from one pass. Shape: (B, O) in."""
        latent = self.operative_latent(observation)
        critic_latent = latent if self.critic_trunk is None else self.critic_trunk(self._normalised(observation))
        return PolicyOutput(
            self.action_mean(latent),
            self.reward_value(critic_latent).squeeze(-1),
            self.cost_value(critic_latent).squeeze(-1),
        )

    def squash(self, pre_tanh: torch.Tensor) -> torch.Tensor:
        """From the Gaussian draw to the action, inside the bounds. Shape: (B, A) → (B, A)."""
        if self.config.squash == "none":
            return pre_tanh.clamp(self.action_low, self.action_high)
        if self.config.squash == "scale":  # in the order in which OmniSafe rounds, so that its agents act to the bit
            scaled = self.action_low + (self.action_high - self.action_low) * (pre_tanh + 1.0) / 2.0
            return scaled.clamp(self.action_low, self.action_high)
        half_range = 0.5 * (self.action_high - self.action_low)
        return self.action_low + half_range * (pre_tanh.tanh() + 1.0)

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """The deterministic action: the squashed mean. Shape: (B, O) → (B, A)."""
        return self.squash(self.mean(observation))

    def log_prob(self, mean: torch.Tensor, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Log-density of the action that the draw `pre_tanh` becomes. Shape: (B, A), (B, A) → (B,).

        Σ_a [ log N(u; mean, std) − log |∂action/∂u| ]; without tanh, clipping is not counted in.
        """
        return self.draw_log_prob(mean, pre_tanh) - self.log_squash_slope(pre_tanh)

    def draw_log_prob(self, mean: torch.Tensor, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Log-density of the draw itself, Σ_a log N(u; mean, std). Shape: (B, A), (B, A) → (B,)."""
        log_std = self.clamped_log_std
        return (-0.5 * ((pre_tanh - mean) / log_std.exp()).square() - log_std - _LOG_SQRT_TWO_PI).sum(-1)

    def log_squash_slope(self, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Σ_a log |∂action/∂u|, which no weight changes. Shape: (B, A) → (B,).

        Of tanh, it is log (half range·(1 − tanh²u)), written so that it stays finite for large |u|.
        """
        if self.config.squash == "none":
            return pre_tanh.new_zeros(pre_tanh.shape[:-1])
        log_half_range = (0.5 * (self.action_high - self.action_low)).log()
        if self.config.squash == "scale":
            return log_half_range.sum().expand(pre_tanh.shape[:-1])
        return (2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh)) + log_half_range).sum(-1)

    def entropy(self) -> torch.Tensor:
        """Entropy of the Gaussian before squashing, Σ_a (½ + log √(2π) + log std). Shape: ()."""
        return (0.5 + _LOG_SQRT_TWO_PI + self.clamped_log_std).sum()

    def _with(self, editor: Editor | None) -> "ActorCritic":
        own, sizes = self.config.latent_size, {len(b) for b in (editor.buffers() if editor else ()) if b.ndim}
        if sizes - {own}:
            raise ValueError(f"the editor is for latents of size {max(sizes)}, but the policy's latent has {own}.")
        copy = deepcopy(self)
        copy.config = replace(self.config, editor=editor_name(editor))  # type: ignore[arg-type]
        copy.editor = deepcopy(editor)
        return copy

    def _normalised(self, observation: torch.Tensor) -> torch.Tensor:
        observation = observation.to(self.observation_dtype)
        return observation if self.normaliser is None else self.normaliser(observation).to(self.log_std.dtype)


def _normaliser(config: PolicyConfig) -> ObservationNormaliser:
    dtype = torch.float64 if config.normaliser_dtype == "float64" else torch.float32
    return ObservationNormaliser(config.observation_size, config.normaliser_epsilon, config.normaliser_clip, dtype)


def _mlp(config: PolicyConfig, hidden_sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise([config.observation_size, *hidden_sizes]):
        layers += [nn.Linear(wide, narrow, dtype=torch.float32), ACTIVATIONS[config.activation]()]
    return nn.Sequential(*layers)


def _initialise(policy: ActorCritic, generator: torch.Generator) -> None:
    """PyTorch's default for linear layers, U(−1/√fan_in, 1/√fan_in), drawn from the run's own stream."""
    for layer in policy.modules():
        if isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                with torch.no_grad():
                    parameter.uniform_(-bound, bound, generator=generator)
