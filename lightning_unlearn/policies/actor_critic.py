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

from lightning_unlearn.policies.latent_editor import EDITORS, Editor

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
"""Field of `PolicyConfig` → its possible values."""


@dataclass(frozen=True)
class PolicyConfig:
    """The architecture of a policy. The JSON description stored beside its weights holds exactly these fields."""

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
    """Map from the Gaussian draw to the action. `tanh`: tanh, scaled to the bounds; `none`: clipped to the bounds;
    `scale`: the range from -1 to 1 is scaled to the bounds, and the rest clipped."""
    critics: Literal["shared", "separate"] = "shared"
    """Trunk that the value heads read: the policy's, or one of their own."""
    normalise_observation: bool = False
    """Normalise observations by statistics that are stored with the policy."""
    editor: Literal["none", "gated", "affine"] = "none"
    """Edit of the latent before the heads read it: none, `GatedEditor` or `AffineEditor`."""
    critic_hidden_sizes: list[int] | None = None
    """Widths of the critics' own trunk; null: those of the policy's trunk."""
    normaliser_epsilon: float = 1e-8
    """Added to the variance of observations."""
    normaliser_clip: float = 10.0
    """Normalised observations are clipped to ± this."""
    normaliser_dtype: Literal["float32", "float64"] = "float32"
    """Type in which observations are normalised; the network always computes in float32."""
    observation_dtype: Literal["float32", "float64"] = "float32"
    """Type that observations are rounded to before they are normalised. A policy without normaliser reads float32."""
    log_std_range: list[float] = field(default_factory=lambda: [-5.0, 1.0])
    """The log-std is clamped to this range."""

    def __post_init__(self) -> None:
        """Refuse impossible shapes and unknown names."""
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
        """Widths of the trunk that the value heads read."""
        own = self.critics == "separate" and self.critic_hidden_sizes
        return own or self.hidden_sizes


class PolicyOutput(NamedTuple):
    """Output of one pass of the network."""

    mean: torch.Tensor
    """Mean of the Gaussian before squashing. Shape: (B, A)."""
    reward_value: torch.Tensor
    """Shape: (B,)."""
    cost_value: torch.Tensor
    """Shape: (B,)."""


