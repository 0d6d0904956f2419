"""An agent of another library as its file describes it, and the policy made from it.

Shapes: O observation size, A action size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.normaliser import Normaliser
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import MAX_NUMBER

Weights = Mapping[str, torch.Tensor]
Squash = Literal["tanh", "none", "scale"]


class Layer(NamedTuple):
    """A linear layer."""

    weight: torch.Tensor
    """Shape: (out, in)."""
    bias: torch.Tensor
    """Shape: (out,)."""


@dataclass(frozen=True)
class ForeignAgent:
    """A policy of another library: a network of means, and the noise that is added to them."""

    actor: Sequence[Layer]
    """The hidden layers, and last the layer of the mean."""
    critic: Sequence[Layer] | None
    """The same for the reward critic; None if the file has none."""
    log_std: torch.Tensor | None
    """Log of a std that is the same in every state. Shape: (A,). None: the library adds other noise, or none."""
    activation: str
    """Non-linearity between layers; a name in `ACTIVATIONS`."""
    normaliser: Normaliser | None
    shared: bool = False
    """Actor and critic have the same hidden layers."""
    squash: Squash = "none"
    """Map from a draw to the action; see `PolicyConfig.squash`."""
    critic_sizes: Sequence[int] | None = None
    """Widths of the critic's hidden layers if the file has no critic; None: those of the actor."""
    stated_std: float = 0.0
    """Exploration std that the import states in place of a missing `log_std`; 0: there is none missing."""

    def with_stated_std(self, std: float, simulator: Simulator) -> "ForeignAgent":
        """Return the agent with the same Gaussian in every state; `std` is in halves of the action range if clipped."""
        half_range = 0.5 * (simulator.action_high - simulator.action_low)
        unit = half_range if self.squash == "none" else np.ones_like(half_range)
        return replace(self, log_std=torch.from_numpy(np.log(std * unit)).float(), stated_std=std)


def layers(weights: Weights, prefix: str) -> list[Layer]:
    """Return the linear layers `<prefix>.<index>` of a sequential network, in order.

    Raises:
        ValueError: One of them is no linear layer.
    """
    names = {name.removesuffix(".weight") for name in weights if name.startswith(f"{prefix}.")}
    indices = sorted(int(tail) for name in names if (tail := name[len(prefix) + 1 :]).isdigit())
    return [layer(weights, f"{prefix}.{index}") for index in indices]


def layer(weights: Weights, name: str) -> Layer:
    """Return one linear layer, `<name>.weight` and `<name>.bias`.

    Raises:
        ValueError: It is missing, or is no linear layer.
    """
    weight, bias = (weights.get(f"{name}.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"{name} is no linear layer with weight and bias: only plain networks can be imported")
    return Layer(weight, bias)


def as_policy(agent: ForeignAgent, simulator: Simulator, generator: torch.Generator) -> ActorCritic:
    """Build the same policy as an `ActorCritic` of this package, with a cost critic whose value is 0.

    Args:
        agent: The agent.
        simulator: The environment that it acts in.
        generator: Random stream of the weights that the file lacks, those of critics.

    Raises:
        ValueError: The agent's parts do not fit each other or the environment.
    """
    _require_same_sizes(agent, simulator)
    policy = ActorCritic(_config(agent, simulator), generator)
    with torch.no_grad():
        _fill(policy.trunk, agent.actor[:-1])
        _copy(policy.action_mean, agent.actor[-1])
        policy.log_std.copy_(_log_std(agent))
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


def _require_same_sizes(agent: ForeignAgent, simulator: Simulator) -> None:
    _require_chain("actor", agent.actor, simulator.observation_size, len(simulator.action_low), simulator.env_id)
    if agent.critic is not None:
        _require_chain("critic", agent.critic, simulator.observation_size, 1, simulator.env_id)
    if (log_std := _log_std(agent)).shape != simulator.action_low.shape:
        raise ValueError(
            f"its log-std has shape {tuple(log_std.shape)}: only a state-independent one, a number an action, "
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
    normaliser, log_std = agent.normaliser, _log_std(agent)
    critic_sizes = _sizes(agent.critic) if agent.critic else [*(agent.critic_sizes or _sizes(agent.actor))]
    return PolicyConfig(
        simulator.observation_size,
        simulator.action_low.tolist(),
        simulator.action_high.tolist(),
        hidden_sizes=_sizes(agent.actor),
        activation=agent.activation,  # type: ignore[arg-type]
        squash=agent.squash,
        critics="shared" if agent.shared else "separate",
        critic_hidden_sizes=None if agent.shared else critic_sizes,
        normalise_observation=normaliser is not None,
        normaliser_epsilon=1e-8 if normaliser is None else normaliser.epsilon,
        normaliser_clip=10.0 if normaliser is None else min(normaliser.clip, MAX_NUMBER),
        normaliser_dtype="float32" if normaliser is None else normaliser.dtype,
        observation_dtype="float32" if normaliser is None else normaliser.observation_dtype,
        log_std_range=[min(-5.0, float(log_std.min())), max(1.0, float(log_std.max()))],
    )


def _log_std(agent: ForeignAgent) -> torch.Tensor:
    if agent.log_std is None:
        raise ValueError("it has no state-independent Gaussian: state the std that it explores with")
    return agent.log_std


def _sizes(chain: Sequence[Layer]) -> list[int]:
    return [len(hidden.bias) for hidden in chain[:-1]]


def _fill(network: nn.Sequential, chain: Sequence[Layer]) -> None:
    linear = [module for module in network if isinstance(module, nn.Linear)]
    for module, values in zip(linear, chain, strict=True):
        _copy(module, values)


def _copy(module: nn.Linear, values: Layer) -> None:
    module.weight.copy_(values.weight)
    module.bias.copy_(values.bias)
