import pytest
import torch

from lightning_unlearn.methods.flat_adam import FlatAdam, written_out_network
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.latent_editor import AffineEditor
from lightning_unlearn.policies.shared_trunk import has_shared_trunk


def policy_of(**shape):
    return ActorCritic(PolicyConfig(5, [-1.0] * 3, [1.0] * 3, **shape), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden_sizes", [[8], [16, 8], [8, 8, 8]])
def test_it_gives_what_the_policy_gives_and_the_gradient_that_autograd_finds(hidden_sizes):
    policy = policy_of(hidden_sizes=hidden_sizes).double()
    observation, weight = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    output = policy(observation)
    joined = torch.cat([output.mean, output.reward_value[:, None], output.cost_value[:, None]], -1)
    named = {name: p for name, p in policy.named_parameters() if name != "log_std"}
    by_autograd = torch.autograd.grad((joined * weight).sum(), list(named.values()))

    optimizer = FlatAdam(policy.parameters(), 1e-3)
    network = written_out_network(policy, optimizer)
    torch.testing.assert_close(network.forward(observation), joined.detach(), rtol=0, atol=1e-12)
    optimizer.zero_grad()
    network.backward(weight)
    for (name, parameter), grad in zip(named.items(), by_autograd, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    "shape", [{"activation": "relu"}, {"critics": "separate"}, {"normalise_observation": True}, {"editor": "affine"}]
)
def test_other_policies_are_left_to_autograd(shape):
    policy = policy_of(**shape)
    assert not has_shared_trunk(policy)
    assert written_out_network(policy, FlatAdam(policy.parameters(), 1e-3)) is None


def test_a_wrapped_or_edited_policy_is_left_to_autograd():
    assert has_shared_trunk(policy_of())
    assert not has_shared_trunk(policy_of(hidden_sizes=[8]).with_editor(AffineEditor.blank(8)))
    wrapped = policy_of()
    wrapped.trunk, wrapped.action_mean = torch.nn.Linear(5, 64), torch.nn.Identity()
    assert not has_shared_trunk(wrapped)
