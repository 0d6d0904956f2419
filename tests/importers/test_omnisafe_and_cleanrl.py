"""Agents as OmniSafe and CleanRL save them; what they do is computed by networks built the way those build them."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from lightning_unlearn.importers.cleanrl import CleanRL
from lightning_unlearn.importers.import_command import require_same_actions
from lightning_unlearn.importers.omnisafe import OmniSafe

CONFIG = {
    "algo": "PPO",
    "algo_cfgs": {"obs_normalize": True},
    "model_cfgs": {
        "actor_type": "gaussian_learning",
        "actor": {"activation": "relu", "hidden_sizes": [9, 7]},
        "critic": {"activation": "relu", "hidden_sizes": [11]},
    },
}


def mlp(sizes, activation):
    modules = []
    for wide, narrow in pairwise(sizes):
        modules += [nn.Linear(wide, narrow), activation()]
    return nn.Sequential(*modules[:-1])


@pytest.fixture
def run(tmp_path):
    """A run's folder; the agent's mean network and its statistics."""
    mean, std = mlp([2, 9, 7, 1], nn.ReLU), torch.tensor([0.5, 0.01])
    statistics = {"_mean": torch.tensor([0.3, -0.2]), "_std": std, "_clip": torch.full((2,), 5.0)}
    weights = {f"mean.{name}": value for name, value in mean.state_dict().items()} | {"log_std": torch.tensor([-0.5])}
    (tmp_path / "torch_save").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for epoch in (2, 10):
        torch.save({"pi": weights, "obs_normalizer": statistics}, tmp_path / "torch_save" / f"epoch-{epoch}.pt")
    return tmp_path, mean, statistics


def test_an_omnisafe_agent_does_the_same(run, toy):
    folder, mean, statistics = run
    reader = OmniSafe(folder)
    policy = reader.policy(toy, torch.Generator().manual_seed(0))
    states = torch.randn(100, 2)
    normalised = ((states - statistics["_mean"]) / statistics["_std"]).clamp(-5, 5)
    scaled = -1.0 + 2.0 * (mean(normalised) + 1.0) / 2.0  # ActionScale's rounding is part of what the agent does
    expected = scaled.clamp(-1, 1).detach()
    assert torch.equal(policy.act(states), expected)
    torch.testing.assert_close(reader.reference(toy)(states.double()).float(), expected)
    assert (policy.config.critic_hidden_sizes, policy.config.activation) == ([11], "relu")


def test_statistics_that_omnisafe_would_not_use_are_not_used(run, toy):
    folder, mean, _ = run
    (folder / "config.json").write_text(json.dumps(CONFIG | {"algo_cfgs": {"obs_normalize": False}}))
    reader = OmniSafe(folder)
    policy = reader.policy(toy, torch.Generator())
    states = torch.randn(20, 2)
    torch.testing.assert_close(policy.act(states), mean(states).clamp(-1, 1).detach())
    assert require_same_actions(reader.reference(toy), policy, states.double()) < 1e-5


def test_the_newest_epoch_or_the_one_named(run, toy):
    folder, *_ = run
    torch.save({"pi": {}}, folder / "torch_save" / "epoch-10.pt")
    with pytest.raises(ValueError, match="pi should hold"):
        OmniSafe(folder).agent(toy)
    named = OmniSafe(folder / "torch_save" / "epoch-2.pt")
    assert (len(named.agent(toy).actor), named.library) == (3, "OmniSafe (PPO)")


def test_actions_are_scaled_to_the_environments_bounds(run, toy, monkeypatch):
    """OmniSafe's ActionScale takes [−1, 1] to the bounds: a in [−1, 1] is 1 + 2a in [−1, 3]."""
    monkeypatch.setattr(toy, "action_high", np.array([3.0]))
    folder, mean, statistics = run
    policy = OmniSafe(folder).policy(toy, torch.Generator().manual_seed(0))
    states = torch.randn(50, 2)
    raw = mean(((states - statistics["_mean"]) / statistics["_std"]).clamp(-5, 5))
    torch.testing.assert_close(policy.act(states), (1.0 + 2.0 * raw).clamp(-1, 3).detach())
    torch.testing.assert_close(policy.std, torch.tensor([-0.5]).exp())  # of the draw, before it is scaled


OFF_POLICY = {"SACLag": ("gaussian_sac", 2), "TD3": ("mlp", 1), "DDPGPID": ("mlp", 1)}
"""Algorithm → kind of actor, and how many numbers its network gives for an action."""


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_an_off_policy_omnisafe_agent_does_the_same(run, toy, monkeypatch, algorithm):
    """GaussianSACActor and MLPActor: tanh of the first half, or of all, and then ActionScale to [−1, 3]."""
    monkeypatch.setattr(toy, "action_high", np.array([3.0]))
    (folder, _, statistics), (kind, width) = run, OFF_POLICY[algorithm]
    net = mlp([2, 9, 7, width], nn.ReLU)
    weights = {f"net.{name}": value for name, value in net.state_dict().items()} | {"_log2": torch.tensor(2.0).log()}
    torch.save({"pi": weights, "obs_normalizer": statistics}, folder / "torch_save" / "epoch-10.pt")
    config = CONFIG | {"algo": algorithm, "model_cfgs": CONFIG["model_cfgs"] | {"actor_type": kind}}
    (folder / "config.json").write_text(json.dumps(config))
    reader = OmniSafe(folder, exploration_std=0.25)
    policy = reader.policy(toy, torch.Generator().manual_seed(0))
    states = torch.randn(100, 2)
    raw = net(((states - statistics["_mean"]) / statistics["_std"]).clamp(-5, 5))[:, :1].tanh()
    torch.testing.assert_close(policy.act(states), (1.0 + 2.0 * raw).detach())
    assert require_same_actions(reader.reference(toy), policy, states.double()) < 1e-5
    torch.testing.assert_close(policy.std, torch.tensor([0.25]))
    assert reader.library == f"OmniSafe ({algorithm})"


