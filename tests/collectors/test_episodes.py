import numpy as np
import torch

from lightning_unlearn.collectors.episodes import run_episodes
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.toy import ToySimulator


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


class Cliff(ToySimulator):
    """The toy, terminated beyond x = 0.2; counts how often each environment was reset."""

    def __init__(self, num_envs):
        super().__init__(num_envs)
        self.resets = np.zeros(num_envs, dtype=int)

    def reset(self, mask=None, seeds=None):
        self.resets += True if mask is None else mask
        return super().reset(mask, seeds)

    def step(self, actions):
        step = super().step(actions)
        step.terminated = self._x > 0.2
        return step


def test_an_episode_that_ends_early_keeps_its_own_end_and_leaves_the_others_alone(policy):
    policy.action_mean.bias.data.fill_(0.05)
    env = BatchedEnv(Cliff(20))
    together = run_episodes(env, policy, list(range(20)))
    assert together.terminated.any()
    assert len(set(together.length)) > 3
    for e in range(20):
        alone = run_episodes(BatchedEnv(Cliff(1)), policy, [e])
        steps = together.length[e]
        assert (steps, together.terminated[e]) == (alone.length[0], alone.terminated[0])
        np.testing.assert_allclose(together.reward[e, :steps], alone.reward[0], rtol=1e-5, atol=1e-6)
        assert not together.reward[e, steps:].any()
        assert not together.pre_tanh[e, steps:].any()
        # the reward is x after the move, the first entry of what the step led to
        np.testing.assert_allclose(together.final_observation[e, 0], together.reward[e, steps - 1], rtol=1e-6)
    assert env.simulator.resets.max() <= 32  # an ended environment is not reset at every later step


def test_the_draw_before_squashing_gives_the_action(policy):
    env = make_env("ToyLine-v0", 2)
    stochastic = run_episodes(env, policy, [1, 2], noise=torch.Generator().manual_seed(0))
    draw = stochastic.pre_tanh[..., 0]
    moved = np.clip(stochastic.observation[..., 0] + 0.25 * np.tanh(draw), -1.0, 1.0)
    np.testing.assert_allclose(moved, stochastic.reward, atol=1e-6)
    deterministic = run_episodes(env, policy, [1, 2])
    mean = policy.mean(torch.from_numpy(deterministic.observation)).detach().numpy()
    np.testing.assert_allclose(deterministic.pre_tanh, mean, atol=1e-6)
    assert not deterministic.terminated.any()
    assert not deterministic.failed.any()
