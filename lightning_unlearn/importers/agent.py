"""An agent as its file has it, and the policy it becomes here.

Shapes: N observations, O observation size, A action size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import MAX_NUMBER

Weights = Mapping[str, torch.Tensor]


class Layer(NamedTuple):
    """A linear layer."""

    weight: torch.Tensor
    """Shape: (out, in)."""
    bias: torch.Tensor
    """Shape: (out,)."""


@dataclass(frozen=True)
class Normaliser:
    """(observation − mean) / √(variance + epsilon), clipped to ±clip, which may be infinite."""

    mean: torch.Tensor
    """Shape: (O,), float64."""
    variance: torch.Tensor
    """Shape: (O,), float64."""
    epsilon: float
    clip: float
    dtype: Literal["float32", "float64"] = "float64"
    """What the library normalises in."""
    observation_dtype: Literal["float32", "float64"] = "float64"
    """What the library's normaliser is handed."""

    def __post_init__(self) -> None:
        """Refuse what cannot be statistics."""
        if self.mean.ndim != 1 or self.mean.shape != self.variance.shape:
            raise ValueError(f"mean {tuple(self.mean.shape)} and variance {tuple(self.variance.shape)} do not pair up")
        if not (self.mean.isfinite().all() and self.variance.isfinite().all() and (self.variance >= 0).all()):
            raise ValueError("its mean and variance must be finite, and the variance not negative")
        if not (0 <= self.epsilon < 1 and self.clip > 0):
            raise ValueError(f"epsilon={self.epsilon} or clip={self.clip} is out of range")
        scale = self.variance.to(getattr(torch, self.dtype)) + self.epsilon
        if (still := (scale == 0).nonzero().flatten()).numel():
            raise ValueError(
                f"variance + epsilon is 0 in component {int(still[0])}, by which observations would be divided: use "
                "an epsilon above 0, such as 1e-8"
            )


@dataclass(frozen=True)
class ForeignAgent:
    """A Gaussian policy of another library; its action is the Gaussian's draw, clipped to the environment's bounds."""

    library: str
    """Which one, and its version where the file tells."""
    actor: Sequence[Layer]
    """The hidden layers, and last the one that gives the mean."""
    critic: Sequence[Layer] | None
    """The same of the reward critic; None where the file has none."""
    log_std: torch.Tensor
    """Shape: (A,)."""
    activation: str
    """Between layers; a name in `ACTIVATIONS`."""
    normaliser: Normaliser | None
    shared: bool = False
    """Whether actor and critic have the same hidden layers."""
    unit_actions: bool = False
    """Whether the range from -1 to 1 stands for the environment's bounds, whatever those are."""
    critic_sizes: Sequence[int] | None = None
    """Widths of the critic's hidden layers, where the file has no critic; None: those of the actor."""


def layers(weights: Weights, prefix: str) -> list[Layer]:
    """The linear layers of a sequential network, `<prefix>.<index>.weight` and `.bias`, in order.

    Raises:
        ValueError: One of them is no linear layer.
    """
    names = {name.removesuffix(".weight") for name in weights if name.startswith(f"{prefix}.")}
    indices = sorted(int(tail) for name in names if (tail := name[len(prefix) + 1 :]).isdigit())
    return [layer(weights, f"{prefix}.{index}") for index in indices]


