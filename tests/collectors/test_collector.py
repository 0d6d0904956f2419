import math

import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import RewardSum, TransformedEnv

from lightning_unlearn import keys
from lightning_unlearn.collectors.acting import ActingPolicy, TorchActor, actor_of
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.episodes import run_episodes
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concepts import AnyOf, Disc, ObservationRange, SpeedAbove
from lightning_unlearn.envs.toy import ToySimulator
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig


def collector(policy, seed=0, envs=3, horizon=50):
    env = make_env("ToyLine-v0", envs)
    env.set_seed(seed)
    return RolloutCollector(env, policy, horizon, torch.Generator().manual_seed(seed))


def test_it_is_a_torchrl_collector_and_its_rollouts_are_seeded(policy):
    first, second, other = (collector(policy, seed) for seed in (0, 0, 1))
    assert isinstance(first, BaseCollector)
    batch = first.rollout().clone()
    assert batch.batch_size == (3, 50)
    assert (batch == second.rollout()).all()
    assert not torch.equal(batch[keys.ACTION], other.rollout()[keys.ACTION])


def test_log_prob_is_of_the_action_taken_and_values_follow_the_policy(policy):
    batch = collector(policy).rollout()
    observation, pre_tanh = (batch[k].flatten(0, 1) for k in (keys.OBSERVATION, keys.PRE_TANH))
    log_prob = policy.log_prob(policy.mean(observation), pre_tanh)
    torch.testing.assert_close(batch[keys.LOG_PROB].flatten(), log_prob)
    torch.testing.assert_close(batch[keys.ACTION].flatten(0, 1), policy.squash(pre_tanh))


def test_an_action_is_held_until_it_is_time_or_an_episode_begins(policy):
    env = make_env("ToyLine-v0", 3)
    env.set_seed(0)
    gatherer = RolloutCollector(env, policy, 40, torch.Generator().manual_seed(0), action_repeat=5)
    state = env.simulator.state_dict()
    env.simulator.load_state_dict(state | {"steps": np.array([0, 3, 9])})  # of 32 steps in an episode
    batch = gatherer.rollout()
    done, steps = batch[keys.NEXT, keys.DONE].squeeze(-1), torch.arange(1, 40)
    assert done.nonzero().tolist() == [[0, 31], [1, 28], [2, 22]]
    begins = (steps % 5 == 0) | done[:, :-1]
    for key in (keys.ACTION, keys.PRE_TANH, keys.LOG_PROB):
        same = (batch[key][:, 1:] == batch[key][:, :-1]).all(-1)
        assert torch.equal(same, ~begins), key
    decided = torch.cat([torch.ones_like(begins[:, :1]), begins], 1)
    log_prob = policy.log_prob(policy.mean(batch[keys.OBSERVATION][decided]), batch[keys.PRE_TANH][decided])
    torch.testing.assert_close(batch[keys.LOG_PROB][decided].squeeze(-1), log_prob)


def test_a_rollout_shows_the_policys_present_weights(policy):
    gatherer = collector(policy)
    gatherer.rollout()
    policy.action_mean.bias.data.fill_(9.0)
    assert gatherer.rollout()[keys.ACTION].min() > 0.9


def test_episodes_go_on_across_rollouts_and_their_sums_start_anew(policy):
    gatherer = collector(policy, horizon=20)
    first, second = gatherer.rollout().clone(), gatherer.rollout()
    assert torch.equal(second[keys.OBSERVATION][:, 0], first[keys.NEXT, keys.OBSERVATION][:, -1])
    rewards = torch.cat([b[keys.NEXT, keys.REWARD] for b in (first, second)], 1)[..., 0]  # episodes of 32 steps
    sums = torch.cat([b[keys.NEXT, keys.EPISODE_RETURN] for b in (first, second)], 1)[..., 0]
    torch.testing.assert_close(sums[:, 31], rewards[:, :32].sum(1))
    torch.testing.assert_close(sums[:, 39], rewards[:, 32:40].sum(1))


def test_an_empty_rollout_is_refused(policy):
    with pytest.raises(ValueError, match="horizon=0"):
        collector(policy, horizon=0)


class _StepByStep:
    """An actor that may not leave this process."""

    portable = False

    def __init__(self, policy):
        actor = actor_of(policy)
        self.mean, self.squash = actor.mean, actor.squash


