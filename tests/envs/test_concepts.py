"""The ready concepts by hand, classes of one's own, and what is refused."""

from dataclasses import dataclass

import mujoco
import numpy as np
import pytest

from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.compat import get_body_xvelp
from lightning_unlearn.envs.concept_config import concept_to_dict, concept_to_json
from lightning_unlearn.envs.concepts import (
    ActionBox,
    AnyOf,
    Concept,
    Disc,
    InfoKey,
    ObservationRange,
    Rectangle,
    SpeedAbove,
    Transitions,
    concept_signal,
)
from lightning_unlearn.envs.navigation import NavigationSimulator

ROOM = "lightning_unlearn.envs.concepts"


class FourAgents:
    """A world with four agents."""

    observation_layout = {"near": slice(0, 2), "far": slice(2, 3)}  # noqa: RUF012

    def agent_position(self):
        return np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [-3.0, 4.0]])

    def agent_velocity(self):
        return np.array([[0.0, 0.0], [0.3, 0.4], [-0.6, 0.8], [0.0, -2.0]])  # speeds 0, 0.5, 1, 2


FOUR = Transitions(
    observation=np.zeros((4, 3), np.float32),
    action=np.array([[-1.0, 0.0], [0.5, 0.5], [1.0, -1.0], [0.0, 1.0]]),
    next_observation=np.array([[0.1, 0.9, 0.0], [0.5, 0.5, 0.0], [0.9, 0.95, 0.5], [0.0, 0.2, 1.0]]),
    costs={"cost_a": np.array([0.0, 1.0, 0.0, 0.0]), "cost_sum": np.array([0.0, 1.0, 2.0, 0.0])},
    world=FourAgents(),
)
BY_HAND = {
    "a cost": (InfoKey("cost_a"), [0, 1, 0, 0]),
    "every cost": (InfoKey("cost_sum"), [0, 1, 1, 0]),
    "any of a part above": (ObservationRange("near", above=0.5), [1, 0, 1, 0]),
    "all of a part above": (ObservationRange("near", above=0.5, which="all"), [0, 0, 1, 0]),
    "numbers of the observation in a band": (ObservationRange([2, 3], above=0.0, below=1.0), [0, 0, 1, 0]),
    "below": (ObservationRange("near", below=0.3), [1, 0, 0, 1]),
    "a rectangle": (Rectangle([0.5, 1.5], [-1.0, 1.0]), [0, 1, 0, 0]),
    "a half plane": (Rectangle([None, 0.5], [None, None]), [1, 0, 0, 1]),
    "a disc, without its edge": (Disc([0.0, 0.0], 1.0), [1, 0, 0, 0]),
    "a wider disc": (Disc([1.0, 1.0], 1.5), [1, 1, 1, 0]),
    "speed, without the limit": (SpeedAbove(0.5), [0, 0, 1, 1]),
    "actions in a box": (ActionBox([0.0, None], [None, 0.6]), [0, 1, 1, 0]),
    "a union": (AnyOf([InfoKey("cost_a"), SpeedAbove(1.5)]), [0, 1, 0, 1]),
    "a union of unions": (AnyOf([AnyOf([InfoKey("cost_a")]), Disc([0.0, 0.0], 0.1)]), [1, 1, 0, 0]),
}


