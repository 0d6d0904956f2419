"""Rollouts: what E environments do in T steps under one policy, written row by row into one buffer.

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
"""Kinds of cost that a rollout has room for, of an environment that may report more of them as they happen."""
_FLAGS = ("terminated", "truncated", "failed", "goal_met")


class Actor(Protocol):
    """A policy as the rollout loop needs it. Shapes: n environments, some of all."""

    portable: bool
    """Whether it can be pickled, and computes the same action of an environment in any process."""

    def mean(self, observation: np.ndarray, first: int) -> np.ndarray:
        """Mean of the Gaussian before squashing. Shape: (n, O) float64 → (n, A) float32.

        Args:
            observation: Of n environments that follow each other.
            first: Index of the first of them among all environments.
        """
        ...

    def squash(self, pre_tanh: np.ndarray) -> np.ndarray:
        """From the Gaussian draw to the action, inside the bounds. Shape: (n, A) float32 → (n, A)."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutBuffer:
    """Arrays over one block of memory, which several processes may share. Each may cover some of the environments."""

    next_observation: np.ndarray
    """The true final observation at an episode's end. Shape: (T, E, O), float64."""
    action: np.ndarray
    """What the environment received. Shape: (T, E, A), float64 with the values of a float32."""
    reward: np.ndarray
    """Shape: (T, E), float64."""
    costs: np.ndarray
    """The whole cost, then the others in the order of the simulator's `cost_keys`. Shape: (T, E, K), float64."""
    position: np.ndarray
    """Of the agents after the step, zeros where they have no plane. Shape: (T, E, 2), metres."""
    velocity: np.ndarray
    """Shape: (T, E, 2), metres per second."""
    observation: np.ndarray
    """What the policy saw. Shape: (T, E, O), float64."""
    current: np.ndarray
    """The last observations before the next rollout. Shape: (1, E, O), float64."""
    mean: np.ndarray
    """Shape: (T, E, A), float32."""
    pre_tanh: np.ndarray
    """The Gaussian draw. Shape: (T, E, A), float32."""
    deviation: np.ndarray
    """The noise to be added to the mean, written before the rollout. Shape: (T, E, A), float32."""
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
        """A buffer for all environments of a task.

        Args:
            simulator: Gives the sizes.
            horizon: T.
            shared: Descriptor of memory from `open_memory`, which is made large enough; private memory without it.
            num_envs: E, where it is more than the simulator's.

        Raises:
            ValueError: There is not that much memory.
        """
        num_envs = num_envs or simulator.num_envs
        specs = _specs(simulator, horizon, num_envs)
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
        """Where episodes ended. Shape: (T, E), bool."""
        return self.terminated | self.truncated

    def rows(self, rows: slice) -> "RolloutBuffer":
        """The part of some of the environments."""
        return RolloutBuffer(*(getattr(self, field.name)[:, rows] for field in fields(self)))

    def first(self, steps: int) -> "RolloutBuffer":
        """The part of the first steps."""
        one_row = ("current", "ended")
        cut = {f.name: getattr(self, f.name)[:steps] for f in fields(self) if f.name not in one_row}
        return replace(self, **cut)

    def write(self, t: int, step: Step, simulator: Simulator) -> None:
        """Keep what the simulator of these environments returned, and where its agents are."""
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
        """Every cost that the simulator has reported so far, by name. Shape of each: (T, E)."""
        by_name = {key: self.costs[..., place] for place, key in enumerate(cost_columns(simulator.cost_keys))}
        return {key: by_name[key] for key in simulator.cost_keys}

    def step(self, t: int, simulator: Simulator) -> Step:
        """One step as the simulator returned it, in arrays of its own."""
        return Step(
            observation=self.next_observation[t].copy(),
            reward=self.reward[t].copy(),
            costs={key: cost[t].copy() for key, cost in self.costs_of(simulator).items()},
            **{flag: getattr(self, flag)[t].copy() for flag in _FLAGS},
        )


class InOneProcess:
    """The part of `Simulator` about rollouts, for simulators whose environments are all in this process."""

    def rollout_buffer(self: Any, horizon: int) -> RolloutBuffer:
        """See `Simulator.rollout_buffer`."""
        return RolloutBuffer.allocate(self, horizon)

    def roll_out(self: Any, actor: Actor, buffer: RolloutBuffer, hold: int = 1) -> None:
        """See `Simulator.roll_out`."""
        roll_out(self, actor, buffer, hold)

    def reported_costs(self: Any) -> tuple[str, ...]:
        """The present `cost_keys`."""
        keys: tuple[str, ...] = self.cost_keys
        return keys

    def last_failure(self: Any) -> str:
        """See `Simulator.last_failure`."""
        return ""


def roll_out(
    simulator: Simulator,
    actor: Actor,
    buffer: RolloutBuffer,
    hold: int = 1,
    first: int = 0,
    scenes: list[TopView] | None = None,
) -> None:
    """Step environments under a policy until the buffer is full; what has ended is reset before its next step.

    Args:
        simulator: Of the buffer's environments.
        actor: Its mean plus the buffer's `deviation` is the Gaussian draw.
        buffer: Goes on from its `current` and `ended`.
        hold: Action repeat: a new action is drawn every so many steps of the rollout, and where an episode begins.
        first: Index of the buffer's first environment among all.
        scenes: Gets the top view before each step.

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
        if t % hold == 0 or begins:
            mean = actor.mean(observation, first)
            drawn = mean + buffer.deviation[t]
            if not all_finite(drawn):
                _refuse(simulator.env_id, observation)
            if t % hold:
                held = ~ended[:, None]
                mean, drawn = np.where(held, buffer.mean[t - 1], mean), np.where(held, buffer.pre_tanh[t - 1], drawn)
        buffer.observation[t], buffer.mean[t], buffer.pre_tanh[t] = observation, mean, drawn
        buffer.action[t] = actor.squash(drawn)
        step = simulator.step(buffer.action[t])
        buffer.write(t, step, simulator)
        observation, ended = step.observation, step.terminated | step.truncated
    buffer.current[0], buffer.ended[0] = observation, ended


def _refuse(env_id: str, observation: np.ndarray) -> NoReturn:
    if not np.isfinite(observation).all():
        raise FloatingPointError(
            f"{env_id}: an observation is not a finite number. Nothing is learned from this rollout."
        )
    raise ValueError("the policy gives actions that are not finite: its weights or statistics are out of range.")


def cost_columns(cost_keys: Sequence[str]) -> tuple[str, ...]:
    """The order of a buffer's costs: the whole cost first, so that columns stay where they are when others appear."""
    return (cost_keys[-1], *cost_keys[:-1])


def open_memory() -> int:
    """The file descriptor of memory without a name, which other processes may inherit."""
    if sys.platform == "linux":
        return os.memfd_create("rollout")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _specs(simulator: Simulator, horizon: int, num_envs: int) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """Type and shape of each array of a buffer, the widest types first, so that all are aligned."""
    observation, action = simulator.observation_size, len(simulator.action_low)
    steps, last = (horizon, num_envs), (1, num_envs)
    costs = MOST_COSTS if simulator.late_costs else len(simulator.cost_keys)
    wide = [(observation,), (action,), (), (costs,), (2,), (2,), (observation,)]
    return [
        *((np.dtype(np.float64), steps + shape) for shape in wide),
        (np.dtype(np.float64), (*last, observation)),
        *((np.dtype(np.float32), (*steps, action)) for _ in range(3)),
        *((np.dtype(bool), steps) for _ in _FLAGS),
        (np.dtype(bool), last),
    ]


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
