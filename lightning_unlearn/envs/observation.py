"""Observations of E environments at once: which sensor goes where is looked up once, then it is array arithmetic.

Source: `BaseTask.obs` and `BaseAgent.obs_sensor` of safety_gymnasium 1.0.0. Shapes: E environments, O observation size.
"""

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask
from lightning_unlearn.envs.lidar import PseudoLidar, compass, ego_xy
from lightning_unlearn.envs.physics import Snapshot


def observation_slices(task: BaseTask) -> dict[str, slice]:
    """Name of each part of a task's flat observation → its slice."""
    layout, start = {}, 0
    for name, space in task.obs_info.obs_space_dict.spaces.items():
        size = int(np.prod(space.shape))
        layout[name] = slice(start, start + size)
        start += size
    return layout


def object_bodies(model: mujoco.MjModel, name: str) -> np.ndarray:
    """Ids of the bodies of a group of objects ("hazards" → hazard0, hazard1, …; "goal" → goal). Shape: (n,)."""
    stem = name[:-1]  # of "gremlins", the moving object counts, not what drags it
    names = [model.body(index).name for index in range(model.nbody)]
    members = [k for k, body in enumerate(names) if body.removesuffix("obj").rstrip("0123456789") == stem]
    return np.array([names.index(name)] if name in names else members, dtype=np.intp)


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions (w, x, y, z), not normalised first, as MuJoCo's `mju_quat2Mat`. Shape: (E, 4) → (E, 9)."""
    w, x, y, z = quaternions.T
    first = [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)]
    second = [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)]
    third = [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z]
    return np.stack(first + second + third, axis=-1)


class Proprioception:
    """The agent's own sensors: most are copied, hinges become (sin, cos), ball joints rotation matrices."""

    def __init__(self, task: BaseTask, model: mujoco.MjModel, layout: dict[str, slice]) -> None:
        info = task.agent.sensor_info
        self._hinges = np.array([_values(model, name).start for name in info.hinge_pos_names], dtype=np.intp)
        self._balls = [(layout[name], _values(model, name)) for name in info.ballquat_names]
        special = {*info.hinge_pos_names, *info.ballquat_names}
        copied = [name for name in task.agent.build_sensor_observation_space() if name not in special]
        # An observation begins with them. Of the free joint's position only the height is observed: the last value.
        self._copied = np.concatenate([np.r_[_values(model, name)][-_size(layout[name]) :] for name in copied])

    def write(self, snapshot: Snapshot, observation: np.ndarray) -> None:
        """Fill the agent's part of the observation. Shape: (E, O)."""
        sensors, copied, hinges = snapshot.sensors, len(self._copied), len(self._hinges)
        observation[:, :copied] = sensors.take(self._copied, axis=1)
        if hinges:
            angles = sensors.take(self._hinges, axis=1)
            pairs = observation[:, copied : copied + 2 * hinges].reshape(-1, hinges, 2)
            pairs[..., 0], pairs[..., 1] = np.sin(angles), np.cos(angles)
        for place, values in self._balls:
            observation[:, place] = rotation_matrices(sensors[:, values])


class Exteroception:
    """Lidar and compass readings of every group of objects that the task observes."""

    def __init__(self, task: BaseTask, model: mujoco.MjModel, layout: dict[str, slice], num_envs: int) -> None:
        self._agent, self._compass_size = model.body("agent").id, task.compass_conf.shape
        seen = [obstacle for obstacle in task._obstacles if obstacle.is_lidar_observed]
        bodies = [object_bodies(model, obstacle.name) for obstacle in seen]
        sizes = [len(ids) for ids in bodies]
        self._bodies = np.concatenate(bodies or [np.zeros(0, dtype=np.intp)])
        rows = np.arange(num_envs)[:, None] * max(place.stop for place in layout.values())
        columns = np.repeat([layout[f"{obstacle.name}_lidar"].start for obstacle in seen], sizes)
        self._lidar = PseudoLidar(
            (rows + columns).astype(np.intp),  # into the flat observation
            task.lidar_conf.num_bins,
            task.lidar_conf.max_dist,
            task.lidar_conf.exp_gain,
            task.lidar_conf.alias,
        )
        # The circle is observed at the origin, wherever its body was drawn.
        self._at_origin = np.flatnonzero(np.repeat([obstacle.name == "circle" for obstacle in seen], sizes))
        compassed = [o for o in task._obstacles if getattr(o, "is_comp_observed", False)]
        self._compasses = [(layout[f"{o.name}_comp"], object_bodies(model, o.name)) for o in compassed]

    def write(self, snapshot: Snapshot, observation: np.ndarray) -> None:
        """Fill the objects' part of the observation, zeros before. Shape: (E, O)."""
        position = snapshot.positions[:, self._agent]
        if len(self._bodies):
            self._write_lidar(snapshot, position, observation)
        for place, bodies in self._compasses:
            directions = compass(snapshot.positions[:, bodies], position, snapshot.rotation, self._compass_size)
            observation[:, place] = directions.reshape(len(observation), -1)

    def _write_lidar(self, snapshot: Snapshot, position: np.ndarray, observation: np.ndarray) -> None:
        offset = snapshot.offset.take(self._bodies, axis=1)
        if len(self._at_origin):
            offset[:, self._at_origin] = 0.0 - position[:, None, :2]
        self._lidar.write(ego_xy(offset, position[:, 2], snapshot.rotation), observation)


def _values(model: mujoco.MjModel, name: str) -> slice:
    sensor = model.sensor(name)
    return slice(int(sensor.adr[0]), int(sensor.adr[0] + sensor.dim[0]))


def _size(place: slice) -> int:
    return int(place.stop - place.start)
