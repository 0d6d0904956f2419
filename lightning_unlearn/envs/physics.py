"""MuJoCo for E copies of one task: its steps, its state to save and restore, and its results as batch arrays.

Shapes: E environments, B bodies, S sensor values, G geoms.
"""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask, ResamplingError
from lightning_unlearn.envs.layouts import ModelTemplate, lay_out

_VELOCITY_STAGE = int(mujoco.mjtStage.mjSTAGE_VEL)
_DIVERGED = [int(getattr(mujoco.mjtWarning, f"mjWARN_BADQ{part}")) for part in ("POS", "VEL", "ACC")]
_POSED = (
    "actuator_acc0",
    "body_invweight0",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "cam_mat0",
    "cam_pos0",
    "cam_poscom0",
    "dof_M0",
    "dof_invweight0",
    "eq_data",
    "geom_pos",
    "geom_quat",
    "geom_rgba",
    "light_poscom0",
    "qpos0",
    "qpos_spring",
)
"""The arrays of a model in which two layouts of one task, or two steps, differ; a test compares all others."""
_STATISTICS = ("center", "extent", "meaninertia", "meanmass", "meansize")
_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def distance_xy(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance in the plane, metres. Shape: (..., 2 or 3) → (...)."""
    return _length(first[..., :2] - second[..., :2])


def _length(vectors: np.ndarray) -> np.ndarray:
    """Shape: (..., 2) → (...)."""
    squares = np.square(vectors)
    return np.sqrt(squares[..., 0] + squares[..., 1])


class Snapshot:
    """The state of all environments that observations, rewards and costs are computed from.

    All of it but the contacts lies in one array of a row an environment: reading E simulations is one copy.
    """

    positions: np.ndarray
    """Position of every body. Shape: (E, B, 3), metres."""
    offset: np.ndarray
    """From the agent to every body, in the plane. Shape: (E, B, 2), metres."""
    distance: np.ndarray
    """Length of the offset. Shape: (E, B), metres."""
    rotation: np.ndarray
    """The agent's frame in world coordinates, one axis a column. Shape: (E, 3, 3)."""
    sensors: np.ndarray
    """Sensor values. Shape: (E, S)."""
    qvel: np.ndarray
    """Generalised velocities. Shape: (E, nv)."""

    def __init__(self, num_envs: int, model: mujoco.MjModel) -> None:
        # The columns are in the order of `_Views.numbers`.
        sizes = (3 * model.nbody, 9, model.nsensordata, model.nv, model.nq, len(_DIVERGED))
        self._numbers = np.zeros((num_envs, sum(sizes)))
        parts = np.split(self._numbers, np.cumsum(sizes)[:-1], axis=1)  # views
        positions, rotation, self.sensors, self.qvel, *_ = parts
        # Numbers are to be finite, and warnings none. (As large as the numbers, which numpy compares much faster.)
        self._limits = np.tile(np.repeat((np.inf, 1.0), (sum(sizes[:-1]), sizes[-1])), (num_envs, 1))
        self.positions = positions.reshape(num_envs, -1, 3)
        self.rotation = rotation.reshape(num_envs, 3, 3)
        xy = np.arange(sizes[0]).reshape(-1, 3)[:, :2]
        self._bodies_xy, self._agent_xy = xy.reshape(-1), np.tile(xy[model.body("agent").id], model.nbody)  # columns
        self._views: list[_Views] = []
        self._touched: np.ndarray | None = None

    def read(self, scenes: Sequence["Scene"]) -> np.ndarray:
        """Copy what MuJoCo computed for every environment; all of them must have been reset.

        Returns:
            True where MuJoCo gave up, or left numbers that are not finite; those are zeros here. Shape: (E,), bool.
        """
        if not self._views:
            self._views = [scene.bind() for scene in scenes]
            self._sources = [numbers for views in self._views for numbers in views.numbers]
        np.concatenate(self._sources, out=self._numbers.reshape(-1))
        self._touched = None
        sound = np.abs(self._numbers) < self._limits
        failed = np.zeros(len(sound), dtype=bool)
        if np.count_nonzero(sound) != sound.size:  # hardly ever
            failed = ~np.logical_and.reduce(sound, axis=1)
            self._numbers[failed] = 0.0
        offset = self._numbers.take(self._bodies_xy, axis=1) - self._numbers.take(self._agent_xy, axis=1)
        self.offset = offset.reshape(len(offset), -1, 2)
        self.distance = _length(self.offset)
        return failed

    @property
    def touched(self) -> np.ndarray:
        """True for the geoms that the agent touches. Shape: (E, G), bool."""
        if self._touched is None:  # most tasks never ask
            self._touched = np.stack([views.touched() for views in self._views])
        return self._touched


class _Views:
    """Arrays inside one MjModel and MjData; they stay valid because a world is never recompiled."""

    def __init__(self, task: BaseTask) -> None:
        model, data = self.model, self.data = task.model, task.data
        agent, names = model.body("agent").id, task.agent.body_info.geom_names
        self._agent_geoms = np.array([model.geom(index).name in names for index in range(model.ngeom)])
        self.control, self.qpos, self.option = data.ctrl, data.qpos, model.opt
        self.numbers = (
            data.xpos.reshape(-1),
            data.xmat[agent],
            data.sensordata,
            data.qvel,
            data.qpos,
            data.warning.number[_DIVERGED[0] : _DIVERGED[-1] + 1],
        )
        self.divisible = model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4  # into mj_step1 and mj_step2
        self.sensed = int(model.opt.disableflags)
        self.unsensed = self.sensed | int(mujoco.mjtDisableBit.mjDSBL_SENSOR)

    def touched(self) -> np.ndarray:
        """True for the geoms that the agent touches. Shape: (G,), bool."""
        touched = np.zeros(len(self._agent_geoms), dtype=bool)
        pairs = self.data.contact.geom  # (contacts, 2)
        touched[pairs[self._agent_geoms[pairs][:, ::-1]]] = True
        return touched


class Scene:
    """One environment's task and physics, in the order of operations of safety_gymnasium's `Builder`."""

    def __init__(self, task: BaseTask, template: ModelTemplate) -> None:
        self.task = task
        self._template = template
        self._frames = task.sim_conf.frameskip_binom_n
        self._undrawn = 0
        self._views: _Views | None = None

    @property
    def seeded(self) -> bool:
        """True if the environment's random stream has been started."""
        return self.task.random_generator.random_generator is not None

    def reset(self, seed: int | None) -> None:
        """Lay out a new episode, as `Builder.reset(seed=seed)`.

        Raises:
            RuntimeError: The new layout starts inside a cost.
        """
        self._catch_up()
        if seed is not None:
            self.task.random_generator.set_random_seed(seed)
        cost = lay_out(self.task, self._template)
        if cost["cost_sum"] > 0.0:
            raise RuntimeError(f"the layout starts with a cost: {cost}")
        mujoco.mj_forward(self.task.model, self.task.data)

    def step(self, control: np.ndarray) -> None:
        """Advance by one environment step under a clipped action. Shape: (A,)."""
        views = self.bind()
        model, data = views.model, views.data
        views.control[:] = control
        self._undrawn += 1
        try:
            self._integrate(views)
            # The original runs mj_forward after the simulation, for the cost, and for the observation (or for the
            # layout when a goal was met). The state is the same, so the later ones need only their last stages:
            # those move the solver's warm start, which the next contacts depend on.
            mujoco.mj_forward(model, data)
            mujoco.mj_forwardSkip(model, data, _VELOCITY_STAGE, 1)
            mujoco.mj_forwardSkip(model, data, _VELOCITY_STAGE, 0)
        except mujoco.FatalError:
            views.qpos[:] = np.nan  # whatever it left

    def next_goal(self) -> bool:
        """Place the next goal after one was met; False when there is no room for it, which ends the episode."""
        self._catch_up()
        views, layout = self.bind(), self.task.world_info.layout
        for name in layout:
            if "gremlin" not in name:
                layout[name] = views.data.body(name).xpos[:2].copy()
        try:
            self.task.update_world()
            placed = True
        except ResamplingError:
            placed = False
        mujoco.mj_forwardSkip(views.model, views.data, _VELOCITY_STAGE, 0)
        return placed

    def state_dict(self) -> dict[str, Any]:
        """Layout (as the compiled model holds it), physics (solver's warm start included) and random stream."""
        views, task = self.bind(), self.task
        physics = np.empty(mujoco.mj_stateSize(views.model, _INTEGRATION))
        mujoco.mj_getState(views.model, views.data, physics, _INTEGRATION)
        kind, words, *rest = task.random_generator.random_generator.get_state(legacy=True)
        return {
            "world": {
                "model": {name: getattr(views.model, name).copy() for name in _POSED},
                "statistics": {name: np.array(getattr(views.model.stat, name)) for name in _STATISTICS},
                "physics": physics,
            },
            "layout": dict(task.world_info.layout),
            "stream": {"kind": kind, "words": np.asarray(words, dtype=np.int64), "rest": rest},  # no uint32 in tensors
            "undrawn": self._undrawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned: the next step computes the same bits as it would have there."""
        if not self.seeded:
            self.reset(seed=0)  # a task gets its world with its first layout
        views, task, world, stream = self.bind(), self.task, state["world"], state["stream"]
        for name, values in world["model"].items():
            getattr(views.model, name)[...] = values
        for name, values in world["statistics"].items():
            setattr(views.model.stat, name, values)
        mujoco.mj_resetData(views.model, views.data)
        mujoco.mj_setState(views.model, views.data, world["physics"], _INTEGRATION)
        # The forward pass derives everything else, and moves the warm start, so the state is set again.
        mujoco.mj_forward(views.model, views.data)
        mujoco.mj_setState(views.model, views.data, world["physics"], _INTEGRATION)
        layout = task.world_info.layout  # the random generator holds the same object
        layout.clear()
        layout.update(state["layout"])
        generator = task.random_generator.random_generator
        generator.set_state((stream["kind"], stream["words"].astype(np.uint32), *stream["rest"]))
        self._undrawn = state["undrawn"]

    def bind(self) -> _Views:
        """Return the arrays of this environment's simulation.

        Raises:
            RuntimeError: There is none before the first reset.
        """
        if self._views is None:
            if self.task.world is None:
                raise RuntimeError("an environment was never reset: reset all of them first")
            self._views = _Views(self.task)
        return self._views

    def _integrate(self, views: _Views) -> None:
        model, data, frames = views.model, views.data, self._frames
        views.option.disableflags = views.unsensed  # nothing reads a sensor between the frames
        try:
            if mocaps := self.task._mocaps:
                for _ in range(frames):
                    for mocap in mocaps.values():
                        mocap.move()
                    mujoco.mj_step(model, data)
                return
            if views.divisible:
                # The results of the first frame's `mj_step1` stand: the last step, or the reset, ended in mj_forward.
                mujoco.mj_step2(model, data)
                frames -= 1
            mujoco.mj_step(model, data, frames)
        finally:
            views.option.disableflags = views.sensed

    def _catch_up(self) -> None:
        """Take the draws that the original takes for each step's (constant) number of frames."""
        if self._undrawn:
            # `binomial(n, 1.0)` takes one uniform of the stream.
            self.task.random_generator.random_generator.random_sample(self._undrawn)
            self._undrawn = 0
