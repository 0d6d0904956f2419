"""Environments at their own speed: equal to the originals, and refused where they do not fit."""

import gymnasium
import numpy as np
import pytest
import torch

from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.compat import safety_gymnasium
from lightning_unlearn.envs.gymnasium_simulator import GymnasiumFactory, GymnasiumSimulator
from lightning_unlearn.envs.parallel import ParallelSimulator
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")


class Walk(gymnasium.Env):
    """A walk on a line with bounds 0 and 2 on the action; above x = 3 it costs, above 6 it ends."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(0.0, 2.0, (1,), np.float32)
    fault = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(0, 0.5)
        return np.array([self.x], np.float32), {}

    def step(self, action):
        assert 0.0 <= action[0] <= 2.0
        if self.fault is not None:
            raise self.fault
        self.x += float(action[0])
        cost = float(self.x > 3)
        info = {"cost": cost, "cost_high": cost, "note": "no cost"}
        return np.array([self.x], np.float32), self.x, self.x > 6, False, info


class Broken(Walk):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation * np.nan, *rest


class Free(Walk):
    def step(self, action):
        *rest, _ = super().step(action)
        return *rest, {}


class Switch(Walk):
    action_space = gymnasium.spaces.Discrete(2)


class Picture(Walk):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Unbounded(Walk):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.fixture(autouse=True)
def registered():
    for kind in (Walk, Broken, Free, Switch, Picture, Unbounded):
        gymnasium.register(f"Test{kind.__name__}-v0", entry_point=kind, max_episode_steps=5)
    yield
    for kind in (Walk, Broken, Free, Switch, Picture, Unbounded):
        del gymnasium.registry[f"Test{kind.__name__}-v0"]


@pytest.mark.parametrize(
    "env_id", ["SafetyHalfCheetahVelocity-v1", "SafetyAntVelocity-v0", "SafetyHumanoidVelocity-v1"]
)
def test_velocity_tasks_equal_the_original(env_id):
    rng, seeds = np.random.default_rng(0), [7, 8]
    sims = [GymnasiumSimulator(env_id, 2), ParallelSimulator(GymnasiumFactory(env_id), 2, 2)]
    originals = [safety_gymnasium.make(env_id) for _ in seeds]
    firsts = [sim.reset(seeds=seeds) for sim in sims]
    np.testing.assert_array_equal(*firsts)
    np.testing.assert_array_equal(firsts[0], [o.reset(seed=s)[0] for o, s in zip(originals, seeds, strict=True)])
    ended = 0
    for _ in range(150):
        actions = rng.uniform(sims[0].action_low, sims[0].action_high, (2, len(sims[0].action_low)))
        step, same = (sim.step(actions) for sim in sims)
        np.testing.assert_array_equal(step.observation, same.observation)
        for row, original in enumerate(originals):
            observation, reward, cost, terminated, truncated, _ = original.step(actions[row].astype(np.float32))
            np.testing.assert_array_equal(step.observation[row], observation)
            assert (step.reward[row], step.costs["cost_sum"][row]) == (reward, cost)
            assert (step.terminated[row], step.truncated[row]) == (terminated, truncated)
        done = step.terminated | step.truncated
        ended += done.sum()
        if done.any():
            following = [sim.reset(done) for sim in sims]
            np.testing.assert_array_equal(*following)
            for row in np.flatnonzero(done):
                np.testing.assert_array_equal(following[0][row], originals[row].reset()[0])
    assert ended > 0 or env_id == "SafetyHalfCheetahVelocity-v1"
    for sim in sims:
        sim.close()


def test_a_plain_environment_with_a_cost_by_hand():
    sim = GymnasiumSimulator("TestWalk-v0", 2)
    assert sim.cost_keys == ("cost_high", "cost_sum")
    assert sim.max_episode_steps == 5
    (x,), _ = sim.reset(seeds=[0, 1])
    first, second, third = (sim.step(np.array([[9.0], [0.0]])) for _ in range(3))  # clipped to 2
    # 2, 4 and 6 after the start, which lies between 0 and 0.5: the second step is above 3, the third above 6
    np.testing.assert_allclose([s.reward[0] for s in (first, second, third)], [x + 2, x + 4, x + 6], rtol=1e-6)
    assert [s.costs["cost_sum"][0] for s in (first, second, third)] == [0, 1, 1]
    assert [s.terminated.tolist() for s in (first, third)] == [[False, False], [True, False]]
    sim.reset(third.terminated)
    sim.step(np.zeros((2, 1)))
    last = sim.step(np.zeros((2, 1)))
    assert last.truncated.tolist() == [False, True]  # only the second one has taken five steps


def test_a_policy_for_other_bounds_collects_from_it():
    env = make_env("TestWalk-v0", 2, concept="cost_high")
    env.set_seed(0)
    policy = ActorCritic(PolicyConfig(1, [0.0], [2.0]), torch.Generator().manual_seed(0))
    batch = RolloutCollector(env, policy, 16, torch.Generator().manual_seed(0)).rollout()
    assert 0.0 < batch["action"].min() < batch["action"].max() < 2.0
    assert batch["next", "C_forget"].sum() > 0
    env.close()


def test_numbers_that_are_not_finite_end_the_episode_and_in_the_end_the_run():
    sim = GymnasiumSimulator("TestBroken-v0", 2)
    before = sim.reset(seeds=[0, 1])
    step = sim.step(np.ones((2, 1)))
    assert step.failed.all()
    assert step.truncated.all()
    np.testing.assert_array_equal(step.observation, before)
    for _ in range(9):
        sim.step(np.ones((2, 1)))
    with pytest.raises(RuntimeError, match=r"TestBroken-v0.*11 times in a row"):
        sim.step(np.ones((2, 1)))


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("TestFree-v0", "reports no cost"),
        ("TestSwitch-v0", "action space Discrete"),
        ("TestPicture-v0", "observation space Box"),
        ("TestUnbounded-v0", "unbounded actions"),
        ("SafetyPointGoal1Vision-v0", "not supported"),
        ("SafetyPointGoal1Gymnasium-v0", "not supported"),
        ("SafetyHalfCheetaVelocity-v1", "SafetyHalfCheetahVelocity-v1"),
    ],
)
def test_what_does_not_fit_is_refused(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_env(env_id, 1)
