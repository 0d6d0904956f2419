"""The pseudo lidar and the compass of Safety-Gymnasium, vectorised over environments and objects.

Source: `BaseTask._ego_xy`, `_obs_lidar_pseudo` and `_obs_compass` of safety_gymnasium 1.0.0, which take one object of
one environment at a time. Shapes: E environments, n objects, B bins.
"""

import numpy as np

_TURN = 2.0 * np.pi


def ego_xy(offset: np.ndarray, height: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Points on the floor as the agent sees them: ((x, y, 0) − position) · rotation, without its z.

    Args:
        offset: From the agent to the points in world coordinates, metres. Shape: (E, n, 2).
        height: The agent's, metres. Shape: (E,).
        rotation: The agent's frame in world coordinates, one axis a column. Shape: (E, 3, 3).

    Returns:
        Egocentric coordinates in metres. Shape: (E, n, 2).
    """
    return offset @ rotation[:, :2, :2] - height[:, None, None] * rotation[:, 2:, :2]


class PseudoLidar:
    """Closeness of the nearest object in each of B directions, for each group of objects.

    An object at distance d reads s = max(0, D − d) / D, or exp(−gain · d) without a D. It shows in the bin of its
    direction; with aliasing also in the next bin as a · s and in the previous one as (1 − a) · s, where a ∈ [0, 1) is
    its place within its own bin. A bin holds the maximum over the objects of a group, 0 without any.

    Args:
        starts: Where in flat readings the bins of each object's group begin. Shape: (E, n), int.
        num_bins: B.
        max_dist: D in metres; None for the exponential reading.
        exp_gain: Gain of the exponential reading, per metre.
        alias: Whether neighbouring bins share a reading.
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
        closeness = self._closeness(np.hypot(x, y))
        shares = np.empty(self._starts.shape)  # (3 or 1, E, n)
        shares[0] = closeness
        if self._alias:
            share = place - index
            np.multiply(share, closeness, out=shares[1])
            np.multiply(1.0 - share, closeness, out=shares[2])
        cells = self._shown.take(index, axis=1) + self._starts
        np.maximum.at(readings.reshape(-1), cells.reshape(-1), shares.reshape(-1))

    def _closeness(self, distance: np.ndarray) -> np.ndarray:
        if self._max_dist is None:
            return np.exp(-self._exp_gain * distance)
        return np.maximum(0.0, self._max_dist - distance) / self._max_dist


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
