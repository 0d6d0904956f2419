"""NavigationSimulator against safety_gymnasium.make itself, which runs with its own World and pictures.

The pictures of the Race tasks are missing from release 1.0.0, which therefore cannot run them. Here the originals of
these tasks run without pictures; no observation depends on them.
"""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_unlearn.envs import layouts
from lightning_unlearn.envs.compat import safety_gymnasium
from lightning_unlearn.envs.navigation import NavigationSimulator
from lightning_unlearn.envs.parallel import ParallelSimulator
from lightning_unlearn.envs.rules import Fading

TOLERANCE = 1e-9
# safety_gymnasium turns one-element arrays into numbers.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

SHORT = [
    "SafetyPointGoal2-v0",
    "SafetyCarGoal1-v0",
    "SafetyDoggoGoal1-v0",
    "SafetyAntGoal1-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush1-v0",
    "SafetyPointCircle1-v0",
    "SafetyCarRun0-v0",
    "SafetyPointFadingEasy1-v0",
    "SafetyCarRace2-v0",
]
AGENTS = ("Point", "Car", "Racecar", "Doggo", "Ant")
TASKS = ("Goal0", "Goal1", "Goal2", "Button1", "Button2", "Push1", "Push2", "Circle1", "Circle2", "Run0")
TASKS += tuple(f"{family}{level}" for family in ("FadingEasy", "FadingHard", "Race") for level in range(3))


class Pair:
    """The simulators, in one process and in several, and the originals, stepped with the same actions and compared."""

    def __init__(self, env_id, num_envs, policy=None):
        self.sims = [
            NavigationSimulator(env_id, num_envs),
            ParallelSimulator(partial(NavigationSimulator, env_id), num_envs, workers=num_envs),
        ]
        self.originals = [safety_gymnasium.make(env_id) for _ in range(num_envs)]
        self.sim, self.num_envs, self.rng = self.sims[0], num_envs, np.random.default_rng(0)
        self.policy = policy or (lambda observation: self.rng.uniform(self.sim.action_low, self.sim.action_high))
        self.largest, self.met, self.steps, self.faintest = 0.0, 0, 0, 1.0
        self.incurred = dict.fromkeys(self.sim.cost_keys, 0.0)
        seeds = [100 + k for k in range(num_envs)]
        self._observe([sim.reset(seeds=seeds) for sim in self.sims], range(num_envs), seeds)

    def step(self):
        """Take one step everywhere and reset what ended; return what ended. Shape: (E,), bool."""
        actions = np.stack([self.policy(row) for row in self.observation])
        first, second = (sim.step(actions) for sim in self.sims)
        np.testing.assert_array_equal(first.observation, second.observation)
        self.observation, self.steps = first.observation, self.steps + 1
        for row, original in enumerate(self.originals):
            self._compare(first, row, original.step(actions[row]))
        ended = first.terminated | first.truncated
        if ended.any():
            self.reset(ended)
        return ended

    def reset(self, mask):
        self._observe([sim.reset(mask) for sim in self.sims], np.flatnonzero(mask), [None] * self.num_envs)

    def close(self):
        for sim in self.sims:
            sim.close()

    def _observe(self, observations, rows, seeds):
        np.testing.assert_array_equal(*observations)
        self.observation = observations[0]
        is_race = "Race" in self.sim.env_id.removeprefix("SafetyRacecar")
        with layouts.compiled(pictures=False) if is_race else nullcontext():
            firsts = [self.originals[row].reset(seed=seeds[row])[0] for row in rows]
        for row, first in zip(rows, firsts, strict=True):
            self._near(self.observation[row], first, "first observation")

    def _compare(self, step, row, expected):
        observation, reward, cost, terminated, truncated, info = expected
        self._near(step.observation[row], observation, "observation")
        self._near(step.reward[row], reward, "reward")
        self._near(step.costs["cost_sum"][row], cost, "cost")
        assert {key for key in info if key.startswith("cost_")} <= set(step.costs)
        for key, values in step.costs.items():
            self._near(values[row], info.get(key, 0.0), key)
            self.incurred[key] += values[row]
        assert not step.failed[row]
        assert (step.terminated[row], step.truncated[row]) == (terminated, truncated)
        assert step.goal_met[row] == info.get("goal_met", False)
        self.met += step.goal_met[row]
        if self.sim._fading is not None and not terminated | truncated:
            ours, theirs = (task.model.geom_rgba for task in (self.sim._tasks[row], self.originals[row].unwrapped.task))
            np.testing.assert_array_equal(ours, theirs)
            self.faintest = min(self.faintest, ours[self.sim._tasks[row].objects_map_ids["goal"], 3].min())

    def _near(self, ours, theirs, what):
        difference = float(np.abs(ours - theirs).max())
        self.largest = max(self.largest, difference)
        assert difference <= TOLERANCE, f"{what} differs by {difference} at step {self.steps}"


