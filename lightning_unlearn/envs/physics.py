"""MuJoCo for E copies of one task: stepping on several threads, and what it computed gathered into batch arrays.

Shapes: E environments, B bodies, S sensor values, G geoms.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask, ResamplingError
from lightning_unlearn.envs.world import Blueprint, reset_world

_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
_DIVERGED = [int(getattr(mujoco.mjtWarning, f"mjWARN_BADQ{part}")) for part in ("POS", "VEL", "ACC")]


@dataclass(slots=True)
class Snapshot:
    """The state of all environments that observations, rewards and costs are computed from."""

    positions: np.ndarray
    """Of every body. Shape: (E, B, 3), metres."""
    rotation: np.ndarray
    """Of the agent. Shape: (E, 3, 3)."""
    sensors: np.ndarray
    """Shape: (E, S)."""
    qpos: np.ndarray
    """Generalised positions. Shape: (E, nq)."""
    qvel: np.ndarray
    """Generalised velocities. Shape: (E, nv)."""
    touched: np.ndarray
    """Which geoms the agent is in contact with. Shape: (E, G), bool."""
    diverged: np.ndarray
    """MuJoCo gave up on the state. Shape: (E,), bool."""

    @classmethod
    def of(cls, num_envs: int, model: mujoco.MjModel) -> "Snapshot":
        """An empty one for a model's sizes."""
        return cls(
            positions=np.zeros((num_envs, model.nbody, 3)),
            rotation=np.zeros((num_envs, 3, 3)),
            sensors=np.zeros((num_envs, model.nsensordata)),
            qpos=np.zeros((num_envs, model.nq)),
            qvel=np.zeros((num_envs, model.nv)),
            touched=np.zeros((num_envs, model.ngeom), dtype=bool),
            diverged=np.zeros(num_envs, dtype=bool),
        )

    def finite(self) -> np.ndarray:
        """Which environments hold finite numbers only. Shape: (E,), bool."""
        parts = (self.positions.reshape(len(self.qpos), -1), self.sensors, self.qpos, self.qvel)
        return np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in parts])

    def clear(self, rows: np.ndarray) -> None:
        """Zero the numbers of environments that hold none. Shape: (E,), bool."""
        for part in (self.positions, self.rotation, self.sensors, self.qpos, self.qvel):
            part[rows] = 0.0


@dataclass(slots=True)
class _Views:
    """Arrays inside one MjModel and MjData; they stay valid because a world is never recompiled."""

    model: mujoco.MjModel
    data: mujoco.MjData
    agent: int
    agent_geoms: np.ndarray
    control: np.ndarray = field(init=False)
    positions: np.ndarray = field(init=False)
    rotation: np.ndarray = field(init=False)
    sensors: np.ndarray = field(init=False)
    qpos: np.ndarray = field(init=False)
    qvel: np.ndarray = field(init=False)
    warnings: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        data = self.data
        self.control, self.sensors, self.qpos, self.qvel = data.ctrl, data.sensordata, data.qpos, data.qvel
        self.positions, self.rotation = data.xpos, data.xmat[self.agent].reshape(3, 3)
        self.warnings = data.warning.number


def lay_out(task: BaseTask, blueprint: Blueprint) -> dict[str, float]:
    """Draw and build a new layout in the order of `Builder.reset`, and return its costs, before they are indicators."""
    reset_world(task, blueprint)
    task.update_world()
    task.specific_reset()
    task.agent.reset()
    return task.calculate_cost()


