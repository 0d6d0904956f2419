import pytest
import torch
from torch import nn

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig, extrapolate
from lightning_unlearn.policies.latent_editor import GatedEditor


def policy(seed, **changes):
    config = PolicyConfig(observation_size=3, action_low=[-1.0], action_high=[1.0], hidden_sizes=[4], **changes)
    return ActorCritic(config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_every_weight_lies_on_the_line_through_both_and_neither_is_touched(alpha):
    start, end = policy(0), policy(1)
    before = [weight.clone() for weight in (*start.parameters(), *end.parameters())]
    found = extrapolate(start, end, alpha)
    for x, a, b in zip(found.parameters(), start.parameters(), end.parameters(), strict=True):
        expected = a.double() + alpha * (b.double() - a.double())
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)
        if alpha in (0.0, 1.0):
            assert torch.equal(x, b if alpha else a)
    after = (*start.parameters(), *end.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} is not possible"):
        extrapolate(policy(0), policy(1), alpha)


def normalised(mean):
    made = policy(0, normalise_observation=True)
    made.normaliser.mean.fill_(mean)
    return made


def around(hidden):
    """As a wrapped network is: of another's shape, which the config does not tell."""
    made = policy(0)
    made.trunk = nn.Linear(3, hidden)
    return made


def edited(tau):
    return policy(0).with_editor(GatedEditor(torch.eye(4)[0], 1.0, tau, 1.0))


def test_policies_that_differ_in_more_than_trained_weights_are_refused():
    pairs = [
        (policy(0), policy(1, activation="relu")),
        (normalised(0.0), normalised(1.0)),
        (around(1), around(4)),
        (policy(0), edited(0.0)),
        (edited(0.0), edited(1.0)),
    ]
    for start, end in pairs:
        with pytest.raises(ValueError, match="differ in more than trained weights"):
            extrapolate(start, end, 1.0)
    assert extrapolate(normalised(1.0), normalised(1.0), 2.0).normaliser.mean.eq(1.0).all()
