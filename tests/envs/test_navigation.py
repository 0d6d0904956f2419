import mujoco
import numpy as np
import pytest

from lightning_unlearn.envs import layouts
from lightning_unlearn.envs.compat import make_task, safety_gymnasium
from lightning_unlearn.envs.navigation import NavigationSimulator

GOAL1 = "SafetyPointGoal1-v0"
ACTIONS = np.random.default_rng(5).uniform(-1, 1, (60, 4, 2))


@pytest.fixture
def sim():
    sim = NavigationSimulator(GOAL1, num_envs=4)
    sim.reset(seeds=range(4))
    yield sim
    sim.close()


@pytest.fixture
def breakable(sim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to a file in the working directory

    def break_one(row):
        sim._scenes[row].task.data.qvel[0] = np.nan

    return sim, break_one


def test_describes_the_task(sim):
    assert sim.observation_size == 60
    assert list(sim.observation_layout.items()) == [
        ("accelerometer", slice(0, 3)),
        ("velocimeter", slice(3, 6)),
        ("gyro", slice(6, 9)),
        ("magnetometer", slice(9, 12)),
        ("goal_lidar", slice(12, 28)),
        ("hazards_lidar", slice(28, 44)),
        ("vases_lidar", slice(44, 60)),
    ]
    assert sim.cost_keys == ("cost_hazards", "cost_sum")
    assert sim.max_episode_steps == 1000
    np.testing.assert_array_equal([sim.action_low, sim.action_high], [[-1, -1], [1, 1]])


@pytest.mark.parametrize(
    ("env_id", "cost_keys", "steps"),
    [
        ("SafetyPointGoal0-v0", ("cost_sum",), 1000),
        ("SafetyPointGoal2-v0", ("cost_hazards", "cost_vases_contact", "cost_vases_velocity", "cost_sum"), 1000),
        ("SafetyPointCircle1-v0", ("cost_out_of_boundary", "cost_sum"), 500),
        ("SafetyPointRace1-v0", ("cost_hazards", "cost_static_geoms_contact", "cost_sum"), 500),
    ],
)
def test_costs_and_length_of_other_tasks(env_id, cost_keys, steps):
    other = NavigationSimulator(env_id, 1)
    assert (other.cost_keys, other.max_episode_steps) == (cost_keys, steps)


def test_returned_arrays_belong_to_the_caller(sim):
    step = sim.step(ACTIONS[0])
    kept = step.observation.copy()
    sim.step(ACTIONS[1])
    np.testing.assert_array_equal(step.observation, kept)
    step.observation[:] = 0.0
    assert sim.reset(np.zeros(4, dtype=bool)).any()


def test_a_partial_reset_leaves_the_others_alone(sim):
    before = sim.step(ACTIONS[0]).observation
    after = sim.reset(np.array([True, False, True, False]))
    np.testing.assert_array_equal(after[[1, 3]], before[[1, 3]])
    assert (after[[0, 2]] != before[[0, 2]]).any(axis=1).all()


def test_same_seed_same_episode_after_anything(sim):
    first = sim.reset(seeds=range(4))
    for actions in ACTIONS[:10]:
        sim.step(actions)
    np.testing.assert_array_equal(sim.reset(seeds=range(4)), first)


def test_actions_are_clipped(sim):
    clipped = sim.step(np.full((4, 2), 1.0)).observation
    sim.reset(seeds=range(4))
    np.testing.assert_array_equal(sim.step(np.full((4, 2), 7.0)).observation, clipped)


def test_wrong_shapes_are_named(sim):
    with pytest.raises(ValueError, match=r"actions must have shape \(4, 2\), got \(2,\)"):
        sim.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"mask must have shape \(4,\), got \(3,\)"):
        sim.reset(np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="one seed per environment, 4, got 2"):
        sim.reset(seeds=[1, 2])


def test_what_is_impossible_is_refused():
    with pytest.raises(ValueError, match="no random stream yet: pass seeds"):
        NavigationSimulator(GOAL1, 1).reset()
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        NavigationSimulator(GOAL1, 0)


