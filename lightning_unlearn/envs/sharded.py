"""One simulator whose environments are shared out among processes. Shapes: E environments, A action size.

Processes, not threads: what Python and numpy do between two steps of the physics holds the interpreter lock. Each
process acts for its own environments and is asked once a rollout. Results do not depend on the number of processes.
"""

import os
import pickle
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from lightning_unlearn.envs.rollout import Actor, RolloutBuffer, cost_columns, open_memory, roll_out
from lightning_unlearn.envs.shard_process import Shard
from lightning_unlearn.envs.simulator import Simulator, Step, TopView, require_actions, require_mask, require_seeds

Factory = Callable[[int], Simulator]
"""Makes a simulator of so many environments; can be pickled."""


def is_portable(make: Factory) -> bool:
    """Whether other processes can make these environments: nothing of `make` is of the program's own main file."""
    try:
        return b"__main__" not in pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError):  # a lambda, a class inside of a function, an open file
        return False


class ShardedSimulator:
    """E copies of one task, the first of them in this process; see `Simulator` for the contract.

    Args:
        make: Makes the environments of each process.
        num_envs: E.
        workers: Processes, this one among them; at most E.

    Raises:
        ValueError: What `make` raises.
    """

    def __init__(self, make: Factory, num_envs: int, workers: int) -> None:
        self.num_envs = num_envs
        bounds = [num_envs * worker // workers for worker in range(workers + 1)]
        self._own = slice(bounds[0], bounds[1])
        self._memory = open_memory()
        self._free = weakref.finalize(self, os.close, self._memory)
        others = [slice(*pair) for pair in pairwise(bounds[1:])]
        self._shards = [
            Shard(make, rows, num_envs, self._memory) for rows in others
        ]  # they start while this one builds
        try:
            self._here = make(bounds[1])
            self._describe(self._here)
            for shard in self._shards:
                shard.answer()
            self.rollout_buffer(0)
        except BaseException:
            self.close()
            raise
        self._pools = ThreadpoolController()  # it looks through all loaded libraries, which takes 8 ms
        self._observation = np.zeros((num_envs, self.observation_size))
        self._stepped = False  # since the last reset

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """See `Simulator.reset`."""
        mask = require_mask(np.ones(self.num_envs, dtype=bool) if mask is None else mask, self.num_envs)
        seeds = None if seeds is None else require_seeds(seeds, self.num_envs)
        self._stepped = False
        involved = [shard for shard in self._shards if mask[shard.rows].any()]
        for shard in involved:
            shard.ask("reset", mask[shard.rows], None if seeds is None else seeds[shard.rows])

        def reset_own() -> None:
            if mask[self._own].any():
                own_seeds = None if seeds is None else seeds[self._own]
                self._observation[self._own] = self._here.reset(mask[self._own], own_seeds)

        _, answers = self._meanwhile(reset_own, involved)
        for shard, observation in zip(involved, answers, strict=True):
            self._observation[shard.rows] = observation
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `Simulator.step`."""
        self._shared.action[-1] = require_actions(actions, (self.num_envs, len(self.action_low)))
        for shard in self._shards:
            shard.ask_for_step()
        own = self._shared.rows(self._own)
        self._meanwhile(lambda: own.write(-1, self._here.step(own.action[-1]), self._here), self._shards)
        self._stepped = True
        self._align_costs()
        step = self._shared.step(-1, self)
        self._observation[:] = step.observation
        return step

    def rollout_buffer(self, horizon: int) -> RolloutBuffer:
        """See `Simulator.rollout_buffer`; its memory is shared with the processes."""
        self._shared = RolloutBuffer.allocate(self, horizon + 1, self._memory)  # the last row is for single steps
        for shard in self._shards:
            shard.ask("share", horizon + 1)
        self._meanwhile(lambda: None, self._shards)
        return self._shared.first(horizon)

    def roll_out(self, actor: Actor, buffer: RolloutBuffer, hold: int = 1) -> None:
        """See `Simulator.roll_out`."""
        self._stepped = False
        if not actor.portable:
            roll_out(self, actor, buffer, hold)
            return
        for shard in self._shards:
            shard.ask("roll_out", actor, buffer.horizon, hold)
        with self._pools.limit(limits=1, user_api="blas"):  # as in the other processes
            self._meanwhile(lambda: roll_out(self._here, actor, buffer.rows(self._own), hold), self._shards)
        self._align_costs()
        self._observation[:] = buffer.current[0]

    def last_failure(self) -> str:
        """See `Simulator.last_failure`; of the first process that has one."""
        return next(filter(None, self._everywhere("last_failure")), "")

    def top_view(self) -> TopView:
        """Where the agent and every group of objects are now."""
        views = self._everywhere("top_view")
        positions = {kind: np.concatenate([view.positions[kind] for view in views]) for kind in views[0].positions}
        return TopView(positions=positions, radii=views[0].radii)

    def agent_position(self) -> np.ndarray:
        """Of the agents now, in the task's own plane. Shape: (E, 2), metres."""
        return self._in_plane("agent_position", self._shared.position)

    def agent_velocity(self) -> np.ndarray:
        """Of the agents now, along the axes of the plane. Shape: (E, 2), metres per second."""
        return self._in_plane("agent_velocity", self._shared.velocity)

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`; that of a simulator in one process."""
        state: dict[str, Any] = _joined(self._everywhere("state_dict"))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`."""
        for shard in self._shards:
            shard.ask("load_state_dict", _share(state, shard.rows))
        self._meanwhile(lambda: self._here.load_state_dict(_share(state, self._own)), self._shards)
        self._observation, self._stepped = state["observation"].copy(), False

    def close(self) -> None:
        """End the processes."""
        for shard in self._shards:
            shard.close()
        self._free()

    def _everywhere(self, method: str) -> list[Any]:
        for shard in self._shards:
            shard.ask(method)
        own, answers = self._meanwhile(getattr(self._here, method), self._shards)
        return [own, *answers]

    def _meanwhile(self, own: Callable[[], Any], shards: Sequence[Shard]) -> tuple[Any, list[Any]]:
        """Do this process's part, and wait for the answers of others that were asked; the first error is raised."""
        errors: list[Exception] = []
        answers: list[Any] = []
        for work in (own, *(shard.answer for shard in shards)):
            try:
                answers.append(work())
            except Exception as error:  # the others answer all the same
                errors.append(error)
        if errors:
            raise errors[0]
        return answers[0], answers[1:]

    def _align_costs(self) -> None:
        """Give each cost one column: processes meet the costs that appear late in orders of their own."""
        if not self.late_costs:
            return
        parts = [self._own, *(shard.rows for shard in self._shards)]
        orders = [cost_columns(keys) for keys in self._everywhere("reported_costs")]
        whole, *others = dict.fromkeys(key for order in orders for key in order)
        self.cost_keys = (*others, whole)
        columns = (whole, *others)
        for rows, order in zip(parts, orders, strict=True):
            if order != columns[: len(order)]:
                costs = self._shared.costs[:, rows]
                moved = costs.copy()
                costs[:] = 0.0
                for place, key in enumerate(order):
                    costs[..., columns.index(key)] = moved[..., place]

    def _in_plane(self, method: str, after_step: np.ndarray) -> np.ndarray:
        if not self.in_plane:
            return self._here.agent_position()  # which says that there is none
        return after_step[-1].copy() if self._stepped else np.concatenate(self._everywhere(method))

    def _describe(self, sim: Simulator) -> None:
        self.env_id, self.in_plane, self.late_costs = sim.env_id, sim.in_plane, sim.late_costs
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
