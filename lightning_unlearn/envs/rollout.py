"""The rollout loop: E environments make T steps under one policy, written row by row into one buffer.

Shapes: T steps, E environments, O observation size, A action size, K costs.
"""

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NoReturn, Protocol

import numpy as np

from lightning_unlearn.envs.simulator import Simulator, Step, TopView, all_finite

MOST_COSTS = 32
"""Kinds of cost that a buffer has room for, if an environment may report more of them as they happen."""
_FLAGS = ("terminated", "truncated", "failed", "goal_met")


class Actor(Protocol):
    """A policy as the rollout loop needs it. Shapes: n environments, a part of all."""

    portable: bool
    """True if it can be pickled, and computes the same actions in any process."""

    def mean(self, observation: np.ndarray, first: int) -> np.ndarray:
        """Compute the mean of the Gaussian before squashing. Shape: (n, O) float64 → (n, A) float32.

        Args:
            observation: Observations of n consecutive environments.
            first: Index of the first of them among all environments.
        """
        ...

    def squash(self, pre_tanh: np.ndarray) -> np.ndarray:
        """Map the Gaussian draw to an action inside the bounds. Shape: (n, A) float32 → (n, A)."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutBuffer:
    """Arrays over one block of memory, which several processes may share, each for some of the environments."""

    next_observation: np.ndarray
    """The true final observation at an episode's end. Shape: (T, E, O), float64."""
    action: np.ndarray
    """Action that the environment received. Shape: (T, E, A), float64 with the values of a float32."""
    reward: np.ndarray
    """Shape: (T, E), float64."""
    costs: np.ndarray
    """The whole cost first, then the others in the order of the simulator's `cost_keys`. Shape: (T, E, K), float64."""
    position: np.ndarray
    """Position of the agents after the step, zeros if they have no plane. Shape: (T, E, 2), metres."""
    velocity: np.ndarray
    """Velocity of the agents after the step. Shape: (T, E, 2), metres per second."""
    observation: np.ndarray
    """Observation before the step. Shape: (T, E, O), float64."""
    current: np.ndarray
    """Observations that the next rollout starts from. Shape: (1, E, O), float64."""
    mean: np.ndarray
    """Mean of the policy's Gaussian. Shape: (T, E, A), float32."""
    pre_tanh: np.ndarray
    """The Gaussian draw. Shape: (T, E, A), float32."""
    deviation: np.ndarray
    """Noise that is added to the mean; written before the rollout. Shape: (T, E, A), float32."""
    terminated: np.ndarray
    """This and the other flags are those of `Step`. Shape: (T, E), bool."""
    truncated: np.ndarray
    failed: np.ndarray
    goal_met: np.ndarray
    ended: np.ndarray
    """Environments to be reset before the next step. Shape: (1, E), bool."""

    @classmethod
    def allocate(
        cls, simulator: Simulator, horizon: int, shared: int | None = None, num_envs: int | None = None
    ) -> "RolloutBuffer":
        """Allocate a buffer for all environments of a task.

        Args:
            simulator: Gives the sizes.
            horizon: T.
            shared: Descriptor of memory from `open_memory`, which is made large enough; private memory without it.
            num_envs: E, if it is more than the simulator's.

        Raises:
            ValueError: There is not enough memory.
        """
        num_envs = num_envs or simulator.num_envs
        steps, last = (horizon, num_envs), (1, num_envs)
        observation, action = simulator.observation_size, len(simulator.action_low)
        costs = MOST_COSTS if simulator.late_costs else len(simulator.cost_keys)
        wide = [(observation,), (action,), (), (costs,), (2,), (2,), (observation,)]
        specs: list[tuple[np.dtype[Any], tuple[int, ...]]] = [  # the widest types first, so that all are aligned
            *((np.dtype(np.float64), steps + shape) for shape in wide),
            (np.dtype(np.float64), (*last, observation)),
            *((np.dtype(np.float32), (*steps, action)) for _ in range(3)),
            *((np.dtype(bool), steps) for _ in _FLAGS),
            (np.dtype(bool), last),
        ]
        sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in specs]
        memory = _memory(sum(sizes), shared, num_envs, horizon)
        starts = np.cumsum([0, *sizes[:-1]])
        arrays = [
            np.ndarray(shape, dtype, memory, int(start)) for (dtype, shape), start in zip(specs, starts, strict=True)
        ]
        return cls(*arrays)

    @property
    def horizon(self) -> int:
        """T."""
        return len(self.reward)

    @property
    def done(self) -> np.ndarray:
        """True where an episode ended. Shape: (T, E), bool."""
        return self.terminated | self.truncated

    def rows(self, rows: slice) -> "RolloutBuffer":
        """Return a view of some of the environments."""
        return RolloutBuffer(*(getattr(self, field.name)[:, rows] for field in fields(self)))

    def first(self, steps: int) -> "RolloutBuffer":
        """Return a view of the first steps."""
        one_row = ("current", "ended")
        cut = {f.name: getattr(self, f.name)[:steps] for f in fields(self) if f.name not in one_row}
        return replace(self, **cut)

    def write(self, t: int, step: Step, simulator: Simulator) -> None:
        """Store a step of the simulator of these environments, and the position and velocity of its agents."""
        self.next_observation[t], self.reward[t] = step.observation, step.reward
        columns = cost_columns(simulator.cost_keys)
        if len(columns) > self.costs.shape[-1]:
            raise ValueError(
                f"{simulator.env_id} has reported {len(columns)} kinds of cost: at most {MOST_COSTS} are kept."
            )
        for place, key in enumerate(columns):
            self.costs[t, :, place] = step.costs[key]
        self.terminated[t], self.truncated[t] = step.terminated, step.truncated
        self.failed[t], self.goal_met[t] = step.failed, step.goal_met
        if simulator.in_plane:
            self.position[t], self.velocity[t] = simulator.agent_position(), simulator.agent_velocity()

    def costs_of(self, simulator: Simulator) -> dict[str, np.ndarray]:
        """Return every cost that the simulator has reported so far, by name. Shape of each: (T, E)."""
        by_name = {key: self.costs[..., place] for place, key in enumerate(cost_columns(simulator.cost_keys))}
        return {key: by_name[key] for key in simulator.cost_keys}

    def step(self, t: int, simulator: Simulator) -> Step:
        """Return one step as the simulator returned it, copied."""
        return Step(
            observation=self.next_observation[t].copy(),
            reward=self.reward[t].copy(),
            costs={key: cost[t].copy() for key, cost in self.costs_of(simulator).items()},
            **{flag: getattr(self, flag)[t].copy() for flag in _FLAGS},
        )


