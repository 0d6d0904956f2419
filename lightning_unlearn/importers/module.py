"""Any network that gives the mean of an action, as the source of an unlearning method."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from tensordict.nn import distributions as plain
from torch import distributions, nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import Delta, IndependentNormal, TanhDelta, TanhNormal

from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import raw_states
from lightning_unlearn.importers.warm_up import warm_up
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.seeding import SeedStreams, torch_generator

NUM_ENVS, HORIZON = 8, 1024
"""Of the rollouts that critics are fitted to."""
STATES = 256
"""States that an actor's own actions and the policy's are compared on."""
LARGEST_DIFFERENCE = 1e-3
"""Of an action; beyond it something else than rounding is at work."""
_DELTAS = (Delta, plain.Delta)
_GAUSSIANS = (distributions.Normal, distributions.Independent, IndependentNormal, TanhNormal, TanhDelta, *_DELTAS)


def wrap(
    actor: nn.Module,
    env: str,
    std: float | Sequence[float],
    squash: Literal["tanh", "none", "scale"] = "none",
    warm_up_rollouts: int = 4,
    seed: int = 0,
    concept: str | Concept = "auto",
) -> ActorCritic:
    """A policy around a copy of a network of your own, with critics fitted to its rollouts.

    Every method trains it as it does any other policy; the trained network is the result's `trunk`. It cannot be stored
    as a policy is, since nobody else knows its code: keep `policy.trunk.state_dict()`.

    Args:
        actor: Maps observations (N, O) to the means of actions (N, A); or a TorchRL actor that reads `observation`,
            with the distribution Normal, IndependentNormal, TanhNormal, Delta, TanhDelta or none.
        env: The task it acts in.
        std: Of its Gaussian, one number or one an action; it does not depend on the state here.
        squash: `none` if draws are clipped to the bounds, `tanh` if they go through tanh (TorchRL's TanhNormal),
            `scale` if the range from -1 to 1 stands for the bounds.
        warm_up_rollouts: Rollouts of 8 environments × 1024 steps that the critics are fitted to; at least 2.
        seed: Of the critics' weights and the rollouts.
        concept: The behaviour to forget, which the cost critic is fitted to: auto, an info key or a concept.

    Raises:
        ValueError: The network does not fit the environment, gives something else than means, or acts otherwise while
            it is trained; or an actor's own deterministic actions are not the policy's.
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
    squash: Literal["tanh", "none", "scale"] = "none",
    seed: int = 0,
) -> ActorCritic:
    """The same with critics that know nothing yet. The simulator is reset and stepped for a comparison of actions."""
    network = MeanOf(actor) if isinstance(actor, TensorDictModuleBase) else actor
    _require_float32(network)
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
    states = raw_states(deepcopy(policy).eval(), simulator, STATES, range(simulator.num_envs)).float()
    _require_same_in_training(network, states)
    if isinstance(actor, TensorDictModuleBase):
        _require_own_actions(actor, policy, states)
    return policy


class MeanOf(nn.Module):
    """The mean of the Gaussian that a TorchRL actor draws from, before tanh; of an actor without one, its action.

    Args:
        actor: Reads `observation`.
    """

    def __init__(self, actor: TensorDictModuleBase) -> None:
        super().__init__()
        if list(actor.in_keys) != ["observation"]:
            raise ValueError(
                f"actor reads {list(actor.in_keys)}: only actors that read observation alone can be wrapped"
            )
        self.actor = actor

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Shape: (N, O) → (N, A)."""
        given = _as_input(observation)
        if hasattr(self.actor, "get_dist"):
            return _mean(self.actor.get_dist(given))
        output = self.actor(given)
        return output["loc"] if "loc" in output.keys() else output["action"]  # noqa: SIM118 (a TensorDict)


def _as_input(observation: torch.Tensor) -> TensorDict:
    return TensorDict({"observation": observation}, batch_size=observation.shape[:-1])


def _mean(distribution: distributions.Distribution) -> torch.Tensor:
    """With the distribution's own options, such as `tanh_loc`, counted in."""
    root = distribution
    while hasattr(root, "base_dist"):
        root = root.base_dist
    if type(distribution) not in _GAUSSIANS or type(root) not in (distributions.Normal, *_DELTAS):
        raise ValueError(
            f"actor's distribution is {type(distribution).__name__}: supported are "
            f"{', '.join(kind.__name__ for kind in _GAUSSIANS)} of a Gaussian. Give the network of the means instead, "
            "if draws may be clipped to the bounds (squash='none') or go through tanh (squash='tanh')."
        )
    return root.mean


def _require_float32(network: nn.Module) -> None:
    odd = {str(t.dtype) for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()}
    if odd - {"torch.float32"}:
        raise ValueError(f"actor has weights of {', '.join(sorted(odd))}: convert it with actor.float()")


@torch.no_grad()
def _require_same_in_training(network: nn.Module, observation: torch.Tensor) -> None:
    """Methods act with the network in training mode and evaluate it in the other."""
    evaluated, trained = (deepcopy(network).train(mode) for mode in (False, True))
    means = evaluated(observation)
    others = trained(observation), trained(observation), torch.cat([evaluated(one) for one in observation[:4].split(1)])
    if not all(torch.allclose(means[: len(other)], other, rtol=1e-3, atol=1e-4) for other in others):
        kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase)
        layers = sorted({type(module).__name__ for module in network.modules() if isinstance(module, kinds)})
        raise ValueError(
            "actor gives other means while it is trained, or when it is called again or on one state alone"
            f"{' (it has ' + ', '.join(layers) + ')' if layers else ''}: only a fixed function of the observation can "
            "be wrapped. Remove dropout, batch normalisation, noise and inner state."
        )


@torch.no_grad()
def _require_own_actions(actor: TensorDictModuleBase, policy: ActorCritic, observation: torch.Tensor) -> None:
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        output = deepcopy(actor).eval()(_as_input(observation))
    if "action" not in output.keys():  # noqa: SIM118 (a TensorDict)
        if hasattr(actor, "get_dist"):
            raise ValueError(f"actor writes {list(actor.out_keys)}: its action must be called action")
        return
    own = output["action"].clamp(policy.action_low, policy.action_high)
    difference = float((policy.act(observation) - own).abs().max())
    if not difference < LARGEST_DIFFERENCE:
        kind = type(actor.get_dist(_as_input(observation))).__name__ if hasattr(actor, "get_dist") else "none"
        projects = any(getattr(module, "safe", False) for module in actor.modules())
        hint = (
            " Its safe=True projects actions into its own spec, which is not copied: leave it out." if projects else ""
        )
        raise ValueError(
            f"the policy's deterministic actions would be up to {difference:.3g} off the actor's own (distribution "
            f"{kind}, squash={policy.config.squash!r}): use squash='tanh' for TanhNormal and TanhDelta, whose low and "
            f"high must be the environment's, {policy.config.action_low} and {policy.config.action_high}, and 'none' "
            f"for the others.{hint}"
        )


def _require_means(network: nn.Module, simulator: Simulator) -> None:
    shape = (2, len(simulator.action_low))
    try:
        with torch.no_grad():
            means = network(torch.zeros(2, simulator.observation_size, dtype=torch.float32))
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
