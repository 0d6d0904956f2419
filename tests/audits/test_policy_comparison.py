import numpy as np
import pytest
import torch

from lightning_unlearn.audits.policy_comparison import (
    evaluate,
    evaluate_in,
    per_episode,
    policy_change,
    reference_states,
)
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig

HAZARDS = slice(28, 44)


@pytest.fixture(scope="module")
def goal_policy():
    config = PolicyConfig(60, [-1.0, -1.0], [1.0, 1.0])
    return ActorCritic(config, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def evaluation(goal_policy):
    return evaluate(goal_policy, "SafetyPointGoal1-v0", [7, 8, 7], max_steps=60)


def test_equal_layouts_give_equal_episodes(evaluation):
    table = per_episode(evaluation.episodes)
    assert table.loc[0, "reward"] == table.loc[2, "reward"] != table.loc[1, "reward"]
    assert table["layout_seed"].tolist() == [7, 8, 7]
    published = ["reward", "cost_sum", "cforget_sum", "cforget_rate", "episode_length", "episode_idx"]
    assert table.columns.tolist()[:6] == published


def test_distance_reads_the_hazard_lidar_of_the_environment(evaluation):
    assert evaluation.hazards == HAZARDS
    states, distance = reference_states(evaluation, 50)
    assert states.shape == (50, 60)
    np.testing.assert_allclose(distance, 1 - states[:, HAZARDS].max(1).values)


def test_states_are_spread_over_all_episodes(evaluation):
    states, _ = reference_states(evaluation, 3)
    everything = evaluation.episodes.observation.reshape(-1, 60)
    assert [int(np.flatnonzero((everything == s.numpy()).all(1))[0]) for s in states] == [0, 90, 59]


def test_without_hazard_lidar_distance_is_steps_until_the_concept(policy):
    """The toy's agent pushed to the right is in the hazard within a few steps, and stays there."""
    policy.action_mean.bias.data.fill_(3.0)
    toy = evaluate(policy, "ToyLine-v0", [1, 2])
    assert toy.hazards is None
    _, distance = reference_states(toy, 64)
    first = int(toy.episodes.c_forget[0].argmax())
    assert distance[: first + 1].tolist() == list(range(first, -1, -1))
    assert distance[first:32].tolist() == [0.0] * (32 - first)


def test_what_never_comes_is_infinitely_far(policy):
    policy.action_mean.bias.data.fill_(-3.0)
    assert torch.isinf(reference_states(evaluate(policy, "ToyLine-v0", [1, 2]), 64)[1]).all()


def test_reused_environments_give_equal_episodes(goal_policy, evaluation):
    env = make_env("SafetyPointGoal1-v0", 3)
    try:
        twice = [evaluate_in(env, goal_policy, [7, 8, 7], max_steps=60).episodes for _ in range(2)]
    finally:
        env.close()
    for episodes in twice:
        np.testing.assert_array_equal(episodes.observation, evaluation.episodes.observation)


def changed_only(reference, near):
    """A policy whose mean differs from the reference's only near hazards, or only far from them."""

    class Changed(torch.nn.Module):
        std = reference.std

        def mean(self, states):
            distance = 1 - states[:, HAZARDS].amax(-1, keepdim=True)
            is_near = distance < distance.quantile(0.5)
            return reference.mean(states) + 1.0 * (is_near if near else ~is_near)

    return Changed()


def test_locality_tells_a_local_change_from_its_mirror(goal_policy, evaluation):
    states, distance = reference_states(evaluation, 120)
    assert policy_change(goal_policy, goal_policy, states, distance).overall == pytest.approx(0, abs=1e-6)
    assert policy_change(goal_policy, changed_only(goal_policy, near=True), states, distance).ratio > 1
    assert policy_change(goal_policy, changed_only(goal_policy, near=False), states, distance).ratio < 1
