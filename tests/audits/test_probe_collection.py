import dataclasses

import numpy as np
import pytest
import torch

from lightning_unlearn.audits.probe_collection import Collection, collect
from lightning_unlearn.audits.probe_data import load_data, save_data
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.seeding import TRAINING_SEED_FLOOR, SeedStreams, training_seeds

WANTED = Collection("ToyLine-v0", "right", n_per_class=60, max_env_steps=2000, num_envs=4)


def moving(push):
    """A policy that always does tanh(push): the x of the next state is x + tanh(push)/4."""
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[4]))
    for parameter in policy.parameters():
        torch.nn.init.zeros_(parameter)
    policy.action_mean.bias.data.fill_(push)
    return policy


@pytest.fixture(scope="module")
def right():
    return collect(moving(0.1), WANTED)


def test_labels_are_of_the_transition_that_starts_in_the_state(right):
    x = right.states[:, 0].astype(np.float64)
    np.testing.assert_array_equal(right.labels, (np.clip(x + 0.25 * np.tanh(0.1), -1, 1) > 0.5).astype(int))
    assert right.counts == {"safe": 60, "hazard": 60}


def test_states_come_by_step_and_then_by_environment(right):
    assert right.episode_ids[:8].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    np.testing.assert_allclose(right.states[:8, 1] * 32, [0, 0, 0, 0, 1, 1, 1, 1])
    starts = [np.random.default_rng(s).uniform(-0.5, 0.5) for s in training_seeds(SeedStreams.of(42).evaluation, 4)]
    np.testing.assert_allclose(right.states[:4, 0], starts, rtol=1e-6)


def test_each_class_fills_up_by_itself(right):
    steps = right.states[:, 1] * 32 + 32 * (right.episode_ids // 4)  # all episodes are equally long
    assert (np.diff(steps) >= 0).all()
    assert steps[right.labels == 1][0] > 0
    assert right.metadata["env_steps"] == (steps.max() + 1) * 4
    assert right.metadata["episodes"]["hazard"] == len(np.unique(right.episode_ids[right.labels == 1]))


def test_collecting_again_gives_the_same(right):
    again = collect(moving(0.1), WANTED)
    assert again.digest == right.digest
    assert collect(moving(0.1), dataclasses.replace(WANTED, seed=1)).digest != right.digest


def test_no_environment_gets_an_evaluation_layout():
    assert min(training_seeds(SeedStreams.of(42).evaluation, 64)) >= TRAINING_SEED_FLOOR


def test_states_can_be_spread_over_episodes():
    spread = collect(moving(0.1), dataclasses.replace(WANTED, max_per_episode=3))
    for label in (0, 1):
        assert np.bincount(spread.episode_ids[spread.labels == label]).max() == 3


def test_distance_without_a_lidar_counts_steps(right):
    # In ToyLine the policy only moves right, so the steps left are ⌈(0.5 - x)/step⌉ - 1 while x is short of it.
    assert right.metadata["hazard_distance"].startswith("steps until")
    assert (right.hazard_distance[right.labels == 1] == 0).all()
    first = right.episode_ids == 0
    known = right.hazard_distance[first & (right.labels == 0)]
    np.testing.assert_array_equal(np.diff(known), -1)


def test_a_class_that_never_comes_is_said(right):
    with pytest.raises(ValueError, match=r"--max_env_steps 2000: none of the 2000 states.*is hazard.*another model"):
        collect(moving(-1.0), WANTED)


def test_a_class_that_comes_too_seldom_is_kept_as_it_is():
    short = collect(moving(0.1), dataclasses.replace(WANTED, n_per_class=1900))
    assert short.metadata["env_steps"] == 2000
    assert sum(short.counts.values()) == 2000


@pytest.mark.parametrize("name", ["n_per_class", "num_envs", "workers", "max_per_episode", "max_env_steps"])
def test_impossible_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 is not possible"):
        dataclasses.replace(WANTED, **{name: 0})


def test_a_model_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"takes 3 observations.*ToyLine-v0 has 2"):
        collect(ActorCritic(PolicyConfig(3, [-1.0], [1.0])), WANTED)


def test_what_is_saved_is_loaded(right, tmp_path):
    beside = save_data(tmp_path / "d.npz", right)
    read = load_data(str(tmp_path / "d.npz"), "ToyLine-v0")
    assert read.digest == right.digest
    np.testing.assert_array_equal(read.hazard_distance, right.hazard_distance)
    assert read.metadata["seed"] == 42
    assert beside.name == "d.meta.json"