class InOneProcess:
    """Base class of simulators whose environments are all in this process: the rollout methods of `Simulator`."""

    def rollout_buffer(self: Any, horizon: int) -> RolloutBuffer:
        """See `Simulator.rollout_buffer`."""
        return RolloutBuffer.allocate(self, horizon)

    def roll_out(self: Any, actor: Actor, buffer: RolloutBuffer, action_repeat: int = 1) -> None:
        """See `Simulator.roll_out`."""
        roll_out(self, actor, buffer, action_repeat)

    def reported_costs(self: Any) -> tuple[str, ...]:
        """Return the present `cost_keys`."""
        keys: tuple[str, ...] = self.cost_keys
        return keys

    def last_failure(self: Any) -> str:
        """See `Simulator.last_failure`."""
        return ""


def roll_out(
    simulator: Simulator,
    actor: Actor,
    buffer: RolloutBuffer,
    action_repeat: int = 1,
    first: int = 0,
    scenes: list[TopView] | None = None,
) -> None:
    """Step environments under a policy until the buffer is full; ended environments are reset before their next step.

    Args:
        simulator: Steps the buffer's environments.
        actor: Its mean plus the buffer's `deviation` is the Gaussian draw.
        buffer: The rollout starts from its `current` and `ended`.
        action_repeat: Steps that an action is repeated for, counted from the rollout's start; fewer at an episode's
            end.
        first: Index of the buffer's first environment among all.
        scenes: List to which the top view before each step is appended.

    Raises:
        FloatingPointError: An observation is not finite.
        ValueError: The policy gives actions that are not finite.
    """
    observation, ended = buffer.current[0].copy(), buffer.ended[0].copy()
    if simulator.late_costs:
        buffer.costs[:] = 0.0  # until they are reported
    for t in range(buffer.horizon):
        if begins := np.count_nonzero(ended):
            observation = simulator.reset(ended)
        if scenes is not None:
            scenes.append(simulator.top_view())
        if t % action_repeat == 0 or begins:
            mean = actor.mean(observation, first)
            drawn = mean + buffer.deviation[t]
            if not all_finite(drawn):
                _raise_not_finite(simulator.env_id, observation)
            if t % action_repeat:
                kept = ~ended[:, None]
                mean, drawn = np.where(kept, buffer.mean[t - 1], mean), np.where(kept, buffer.pre_tanh[t - 1], drawn)
        buffer.observation[t], buffer.mean[t], buffer.pre_tanh[t] = observation, mean, drawn
        buffer.action[t] = actor.squash(drawn)
        step = simulator.step(buffer.action[t])
        buffer.write(t, step, simulator)
        observation, ended = step.observation, step.terminated | step.truncated
    buffer.current[0], buffer.ended[0] = observation, ended


def _raise_not_finite(env_id: str, observation: np.ndarray) -> NoReturn:
    if not np.isfinite(observation).all():
        raise FloatingPointError(
            f"{env_id}: an observation is not a finite number. Nothing is learned from this rollout."
        )
    raise ValueError("the policy gives actions that are not finite: its weights or statistics are out of range.")


def cost_columns(cost_keys: Sequence[str]) -> tuple[str, ...]:
    """Names of a buffer's cost columns: the whole cost first, so that columns stay in place when others appear."""
    return (cost_keys[-1], *cost_keys[:-1])


def open_memory() -> int:
    """Open anonymous memory and return its file descriptor, which worker processes may inherit."""
    if sys.platform == "linux":
        return os.memfd_create("rollout")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _memory(size: int, shared: int | None, num_envs: int, horizon: int) -> Any:
    if shared is None:
        return bytearray(size)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(shared, 0, size)  # or a full memory would end the process at its first write
        else:
            os.ftruncate(shared, size)
        return mmap.mmap(shared, size)
    except OSError as error:
        raise ValueError(
            f"data.horizon={horizon} with data.num_envs={num_envs}: the {size / 1e6:.0f} MB of shared memory that a "
            f"rollout takes cannot be had ({error.strerror}): use fewer of either, or data.workers=1."
        ) from error