def layer(weights: Weights, name: str) -> Layer:
    """One linear layer.

    Raises:
        ValueError: It is missing, or is none.
    """
    weight, bias = (weights.get(f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"{name} is no linear layer with weight and bias: only plain networks can be imported")
    return Layer(weight, bias)


def as_policy(agent: ForeignAgent, simulator: Simulator, generator: torch.Generator) -> ActorCritic:
    """The same policy as one of this package, with a cost critic that knows nothing yet (its value is 0).

    Args:
        agent: What was read.
        simulator: The environment it is for.
        generator: Stream that critics which the file lacks are drawn from.

    Raises:
        ValueError: The agent's parts do not fit together, or not the environment.
    """
    _require_fit(agent, simulator)
    policy = ActorCritic(_config(agent, simulator), generator)
    with torch.no_grad():
        _fill(policy.trunk, agent.actor[:-1])
        _copy(policy.action_mean, agent.actor[-1])
        policy.log_std.copy_(agent.log_std)
        if agent.critic is not None:
            _copy(policy.reward_value, agent.critic[-1])
            if policy.critic_trunk is not None:
                _fill(policy.critic_trunk, agent.critic[:-1])
        for parameter in policy.cost_value.parameters():
            parameter.zero_()
        if policy.normaliser is not None and agent.normaliser is not None:
            policy.normaliser.mean.copy_(agent.normaliser.mean)
            policy.normaliser.variance.copy_(agent.normaliser.variance)
    return policy


@torch.inference_mode()
def raw_states(
    policy: ActorCritic, simulator: Simulator, count: int, seeds: Sequence[int] | None = None
) -> torch.Tensor:
    """Collect states that the policy meets while it acts deterministically, as the environment computes them.

    Args:
        policy: Acts.
        simulator: Is reset first.
        count: N.
        seeds: One an environment; without them, their random streams go on.

    Returns:
        Observations, (N, O) float64.

    Raises:
        ValueError: An action is not finite.
    """
    states: list[np.ndarray] = []
    observation = simulator.reset(None, seeds)
    while len(states) * simulator.num_envs < count:
        states.append(observation)
        action = policy.act(torch.from_numpy(observation)).numpy().astype(np.float64)
        if (invalid := np.argwhere(~np.isfinite(action))).size:
            row, component = invalid[0]
            raise ValueError(
                f"component {component} of the policy's action is {action[row, component]} in the state "
                f"{observation[row].tolist()}: its network must give finite numbers"
            )
        step = simulator.step(action)
        done = step.terminated | step.truncated
        observation = simulator.reset(done) if done.any() else step.observation
    return torch.from_numpy(np.concatenate(states)[:count])


def _require_fit(agent: ForeignAgent, simulator: Simulator) -> None:
    _require_chain("actor", agent.actor, simulator.observation_size, len(simulator.action_low), simulator.env_id)
    if agent.critic is not None:
        _require_chain("critic", agent.critic, simulator.observation_size, 1, simulator.env_id)
    if agent.log_std.shape != simulator.action_low.shape:
        raise ValueError(
            f"its log-std has shape {tuple(agent.log_std.shape)}: only a state-independent one, a number an action, "
            "can be imported"
        )
    statistics = 0 if agent.normaliser is None else len(agent.normaliser.mean)
    if statistics not in (0, simulator.observation_size):
        raise ValueError(
            f"its normaliser is for {statistics} observations, but {simulator.env_id} has {simulator.observation_size}"
        )


def _require_chain(name: str, chain: Sequence[Layer], inputs: int, outputs: int, env_id: str) -> None:
    if len(chain) < 2:
        raise ValueError(f"its {name} has no hidden layer: only networks with at least one can be imported")
    if any(a.weight.shape[0] != b.weight.shape[1] for a, b in pairwise(chain)):
        raise ValueError(f"the layers of its {name} do not follow each other: only plain networks can be imported")
    has = chain[0].weight.shape[1], chain[-1].weight.shape[0]
    if has != (inputs, outputs):
        raise ValueError(
            f"its {name} takes {has[0]} observations and gives {has[1]} numbers, but for {env_id} it should take "
            f"{inputs} and give {outputs}: name the environment it was trained in with --env"
        )


def _config(agent: ForeignAgent, simulator: Simulator) -> PolicyConfig:
    normaliser = agent.normaliser
    return PolicyConfig(
        simulator.observation_size,
        simulator.action_low.tolist(),
        simulator.action_high.tolist(),
        hidden_sizes=_sizes(agent.actor),
        activation=agent.activation,  # type: ignore[arg-type]
        squash="scale" if agent.unit_actions else "none",
        critics="shared" if agent.shared else "separate",
        critic_hidden_sizes=None if agent.shared else _critic_sizes(agent),
        normalise_observation=normaliser is not None,
        normaliser_epsilon=1e-8 if normaliser is None else normaliser.epsilon,
        normaliser_clip=10.0 if normaliser is None else min(normaliser.clip, MAX_NUMBER),
        normaliser_dtype="float32" if normaliser is None else normaliser.dtype,
        observation_dtype="float32" if normaliser is None else normaliser.observation_dtype,
        log_std_range=[min(-5.0, float(agent.log_std.min())), max(1.0, float(agent.log_std.max()))],
    )


def _critic_sizes(agent: ForeignAgent) -> list[int]:
    return _sizes(agent.critic) if agent.critic else [*(agent.critic_sizes or _sizes(agent.actor))]


def _sizes(chain: Sequence[Layer]) -> list[int]:
    return [len(hidden.bias) for hidden in chain[:-1]]


def _fill(network: nn.Sequential, chain: Sequence[Layer]) -> None:
    linear = [module for module in network if isinstance(module, nn.Linear)]
    for module, values in zip(linear, chain, strict=True):
        _copy(module, values)


def _copy(module: nn.Linear, values: Layer) -> None:
    module.weight.copy_(values.weight)
    module.bias.copy_(values.bias)