def towards_the_goal(pair):
    """Turn to the brightest goal bin and drive, straight through hazards, with some noise."""
    lidar = pair.sim.observation_layout["goal_lidar"]

    def act(observation):
        bearing = (observation[lidar].argmax() + 0.5) / 16 * 2 * np.pi
        bearing = (bearing + np.pi) % (2 * np.pi) - np.pi
        return np.array([1.0 if abs(bearing) < 1 else 0.1, 2 * bearing]) + pair.rng.normal(size=2) * 0.1

    return act


def run_episodes(pair, episodes, record_property):
    ended = np.zeros(pair.num_envs, dtype=int)
    while ended.min() < episodes:
        ended += pair.step()
    report(pair, record_property)


def report(pair, record_property):
    pair.close()
    record_property("largest_difference", pair.largest)
    print(f"{pair.sim.env_id}: {pair.steps} steps, largest difference {pair.largest:.1e}, {pair.incurred}")


def test_three_episodes_with_goals_and_hazards(record_property):
    pair = Pair("SafetyPointGoal1-v0", num_envs=2)
    pair.policy = towards_the_goal(pair)
    run_episodes(pair, 3, record_property)
    assert pair.steps == 3000
    assert pair.met >= 10
    assert pair.incurred["cost_hazards"] >= 10


def test_a_race_is_run_to_its_goal_and_ends_there():
    pair = Pair("SafetyPointRace0-v0", num_envs=1)
    goal = pair.sim.top_view().positions["goal"][0, 0]

    def act(_):
        (x, y), forward = goal - pair.sim.agent_position()[0], pair.sim._snapshot.rotation[0, :2, 0]
        bearing = np.arctan2(y, x) - np.arctan2(*forward[::-1])
        bearing = (bearing + np.pi) % (2 * np.pi) - np.pi
        return np.array([1.0 if abs(bearing) < 0.5 else 0.0, 2 * bearing])

    pair.policy = act
    while not pair.step().any():
        pass
    pair.close()
    assert (pair.met, pair.steps < 500) == (1, True)


def test_objects_fade_as_those_of_the_original():
    pair = Pair("SafetyPointFadingHard2-v0", num_envs=1)
    pair.policy = towards_the_goal(pair)
    for _ in range(200):
        pair.step()
    pair.close()
    assert pair.faintest == 0.0
    assert pair.met > 0


def test_a_kind_of_objects_that_costs_is_opaque_again():
    kinds = [SimpleNamespace(name="goal", alpha=0.5), SimpleNamespace(name="hazards", alpha=1.0)]
    model = SimpleNamespace(geom_rgba=np.array([[0, 0, 0, 0.5], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=np.float32))
    ids = {"goal": [0], "hazards": [1, 2]}
    task = SimpleNamespace(fadding_steps=4, objects_map_ids=ids, fadding_objects=kinds, model=model)
    fading = Fading(task)
    for cost, expected in ((0, [0.375, 0.75, 0.75]), (0, [0.25, 0.5, 0.5]), (1, [0.125, 1, 1]), (0, [0, 0.75, 0.75])):
        fading([task], {"cost_hazards": np.array([float(cost)])})
        assert model.geom_rgba[:, 3].tolist() == expected
    for _ in range(9):
        fading([task], {"cost_hazards": np.zeros(1)})
    assert model.geom_rgba[:, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("env_id", SHORT)
def test_the_start_of_two_episodes(env_id, record_property):
    pair = Pair(env_id, num_envs=1)
    if env_id.startswith("SafetyPoint") and "goal_lidar" in pair.sim.observation_layout:
        pair.policy = towards_the_goal(pair)
    for episode_steps in (120, 40):
        for _ in range(episode_steps):
            pair.step()
        pair.reset(np.array([True]))
    report(pair, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("agent", AGENTS)
def test_two_episodes_of_every_task(agent, task, record_property):
    pair = Pair(f"Safety{agent}{task}-v0", num_envs=1)
    if agent == "Point" and "goal_lidar" in pair.sim.observation_layout:
        pair.policy = towards_the_goal(pair)
    run_episodes(pair, 2, record_property)
