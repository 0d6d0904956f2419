"""The Swimmer, Hopper and Walker2d of today's MuJoCo against recordings of the originals by MuJoCo 2.3.3.

`tests/fixtures/velocity/convert.py` converted the models and made the recordings.
"""

from pathlib import Path
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from lightning_unlearn.envs import compat
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.compat import make_original

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "velocity" / "mujoco_2_3_3.npz")
TASKS = {"swimmer": "Swimmer", "hopper": "Hopper", "walker2d": "Walker2d"}
STEP, EPISODE = 1e-9, 1e-4
"""Largest differences of observation and reward of a step, and of the return of an episode."""


@pytest.fixture(params=TASKS)
def name(request):
    return request.param


@pytest.fixture
def env(name):
    env = make_original(f"Safety{TASKS[name]}Velocity-v1")
    env.reset(seed=0)
    yield env
    env.close()


def test_single_steps_from_equal_states_are_those_of_mujoco_2_3_3(name, env):
    inner = env.unwrapped
    of = {key: RECORDED[f"{name}.{key}"] for key in ("qpos", "qvel", "action", "observation", "reward", "cost")}
    ends, largest = RECORDED[f"{name}.terminated"], 0.0
    for row, action in enumerate(of["action"]):
        mujoco.mj_resetData(inner.model, inner.data)
        inner.set_state(of["qpos"][row], of["qvel"][row])
        observation, reward, cost, terminated, *_ = inner.step(action)
        assert (cost, terminated) == (of["cost"][row], ends[row])
        largest = max(largest, abs(reward - of["reward"][row]), np.abs(observation - of["observation"][row]).max())
    print(f"{name}: {len(of['action'])} steps, largest difference {largest:.1e}")
    assert largest <= STEP
    assert {0.0, 1.0} == {*of["cost"]}


def test_episodes_of_random_actions_are_those_of_mujoco_2_3_3(name, env):
    theirs, ours = RECORDED[f"{name}.episodes"], []
    for seed in range(len(theirs)):
        random, (total, paid, length), ended = np.random.default_rng(seed), (0.0, 0.0, 0), False
        env.reset(seed=seed)
        while not ended:
            _, reward, cost, terminated, truncated, _ = env.step(random.uniform(-1, 1, env.action_space.shape))
            total, paid, length, ended = total + reward, paid + cost, length + 1, terminated or truncated
        ours.append((total, paid, length))
    difference = np.abs(np.array(ours) - theirs).max(0)
    print(f"{name}: {len(theirs)} episodes, largest differences of return, cost and length {difference}")
    assert (difference <= (EPISODE, 0, 0)).all()


def test_they_run_in_processes_too():
    env = make_env("SafetyHopperVelocity-v1", 2, workers=2)
    env.set_seed(0)
    assert env.rollout(5).batch_size == (2, 5)
    env.close()


def test_another_model_of_the_same_name_is_left_alone(tmp_path):
    env = SimpleNamespace(fullpath=str(tmp_path / "hopper.xml"))
    compat._initialise(env, lambda _: None)
    assert env.fullpath == str(tmp_path / "hopper.xml")
