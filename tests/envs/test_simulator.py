"""A simulator that is restored goes on, to the bit, as the one that its state was taken from."""

import io

import numpy as np
import pytest
import torch

from lightning_unlearn.collectors.collector import to_arrays, to_tensors
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.compat import navigation_ids

ENVS = 3
NAVIGATION = ["SafetyPointGoal1-v0", "SafetyPointButton2-v0", "SafetyCarPush1-v0", "SafetyPointFadingHard2-v0"]


def simulator(env_id):
    return make_env(env_id, ENVS).simulator


def through_a_file(state):
    """As a checkpoint hands it back: tensors and plain values only, read without unpickling objects."""
    file = io.BytesIO()
    torch.save(to_tensors(state), file)
    file.seek(0)
    return to_arrays(torch.load(file, weights_only=True))


def run(sim, steps, seed):
    """Steps with seeded actions; environments end when they are done, and now and then one more."""
    random, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        step = sim.step(random.uniform(-1, 1, (ENVS, len(sim.action_low))))
        done = step.terminated | step.truncated | (random.uniform(size=ENVS) < 0.02)
        seen += [step.observation, step.reward, step.truncated, *step.costs.values()]
        if done.any():
            seen.append(sim.reset(done))
    return seen


def assert_goes_on_equally(env_id, before=60, after=90):
    original, restored = simulator(env_id), simulator(env_id)
    original.reset(seeds=[2**31 + row for row in range(ENVS)])
    run(original, before, 0)
    state = through_a_file(original.state_dict())
    expected = run(original, after, 1)
    for _ in range(2):  # into a fresh simulator, and into one that has been elsewhere since
        restored.load_state_dict(state)
        for here, there in zip(expected, run(restored, after, 1), strict=True):
            np.testing.assert_array_equal(here, there)
    original.close()
    restored.close()


@pytest.mark.parametrize("env_id", ["ToyLine-v0", *NAVIGATION, "SafetyHalfCheetahVelocity-v1"])
def test_it_goes_on_equally(env_id):
    assert_goes_on_equally(env_id)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", navigation_ids())
def test_every_navigation_task_goes_on_equally(env_id):
    assert_goes_on_equally(env_id, before=150, after=1100)


@pytest.mark.parametrize("env_id", NAVIGATION)
def test_every_array_of_the_model_comes_back(env_id):
    original, restored = simulator(env_id), simulator(env_id)
    original.reset(seeds=[1, 2, 3])
    restored.reset(seeds=[4, 5, 6])
    restored.load_state_dict(original.state_dict())
    for here, there in zip(original._tasks, restored._tasks, strict=True):
        names = [name for name in dir(here.model) if isinstance(getattr(here.model, name), np.ndarray)]
        assert len(names) > 300
        for name in names:
            np.testing.assert_array_equal(getattr(here.model, name), getattr(there.model, name), name)
