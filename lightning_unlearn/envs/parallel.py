"""One simulator whose environments are stepped by several processes. Shapes: E environments, A action size.

Processes, not threads: Python and numpy hold the interpreter lock between two steps of the physics. Each process runs
the policy for its own environments and gets one message a rollout. Results do not depend on the number of processes.
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
from lightning_unlearn.envs.simulator import Simulator, Step, TopView, require_actions, require_mask, require_seeds
from lightning_unlearn.envs.worker_process import WorkerProcess

Factory = Callable[[int], Simulator]
"""Makes a simulator of a given number of environments; can be pickled."""


def is_portable(make: Factory) -> bool:
    """Return True if other processes can make these environments: nothing of `make` lies in the program's main file."""
    try:
        return b"__main__" not in pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError):  # a lambda, a class inside of a function, an open file
        return False


class ParallelSimulator:
    """E copies of one task, the first of them in this process; see `Simulator` for the contract.

    Args:
        make: Makes the environments of each process.
        num_envs: E.
        workers: Number of processes, this one included; at most E.

    Raises:
        ValueError: Raised by `make`.
    """

    def __init__(self, make: Factory, num_envs: int, workers: int) -> None:
        self.num_envs = num_envs
        bounds = [num_envs * worker // workers for worker in range(workers + 1)]
        self._own = slice(bounds[0], bounds[1])
        self._memory = open_memory()
        self._free = weakref.finalize(self, os.close, self._memory)
        others = [slice(*pair) for pair in pairwise(bounds[1:])]
        # They start while this process builds its own environments.
        self._workers = [WorkerProcess(make, rows, num_envs, self._memory) for rows in others]
        try:
            self._here = sim = make(bounds[1])
            self.env_id, self.in_plane, self.late_costs = sim.env_id, sim.in_plane, sim.late_costs
            self.max_episode_steps, self.cost_keys = sim.max_episode_steps, sim.cost_keys
            self.observation_layout, self.observation_size = sim.observation_layout, sim.observation_size
            self.action_low, self.action_high = sim.action_low, sim.action_high
            for worker in self._workers:
                worker.answer()
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
        involved = [worker for worker in self._workers if mask[worker.rows].any()]
        for worker in involved:
            worker.ask("reset", mask[worker.rows], None if seeds is None else seeds[worker.rows])

        def reset_own() -> None:
            if mask[self._own].any():
                own_seeds = None if seeds is None else seeds[self._own]
                self._observation[self._own] = self._here.reset(mask[self._own], own_seeds)

        _, answers = self._in_parallel(reset_own, involved)
        for worker, observation in zip(involved, answers, strict=True):
            self._observation[worker.rows] = observation
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `Simulator.step`."""
        self._shared.action[-1] = require_actions(actions, (self.num_envs, len(self.action_low)))
        for worker in self._workers:
            worker.ask_for_step()
        own = self._shared.rows(self._own)
        self._in_parallel(lambda: own.write(-1, self._here.step(own.action[-1]), self._here), self._workers)
        self._stepped = True
        self._align_costs()
        step = self._shared.step(-1, self)
        self._observation[:] = step.observation
        return step

    def rollout_buffer(self, horizon: int) -> RolloutBuffer:
        """See `Simulator.rollout_buffer`; its memory is shared with the worker processes."""
        self._shared = RolloutBuffer.allocate(self, horizon + 1, self._memory)  # one row more, which `step` writes
        for worker in self._workers:
            worker.ask("share", horizon + 1)
        self._in_parallel(lambda: None, self._workers)
        return self._shared.first(horizon)

    def roll_out(self, actor: Actor, buffer: RolloutBuffer, action_repeat: int = 1) -> None:
        """See `Simulator.roll_out`."""
        self._stepped = False
        if not actor.portable:
            roll_out(self, actor, buffer, action_repeat)
            return
        for worker in self._workers:
            worker.ask("roll_out", actor, buffer.horizon, action_repeat)
        with self._pools.limit(limits=1, user_api="blas"):  # as in the other processes
            self._in_parallel(lambda: roll_out(self._here, actor, buffer.rows(self._own), action_repeat), self._workers)
        self._align_costs()
        self._observation[:] = buffer.current[0]

    def last_failure(self) -> str:
        """See `Simulator.last_failure`; taken from the first process that has one."""
        return next(filter(None, self._call_all("last_failure")), "")

    def top_view(self) -> TopView:
        """See `Simulator.top_view`."""
        views = self._call_all("top_view")
        positions = {kind: np.concatenate([view.positions[kind] for view in views]) for kind in views[0].positions}
        return TopView(positions=positions, radii=views[0].radii)

    def agent_position(self) -> np.ndarray:
        """See `Simulator.agent_position`."""
        return self._in_plane("agent_position", self._shared.position)

    def agent_velocity(self) -> np.ndarray:
        """See `Simulator.agent_velocity`."""
        return self._in_plane("agent_velocity", self._shared.velocity)

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`; the same as of a simulator in one process."""
        state: dict[str, Any] = _join(self._call_all("state_dict"))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`."""
        for worker in self._workers:
            worker.ask("load_state_dict", _rows_of(state, worker.rows))
        self._in_parallel(lambda: self._here.load_state_dict(_rows_of(state, self._own)), self._workers)
        self._observation, self._stepped = state["observation"].copy(), False

    def close(self) -> None:
        """End the worker processes."""
        for worker in self._workers:
            worker.close()
        self._free()

    def _call_all(self, method: str) -> list[Any]:
        for worker in self._workers:
            worker.ask(method)
        own, answers = self._in_parallel(getattr(self._here, method), self._workers)
        return [own, *answers]

    def _in_parallel(self, own: Callable[[], Any], workers: Sequence[WorkerProcess]) -> tuple[Any, list[Any]]:
        """Do this process's part and wait for the workers' answers.

        Args:
            own: This process's part.
            workers: Those with a call under way.

        Returns:
            This process's result and the workers'. The first error is raised, after all have answered.
        """
        errors: list[Exception] = []
        answers: list[Any] = []
        for work in (own, *(worker.answer for worker in workers)):
            try:
                answers.append(work())
            except Exception as error:  # the others' answers have to be read all the same
                errors.append(error)
        if errors:
            raise errors[0]
        return answers[0], answers[1:]

    def _align_costs(self) -> None:
        """Give each cost one column: costs that appear late appear in another order in each process."""
        if not self.late_costs:
            return
        parts = [self._own, *(worker.rows for worker in self._workers)]
        orders = [cost_columns(keys) for keys in self._call_all("reported_costs")]
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
            return self._here.agent_position()  # raises the error
        return after_step[-1].copy() if self._stepped else np.concatenate(self._call_all(method))


def _join(states: Sequence[Any]) -> Any:
    """Join the processes' states: nested dicts of arrays and lists with an entry an environment."""
    first = states[0]
    if isinstance(first, dict):
        return {key: _join([state[key] for state in states]) for key in first}
    return np.concatenate(states) if isinstance(first, np.ndarray) else [entry for state in states for entry in state]


def _rows_of(state: Any, rows: slice) -> Any:
    """One process's rows of the joined state."""
    return {key: _rows_of(value, rows) for key, value in state.items()} if isinstance(state, dict) else state[rows]
