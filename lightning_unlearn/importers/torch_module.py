"""Any network that gives the mean of an action, wrapped as a policy that every method can train."""

from collections.abc import Sequence
from copy import deepcopy

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
from lightning_unlearn.importers.agent import Squash
from lightning_unlearn.importers.critic_warm_up import warm_up
from lightning_unlearn.importers.reader import (
    LARGEST_DIFFERENCE,
    Reader,
    Reference,
    largest_difference,
    raw_states,
)
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.seeding import SeedStreams, torch_generator

NUM_ENVS, HORIZON = 8, 1024
"""Size of the rollouts that critics are fitted to."""
STATES = 256
"""States on which an actor's own actions and the policy's are compared."""
_DELTAS = (Delta, plain.Delta)
_GAUSSIANS = (distributions.Normal, distributions.Independent, IndependentNormal, TanhNormal, TanhDelta, *_DELTAS)


def wrap(
    actor: nn.Module,
    env: str,
    std: float | Sequence[float],
    squash: Squash = "none",
    warm_up_rollouts: int = 4,
    seed: int = 0,
    concept: str | Concept = "auto",
) -> ActorCritic:
    """Wrap a copy of your own network as a policy, with critics fitted to its rollouts.

    Every method trains it like any other policy; the trained network is the result's `trunk`. It cannot be stored as a
    policy, because its code is not part of this package: keep `policy.trunk.state_dict()`.

    Args:
        actor: Maps observations (N, O) to the means of actions (N, A); or a TorchRL actor that reads `observation`,
            with the distribution Normal, IndependentNormal, TanhNormal, Delta, TanhDelta or none.
        env: The task it acts in.
        std: Standard deviation of its Gaussian, one number or one an action. It does not depend on the state here.
        squash: `none` if draws are clipped to the bounds, `tanh` if they go through tanh (TorchRL's TanhNormal),
            `scale` if the range from -1 to 1 stands for the bounds.
        warm_up_rollouts: Rollouts of 8 environments × 1024 steps that the critics are fitted to; at least 2.
        seed: Seed of the critics' weights and the rollouts.
        concept: The behaviour to forget, which the cost critic is fitted to: auto, an info key or a concept.

    Raises:
        ValueError: The network does not fit the environment, gives something else than means, or acts differently in
            training mode; or an actor's own deterministic actions are not the policy's.
    """
    if warm_up_rollouts < 2:
        raise ValueError(f"warm_up_rollouts={warm_up_rollouts} is not possible: use at least 2.")
    data = RolloutData(env, NUM_ENVS, HORIZON, concept, seed=seed)
    try:
        generator = torch_generator(SeedStreams.of(seed).weights)
        policy = TorchModule(actor, std, squash).policy(data.env.simulator, generator)
        warm_up(policy, data, warm_up_rollouts)
    finally:
        data.teardown("fit")
    return policy


