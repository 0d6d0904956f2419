"""One simulator whose environments are shared out among processes. Shapes: E environments, A action size.

Processes, not threads: what Python and numpy do between two steps of the physics holds the interpreter lock, and a
sleeping thread wakes late. Results do not depend on the number of processes.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lightning_unlearn.envs.navigation import NavigationSimulator
from lightning_unlearn.envs.shard_process import Shard
from lightning_unlearn.envs.shared_steps import SharedSteps, open_memory
from lightning_unlearn.envs.simulator import Step, TopView, require_actions, require_mask, require_seeds


class ShardedNavigation:
    """E copies of one navigation task, the first of them in this process; see `Simulator` for the contract.

    Args:
        env_id: A registered id such as `SafetyPointGoal1-v0`.
        num_envs: E.
        workers: Processes, this one among them; at most E.

    Raises:
        ValueError: the task is unknown, not supported, or refused by the installed MuJoCo.
    """

    in_plane = True
    late_costs = False

    def __init__(self, env_id: str, num_envs: int, workers: int) -> None:
        self.env_id, self.num_envs = env_id, num_envs
        bounds = [num_envs * worker // workers for worker in range(workers + 1)]
        self._own = slice(bounds[0], bounds[1])
        others, memory = [slice(*pair) for pair in pairwise(bounds[1:])], open_memory()
        self._shards = [Shard(env_id, rows, num_envs, memory) for rows in others]  # they start while this one builds
        try:
            self._here = NavigationSimulator(env_id, bounds[1])
            self._steps = SharedSteps(memory, num_envs, self._here)
            for shard in self._shards:
                shard.answer()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(memory)
        self._describe(self._here)
        self._observation = np.zeros((num_envs, self.observation_size))
        self._stepped = False  # since the last reset

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """See `NavigationSimulator.reset`."""
        mask = require_mask(np.ones(self.num_envs, dtype=bool) if mask is None else mask, self.num_envs)
        seeds = None if seeds is None else require_seeds(seeds, self.num_envs)
        self._stepped = False
        involved = [shard for shard in self._shards if mask[shard.rows].any()]
        for shard in involved:
            shard.ask("reset", mask[shard.rows], None if seeds is None else seeds[shard.rows])
        try:
            if mask[self._own].any():
                own_seeds = None if seeds is None else seeds[self._own]
                self._observation[self._own] = self._here.reset(mask[self._own], own_seeds)
        finally:
            for shard in involved:
                self._observation[shard.rows] = shard.answer()
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `NavigationSimulator.step`."""
        self._steps.actions[:] = require_actions(actions, (self.num_envs, len(self.action_low)))
        for shard in self._shards:
            shard.ask_for_step()
        try:
            self._steps.write(self._own, self._here.step(actions[self._own]), self._here)
        finally:
            for shard in self._shards:
                shard.answer()
        self._stepped = True
        step = self._steps.read()
        self._observation[:] = step.observation
        return step

    def top_view(self) -> TopView:
        """Where the agent and every group of objects are now."""
        views = self._everywhere("top_view")
        positions = {kind: np.concatenate([view.positions[kind] for view in views]) for kind in views[0].positions}
        return TopView(positions=positions, radii=views[0].radii)

    def agent_position(self) -> np.ndarray:
        """Of the agents now, in the task's own plane. Shape: (E, 2), metres."""
        return self._steps.position.copy() if self._stepped else np.concatenate(self._everywhere("agent_position"))

    def agent_velocity(self) -> np.ndarray:
        """Of the agents now, along the axes of the plane. Shape: (E, 2), metres per second."""
        return self._steps.velocity.copy() if self._stepped else np.concatenate(self._everywhere("agent_velocity"))

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`; that of a simulator in one process."""
        state: dict[str, Any] = _joined(self._everywhere("state_dict"))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`."""
        for shard in self._shards:
            shard.ask("load_state_dict", _share(state, shard.rows))
        try:
            self._here.load_state_dict(_share(state, self._own))
        finally:
            for shard in self._shards:
                shard.answer()
        self._observation, self._stepped = state["observation"].copy(), False

    def close(self) -> None:
        """End the processes."""
        for shard in self._shards:
            shard.close()

    def _everywhere(self, method: str) -> list[Any]:
        for shard in self._shards:
            shard.ask(method)
        try:
            own = getattr(self._here, method)()
        finally:
            answers = [shard.answer() for shard in self._shards]
        return [own, *answers]

    def _describe(self, sim: NavigationSimulator) -> None:
        self.max_episode_steps, self.cost_keys = sim.max_episode_steps, sim.cost_keys
        self.observation_layout, self.observation_size = sim.observation_layout, sim.observation_size
        self.action_low, self.action_high = sim.action_low, sim.action_high


def _joined(states: Sequence[Any]) -> Any:
    """States of shards as the state of all: nested dicts of arrays and lists with an entry an environment."""
    first = states[0]
    if isinstance(first, dict):
        return {key: _joined([state[key] for state in states]) for key in first}
    return np.concatenate(states) if isinstance(first, np.ndarray) else [entry for state in states for entry in state]


def _share(state: Any, rows: slice) -> Any:
    """A shard's part of the state of all."""
    return {key: _share(value, rows) for key, value in state.items()} if isinstance(state, dict) else state[rows]
