"""The pseudo lidar and the compass of Safety-Gymnasium, vectorised over environments and objects.

Source: `BaseTask._ego_xy`, `_obs_lidar_pseudo` and `_obs_compass` of safety_gymnasium 1.0.0, which take one object of
one environment at a time. Shapes: E environments, n objects, B bins.
"""

import numpy as np

_TURN = 2.0 * np.pi
_NEIGHBOURS = np.array([0, 1, -1])[:, None, None]


def ego_xy(points: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Points on the floor as the agent sees them: ((x, y, 0) − position) · rotation, without its z.

    Args:
        points: World coordinates in metres. Shape: (E, n, 2).
        position: The agent's. Shape: (E, 3).
        rotation: The agent's frame in world coordinates, one axis a column. Shape: (E, 3, 3).

    Returns:
        Egocentric coordinates in metres. Shape: (E, n, 2).
    """
    horizontal = (points - position[:, None, :2]) @ rotation[:, :2, :2]
    return horizontal - (position[:, 2, None] * rotation[:, 2, :2])[:, None]


def pseudo_lidar(
    ego: np.ndarray,
    starts: np.ndarray,
    readings: np.ndarray,
    num_bins: int,
    max_dist: float | None,
    exp_gain: float = 1.0,
    alias: bool = True,
) -> None:
    """Closeness of the nearest object in each of B directions, for each group of objects.

    An object at distance d reads s = max(0, D − d) / D, or exp(−gain · d) without a D. It shows in the bin of its
    direction; with aliasing also in the next bin as a · s and in the previous one as (1 − a) · s, where a ∈ [0, 1) is
    its place within its own bin. A bin holds the maximum over the objects of a group, 0 without any.

    Args:
        ego: Egocentric positions in metres. Shape: (E, n, 2).
        starts: Where in the flat `readings` the bins of each object's group begin. Shape: (E, n), int.
        readings: Zeros that are raised to the readings, each in [0, 1]. Any shape, contiguous.
        num_bins: B.
        max_dist: D in metres; None for the exponential reading.
        exp_gain: Gain of the exponential reading, per metre.
        alias: Whether neighbouring bins share a reading.
    """
    place = np.arctan2(ego[..., 1], ego[..., 0]) % _TURN / (_TURN / num_bins)  # (E, n), in bins
    closeness = _closeness(np.hypot(ego[..., 0], ego[..., 1]), max_dist, exp_gain)
    index = np.minimum(place.astype(np.intp), num_bins - 1)  # a full turn, by rounding, is the last bin
    cells, shares = starts + index, closeness
    if alias:
        share = place - index
        cells = starts + (index + _NEIGHBOURS) % num_bins  # (3, E, n)
        shares = np.empty(cells.shape)
        shares[0] = closeness
        np.multiply(share, closeness, out=shares[1])
        np.multiply(1.0 - share, closeness, out=shares[2])
    np.maximum.at(readings.reshape(-1), cells.reshape(-1), shares.reshape(-1))


def _closeness(distance: np.ndarray, max_dist: float | None, exp_gain: float) -> np.ndarray:
    if max_dist is None:
        return np.exp(-exp_gain * distance)
    return np.maximum(0.0, max_dist - distance) / max_dist


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