REGIONS = AnyOf([SpeedAbove(0.3), Disc([0.0, 0.0], 1.0), ObservationRange("hazards_lidar", above=0.8)])


@pytest.mark.parametrize(
    ("env_id", "concept"),
    [("SafetyPointGoal1-v0", "auto"), ("SafetyPointGoal1-v0", REGIONS), ("SafetyHalfCheetahVelocity-v1", "auto")],
    ids=["goal", "regions", "velocity"],
)
def test_neither_workers_nor_messages_change_a_bit(env_id, concept, monkeypatch):
    def rollouts(workers):
        env = make_env(env_id, 5, concept, workers=workers)
        env.set_seed(0)
        high = env.simulator.action_high.tolist()
        config = PolicyConfig(env.simulator.observation_size, [-x for x in high], high)
        policy = ActorCritic(config, torch.Generator().manual_seed(0))
        gatherer = RolloutCollector(env, policy, 20, torch.Generator().manual_seed(0), action_repeat=2)
        batches = [gatherer.rollout() for _ in range(2)]
        env.close()
        return torch.stack(batches)

    one = rollouts(1)
    assert all((one == rollouts(workers)).all() for workers in (2, 4))
    monkeypatch.setattr("lightning_unlearn.collectors.collector.actor_of", _StepByStep)
    assert (one == rollouts(2)).all()


def test_a_policy_that_acts_in_pytorch_gives_the_same_rollouts(policy, monkeypatch):
    in_numpy = collector(policy).rollout()
    monkeypatch.setattr("lightning_unlearn.collectors.collector.actor_of", TorchActor)
    in_torch = collector(policy).rollout()
    for key in in_numpy.keys(True, True):
        torch.testing.assert_close(in_numpy[key], in_torch[key])


def test_concepts_are_judged_as_step_by_step(policy):
    """Of a rollout at once, and of each step as TorchRL's collectors ask."""
    env = make_env("ToyLine-v0", 3, ObservationRange("position", above=0.2, below=0.6))
    env.set_seed(0)
    batch = RolloutCollector(env, policy, 50, torch.Generator().manual_seed(0)).rollout()
    x = batch[keys.NEXT, keys.OBSERVATION][..., 0]
    assert torch.equal(batch[keys.NEXT, keys.C_FORGET].squeeze(-1), ((x > 0.2) & (x < 0.6)).float())


class TorchRLCollector:
    """TorchRL's own collector over the same environments, with the noise that `RolloutCollector` draws."""

    def __init__(self, env, policy, horizon, generator):
        self.actor = _NoisyActor(policy)
        self.shape, self.generator = (horizon, env.num_envs, policy.config.action_size), generator
        names = [[keys.REWARD, keys.COST], [keys.EPISODE_RETURN, keys.EPISODE_COST]]
        self.collector = Collector(
            TransformedEnv(env, RewardSum(*names, reset_keys=["_reset", "_reset"])),
            self.actor,
            frames_per_batch=env.num_envs * horizon,
            total_frames=-1,
            auto_register_policy_transforms=False,
        )
        self.rollouts = iter(self.collector)

    def rollout(self):
        self.actor.noise = list(torch.randn(self.shape, generator=self.generator))
        return next(self.rollouts)


class _NoisyActor(TensorDictModuleBase):
    in_keys = [keys.OBSERVATION]  # noqa: RUF012 (TensorDict's own convention)
    out_keys = [keys.ACTION, keys.PRE_TANH, keys.LOG_PROB]  # noqa: RUF012

    def __init__(self, policy):
        super().__init__()
        self.policy, self.noise = policy, []

    @torch.no_grad()
    def forward(self, tensordict):
        mean = self.policy.mean(tensordict[keys.OBSERVATION])
        noise = self.noise.pop(0) if self.noise else torch.zeros_like(mean)  # TorchRL tries the policy out first
        pre_tanh = mean + noise * self.policy.std
        tensordict[keys.ACTION], tensordict[keys.PRE_TANH] = self.policy.squash(pre_tanh), pre_tanh
        tensordict[keys.LOG_PROB] = self.policy.log_prob(mean, pre_tanh).unsqueeze(-1)
        return tensordict


