"""Observations of E environments at once: body sensors, lidar and compass, and how the agent moves in the plane.

Which sensor goes where in an observation is looked up once; a step is array arithmetic.
Source: `BaseTask.obs`, `_ego_xy`, `_obs_lidar_pseudo`, `_obs_compass` and `BaseAgent.obs_sensor` of safety_gymnasium
1.0.0, which take one object of one environment at a time.
Shapes: E environments, O observation size, n objects, B lidar bins.
"""

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask
from lightning_unlearn.envs.physics import Snapshot

_TURN = 2.0 * np.pi


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
    """Rotation matrices of quaternions (w, x, y, z), not normalised first, as MuJoCo's `mju_quat2Mat`.

    Shape: (E, 4) → (E, 9).
    """
    w, x, y, z = quaternions.T
    first = [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)]
    second = [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)]
    third = [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z]
    return np.stack(first + second + third, axis=-1)


class Proprioception:
    """The agent's own sensors: most are copied, hinges become (sin, cos), ball joints rotation matrices."""

    def __init__(self, task: BaseTask, model: mujoco.MjModel, layout: dict[str, slice]) -> None:
        info = task.agent.sensor_info
        self._hinges = np.array([_sensor_values(model, name).start for name in info.hinge_pos_names], dtype=np.intp)
        self._balls = [(layout[name], _sensor_values(model, name)) for name in info.ballquat_names]
        special = {*info.hinge_pos_names, *info.ballquat_names}
        copied = [name for name in task.agent.build_sensor_observation_space() if name not in special]
        # An observation begins with them. Of the free joint's position only the height is observed: the last value.
        observed = {name: int(layout[name].stop - layout[name].start) for name in copied}
        self._copied = np.concatenate([np.r_[_sensor_values(model, name)][-observed[name] :] for name in copied])

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
            offset = snapshot.offset.take(self._bodies, axis=1)
            if len(self._at_origin):
                offset[:, self._at_origin] = 0.0 - position[:, None, :2]
            self._lidar.write(ego_xy(offset, position[:, 2], snapshot.rotation), observation)
        for place, bodies in self._compasses:
            directions = compass(snapshot.positions[:, bodies], position, snapshot.rotation, self._compass_size)
            observation[:, place] = directions.reshape(len(observation), -1)


class PseudoLidar:
    """Closeness of the nearest object in each of B directions, for each group of objects.

    An object at distance d reads s = max(0, D − d) / D, or exp(−gain · d) without a D. It shows in the bin of its
    direction; with aliasing also in the next bin as a · s and in the previous one as (1 − a) · s, where a ∈ [0, 1) is
    its place within its own bin. A bin holds the maximum over the objects of a group, 0 without any.

    Args:
        starts: First bin of each object's group in the flat readings. Shape: (E, n), int.
        num_bins: B.
        max_dist: D in metres; None for the exponential reading.
        exp_gain: Gain of the exponential reading, per metre.
        alias: Share a reading with the neighbouring bins.
    """

    def __init__(
        self, starts: np.ndarray, num_bins: int, max_dist: float | None, exp_gain: float = 1.0, alias: bool = True
    ) -> None:
        self._num_bins, self._max_dist, self._exp_gain, self._alias = num_bins, max_dist, exp_gain, alias
        turns = np.array([0, 1, -1] if alias else [0])
        self._shown = (np.arange(num_bins) + turns[:, None]) % num_bins  # bin → those that an object in it shows in
        self._starts = np.tile(starts, (len(turns), 1, 1))

    def write(self, ego: np.ndarray, readings: np.ndarray) -> None:
        """Raise zeros to the readings.

        Args:
            ego: Egocentric positions in metres. Shape: (E, n, 2).
            readings: Each in [0, 1]. Any shape, contiguous.
        """
        x, y = ego[..., 0], ego[..., 1]
        place = np.arctan2(y, x) % _TURN / (_TURN / self._num_bins)  # (E, n), in bins
        index = np.minimum(place.astype(np.intp), self._num_bins - 1)  # a full turn, by rounding, is the last bin
        distance = np.hypot(x, y)
        if self._max_dist is None:
            closeness = np.exp(-self._exp_gain * distance)
        else:
            closeness = np.maximum(0.0, self._max_dist - distance) / self._max_dist
        shares = np.empty(self._starts.shape)  # (3 or 1, E, n)
        shares[0] = closeness
        if self._alias:
            share = place - index
            np.multiply(share, closeness, out=shares[1])
            np.multiply(1.0 - share, closeness, out=shares[2])
        cells = self._shown.take(index, axis=1) + self._starts
        np.maximum.at(readings.reshape(-1), cells.reshape(-1), shares.reshape(-1))


def ego_xy(offset: np.ndarray, height: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Egocentric coordinates of points on the floor: ((x, y, 0) − position) · rotation, without its z.

    Args:
        offset: From the agent to the points in world coordinates, metres. Shape: (E, n, 2).
        height: The agent's, metres. Shape: (E,).
        rotation: The agent's frame in world coordinates, one axis a column. Shape: (E, 3, 3).

    Returns:
        Metres. Shape: (E, n, 2).
    """
    return offset @ rotation[:, :2, :2] - height[:, None, None] * rotation[:, 2:, :2]


def compass(points: np.ndarray, position: np.ndarray, rotation: np.ndarray, size: int = 2) -> np.ndarray:
    """Egocentric directions: v / (|v| + 0.001), v being the first `size` parts of (point − position) · rotation.

    Args:
        points: World coordinates in metres. Shape: (E, n, 3).
        position: The agent's. Shape: (E, 3).
        rotation: The agent's frame in world coordinates. Shape: (E, 3, 3).
        size: 2 for the plane, 3 for space.

    Returns:
        Directions, a little shorter than 1. Shape: (E, n, size).
    """
    vector = ((points - position[:, None]) @ rotation)[..., :size]
    return vector / (np.sqrt(np.sum(np.square(vector), axis=-1, keepdims=True)) + 0.001)


class AgentMotion:
    """Position and velocity of the agent's body in the plane, equal to MuJoCo's to rounding."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._body = model.body("agent").id
        joint = model.body_jntadr[self._body]
        self._free = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
        start = model.jnt_dofadr[joint]
        self._velocities = slice(start, start + 2)
        start = model.sensor("velocimeter").adr[0]
        self._velocimeter = slice(start, start + 3)

    def position(self, state: Snapshot) -> np.ndarray:
        """Position in the task's own coordinates. Shape: (E, 2), metres."""
        return state.positions[:, self._body, :2].copy()

    def velocity(self, state: Snapshot) -> np.ndarray:
        """Velocity along the axes of the plane. Shape: (E, 2), metres per second.

        A free joint's velocities are those of its body's origin. Point slides along axes that turn with each layout:
        its velocimeter, at its origin, is turned back. (Those of other agents are elsewhere on the body.)
        """
        if self._free:
            return state.qvel[:, self._velocities].copy()
        velocity: np.ndarray = state.rotation[:, :2] @ state.sensors[:, self._velocimeter, None]  # (E, 2, 1)
        return velocity[..., 0]


def _sensor_values(model: mujoco.MjModel, name: str) -> slice:
    sensor = model.sensor(name)
    return slice(int(sensor.adr[0]), int(sensor.adr[0] + sensor.dim[0]))
