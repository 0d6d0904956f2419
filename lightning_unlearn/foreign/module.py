"""Any network that gives the mean of an action, as the source of an unlearning method."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import nn

from lightning_unlearn.collection.data import RolloutData
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.foreign.warm_up import warm_up
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.seeds import SeedStreams, torch_generator

NUM_ENVS, HORIZON = 8, 1024
"""Of the rollouts that critics are fitted to."""


def wrap(
    actor: nn.Module,
    env: str,
    std: float | Sequence[float],
    squash: Literal["tanh", "none"] = "none",
    warm_up_rollouts: int = 4,
    seed: int = 0,
    concept: str | Concept = "auto",
) -> ActorCritic:
    """A policy around a copy of a network of your own, with critics fitted to its rollouts.

    Every method trains it as it does any other policy; the trained network is the result's `trunk`. It cannot be stored
    as a policy is, since nobody else knows its code: keep `policy.trunk.state_dict()`.

    Args:
        actor: Maps observations (N, O) to the means of actions (N, A); or a TorchRL actor, whose `loc` it is.
        env: The task it acts in.
        std: Of its Gaussian, one number or one an action; it does not depend on the state here.
        squash: `none` if draws are clipped to the bounds, `tanh` if they go through tanh (TorchRL's TanhNormal).
        warm_up_rollouts: Rollouts of 8 environments × 1024 steps that the critics are fitted to; at least 2.
        seed: Of the critics' weights and the rollouts.
        concept: The behaviour to forget, which the cost critic is fitted to: auto, an info key or a concept.

    Raises:
        ValueError: The network does not fit the environment, or gives something else than means.
    """
    if warm_up_rollouts < 2:
        raise ValueError(f"warm_up_rollouts={warm_up_rollouts} is not possible: use at least 2.")
    data = RolloutData(env, NUM_ENVS, HORIZON, concept, seed=seed)
    try:
        policy = around(actor, data.env.simulator, std, squash, seed)
        warm_up(policy, data, warm_up_rollouts)
    finally:
        data.teardown("fit")
    return policy


def around(
    actor: nn.Module,
    simulator: Simulator,
    std: float | Sequence[float],
    squash: Literal["tanh", "none"] = "none",
    seed: int = 0,
) -> ActorCritic:
    """The same with critics that know nothing yet."""
    network = MeanOf(actor) if isinstance(actor, TensorDictModuleBase) else actor
    _require_means(network, simulator)
    size = len(simulator.action_low)
    low, high = simulator.action_low.tolist(), simulator.action_high.tolist()
    config = PolicyConfig(
        simulator.observation_size,
        low,
        high,
        hidden_sizes=[size],
        squash=squash,
        critics="separate",
        critic_hidden_sizes=[64, 64],
    )
    policy = ActorCritic(config, torch_generator(SeedStreams.of(seed).weights))
    policy.trunk, policy.action_mean = deepcopy(network), nn.Identity()  # type: ignore[assignment]
    policy.log_std.data.copy_(_log_std(std, size))
    return policy


class MeanOf(nn.Module):
    """The mean (`loc`) that a TorchRL actor gives its distribution, nothing drawn.

    Args:
        actor: Reads `observation`.
    """

    def __init__(self, actor: TensorDictModuleBase) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Shape: (N, O) → (N, A)."""
        given = TensorDict({"observation": observation}, batch_size=observation.shape[:-1])
        parameters = self.actor.get_dist_params if hasattr(self.actor, "get_dist_params") else self.actor
        return parameters(given)["loc"]


def _require_means(network: nn.Module, simulator: Simulator) -> None:
    shape = (2, len(simulator.action_low))
    try:
        with torch.no_grad():
            means = network(torch.zeros(2, simulator.observation_size))
    except (RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"actor cannot be called with observations of {simulator.env_id}, float32 of shape "
            f"(2, {simulator.observation_size}): {error}"
        ) from error
    if not isinstance(means, torch.Tensor) or means.shape != shape:
        got = tuple(means.shape) if isinstance(means, torch.Tensor) else type(means).__name__
        raise ValueError(f"actor should give the means of {simulator.env_id}'s actions, shape {shape}, but gave {got}")


def _log_std(std: float | Sequence[float], size: int) -> torch.Tensor:
    numbers = torch.as_tensor(std, dtype=torch.float32)
    if numbers.ndim > 1 or numbers.numel() not in (1, size) or not ((numbers > 0) & numbers.isfinite()).all():
        raise ValueError(f"std={std} is not possible: use one number above 0, or {size} of them")
    return numbers.log().expand(size)
