import numpy as np
import torch

from lightning_unlearn.collection.episodes import run_episodes
from lightning_unlearn.envs.batched import make_env


def test_every_layout_gets_one_whole_deterministic_episode(policy):
    env = make_env("ToyLine-v0", 4)
    first, again = (run_episodes(env, policy, [1, 2, 3, 1]) for _ in range(2))
    assert first.length.tolist() == [32] * 4
    assert np.array_equal(first.reward, again.reward)
    assert np.array_equal(first.reward[0], first.reward[3])
    assert not np.array_equal(first.reward[0], first.reward[1])
    assert np.array_equal(first.observation[:, 0, 1], np.zeros(4))
    # the reward is x after the move, the next observation's first entry
    np.testing.assert_allclose(first.reward[:, :-1], first.observation[:, 1:, 0], atol=1e-6)
    np.testing.assert_array_equal(first.cost, (first.reward > 0.5).astype(float))
    np.testing.assert_allclose(first.episode_return, first.reward.sum(1))


def test_max_steps_cuts(policy):
    episodes = run_episodes(make_env("ToyLine-v0", 2), policy, [1, 2], max_steps=10)
    assert episodes.reward.shape == (2, 10)
    assert episodes.length.tolist() == [10, 10]


def test_noise_makes_the_policy_stochastic_and_is_seeded(policy):
    env = make_env("ToyLine-v0", 2)
    runs = [run_episodes(env, policy, [1, 2], noise=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert np.array_equal(runs[0].reward, runs[1].reward)
    assert not np.array_equal(runs[0].reward, runs[2].reward)


def test_scenes_follow_the_agent(policy):
    episodes = run_episodes(make_env("ToyLine-v0", 2), policy, [1, 2], keep_scenes=True)
    assert len(episodes.scenes) == 32
    x = np.stack([scene.positions["agent"][:, 0, 0] for scene in episodes.scenes], 1)
    np.testing.assert_allclose(x, episodes.observation[..., 0], atol=1e-6)