class Scene:
    """One environment's task and physics, in the order of operations of safety_gymnasium's `Builder`."""

    def __init__(self, task: BaseTask, blueprint: Blueprint, row: int, snapshot: Snapshot) -> None:
        self.task, self.row = task, row
        self._blueprint, self._snapshot = blueprint, snapshot
        self._frames = task.sim_conf.frameskip_binom_n
        self._undrawn = 0
        self._views: _Views | None = None

    @property
    def seeded(self) -> bool:
        """Whether the environment's random stream has been started."""
        return self.task.random_generator.random_generator is not None

    def reset(self, seed: int | None) -> None:
        """Lay out a new episode, as `Builder.reset(seed=seed)`.

        Raises:
            RuntimeError: the new layout starts inside a cost.
        """
        self._catch_up()
        if seed is not None:
            self.task.random_generator.set_random_seed(seed)
        cost = lay_out(self.task, self._blueprint)
        if cost["cost_sum"] > 0.0:
            raise RuntimeError(f"the layout starts with a cost: {cost}")
        views = self._bind()
        mujoco.mj_forward(views.model, views.data)
        self.gather()

    def step(self, control: np.ndarray) -> None:
        """Advance by one environment step under a clipped action. Shape: (A,)."""
        views = self._bind()
        views.control[:] = control
        self._undrawn += 1
        try:
            self._integrate(views)
            # The original runs mj_forward after the simulation, for the cost, and for the observation (or for the
            # layout when a goal was met). The state is the same, so the later ones need only their last stages:
            # those move the solver's warm start, which the next contacts depend on.
            mujoco.mj_forward(views.model, views.data)
            mujoco.mj_forwardSkip(views.model, views.data, _VELOCITY_STAGE, 1)
            mujoco.mj_forwardSkip(views.model, views.data, _VELOCITY_STAGE, 0)
            self.gather()
        except mujoco.FatalError:
            self._snapshot.diverged[self.row] = True

    def next_goal(self) -> bool:
        """Place the next goal after one was met; False when there is no room for it, which ends the episode."""
        self._catch_up()
        views, layout = self._bind(), self.task.world_info.layout
        for name in layout:
            if "gremlin" not in name:
                layout[name] = views.data.body(name).xpos[:2].copy()
        try:
            self.task.update_world()
            placed = True
        except ResamplingError:
            placed = False
        mujoco.mj_forwardSkip(views.model, views.data, _VELOCITY_STAGE, 0)
        self.gather()
        return placed

    def gather(self) -> None:
        """Copy what MuJoCo computed into this environment's row of the snapshot."""
        views, row, snapshot = self._bind(), self.row, self._snapshot
        snapshot.positions[row] = views.positions
        snapshot.rotation[row] = views.rotation
        snapshot.sensors[row] = views.sensors
        snapshot.qpos[row] = views.qpos
        snapshot.qvel[row] = views.qvel
        snapshot.diverged[row] = views.warnings[_DIVERGED].any()
        touched = snapshot.touched[row]
        touched[:] = False
        pairs = views.data.contact.geom  # (contacts, 2)
        touched[pairs[views.agent_geoms[pairs][:, ::-1]]] = True

    def _integrate(self, views: _Views) -> None:
        mocaps = self.task._mocaps.values()
        if not mocaps:
            mujoco.mj_step(views.model, views.data, self._frames)
            return
        for _ in range(self._frames):
            for mocap in mocaps:
                mocap.move()
            mujoco.mj_step(views.model, views.data)

    def _catch_up(self) -> None:
        """Take the draws that the original takes for each step's (constant) number of frames."""
        if self._undrawn:
            # `binomial(n, 1.0)` takes one uniform of the stream.
            self.task.random_generator.random_generator.random_sample(self._undrawn)
            self._undrawn = 0

    def _bind(self) -> _Views:
        if self._views is None:
            model, names = self.task.model, self.task.agent.body_info.geom_names
            geoms = np.array([model.geom(index).name in names for index in range(model.ngeom)])
            self._views = _Views(model, self.task.data, model.body("agent").id, geoms)
        return self._views


class Workers:
    """Runs one function for every environment, on this thread and `count − 1` others.

    MuJoCo releases the interpreter lock, so the threads step at the same time. Who steps which environment is left to
    chance, and has no influence on the result.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        self._helpers = count - 1
        self._executor = ThreadPoolExecutor(self._helpers, "physics") if self._helpers else None

    def each(self, function: Callable[[int], None], count: int) -> None:
        """Call `function` with 0 … count − 1; an exception of any call is raised here, after all threads stopped."""
        rows = iter(range(count))  # `next` on it is atomic
        futures = (
            [self._executor.submit(_drain, rows, function) for _ in range(self._helpers)] if self._executor else []
        )
        try:
            _drain(rows, function)
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown()


def _drain(rows: Iterator[int], function: Callable[[int], None]) -> None:
    for row in rows:
        function(row)
