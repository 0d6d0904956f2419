"""Layouts are drawn as the original draws them; a re-posed model equals a fresh compilation by the original World."""

import numpy as np
import pytest

from lightning_unlearn.envs import layouts
from lightning_unlearn.envs.compat import make_task, safety_gymnasium
from lightning_unlearn.envs.layouts import ModelTemplate, reset_world, sample_layout
from lightning_unlearn.envs.navigation import NavigationSimulator

CAMERAS = {
    "cam_mat0",
    "cam_pos",
    "cam_pos0",
    "cam_poscom0",
    "cam_quat",
}  # the one that follows the agent: pictures only
STATE = ("qpos", "qvel", "qacc", "qacc_warmstart", "xpos", "xmat", "sensordata", "mocap_pos", "ctrl", "efc_force")


def compiled(task):
    """The task's layout, compiled afresh by the original World (without pictures, for speed)."""
    fresh = safety_gymnasium.world.World(task.agent, task._obstacles, task.world_info.world_config_dict)
    with layouts.compiled(pictures=False):
        fresh.rebuild(state=False)  # with its second mj_forward, as at every reset but the first
    task.world.bind_engine()
    return fresh


def different(first, second, names):
    values = ((name, getattr(first, name), getattr(second, name)) for name in names)
    floats = {name: a.dtype.kind == "f" for name, a, _ in values}
    return [k for k, nan in floats.items() if not np.array_equal(getattr(first, k), getattr(second, k), equal_nan=nan)]


def arrays(model):
    public = [name for name in dir(model) if not name.startswith("_")]
    return [name for name in public if isinstance(getattr(model, name), np.ndarray)]


def test_the_original_race_runs_without_the_textures_that_the_release_lacks():
    env = safety_gymnasium.make("SafetyPointRace1-v0")
    with pytest.raises(ValueError, match="texture"):
        env.reset()
    with layouts.compiled(pictures=True):
        assert np.isfinite(env.reset(seed=0)[0]).all()
        assert env.unwrapped.task.model.ntex > 0  # of the others, as for all tasks


@pytest.mark.parametrize(
    ("env_id", "layouts"),
    [
        ("SafetyPointGoal1-v0", 20),
        ("SafetyCarGoal2-v0", 5),
        ("SafetyPointButton1-v0", 3),
        ("SafetyDoggoPush2-v0", 5),
        ("SafetyRacecarCircle2-v0", 2),
        ("SafetyAntRun0-v0", 5),
        ("SafetyPointRace2-v0", 2),
    ],
)
def test_every_model_array_and_the_state_equal_a_fresh_compilation(env_id, layouts):
    task, template = make_task(env_id), ModelTemplate()
    task.random_generator.set_random_seed(11)
    reset_world(task, template)
    for _ in range(layouts):
        task.simulation_forward(task.action_space.high)  # leaves traces in the data: moved mocaps, a warm start
        reset_world(task, template)
        fresh, model = compiled(task), task.model
        assert set(different(model, fresh.model, arrays(model))) <= CAMERAS
        assert model.stat.meaninertia == fresh.model.stat.meaninertia
        assert different(task.data, fresh.data, STATE) == []


def test_worlds_of_one_template_do_not_share_their_model():
    template, first, second = ModelTemplate(), make_task("SafetyPointGoal0-v0"), make_task("SafetyPointGoal0-v0")
    for seed, task in enumerate((first, second)):
        task.random_generator.set_random_seed(seed)
        reset_world(task, template)
    assert not np.array_equal(first.model.body("goal").pos, second.model.body("goal").pos)


def test_model_and_data_stay_the_same_objects():
    task, template = make_task("SafetyPointGoal0-v0"), ModelTemplate()
    task.random_generator.set_random_seed(0)
    reset_world(task, template)
    model, data = task.model, task.data
    reset_world(task, template)
    assert task.model is model
    assert task.data is data


def test_the_original_keeps_its_pictures():
    env = safety_gymnasium.make("SafetyPointGoal0-v0")
    env.reset(seed=0)
    assert env.unwrapped.task.model.ntex > 0


def generator_of(env_id, seed):
    task = make_task(env_id)
    task._build_placements_dict()
    conf, generator = task.placements_conf, task.random_generator
    generator.set_placements_info(conf.placements, conf.extents, conf.margin)
    generator.set_random_seed(seed)
    return generator


@pytest.mark.parametrize("env_id", ["SafetyPointGoal1-v0", "SafetyPointButton1-v0", "SafetyCarRun0-v0"])
def test_same_layouts_and_same_stream_as_the_original(env_id):
    ours, original = generator_of(env_id, 4), generator_of(env_id, 4)
    outcomes = []
    for _ in range(30):
        outcomes.append(sample_layout(ours))
        assert outcomes[-1] == original.sample_layout()
        if outcomes[-1]:
            np.testing.assert_equal(ours.layout, original.layout)
    assert any(outcomes) or env_id == "SafetyPointButton1-v0"
    assert ours.uniform() == original.uniform()


def test_several_areas_are_drawn_as_the_original_does():
    ours, original = generator_of("SafetyPointGoal0-v0", 4), generator_of("SafetyPointGoal0-v0", 4)
    for generator in (ours, original):
        generator.placements["goal"] = ([(-2.0, -2.0, -1.0, 1.0), (1.0, -2.0, 2.0, 1.0)], 0.1)
    assert sample_layout(ours)
    assert original.sample_layout()
    np.testing.assert_equal(ours.layout, original.layout)


def test_pictures_that_the_release_lacks_are_left_out():
    sim = NavigationSimulator("SafetyPointRace1-v0", 1, pictures=True)
    sim.reset(seeds=[0])
    model = sim.simulation()[0]
    assert model.ntex == 1  # the sky
    assert model.nmesh == 7
    step = sim.step(np.zeros((1, 2)))
    plain = NavigationSimulator("SafetyPointRace1-v0", 1)
    plain.reset(seeds=[0])
    np.testing.assert_array_equal(step.observation, plain.step(np.zeros((1, 2))).observation)
