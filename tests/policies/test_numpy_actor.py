"""The policy in numpy is that in PyTorch, to float32 rounding, and each of its rows stands for itself, to the bit."""

import numpy as np
import pytest
import torch

from lightning_unlearn.collectors.acting import TorchActor, actor_of
from lightning_unlearn.policies.actor_critic import ACTIVATIONS, ActorCritic, PolicyConfig
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor
from lightning_unlearn.policies.numpy_actor import BLOCK, NumpyActor

OBSERVATIONS, LATENT = 11, 10


def make(**options):
    config = PolicyConfig(OBSERVATIONS, [-1.0, 0.0, -2.0], [1.0, 3.0, 2.0], **{"hidden_sizes": [13, LATENT]} | options)
    policy = ActorCritic(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.action_mean.weight.mul_(10)  # so that squashing matters
        if policy.normaliser is not None:
            policy.normaliser.mean.uniform_(-1, 1)
            policy.normaliser.variance.uniform_(0.1, 4)
    return policy


def gated():
    direction = torch.nn.functional.normalize(torch.linspace(-1, 1, LATENT), dim=0)
    return make().with_editor(GatedEditor(direction, alpha=1.5, tau=0.0, beta=10.0))


def affine():
    return make().with_editor(
        AffineEditor(torch.randn(LATENT, LATENT, generator=torch.Generator().manual_seed(0)), torch.ones(LATENT))
    )


POLICIES = {
    **{activation: (lambda activation=activation: make(activation=activation)) for activation in ACTIVATIONS},
    "unsquashed": lambda: make(squash="none"),
    "scaled": lambda: make(squash="scale"),
    "normalised": lambda: make(normalise_observation=True, normaliser_clip=1.5),
    "normalised in float64": lambda: make(normalise_observation=True, normaliser_dtype="float64"),
    "critics apart": lambda: make(critics="separate"),
    "gated editor": gated,
    "affine editor": affine,
}


@pytest.mark.parametrize("name", POLICIES)
def test_equal_to_pytorch_and_each_row_for_itself(name):
    policy, observation = POLICIES[name](), np.random.default_rng(0).normal(size=(37, OBSERVATIONS)).astype(np.float32)
    actor = actor_of(policy)
    assert isinstance(actor, NumpyActor)
    mean = actor.mean(observation.astype(np.float64), 0)
    with torch.no_grad():
        np.testing.assert_allclose(mean, policy.mean(torch.from_numpy(observation)), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(actor.squash(mean), policy.act(torch.from_numpy(observation)), rtol=2e-5, atol=2e-5)
    assert mean.dtype == actor.squash(mean).dtype == np.float32
    for first, stop in ((0, 1), (3, 5), (5, 37), (BLOCK, 2 * BLOCK), (36, 37)):
        part = actor.mean(observation[first:stop].astype(np.float64), first)
        np.testing.assert_array_equal(part, mean[first:stop])
        np.testing.assert_array_equal(actor.squash(part), actor.squash(mean)[first:stop])


def test_a_network_of_ones_own_acts_in_pytorch():
    policy = make()
    policy.trunk = torch.nn.Sequential(*policy.trunk, torch.nn.Dropout(0.1)).eval()
    actor, observation = actor_of(policy), np.ones((2, OBSERVATIONS))
    assert isinstance(actor, TorchActor)
    expected = policy.mean(torch.ones(2, OBSERVATIONS)).detach().numpy()
    np.testing.assert_array_equal(actor.mean(observation, 0), expected)
    np.testing.assert_array_equal(actor.squash(expected), policy.squash(torch.from_numpy(expected)))
