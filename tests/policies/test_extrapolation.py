import pytest
import torch

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.extrapolation import extrapolated


def policy(seed, **changes):
    config = PolicyConfig(observation_size=3, action_low=[-1.0], action_high=[1.0], hidden_sizes=[4], **changes)
    return ActorCritic(config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 1.7])
def test_every_weight_lies_on_the_line_through_both_and_neither_is_touched(alpha):
    start, end = policy(0), policy(1)
    before = [weight.clone() for weight in (*start.parameters(), *end.parameters())]
    found = extrapolated(start, end, alpha)
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
        extrapolated(policy(0), policy(1), alpha)


def test_policies_of_two_architectures_are_refused():
    with pytest.raises(ValueError, match="not of one architecture"):
        extrapolated(policy(0), policy(1, activation="relu"), 1.0)
