"""A rollout spread over a Ray cluster: the environments of one machine, the learner's weights, noise of its own."""

import pytest
import torch

from lightning_unlearn import cli, keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.spread import SpreadCollector
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.seeding import SeedStreams, torch_generator, training_seeds

CHAIN = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/unsafe.yaml", "-c", "smoke.yaml"]
E, T = 4, 40


@pytest.fixture
def cluster(ray, monkeypatch):
    """One node of two cores; on a busy machine Ray's own defaults give up too soon, and starve its workers."""
    for name, value in {"raylet_start_wait_time_s": "300", "worker_niceness": "0"}.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's and TorchRL's news about themselves
def test_two_collectors_give_one_rollout_of_the_present_policy(cluster, policy):
    streams = SeedStreams.of(0)
    collector = SpreadCollector("ToyLine-v0", "auto", E, policy, T, 2, streams)
    rollout = collector.rollout()
    env = make_env("ToyLine-v0", E)
    env.seed_environments(training_seeds(streams.environments, E))
    near = RolloutCollector(env, policy, T, torch_generator(streams.policy_noise)).rollout()
    assert rollout.batch_size == near.batch_size == (E, T)
    assert torch.equal(rollout[keys.OBSERVATION][:, 0], near[keys.OBSERVATION][:, 0])  # the same starts, in order
    assert set(near.keys(True, True)) <= set(rollout.keys(True, True))
    noise = (rollout[keys.PRE_TANH] - policy.mean(rollout[keys.OBSERVATION])).detach()
    assert noise.std() == pytest.approx(float(policy.std.mean()), rel=0.25)
    assert not torch.allclose(noise[:2], noise[2:])  # a stream for each collector
    policy.action_mean.bias.data.fill_(3.0)
    assert (collector.rollout()[keys.ACTION].mean() - rollout[keys.ACTION].mean()) > 0.5
    later = SpreadCollector("ToyLine-v0", "auto", E, policy, T, 2, streams)
    later.load_state_dict(collector.state_dict())
    collector.shutdown()
    assert not torch.equal(later.rollout()[keys.OBSERVATION][:, 0], near[keys.OBSERVATION][:, 0])
    later.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_method_trains_on_a_cluster(cluster, store, capsys):
    cli.main(["fit", *CHAIN, "--data.collector", "ray", "--data.workers", "2", "--updates", "2", "--save_points", "2"])
    assert "models:/unsafe.ToyLine-v0/1" in capsys.readouterr().out


@pytest.mark.parametrize(("workers", "message"), [("3", "data.num_envs=4"), ("0", "data.workers=0")])
def test_environments_that_cannot_be_shared_out_are_refused(ray, store, capsys, workers, message):
    with pytest.raises(SystemExit):
        cli.main(["fit", *CHAIN, "--data.collector", "ray", "--data.workers", workers])
    assert message in capsys.readouterr().err


def test_without_ray_the_extra_is_named(store, capsys, monkeypatch):
    monkeypatch.setattr("lightning_unlearn.collectors.spread.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["fit", *CHAIN, "--data.collector", "ray"])
    assert "lightning-unlearn[ray]" in capsys.readouterr().err
