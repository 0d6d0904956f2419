import dataclasses

import numpy as np
import pytest

from lightning_unlearn.audits.probe_data import (
    SMALLEST,
    SplitOptions,
    Splits,
    load_data,
    make_splits,
    require_apart,
    steps_until,
)


def test_steps_until_by_hand():
    signal = np.array([[0, 0], [1, 0], [0, 0], [0, 1]], bool)
    done = np.array([[0, 0], [0, 1], [0, 0], [0, 0]], bool)
    inf = np.inf
    np.testing.assert_array_equal(steps_until(signal, done), [[1, inf], [0, inf], [inf, 1], [inf, 0]])


def test_another_environment_is_refused(dataset):
    with pytest.raises(ValueError, match="was collected in ToyLine-v0, not in SafetyPointGoal1-v0"):
        load_data(dataset, "SafetyPointGoal1-v0")


def test_parts_of_other_lengths_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="800 states"):
        dataclasses.replace(data, labels=data.labels[:-1])
    with pytest.raises(ValueError, match="0 or 1"):
        dataclasses.replace(data, labels=data.labels * 2)


def population(episodes=40, length=30, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(episodes), length)
    labels = (rng.random(len(ids)) < rng.uniform(0.1, 0.9, episodes)[ids]).astype(np.int64)
    return labels, ids


def test_no_episode_is_in_two_splits_and_no_state_is_lost():
    labels, ids = population()
    splits = make_splits(labels, ids, SplitOptions())
    parts = [set(ids[indices]) for _, indices in splits.items()]
    assert [len(part) for part in parts] == [28, 6, 6]  # ⌈0.15·40⌉ = 6 episodes each for val and test
    assert set.union(*parts) == set(range(40))
    assert sorted(np.concatenate([i for _, i in splits.items()])) == list(range(len(ids)))
    for _, indices in splits.items():
        assert np.bincount(labels[indices]).min() >= SMALLEST


def test_more_tries_come_nearer_to_the_label_ratio():
    labels, ids = population()

    def gap(tries):
        splits = make_splits(labels, ids, SplitOptions(split_tries=tries))
        return sum(abs(labels[indices].mean() - labels.mean()) for _, indices in splits.items())

    assert gap(256) < gap(1)
    assert gap(256) < 0.05


def test_the_same_seed_gives_the_same_splits():
    labels, ids = population()
    one, same, other = (make_splits(labels, ids, SplitOptions(seed=s)) for s in (1, 1, 2))
    assert np.array_equal(one.test, same.test)
    assert not np.array_equal(one.test, other.test)


def test_few_episodes_are_split_by_class():
    labels, ids = population(9, 100)
    splits = make_splits(labels, ids, SplitOptions())
    assert splits.by == "stratified"
    for _, indices in splits.items():
        assert labels[indices].mean() == pytest.approx(labels.mean(), abs=0.01)
    require_apart(splits, ids)


def test_leaking_episodes_are_caught():
    ids = np.array([0, 0, 1, 1, 2, 2])
    require_apart(Splits(np.array([0, 1]), np.array([2, 3]), np.array([4, 5]), "episode"), ids)
    leak = Splits(np.array([0, 1, 2]), np.array([3]), np.array([4, 5]), "episode")
    with pytest.raises(ValueError, match="episode 1 is in two splits"):
        require_apart(leak, ids)
    twice = Splits(np.array([0, 1]), np.array([1, 2]), np.array([3]), "stratified")
    with pytest.raises(ValueError, match="state 1 is in two splits"):
        require_apart(twice, ids)


@pytest.mark.parametrize("name", ["safe", "hazard"])
def test_one_class_only_is_refused(name):
    labels = np.full(100, int(name == "hazard"))
    with pytest.raises(ValueError, match=rf"all 100 states of the dataset are {name}.*--max_env_steps"):
        make_splits(labels, np.arange(100), SplitOptions())


@pytest.mark.parametrize("episodes", [5, 40])
def test_too_few_of_a_class_in_a_split_is_refused(episodes):
    labels, ids = np.zeros(400, np.int64), np.arange(400) % episodes
    labels[:60] = 1  # 60 hazards cannot give three splits 25 each
    with pytest.raises(ValueError, match=r"25 are needed.*--n_per_class"):
        make_splits(labels, ids, SplitOptions())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_frac": 0.0}, "val_frac=0.0"),
        ({"test_frac": 1.0}, "test_frac=1.0"),
        ({"val_frac": 0.5, "test_frac": 0.5}, "leave nothing to train on"),
        ({"split_tries": 0}, "split_tries=0"),
        ({"seed": -1}, "seed=-1"),
        ({"val_frac": float("nan")}, "val_frac=nan"),
    ],
)
def test_impossible_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        SplitOptions(**given)