class ObservationNormaliser(nn.Module):
    """(observation − mean) / √(variance + epsilon), clipped to ±clip. Its buffers are stored with the policy."""

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
        self.normaliser: ObservationNormaliser | None = None
        if config.normalise_observation:
            dtype = torch.float64 if config.normaliser_dtype == "float64" else torch.float32
            self.normaliser = ObservationNormaliser(
                config.observation_size, config.normaliser_epsilon, config.normaliser_clip, dtype
            )
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
        """Type in which observations must be passed, so that the policy loses no digits that it reads."""
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
        """Compute the trunk's output. Shape: (B, O) → (B, H)."""
        return self.trunk(self._normalised(observation))

    def operative_latent(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute the latent that the heads read: edited, if there is an editor. Shape: (B, O) → (B, H)."""
        latent = self.latent(observation)
        return latent if self.editor is None else self.editor(latent)

    def with_editor(self, editor: Editor) -> "ActorCritic":
        """Return a copy whose heads read the latent through `editor`, in place of an editor that this policy has."""
        return self._with(editor)

    def without_editor(self) -> "ActorCritic":
        """Return a copy whose heads read the latent itself."""
        return self._with(None)

    def mean(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute the mean of the Gaussian before squashing. Shape: (B, O) → (B, A)."""
        return self.action_mean(self.operative_latent(observation))

    def forward(self, observation: torch.Tensor) -> PolicyOutput:
        """Compute the mean and both values in one pass. Shape of the observation: (B, O)."""
        latent = self.operative_latent(observation)
        critic_latent = latent if self.critic_trunk is None else self.critic_trunk(self._normalised(observation))
        return PolicyOutput(
            self.action_mean(latent),
            self.reward_value(critic_latent).squeeze(-1),
            self.cost_value(critic_latent).squeeze(-1),
        )

    def squash(self, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Map the Gaussian draw to an action inside the bounds. Shape: (B, A) → (B, A)."""
        if self.config.squash == "none":
            return pre_tanh.clamp(self.action_low, self.action_high)
        if self.config.squash == "scale":  # in the order in which OmniSafe rounds, so that its agents act to the bit
            scaled = self.action_low + (self.action_high - self.action_low) * (pre_tanh + 1.0) / 2.0
            return scaled.clamp(self.action_low, self.action_high)
        half_range = 0.5 * (self.action_high - self.action_low)
        return self.action_low + half_range * (pre_tanh.tanh() + 1.0)

    def act(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute the deterministic action, the squashed mean. Shape: (B, O) → (B, A)."""
        return self.squash(self.mean(observation))

    def log_prob(self, mean: torch.Tensor, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Compute the log-density of the action that the draw `pre_tanh` becomes. Shape: (B, A), (B, A) → (B,).

        Σ_a [ log N(u; mean, std) − log |∂action/∂u| ]. Without tanh, clipping is ignored.
        """
        return self.draw_log_prob(mean, pre_tanh) - self.log_squash_slope(pre_tanh)

    def draw_log_prob(self, mean: torch.Tensor, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Compute the log-density of the draw itself, Σ_a log N(u; mean, std). Shape: (B, A), (B, A) → (B,)."""
        log_std = self.clamped_log_std
        return (-0.5 * ((pre_tanh - mean) / log_std.exp()).square() - log_std - _LOG_SQRT_TWO_PI).sum(-1)

    def log_squash_slope(self, pre_tanh: torch.Tensor) -> torch.Tensor:
        """Compute Σ_a log |∂action/∂u|, which depends on no weight. Shape: (B, A) → (B,).

        For tanh, each term is log (half range·(1 − tanh²u)), written so that it stays finite for large |u|.
        """
        if self.config.squash == "none":
            return pre_tanh.new_zeros(pre_tanh.shape[:-1])
        log_half_range = (0.5 * (self.action_high - self.action_low)).log()
        if self.config.squash == "scale":
            return log_half_range.sum().expand(pre_tanh.shape[:-1])
        return (2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh)) + log_half_range).sum(-1)

    def entropy(self) -> torch.Tensor:
        """Compute the entropy of the Gaussian before squashing, Σ_a (½ + log √(2π) + log std). Shape: ()."""
        return (0.5 + _LOG_SQRT_TWO_PI + self.clamped_log_std).sum()

    def _with(self, editor: Editor | None) -> "ActorCritic":
        own, sizes = self.config.latent_size, {len(b) for b in (editor.buffers() if editor else ()) if b.ndim}
        if sizes - {own}:
            raise ValueError(f"the editor is for latents of size {max(sizes)}, but the policy's latent has {own}.")
        copy = deepcopy(self)
        copy.config = replace(self.config, editor="none" if editor is None else editor.name)  # type: ignore[arg-type]
        copy.editor = deepcopy(editor)
        return copy

    def _normalised(self, observation: torch.Tensor) -> torch.Tensor:
        observation = observation.to(self.observation_dtype)
        return observation if self.normaliser is None else self.normaliser(observation).to(self.log_std.dtype)


def _mlp(config: PolicyConfig, hidden_sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise([config.observation_size, *hidden_sizes]):
        layers += [nn.Linear(wide, narrow, dtype=torch.float32), ACTIVATIONS[config.activation]()]
    return nn.Sequential(*layers)


def _initialise(policy: ActorCritic, generator: torch.Generator) -> None:
    """Draw linear layers by PyTorch's default, U(−1/√fan_in, 1/√fan_in), but from the run's own random stream."""
    for layer in policy.modules():
        if isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in (layer.weight, layer.bias):
                with torch.no_grad():
                    parameter.uniform_(-bound, bound, generator=generator)


def extrapolate(start: ActorCritic, end: ActorCritic, alpha: float) -> ActorCritic:
    """Make a repair weaker or stronger without training: return a policy with the weights θ₀ + α·(θ − θ₀).

    α = 0 gives the weights of the start and α = 1 those of the end, both bit-exactly. Values between 0 and 1 apply less
    of the change that training made, values above 1 more of it. Source: Wortsman et al. 2022 (between original and
    fine-tuned weights); Zheng et al. 2025 (model extrapolation, beyond).

    Args:
        start: θ₀, the policy that the end was trained from. A registered repair names it in its run's tag `source`.
        end: θ. Neither policy is changed.
        alpha: α, at least 0.

    Raises:
        ValueError: The two do not have the same weights by name and shape, they differ in what is not trained, or α is
            negative or not finite.
    """
    if not 0.0 <= alpha < math.inf:
        raise ValueError(f"alpha={alpha} is not possible: use a number of at least 0; 1 is the policy trained last.")
    one, other = _statistics(start), _statistics(end)
    is_alike = start.config == end.config and _shapes(start) == _shapes(end) and one.keys() == other.keys()
    if not is_alike or not all(torch.equal(one[name], other[name]) for name in one):
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


def _statistics(policy: ActorCritic) -> dict[str, torch.Tensor]:
    """Return the numbers of observation normaliser and editor, which no gradient changes."""
    return {name: numbers for name, numbers in policy.named_buffers() if name.startswith(("normaliser.", "editor."))}