@pytest.mark.parametrize("std", [1e-3, 1.0], ids=["nearly deterministic", "noisy"])
def test_torchrls_own_collector_gives_the_same_rollouts(policy, std):
    policy.log_std.data.fill_(math.log(std))
    ours = collector(policy)
    env = make_env("ToyLine-v0", 3)
    env.set_seed(0)
    reference = TorchRLCollector(env, policy, 50, torch.Generator().manual_seed(0))
    for _ in range(3):  # episodes of 32 steps end inside and go on across rollouts of 50
        rollout, expected = ours.rollout(), reference.rollout()
        assert (rollout.batch_size, rollout.names) == (expected.batch_size, expected.names)
        for key in rollout.keys(True, True):
            assert rollout[key].dtype == expected[key].dtype, key
            torch.testing.assert_close(rollout[key], expected[key], msg=lambda text, key=key: f"{key}: {text}")
    reference.collector.shutdown()


def test_a_restored_collector_goes_on_equally(policy):
    ours, restored = collector(policy), collector(policy)
    ours.rollout()  # episodes of 32 steps: all have begun a second one
    state = ours.state_dict()
    expected = ours.rollout().clone()
    restored.load_state_dict(state)
    assert (restored.rollout() == expected).all()


def test_a_policy_that_learns_on_the_cpu_acts_itself(policy):
    assert ActingPolicy(policy).current() is policy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_copy_follows_the_learner_on_a_gpu(policy):
    gatherer = collector(policy.cuda())
    assert gatherer.rollout().device in (None, torch.device("cpu"))
    policy.action_mean.bias.data.fill_(9.0)
    assert gatherer.rollout()[keys.ACTION].min() > 0.9


OFFSET = 1e8
"""float32 has steps of 8 there."""


class Far(ToySimulator):
    """The line, with observations that lie far from 0."""

    def _observation(self):
        return super()._observation() + OFFSET


@pytest.fixture
def normalising():
    """A policy that subtracts the offset in float64."""
    wide = {"normaliser_dtype": "float64", "observation_dtype": "float64"}
    config = PolicyConfig(2, [-1.0], [1.0], normalise_observation=True, **wide)
    policy = ActorCritic(config, torch.Generator().manual_seed(0))
    policy.normaliser.mean.fill_(OFFSET)
    return policy


def test_a_policy_that_normalises_float64_acts_and_learns_on_float64(normalising):
    env = BatchedEnv(Far(2))
    env.set_seed(0)
    rollout = RolloutCollector(env, normalising, 20, torch.Generator().manual_seed(0)).rollout()
    observation = rollout[keys.OBSERVATION]
    assert observation.dtype == rollout[keys.NEXT, keys.OBSERVATION].dtype == torch.float64
    assert (observation - OFFSET)[..., 0].std() > 0.01  # float32 would make all of them equal
    log_prob = normalising.log_prob(normalising.mean(observation), rollout[keys.PRE_TANH])
    torch.testing.assert_close(log_prob, rollout[keys.LOG_PROB].squeeze(-1))


def test_its_episodes_are_those_of_observations_near_zero(normalising):
    far, near = (run_episodes(BatchedEnv(kind(2)), policy, [1, 2]) for kind, policy in pairs(normalising))
    np.testing.assert_allclose(far.episode_return, near.episode_return, rtol=1e-5)
    np.testing.assert_allclose(far.observation - OFFSET, near.observation, atol=1e-5)
    assert (far.observation.dtype, near.observation.dtype) == (np.float64, np.float32)


def pairs(normalising):
    plain = ActorCritic(PolicyConfig(2, [-1.0], [1.0]))
    plain.load_state_dict({k: v for k, v in normalising.state_dict().items() if "normaliser" not in k})
    return [(Far, normalising), (ToySimulator, plain)]


def test_the_last_environments_may_act_without_noise(generator, policy):
    env = make_env("ToyLine-v0", 4)
    env.set_seed(0)
    batch = RolloutCollector(env, policy, 8, generator, noiseless=3).rollout()
    mean = policy.mean(batch[keys.OBSERVATION])
    torch.testing.assert_close(batch[keys.PRE_TANH][1:], mean[1:])
    assert (batch[keys.PRE_TANH][0] - mean[0]).abs().min() > 1e-3
