"""A closed-form constrained MDP on a line, for tests and the smoke overlay.

The agent is at x in [-1, 1] and moves by `STEP`·a. Its reward is its x after the move, and its cost is 1 while
x > `HAZARD`. Every episode starts at a uniform x in [-0.5, 0.5] and is truncated after `EPISODE` steps. The best
unconstrained policy stays at x = 1 and pays at every step; the best safe one stays at `HAZARD`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_unlearn.envs.rollout import InOneProcess
from lightning_unlearn.envs.simulator import NoPlane, Step, TopView

ENV_ID = "ToyLine-v0"
STEP = 0.25
HAZARD = 0.5
EPISODE = 32


class ToySimulator(InOneProcess, NoPlane):
    """E copies of the line world. Implements `Simulator`; the observation is (x, fraction of the episode done)."""

    env_id = ENV_ID
    observation_size = 2
    cost_keys: tuple[str, ...] = ("cost_hazards", "cost_sum")
    late_costs = False
    max_episode_steps = EPISODE

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.observation_layout: dict[str, slice] = {"position": slice(0, 1), "clock": slice(1, 2)}
        self.action_low, self.action_high = np.array([-1.0]), np.array([1.0])
        self._generators = [np.random.default_rng(0) for _ in range(num_envs)]
        self._x, self._steps = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """See `Simulator.reset`."""
        for e in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            if seeds is not None:
                self._generators[e] = np.random.default_rng(seeds[e])
            self._x[e], self._steps[e] = self._generators[e].uniform(-0.5, 0.5), 0
        return self._observation()

    def step(self, actions: np.ndarray) -> Step:
        """See `Simulator.step`."""
        self._x = np.clip(self._x + STEP * np.clip(actions[:, 0], -1.0, 1.0), -1.0, 1.0)
        self._steps = self._steps + 1
        cost, never = (self._x > HAZARD).astype(np.float64), np.zeros(self.num_envs, dtype=bool)
        return Step(
            observation=self._observation(),
            reward=self._x.copy(),
            costs={"cost_hazards": cost, "cost_sum": cost.copy()},
            terminated=never,
            truncated=self._steps >= EPISODE,
            failed=never.copy(),
            goal_met=never.copy(),
        )

    def top_view(self) -> TopView:
        """See `Simulator.top_view`."""
        agent = np.stack([self._x, np.zeros(self.num_envs)], axis=-1)[:, None]
        hazard = np.broadcast_to(np.array([[(1 + HAZARD) / 2, 0.0]]), (self.num_envs, 1, 2))
        return TopView({"agent": agent, "hazards": hazard.copy()}, {"hazards": (1 - HAZARD) / 2})

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`."""
        streams = [generator.bit_generator.state for generator in self._generators]
        return {"x": self._x.copy(), "steps": self._steps.copy(), "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`."""
        self._x, self._steps = state["x"].copy(), state["steps"].copy()
        for generator, stream in zip(self._generators, state["streams"], strict=True):
            generator.bit_generator.state = stream

    def close(self) -> None:
        """See `Simulator.close`."""

    def _observation(self) -> np.ndarray:
        return np.stack([self._x, self._steps / EPISODE], axis=-1)