def test_top_view(sim):
    view = sim.top_view()
    assert {kind: places.shape for kind, places in view.positions.items()} == {
        "agent": (4, 1, 2),
        "goal": (4, 1, 2),
        "hazards": (4, 8, 2),
        "vases": (4, 1, 2),
    }
    assert view.radii == {"goal": 0.3, "hazards": 0.2, "vases": 0.1}
    np.testing.assert_array_equal(view.positions["hazards"][2], np.array(sim._tasks[2].hazards.pos)[:, :2])


def test_a_failed_simulation_truncates_that_environment_only_and_a_reset_repairs_it(breakable):
    sim, break_one = breakable
    last = sim.step(ACTIONS[0]).observation
    break_one(2)
    step = sim.step(ACTIONS[1])
    np.testing.assert_array_equal(step.failed, [False, False, True, False])
    np.testing.assert_array_equal(step.truncated, step.failed)
    assert not step.terminated.any()
    assert step.reward[2] == -10.0
    assert all(cost[2] == 0.0 for cost in step.costs.values())
    np.testing.assert_array_equal(step.observation[2], last[2])
    assert (step.observation[[0, 1, 3]] != last[[0, 1, 3]]).any(axis=1).all()
    assert np.isfinite(sim.reset(step.failed)).all()
    assert not sim.step(ACTIONS[2]).failed.any()


def test_endless_failures_are_an_error(breakable):
    sim, break_one = breakable
    for _ in range(10):
        break_one(3)
        sim.reset(sim.step(ACTIONS[0]).failed)
    break_one(3)
    with pytest.raises(RuntimeError, match=f"{GOAL1}: the simulation of environment 3 failed 11 times"):
        sim.step(ACTIONS[0])


def test_a_normal_end_forgives_failures(breakable, monkeypatch):
    sim, break_one = breakable
    break_one(3)
    sim.reset(sim.step(ACTIONS[0]).failed)
    sim.max_episode_steps = 1
    sim.step(ACTIONS[1])
    assert sim._failures.in_a_row[3] == 0


def test_no_room_for_a_goal_terminates(sim, monkeypatch):
    def full(self):
        raise navigation_error

    navigation_error = safety_gymnasium.utils.common_utils.ResamplingError("full")
    monkeypatch.setattr(type(sim._tasks[0]), "update_world", full)
    np.testing.assert_array_equal(sim._next_goals(np.array([True, False, False, False])), [True, False, False, False])


def test_repeated_forwards_need_only_their_last_stages():
    """mj_forward three times against once in full and twice from the acceleration stage on: equal to the bit."""
    task = make_task("SafetyPointGoal2-v0")  # vases: contacts, so that the warm start matters
    task.random_generator.set_random_seed(0)
    layouts.lay_out(task, layouts.ModelTemplate())
    model, data, other = task.model, task.data, mujoco.MjData(task.model)
    mujoco.mj_resetData(model, other)
    other.qpos[:], other.qacc_warmstart[:] = data.qpos, data.qacc_warmstart
    for action in ACTIONS[:, 0]:
        for state in (data, other):
            state.ctrl[:] = action
            mujoco.mj_step(model, state, 10)
            mujoco.mj_forward(model, state)
        for _ in range(2):
            mujoco.mj_forward(model, data)
        mujoco.mj_forwardSkip(model, other, int(mujoco.mjtStage.mjSTAGE_VEL), 1)
        mujoco.mj_forwardSkip(model, other, int(mujoco.mjtStage.mjSTAGE_VEL), 0)
        for name in ("qpos", "qvel", "qacc", "qacc_warmstart", "sensordata", "xpos", "xmat"):
            np.testing.assert_array_equal(getattr(data, name), getattr(other, name), err_msg=name)


def test_a_draw_of_frames_takes_one_uniform():
    drawn, caught_up = np.random.RandomState(3), np.random.RandomState(3)
    assert {drawn.binomial(10, 1.0) for _ in range(1000)} == {10}
    caught_up.random_sample(1000)
    assert drawn.uniform() == caught_up.uniform()
