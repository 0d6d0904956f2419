"""Actions and steps as rows of one array that several processes map.

Shapes: E environments, A action size, O observation size, K costs.
"""

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from lightning_unlearn.envs.simulator import Simulator, Step

_FLAGS = ("terminated", "truncated", "failed", "goal_met")
_FLOAT64 = np.dtype(np.float64).itemsize


def open_memory() -> int:
    """The file descriptor of memory without a name, which other processes may inherit."""
    if sys.platform == "linux":
        return os.memfd_create("steps")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedSteps:
    """Memory for one step of E environments: a row of actions and a row of results each.

    Args:
        descriptor: Of the memory; it is made large enough.
        num_envs: E.
        simulator: Of the same task, for the sizes.
    """

    def __init__(self, descriptor: int, num_envs: int, simulator: Simulator) -> None:
        action_size, self._observation = len(simulator.action_low), simulator.observation_size
        self._cost_keys: Sequence[str] = simulator.cost_keys
        results = self._observation + 1 + len(self._cost_keys) + len(_FLAGS) + 4
        size = num_envs * (action_size + results) * _FLOAT64
        os.ftruncate(descriptor, size)
        numbers = np.frombuffer(mmap.mmap(descriptor, size), np.float64)
        self.actions = numbers[: num_envs * action_size].reshape(num_envs, action_size)
        """Shape: (E, A)."""
        self._results = numbers[num_envs * action_size :].reshape(num_envs, results)
        self.position, self.velocity = self._results[:, -4:-2], self._results[:, -2:]
        """Of the agents after the step. Shape of each: (E, 2)."""

    def write(self, rows: slice, step: Step, simulator: Simulator) -> None:
        """Keep what the simulator of some of the environments returned, and where its agents are."""
        results = self._results[rows]
        results[:, : self._observation] = step.observation
        results[:, self._observation] = step.reward
        columns = [step.costs[key] for key in self._cost_keys] + [getattr(step, flag) for flag in _FLAGS]
        for place, column in enumerate(columns, start=self._observation + 1):
            results[:, place] = column
        self.position[rows], self.velocity[rows] = simulator.agent_position(), simulator.agent_velocity()

    def read(self) -> Step:
        """What all environments returned, in arrays of its own."""
        results = self._results.copy()
        costs, flags = self._observation + 1, self._observation + 1 + len(self._cost_keys)
        return Step(
            observation=results[:, : self._observation],
            reward=results[:, self._observation],
            costs={key: results[:, costs + place] for place, key in enumerate(self._cost_keys)},
            **dict(zip(_FLAGS, (results[:, flags:-4] != 0.0).T, strict=True)),
        )
