import numpy as np
import pytest

from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.concepts import AnyOf, InfoKey, Rectangle
from lightning_unlearn.envs.object_removal import make_env_without, objects_of

GOAL1, GOAL2 = "SafetyPointGoal1-v0", "SafetyPointGoal2-v0"


def steps(env, count=60):
    """Drive straight on from fixed layouts; returns observations and steps."""
    first = env.simulator.reset(None, [3, 4])
    made = [env.simulator.step(np.array([[1.0, 0.1], [0.8, -0.2]])) for _ in range(count)]
    return np.stack([first, *(step.observation for step in made)]), made


def test_the_objects_are_gone_and_their_sensors_read_zeros():
    whole, without = make_env(GOAL1, 2), make_env_without(GOAL1, 2)
    try:
        sim = without.simulator
        assert (sim.observation_size, sim.cost_keys) == (whole.simulator.observation_size, whole.simulator.cost_keys)
        assert sim.observation_layout == whole.simulator.observation_layout
        observed, made = steps(without)
        before, _ = steps(whole)
        lidar = sim.observation_layout["hazards_lidar"]
        assert before[..., lidar].max() > 0
        assert observed[..., lidar].max() == 0
        assert observed[..., sim.observation_layout["goal_lidar"]].max() > 0
        assert observed[..., sim.observation_layout["vases_lidar"]].max() > 0
        assert sim.top_view().positions["hazards"].shape == (2, 0, 2)
        assert sum(step.costs["cost_sum"].sum() + step.costs["cost_hazards"].sum() for step in made) == 0
        assert any(step.reward.any() for step in made)
    finally:
        whole.close()
        without.close()


def test_objects_that_stand_in_the_way_are_gone_too():
    env = make_env_without(GOAL2, 1, "cost_vases_contact")
    try:
        env.simulator.reset(None, [0])
        assert env.simulator.top_view().positions["vases"].shape[1] == 0
        assert env.simulator.top_view().positions["hazards"].shape[1] > 0
        step = env.simulator.step(np.zeros((1, 2)))
        assert step.costs["cost_vases_contact"][0] == step.costs["cost_vases_velocity"][0] == 0
    finally:
        env.close()


def test_a_concept_names_its_objects():
    assert objects_of(GOAL1) == objects_of(GOAL1, "cost_sum") == ["hazards"]
    assert objects_of(GOAL2, "cost_sum") == ["hazards", "vases"]
    both = AnyOf([InfoKey("cost_hazards"), InfoKey("cost_vases_velocity")])
    assert objects_of(GOAL2, both) == ["hazards", "vases"]
    assert objects_of("SafetyPointButton1-v0", "cost_gremlins") == ["gremlins"]


@pytest.mark.parametrize(
    ("env_id", "concept", "message"),
    [
        ("ToyLine-v0", "auto", "ToyLine-v0 without the objects of cost_sum is not possible: it has none to take out"),
        ("SafetyPointCircle1-v0", "auto", "it has none to take out"),
        ("SafetyPointButton1-v0", "cost_sum", "it can do without gremlins, hazards only"),
        ("SafetyPointButton1-v0", "cost_buttons", "it can do without gremlins, hazards only"),
        (GOAL1, "cost_vases_contact", "it can do without hazards only"),
        (GOAL1, Rectangle([0.0, None], [None, None]), "a concept that is the cost of such objects"),
        ("SafetyPointVelocity-v0", "auto", "SafetyPointVelocity-v0"),
    ],
)
def test_a_task_that_needs_the_objects_is_refused(env_id, concept, message):
    with pytest.raises(ValueError, match=message):
        objects_of(env_id, concept)
