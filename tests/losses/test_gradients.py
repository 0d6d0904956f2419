"""Gradients written out, held to autograd's of the losses they belong to."""

import pytest
import torch

from lightning_unlearn.losses.cloning import cloning_gradient, cloning_loss
from lightning_unlearn.losses.dual_ppo import dual_ppo_gradient, dual_ppo_loss
from lightning_unlearn.losses.gaussian import GaussianDraws, gaussian_kl, kept_kl, kept_kl_gradient

B, A = 50, 3
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(7)

    def some(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = {"mean": some(B, A), "values": some(B, 2), "log_std": 0.3 * some(A) - 0.5}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    return leaves, some


def gaussian(mean, log_std, draw):
    return torch.distributions.Normal(mean, log_std.exp()).log_prob(draw).sum(-1)


def entropy(log_std):
    return torch.distributions.Normal(torch.zeros_like(log_std), log_std.exp()).entropy().sum()


def assert_same(loss, gradient, expected, leaves):
    for name in expected._fields:
        torch.testing.assert_close(getattr(loss, name), getattr(expected, name), **CLOSE)
    by_autograd = torch.autograd.grad(expected.total, leaves.values(), materialize_grads=True)
    for name, grad in zip(leaves, by_autograd, strict=True):
        torch.testing.assert_close(getattr(gradient, name), grad, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_dual_ppos_gradient_is_autograds_on_both_sides_of_the_clip(given):
    leaves, some = given
    mean, values, log_std = leaves.values()
    draw, units = mean.detach() + log_std.detach().exp() * some(B, A), torch.tensor([2.0, 0.5], dtype=torch.float64)
    old, advantage, targets = gaussian(mean, log_std, draw).detach() + 0.3 * some(B), some(B), some(B, 2)
    weights = {"clip_epsilon": 0.2, "value_coef": 0.7, "entropy_coef": 0.03}
    expected = dual_ppo_loss(
        gaussian(mean, log_std, draw),
        old,
        advantage,
        tuple((values / units).unbind(-1)),
        tuple((targets / units).unbind(-1)),
        entropy(log_std),
        **weights,
    )
    assert 0.2 < expected.clip_fraction < 0.8
    with torch.no_grad():
        found = dual_ppo_gradient(GaussianDraws(mean, log_std, draw), old, advantage, values, targets, units, **weights)
    assert_same(*found, expected, leaves)


def test_clonings_gradient_is_autograds(given):
    leaves, some = given
    mean, values, log_std = leaves.values()
    draw, slope, target = some(B, A), some(B), some(B)
    weights = {"bc_coef": 0.9, "value_coef": 0.5, "entropy_coef": 0.01}
    log_prob = gaussian(mean, log_std, draw) - slope
    expected = cloning_loss(log_prob, values[:, 0], target, entropy(log_std), **weights)
    with torch.no_grad():
        found = cloning_gradient(GaussianDraws(mean, log_std, draw), slope, values[:, 0], target, **weights)
    assert_same(*found, expected, leaves)


@pytest.mark.parametrize("shows", [0.0, 0.5, 1.0])
def test_the_kept_kls_gradient_is_autograds(given, shows):
    leaves, some = given
    mean, _, log_std = leaves.values()
    expert_mean, expert_log_std = some(B, A), 0.2 * some(A)
    c_forget = (torch.arange(B) < shows * B).double()
    kl = kept_kl(gaussian_kl(mean, log_std.exp(), expert_mean, expert_log_std.exp()), c_forget)
    by_autograd = torch.autograd.grad(kl, [mean, log_std])
    with torch.no_grad():
        found = kept_kl_gradient(mean, log_std, expert_mean, expert_log_std, c_forget)
    for ours, theirs in zip(found, (kl, *by_autograd), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_a_target_that_is_no_number_shows_in_the_loss(given):
    leaves, some = given
    draws, targets = GaussianDraws(leaves["mean"], leaves["log_std"], some(B, A)), some(B, 2)
    targets[0, 0] = float("nan")
    rest = {"clip_epsilon": 0.2, "value_coef": 0.5, "entropy_coef": 0.0}
    loss, _ = dual_ppo_gradient(draws, some(B), some(B), leaves["values"], targets, torch.ones(2), **rest)
    assert loss.total.isnan()