@pytest.mark.parametrize(("concept", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_ready_concepts_by_hand(concept, expected):
    signal = concept_signal(concept, FOUR, np.zeros(4, dtype=bool))
    assert signal.dtype == np.float64
    assert signal.tolist() == expected
    assert (
        concept_signal(concept, FOUR, np.ones(4, dtype=bool)).sum() == 0
    )  # where the simulator failed, nothing is shown


IMPOSSIBLE = {
    "no ends": (lambda: ObservationRange("near"), "give at least one"),
    "ends in the wrong order": (lambda: ObservationRange("near", above=1.0, below=0.5), "below the second"),
    "ends that are equal": (lambda: Rectangle([1.0, 1.0], [None, None]), r"Rectangle.x\[0\]=1.0 and"),
    "a backward slice": (lambda: ObservationRange([3, 1], above=0.0), r"part=\[3, 1\]"),
    "a slice before the first": (lambda: ObservationRange([-1, 1], above=0.0), r"part=\[-1, 1\]"),
    "half a slice": (lambda: ObservationRange([3], above=0.0), r"part=\[3\]"),
    "neither any nor all": (lambda: ObservationRange("near", above=0.0, which="some"), "use any or all"),
    "no region": (lambda: Rectangle([None, None], [None, None]), "close at least one"),
    "half a rectangle": (lambda: Rectangle([0.0], [0.0, 1.0]), r"Rectangle.x=\[0.0\]"),
    "a disc of no size": (lambda: Disc([0.0, 0.0], 0.0), "Disc.radius=0.0"),
    "a disc of three dimensions": (lambda: Disc([0.0, 0.0, 0.0], 1.0), "list 2"),
    "a negative speed": (lambda: SpeedAbove(-0.1), r"SpeedAbove.limit=-0.1 is not possible: use 0 or more"),
    "a speed that is no number": (lambda: SpeedAbove(float("nan")), "SpeedAbove.limit=nan"),
    "a speed that is a word": (lambda: SpeedAbove("fast"), "SpeedAbove.limit='fast'"),
    "an open box": (lambda: ActionBox([None, None], [None, None]), "close at least one"),
    "a box of two sizes": (lambda: ActionBox([0.0], [1.0, 1.0]), "ActionBox.high"),
    "an empty union": (lambda: AnyOf([]), r"AnyOf.concepts=\[\] is not possible: list at least one"),
    "a union of words": (lambda: AnyOf(["cost_a"]), "list concepts"),
}


@pytest.mark.parametrize(("make", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@dataclass
class Reversing(Concept):
    """One of one's own."""

    speed: float = 0.5
    answer: str = "bool"

    def __call__(self, transitions):
        shown = (transitions.action[:, 0] < 0) & (transitions.speed > self.speed)
        return {
            "bool": shown,
            "numbers": shown.astype(np.float32),
            "scalar": shown.any(),
            "column": shown[:, None],
            "thrice": 3 * shown.astype(int) + 2,
        }[self.answer]


def test_a_class_of_ones_own_may_answer_in_numbers():
    moving = Transitions(FOUR.observation, -np.ones((4, 2)), FOUR.next_observation, FOUR.costs, FourAgents())
    for answer in ("bool", "numbers"):
        assert concept_signal(Reversing(answer=answer), moving, np.zeros(4, dtype=bool)).tolist() == [0, 0, 1, 1]


WRONG = {
    "a scalar": (Reversing(answer="scalar"), r"test_concepts.Reversing gave shape \(\), not \(2,\). A concept maps"),
    "a column": (Reversing(answer="column"), r"gave shape \(2, 1\), not \(2,\)"),
    "other numbers": (Reversing(answer="thrice"), "gave other values than 0 and 1"),
    "an error": (Reversing(answer="?"), "Reversing raised KeyError: '\\?'. A concept maps transitions"),
    "an error in a union": (AnyOf([Reversing(answer="?")]), "Reversing raised KeyError"),
    "a part that is not there": (ObservationRange("gremlins_lidar", above=0.5), r"hazards_lidar \[28, 44\]"),
    "a slice beyond the end": (ObservationRange([59, 61], above=0.5), "60 numbers that SafetyPointGoal1-v0 observes"),
    "a box for another agent": (ActionBox([0.0], [1.0]), "an action of SafetyPointGoal1-v0 has 2"),
    "an unknown cost": (AnyOf([InfoKey("cost_gremlins")]), "Choose one of cost_hazards, cost_sum"),
}


@pytest.mark.parametrize(("concept", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_judge_is_refused_before_anything_is_stepped(concept, message):
    with pytest.raises(ValueError, match=message):
        make_env("SafetyPointGoal1-v0", 2, concept)


@pytest.mark.parametrize(
    "concept", [Disc([0.0, 0.0], 1.0), SpeedAbove(1.0), AnyOf([Rectangle([0.0, 1.0], [0.0, 1.0])])]
)
def test_regions_and_speeds_need_a_plane(concept):
    with pytest.raises(ValueError, match="not possible in ToyLine-v0, which has no plane"):
        make_env("ToyLine-v0", 2, concept)


def test_ones_own_class_is_told_that_there_is_no_plane():
    with pytest.raises(ValueError, match="Reversing raised ValueError: ToyLine-v0 has no plane"):
        make_env("ToyLine-v0", 2, Reversing())


def test_a_class_that_fails_later_is_named_too():
    @dataclass
    class Moody(Concept):
        def __call__(self, transitions):
            return transitions.action[:, 0] > 0 if not transitions.action.any() else np.zeros(7)

    env = make_env("ToyLine-v0", 2, Moody())
    env.set_seed(0)
    with pytest.raises(ValueError, match=r"Moody gave shape \(7,\), not \(2,\)"):
        env.rollout(2)


def test_what_is_recorded_makes_the_same_concept_again():
    concept = AnyOf([InfoKey("cost_a"), Rectangle([0.5, None], [-1.0, 1.0])])
    assert concept_to_json(InfoKey("cost_a")) == "cost_a"
    assert concept_to_json("auto") == "auto"
    assert concept_to_dict(concept) == {
        "class_path": f"{ROOM}.AnyOf",
        "init_args": {
            "concepts": [
                {"class_path": f"{ROOM}.InfoKey", "init_args": {"key": "cost_a"}},
                {"class_path": f"{ROOM}.Rectangle", "init_args": {"x": [0.5, None], "y": [-1.0, 1.0]}},
            ]
        },
    }
    assert concept_to_dict(Reversing(0.25))["init_args"] == {"speed": 0.25, "answer": "bool"}


def test_a_class_must_keep_its_arguments_for_the_record():
    class Forgetful(Concept):
        def __init__(self, limit=1.0):
            self.bound = limit

        def __call__(self, transitions):
            return transitions.costs["cost_sum"] > self.bound

    with pytest.raises(ValueError, match=r"Forgetful does not keep its argument 'limit': set self.limit"):
        make_env("ToyLine-v0", 2, Forgetful())

    with pytest.raises(ValueError, match="Reversing has speed=array"):
        make_env("SafetyPointGoal1-v0", 2, Reversing(np.zeros(2)))


@pytest.mark.parametrize("agent", ["Point", "Car", "Racecar", "Doggo", "Ant"])
def test_position_and_velocity_are_mujocos_own(agent):
    sim = NavigationSimulator(f"Safety{agent}Goal1-v0", 2)
    sim.reset(seeds=[1, 2])
    noise = np.random.default_rng(0)
    for _ in range(60):
        sim.step(noise.uniform(sim.action_low, sim.action_high, (2, len(sim.action_low))))
        worlds = [scene.task for scene in sim._scenes]
        velocity = [get_body_xvelp(task.model, task.data, "agent")[:2] for task in worlds]
        position = [task.data.body("agent").xpos[:2] for task in worlds]
        np.testing.assert_array_equal(sim.agent_position(), position)
        np.testing.assert_allclose(sim.agent_velocity(), velocity, rtol=0, atol=1e-13)
    assert np.abs(sim.agent_velocity()).max() > 1e-3
    sim.close()


def test_a_region_is_judged_where_the_step_led_to_also_when_it_ended_the_episode():
    env = make_env("SafetyPointGoal1-v0", 2, Rectangle([0.0, None], [None, None]))
    env.set_seed(0)
    rollout = env.rollout(3, break_when_any_done=False)
    assert rollout["next", "C_forget"].shape == (2, 3, 1)
    sim = env.simulator
    expected = [task.data.body("agent").xpos[0] > 0 for task in sim._tasks]
    assert rollout["next", "C_forget"][:, -1, 0].tolist() == expected
    env.close()


def test_a_failed_step_shows_nothing(monkeypatch):
    env = make_env("SafetyPointGoal1-v0", 2, Disc([0.0, 0.0], 100.0))
    env.set_seed(0)
    env.reset()
    sim = env.simulator
    fail = mujoco.mj_step2

    def broken(model, data):
        fail(model, data)
        if data is sim._tasks[0].data:
            data.qpos[:] = np.nan

    monkeypatch.setattr(mujoco, "mj_step2", broken)
    step = sim.step(np.zeros((2, 2)))
    assert step.failed.tolist() == [True, False]
    assert env.c_forget(step.observation, np.zeros((2, 2)), step).tolist() == [0.0, 1.0]
    env.close()
