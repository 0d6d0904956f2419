"""E environments as one TorchRL environment."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from lightning_unlearn import keys
from lightning_unlearn.envs import toy
from lightning_unlearn.envs.concept_config import as_concept, concept_to_json
from lightning_unlearn.envs.concepts import AUTO, COST_SUM, HAZARDS, Concept, Transitions, concept_signal
from lightning_unlearn.envs.rollout import RolloutBuffer
from lightning_unlearn.envs.simulator import Simulator, Step
from lightning_unlearn.seeding import training_seeds

if TYPE_CHECKING:
    from lightning_unlearn.envs.mujoco_renderer import MujocoSimulator


def make_env(env_id: str, num_envs: int, concept: str | Concept = AUTO, workers: int = 1) -> "BatchedEnv":
    """Make E copies of a task.

    Args:
        env_id: A Safety-Gymnasium task, an environment of Gymnasium that reports `info["cost"]` (`Id-v0`,
            or `module:Id-v0` to import the module first), or `ToyLine-v0`.
        num_envs: E.
        concept: The behaviour to forget: `auto`, an info key or a concept, see `concepts`.
        workers: Processes that step the environments; results do not depend on it.

    Raises:
        ValueError: The task or the concept is unknown, or a number is not possible.
    """
    for name, value in (("num_envs", num_envs), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}={value} is not possible: use at least 1.")
    if workers > num_envs:
        raise ValueError(f"workers={workers} is more than num_envs={num_envs}: use at most one worker an environment.")
    return BatchedEnv(_simulator(env_id, num_envs, workers), concept)


def mujoco_factory(env_id: str, pictures: bool = False) -> "Callable[[int], MujocoSimulator]":
    """Return a function that makes simulators of a task in one process, with textures and cameras if `pictures`.

    Raises:
        ValueError: The task is unknown, or not supported.
    """
    from lightning_unlearn.envs import gymnasium_simulator, navigation  # MuJoCo waits until a task needs it
    from lightning_unlearn.envs.compat import registered_spec

    if gymnasium_simulator.is_supported(env_id):
        return gymnasium_simulator.GymnasiumFactory(env_id)
    registered_spec(env_id)  # an unknown task is refused before its processes are started
    return partial(navigation.NavigationSimulator, env_id, pictures=pictures)


def _simulator(env_id: str, num_envs: int, workers: int) -> Simulator:
    if env_id == toy.ENV_ID:
        return toy.ToySimulator(num_envs)
    from lightning_unlearn.envs import parallel

    make = mujoco_factory(env_id)
    if workers == 1:
        return make(num_envs)
    if parallel.is_portable(make):
        return parallel.ParallelSimulator(make, num_envs, workers)
    print(
        f"workers={workers}: {env_id} was made in the program's main file, or cannot be pickled; one process steps it."
    )
    return make(num_envs)


class BatchedEnv(EnvBase):
    """A `Simulator` as a TorchRL environment of batch shape (E,).

    Observations, rewards and costs are float32. A step reports, under `next`: observation (the true final one at an
    episode's end), reward, cost, every cost by name, C_forget, goal_met, done, terminated, truncated and
    simulator_failed. TorchRL resets ended environments, through the `_reset` mask.
    """

    def __init__(self, simulator: Simulator, concept: str | Concept = AUTO) -> None:
        super().__init__(device="cpu", batch_size=[simulator.num_envs])
        self.is_closed = False  # TorchRL's default is True
        self.simulator = simulator
        self._concept = as_concept(concept, simulator.cost_keys)
        _require_possible(self._concept, simulator)
        self.concept = concept_to_json(self._concept)
        """The behaviour to forget, as runs and models record it."""
        self.cost_keys = simulator.cost_keys
        """Costs in TorchRL's steps, whose specs are fixed. One first reported later is in the simulator's only."""
        self._chosen_without_hazards = concept == AUTO and HAZARDS not in simulator.cost_keys
        self._seeds: Sequence[int] | None = None
        self._make_specs()

    @property
    def num_envs(self) -> int:
        """E."""
        return int(self.batch_size[0])

    def seed_environments(self, seeds: Sequence[int]) -> None:
        """Give each environment its own seed; the next reset of all environments uses them."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments: give one each.")
        self._seeds = list(seeds)

    def restart(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Reset the environments of `mask`, or all; a reset of all uses the seeds of `seed_environments` once.

        Returns:
            Every current observation. Shape: (E, O), float64.
        """
        seeds, self._seeds = (self._seeds, None) if mask is None or mask.all() else (None, self._seeds)
        return self.simulator.reset(mask, seeds)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulator."""
        if not self.is_closed:
            self.simulator.close()
        super().close(raise_if_closed=raise_if_closed)

    def _make_specs(self) -> None:
        sim, shape = self.simulator, (self.num_envs,)
        low, high = (
            torch.as_tensor(b, dtype=torch.float32).expand(*shape, -1) for b in (sim.action_low, sim.action_high)
        )
        self.observation_spec = Composite(
            {
                keys.OBSERVATION: Unbounded((*shape, sim.observation_size), dtype=torch.float32),
            },
            shape=shape,
        )
        self.action_spec = Bounded(low, high, dtype=torch.float32)
        column = Unbounded((*shape, 1), dtype=torch.float32)
        self.reward_spec = Composite(
            {
                keys.REWARD: column,
                keys.COST: column.clone(),
                keys.C_FORGET: column.clone(),
                keys.GOAL_MET: _flag(shape),
                keys.FAILED: _flag(shape),
                keys.COSTS: Composite({key: column.clone() for key in self.cost_keys}, shape=shape),
            },
            shape=shape,
        )
        self.full_done_spec = Composite(
            {key: _flag(shape) for key in (keys.DONE, keys.TERMINATED, keys.TRUNCATED)}, shape=shape
        )

    def _set_seed(self, seed: int | None) -> None:
        self.seed_environments(training_seeds(np.random.SeedSequence(seed), self.num_envs))

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDict:
        mask = None
        if tensordict is not None and "_reset" in tensordict.keys():  # noqa: SIM118 (a TensorDict is no dict)
            mask = tensordict.get("_reset").view(-1).numpy()
        observation = self.restart(mask)
        done = torch.zeros(self.num_envs, 1, dtype=torch.bool)
        return TensorDict(
            {
                keys.OBSERVATION: _float32(observation),
                keys.DONE: done,
                keys.TERMINATED: done.clone(),
                keys.TRUNCATED: done.clone(),
            },
            batch_size=self.batch_size,
        )

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict[keys.ACTION].numpy().astype(np.float64)
        step = self.simulator.step(action)
        c_forget = self.c_forget(tensordict[keys.OBSERVATION].numpy(), action, step)
        return TensorDict(
            {
                keys.OBSERVATION: _float32(step.observation),
                keys.REWARD: _column(step.reward),
                keys.COST: _column(step.costs[COST_SUM]),
                keys.COSTS: {key: _column(step.costs[key]) for key in self.cost_keys},
                keys.C_FORGET: _column(c_forget),
                keys.GOAL_MET: torch.from_numpy(step.goal_met).unsqueeze(-1),
                keys.FAILED: torch.from_numpy(step.failed).unsqueeze(-1),
                keys.TERMINATED: torch.from_numpy(step.terminated).unsqueeze(-1),
                keys.TRUNCATED: torch.from_numpy(step.truncated).unsqueeze(-1),
                keys.DONE: torch.from_numpy(step.terminated | step.truncated).unsqueeze(-1),
            },
            batch_size=self.batch_size,
        )

    def c_forget(self, observation: np.ndarray, action: np.ndarray, step: Step) -> np.ndarray:
        """Compute C_forget of the step that was just made; call it before any reset.

        Args:
            observation: Observations before the step. Shape: (E, O).
            action: Actions of the step. Shape: (E, A).
            step: The simulator's result.

        Returns:
            1 or 0. Shape: (E,), float64.

        Raises:
            ValueError: The concept raises an exception, or returns something else than truth values.
        """
        self._warn_if_overlooked()
        transitions = Transitions(observation, action, step.observation, step.costs, self.simulator)
        return concept_signal(self._concept, transitions, step.failed)

    def c_forget_of(self, rollout: RolloutBuffer) -> np.ndarray:
        """Compute C_forget of a whole rollout at once.

        Returns:
            1 or 0. Shape: (T, E), float64.

        Raises:
            ValueError: The concept raises an exception, or returns something else than truth values.
        """
        self._warn_if_overlooked()
        flat = {name: getattr(rollout, name) for name in ("observation", "action", "next_observation")}
        costs = {key: cost.reshape(-1) for key, cost in rollout.costs_of(self.simulator).items()}
        transitions = Transitions(
            **{name: array.reshape(-1, array.shape[-1]) for name, array in flat.items()},
            costs=costs,
            world=_Recorded(self.simulator, rollout) if self.simulator.in_plane else self.simulator,
        )
        return concept_signal(self._concept, transitions, rollout.failed.reshape(-1)).reshape(rollout.failed.shape)

    def _warn_if_overlooked(self) -> None:
        if self._chosen_without_hazards and HAZARDS in self.simulator.cost_keys:
            self._chosen_without_hazards = False
            warnings.warn(
                f"concept=auto was taken as {self.concept}, and only now {self.simulator.env_id} has reported "
                f"{HAZARDS}: name the concept, or report every cost in every step.",
                stacklevel=3,
            )


def _require_possible(concept: Concept, simulator: Simulator) -> None:
    """Refuse a concept that is impossible in an environment, or cannot judge a transition of its sizes.

    Raises:
        ValueError: The concept refuses the environment, raises an exception, or returns something else than truth
            values.
    """
    concept.require_possible(simulator)
    num_envs = simulator.num_envs
    observation = np.zeros((num_envs, simulator.observation_size))
    transitions = Transitions(
        observation.astype(np.float32),
        np.zeros((num_envs, len(simulator.action_low))),
        observation,
        {key: np.zeros(num_envs) for key in simulator.cost_keys},
        _AtRest(simulator) if simulator.in_plane else simulator,
    )
    with np.errstate(all="ignore"):  # zeros are no state that an agent was ever in
        concept_signal(concept, transitions, np.zeros(num_envs, dtype=bool))


class _AtRest:
    """A world for concepts whose agents rest at the origin."""

    def __init__(self, simulator: Simulator) -> None:
        self.observation_layout, self._num_envs = simulator.observation_layout, simulator.num_envs

    def agent_position(self) -> np.ndarray:
        return np.zeros((self._num_envs, 2))

    agent_velocity = agent_position


class _Recorded:
    """A world for concepts that reads positions and velocities from a rollout."""

    def __init__(self, simulator: Simulator, rollout: RolloutBuffer) -> None:
        self.observation_layout, self._rollout = simulator.observation_layout, rollout

    def agent_position(self) -> np.ndarray:
        return self._rollout.position.reshape(-1, 2)

    def agent_velocity(self) -> np.ndarray:
        return self._rollout.velocity.reshape(-1, 2)


def _float32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _column(array: np.ndarray) -> torch.Tensor:
    return _float32(array).unsqueeze(-1)


def _flag(shape: tuple[int, ...]) -> Categorical:
    return Categorical(2, shape=(*shape, 1), dtype=torch.bool)