class TorchModule(Reader):
    """A network in memory; see `wrap` for its arguments."""

    library = "PyTorch"

    def __init__(self, actor: nn.Module, std: float | Sequence[float], squash: Squash = "none") -> None:
        self._actor, self._std, self._squash = actor, std, squash
        self._network = MeanOf(actor) if isinstance(actor, TensorDictModuleBase) else actor
        odd = {str(t.dtype) for t in (*actor.parameters(), *actor.buffers()) if t.is_floating_point()}
        if odd - {"torch.float32"}:
            raise ValueError(f"actor has weights of {', '.join(sorted(odd))}: convert it with actor.float()")

    def policy(self, simulator: Simulator, generator: torch.Generator) -> ActorCritic:
        """Build the policy, with untrained critics. The simulator is reset and stepped to compare actions."""
        _require_means(self._network, simulator)
        size = len(simulator.action_low)
        config = PolicyConfig(
            simulator.observation_size,
            simulator.action_low.tolist(),
            simulator.action_high.tolist(),
            hidden_sizes=[size],
            squash=self._squash,
            critics="separate",
            critic_hidden_sizes=[64, 64],
        )
        policy = ActorCritic(config, generator)
        policy.trunk, policy.action_mean = deepcopy(self._network), nn.Identity()  # type: ignore[assignment]
        std = torch.as_tensor(self._std, dtype=torch.float32)
        if std.ndim > 1 or std.numel() not in (1, size) or not ((std > 0) & std.isfinite()).all():
            raise ValueError(f"std={self._std} is not possible: use one number above 0, or {size} of them")
        policy.log_std.data.copy_(std.log().expand(size))
        states = raw_states(deepcopy(policy).eval(), simulator, STATES, range(simulator.num_envs)).float()
        _require_same_in_training(self._network, states)
        if (reference := self.reference(simulator)) is not None:
            difference = largest_difference(reference, policy, states)
            if not difference < LARGEST_DIFFERENCE:
                raise ValueError(self._difference_message(difference, config, states))
        return policy

    def reference(self, simulator: Simulator) -> Reference | None:
        """Return a TorchRL actor's own deterministic action, if it has one."""
        if not isinstance(self._actor, TensorDictModuleBase):
            return None
        has_distribution = hasattr(self._actor, "get_dist")
        if "action" not in self._actor.out_keys:
            if has_distribution:
                raise ValueError(f"actor writes {list(self._actor.out_keys)}: its action must be called action")
            return None
        actor = deepcopy(self._actor).eval()
        low, high = (torch.from_numpy(bound).float() for bound in (simulator.action_low, simulator.action_high))

        def action(observation: torch.Tensor) -> torch.Tensor:
            with set_exploration_type(ExplorationType.DETERMINISTIC):
                return actor(_as_input(observation))["action"].clamp(low, high)

        return action

    def _difference_message(self, difference: float, config: PolicyConfig, states: torch.Tensor) -> str:
        distribution_of = getattr(self._actor, "get_dist", None)
        kind = "none" if distribution_of is None else type(distribution_of(_as_input(states))).__name__
        hint = ""
        if any(getattr(module, "safe", False) for module in self._actor.modules()):
            hint = " Its safe=True projects actions into its own spec, which is not copied: leave it out."
        return (
            f"the policy's deterministic actions would be up to {difference:.3g} off the actor's own (distribution "
            f"{kind}, squash={config.squash!r}): use squash='tanh' for TanhNormal and TanhDelta, whose low and "
            f"high must be the environment's, {config.action_low} and {config.action_high}, and 'none' "
            f"for the others.{hint}"
        )


class MeanOf(nn.Module):
    """Mean of the Gaussian that a TorchRL actor draws from, before tanh; its action if it has no distribution.

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
        """Compute the mean. Shape: (N, O) → (N, A)."""
        given = _as_input(observation)
        if not hasattr(self.actor, "get_dist"):
            output = self.actor(given)
            return output["loc"] if "loc" in output.keys() else output["action"]  # noqa: SIM118 (a TensorDict)
        root = distribution = self.actor.get_dist(given)
        while hasattr(root, "base_dist"):
            root = root.base_dist
        if type(distribution) not in _GAUSSIANS or type(root) not in (distributions.Normal, *_DELTAS):
            raise ValueError(
                f"actor's distribution is {type(distribution).__name__}: supported are "
                f"{', '.join(kind.__name__ for kind in _GAUSSIANS)} of a Gaussian. Give the network of the means "
                "instead, if draws may be clipped to the bounds (squash='none') or go through tanh (squash='tanh')."
            )
        return root.mean  # the distribution's own options such as `tanh_loc` are applied in it


def _as_input(observation: torch.Tensor) -> TensorDict:
    return TensorDict({"observation": observation}, batch_size=observation.shape[:-1])


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


@torch.no_grad()
def _require_same_in_training(network: nn.Module, observation: torch.Tensor) -> None:
    """Refuse a network that acts differently in training mode, in which methods collect rollouts."""
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