BAD_RUNS = {
    "another actor": (lambda c: c["model_cfgs"].update(actor_type="gaussian_sac"), "gaussian_sac"),
    "a planner": (lambda c: (c.update(algo="LOOP"), c["model_cfgs"].update(actor_type="gaussian_sac")), "LOOP"),
    "no network": (lambda c: (c.update(algo="TD3"), c["model_cfgs"].update(actor_type="mlp")), "no net.0.weight"),
    "another activation": (lambda c: c["model_cfgs"]["actor"].update(activation="identity"), "identity"),
    "no model": (lambda c: c.pop("model_cfgs"), "no configuration"),
}


@pytest.mark.parametrize(("change", "message"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_unsupported_omnisafe_agents_are_refused(run, toy, change, message):
    folder, *_ = run
    config = json.loads(json.dumps(CONFIG))
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as refused:
        OmniSafe(folder).agent(toy)
    assert "PPO family" in str(refused.value)
    assert "SAC, TD3 and DDPG" in str(refused.value)


def test_a_normaliser_that_should_be_there_is_missed(run, toy):
    folder, *_ = run
    content = torch.load(folder / "torch_save" / "epoch-10.pt", weights_only=True)
    torch.save({"pi": content["pi"]}, folder / "torch_save" / "epoch-10.pt")
    with pytest.raises(ValueError, match="no obs_normalizer"):
        OmniSafe(folder).agent(toy)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "config.json was not found"), ("", "torch_save")])
def test_a_missing_omnisafe_agent_is_named(tmp_path, toy, name, message):
    with pytest.raises(ValueError, match=message):
        OmniSafe(tmp_path / name).agent(toy)


class CleanRLAgent(nn.Module):
    """The network of CleanRL's script."""

    def __init__(self):
        super().__init__()
        self.critic = mlp([2, 64, 64, 1], nn.Tanh)
        self.actor_mean = mlp([2, 64, 64, 1], nn.Tanh)
        self.actor_logstd = nn.Parameter(torch.full((1, 1), -0.3))


MEAN, VARIANCE = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)


@pytest.fixture
def statistics(tmp_path):
    """Writes statistics and returns their file."""

    def write(mean=MEAN, variance=VARIANCE, **more):
        np.savez(tmp_path / "s.npz", mean=mean, var=variance, **more)
        return str(tmp_path / "s.npz")

    return write


@pytest.fixture
def cleanrl_agent(tmp_path):
    agent = CleanRLAgent()
    torch.save(agent.state_dict(), tmp_path / "a.cleanrl_model")
    return tmp_path / "a.cleanrl_model", agent


def test_a_cleanrl_agent_does_the_same(cleanrl_agent, toy, statistics):
    path, original = cleanrl_agent
    policy = CleanRL(path, statistics()).policy(toy, torch.Generator())
    states = 3.0 * torch.randn(100, 2)
    normalised = ((states - MEAN) / (VARIANCE + 1e-8).sqrt()).clamp(-10, 10).float()
    assert torch.equal(policy.act(states), original.actor_mean(normalised).clamp(-1, 1).detach())
    torch.testing.assert_close(policy(states).reward_value, original.critic(normalised).squeeze(-1).detach())
    torch.testing.assert_close(policy.std, torch.tensor([-0.3]).exp())


def test_a_cleanrl_agent_far_from_zero_does_the_same(cleanrl_agent, toy, statistics):
    """Its wrapper computes in float64; near 10⁷, float32 has steps of 1."""
    path, original = cleanrl_agent
    mean, variance = 1e7 * torch.tensor([1.0, -1.0], dtype=torch.float64), VARIANCE
    reader = CleanRL(path, statistics(mean, variance, clip=np.inf))
    policy = reader.policy(toy, torch.Generator())
    states = torch.randn(50, 2).double() + mean
    normalised = ((states - mean) / (variance + 1e-8).sqrt()).float()
    torch.testing.assert_close(policy.act(states), original.actor_mean(normalised).clamp(-1, 1).detach())
    assert require_same_actions(reader.reference(toy), policy, states) < 1e-5


def test_cleanrls_statistics_are_asked_for_with_the_lines_that_save_them(cleanrl_agent, toy):
    path, _ = cleanrl_agent
    with pytest.raises(ValueError, match=r"np.savez\(\"stats.npz\""):
        CleanRL(path).agent(toy)
    assert CleanRL(path, "none").agent(toy).normaliser is None


def test_statistics_of_another_size_are_refused(cleanrl_agent, toy, statistics):
    path, _ = cleanrl_agent
    with pytest.raises(ValueError, match="normaliser is for 3 observations"):
        CleanRL(path, statistics(np.zeros(3), np.ones(3))).policy(toy, torch.Generator())


@pytest.mark.parametrize("content", [{"q_network.0.weight": torch.zeros(2)}, {"actor.weight": torch.zeros(2)}, [1]])
def test_other_cleanrl_agents_are_refused(tmp_path, toy, statistics, content):
    torch.save(content, tmp_path / "a.cleanrl_model")
    with pytest.raises(ValueError, match="supported are agents of CleanRL's ppo_continuous_action"):
        CleanRL(tmp_path / "a.cleanrl_model", statistics()).agent(toy)


def test_objects_are_not_unpickled(tmp_path, toy, statistics):
    torch.save(CleanRLAgent(), tmp_path / "a.cleanrl_model")
    with pytest.raises(ValueError, match="cannot be read safely"):
        CleanRL(tmp_path / "a.cleanrl_model", statistics()).agent(toy)
