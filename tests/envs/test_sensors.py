"""Sensors against the original's, MuJoCo's, and by hand."""

import mujoco
import numpy as np
import pytest

from lightning_unlearn.envs.compat import make_task
from lightning_unlearn.envs.layouts import ModelTemplate, reset_world
from lightning_unlearn.envs.sensors import PseudoLidar, compass, ego_xy, rotation_matrices


@pytest.fixture(scope="module")
def task():
    task = make_task("SafetyAntGoal2-v0")  # an agent that tilts: its frame is not just turned about z
    task.random_generator.set_random_seed(3)
    reset_world(task, ModelTemplate())
    data = task.data
    data.qpos[3:7] = np.array([0.9, 0.1, -0.2, 0.4]) / np.linalg.norm([0.9, 0.1, -0.2, 0.4])
    task.build_goal_position()  # ends in mj_forward
    return task


def lidar(ego, num_bins, max_dist, **options):
    """Readings of one group of objects. Shape: (E, n, 2) → (E, B)."""
    readings = np.zeros((len(ego), num_bins))
    starts = np.arange(len(ego))[:, None] * num_bins + np.zeros(ego.shape[1], dtype=int)
    PseudoLidar(starts, num_bins, max_dist, **options).write(ego, readings)
    return readings


def body_frame(task):
    return task.agent.pos[None], task.agent.mat[None]


def ego(task, points):
    position, rotation = body_frame(task)
    return ego_xy(points[None, :, :2] - position[:, None, :2], position[:, 2], rotation)


@pytest.mark.parametrize("max_dist", [3.0, 1.5, None])
@pytest.mark.parametrize("alias", [True, False])
def test_lidar_equals_the_original(task, max_dist, alias):
    task.lidar_conf.max_dist, task.lidar_conf.alias = max_dist, alias
    points = np.array(task.hazards.pos)
    readings = lidar(ego(task, points), 16, max_dist, alias=alias)
    np.testing.assert_allclose(readings[0], task._obs_lidar_pseudo(points), rtol=0, atol=1e-14)
    assert readings.max() > 0.0


@pytest.mark.parametrize("size", [2, 3])
def test_compass_equals_the_original(task, size):
    task.compass_conf.shape = size
    direction = compass(task.goal.pos[None, None], *body_frame(task), size=size)
    np.testing.assert_allclose(direction[0, 0], task._obs_compass(task.goal.pos), rtol=0, atol=1e-14)


def test_ego_xy_takes_the_floor_not_the_object_height():
    # The agent stands at (0, 0.5), 1 m high, and looks along its own x, which points to the world's y.
    rotation = np.array([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    ego = ego_xy(np.array([[[0.0, 2.0 - 0.5]]]), np.array([1.0]), rotation)
    np.testing.assert_allclose(ego, [[[1.5, 0.0]]])


def test_lidar_by_hand():
    # Four bins of 90°. At 45° and 1 m of 4: halfway through bin 0, closeness 3/4, half of it in each neighbour.
    diagonal = np.sqrt(0.5) * np.ones((1, 1, 2))
    np.testing.assert_allclose(lidar(diagonal, 4, 4.0)[0], [0.75, 0.375, 0.0, 0.375])


def test_groups_do_not_see_each_other():
    ego = np.array([[[1.0, 0.5], [-1.0, 0.5]], [[0.2, -1.0], [0.3, 0.4]]])
    together = np.zeros((2, 40))  # with columns in front of and behind the two groups' 16 bins
    PseudoLidar(np.array([[20, 4], [60, 44]]), 16, 3.0).write(ego, together)
    for member, start in ((0, 20), (1, 4)):
        np.testing.assert_array_equal(together[:, start : start + 16], lidar(ego[:, [member]], 16, 3.0))
    assert not together[:, [0, 1, 2, 3, 36, 37, 38, 39]].any()


def test_nearest_object_wins_and_out_of_reach_reads_zero():
    ego = np.array([[[1.0, 0.1], [2.0, 0.2], [-5.0, 0.1]]])
    readings = lidar(ego, 16, 3.0, alias=False)[0]
    assert readings[0] == pytest.approx((3 - np.hypot(1.0, 0.1)) / 3)
    assert readings[1:].max() == 0.0


def test_direction_that_rounds_to_a_full_turn_stays_in_the_last_bin():
    readings = lidar(np.array([[[1.0, -1e-300]]]), 16, 3.0)
    assert readings[0, 15] == pytest.approx(2 / 3)


def test_rotation_matrices_equal_mujoco():
    quaternions = np.random.default_rng(0).normal(size=(5, 4))
    expected = np.zeros((5, 9))
    for row, quaternion in zip(expected, quaternions, strict=True):
        mujoco.mju_quat2Mat(row, quaternion)
    np.testing.assert_allclose(rotation_matrices(quaternions), expected, rtol=0, atol=1e-14)
