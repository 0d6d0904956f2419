import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from lightning_unlearn.losses.cloning import cloning_loss, discounted_returns
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig


def test_the_loss_of_two_transitions_by_hand():
    # −mean log π = −(−1 − 2)/2 = 1.5; ½MSE = ½·(1² + 3²)/2 = 2.5; 2·1.5 + 0.5·2.5 − 0.1·4 = 3.85
    loss = cloning_loss(
        torch.tensor([-1.0, -2.0]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([2.0, 3.0]),
        torch.tensor(4.0),
        bc_coef=2.0,
        value_coef=0.5,
        entropy_coef=0.1,
    )
    assert [term.item() for term in loss] == pytest.approx([3.85, 1.5, 2.5])


def test_the_loss_is_that_of_pytorchs_distributions():
    generator = torch.Generator().manual_seed(0)
    policy = ActorCritic(PolicyConfig(3, [-1.0] * 2, [1.0] * 2, hidden_sizes=[8]), generator)
    observation, noise = torch.randn(50, 3, generator=generator), torch.randn(50, 2, generator=generator)
    target = torch.randn(50, generator=generator)
    output = policy(observation)
    gaussian = Normal(output.mean, policy.std)
    pre_tanh = (output.mean + noise * policy.std).detach()
    squashed = TransformedDistribution(Independent(gaussian, 1), [TanhTransform(cache_size=1)])
    expected = (
        -squashed.log_prob(squashed.transforms[0](pre_tanh)).mean()
        + 0.5 * 0.5 * (output.reward_value - target).square().mean()
        - 0.01 * gaussian.entropy().sum(-1).mean()
    )
    loss = cloning_loss(
        policy.log_prob(output.mean, pre_tanh),
        output.reward_value,
        target,
        policy.entropy(),
        bc_coef=1.0,
        value_coef=0.5,
        entropy_coef=0.01,
    )
    torch.testing.assert_close(loss.total, expected)


def test_returns_by_hand_with_a_truncated_and_a_terminated_episode():
    # γ = 0.5. First episode, cut where the value is 8: 2 + 0.5·8 = 6; 1 + 0.5·6 = 4.
    # Second episode, terminated (value 0): 4; 2 + 0.5·4 = 4; 0 + 0.5·4 = 2. Third, one step, cut at 2: 1 + 1 = 2.
    returns = discounted_returns(
        torch.tensor([1.0, 2.0, 0.0, 2.0, 4.0, 1.0]),
        torch.tensor([False, True, False, False, True, True]),
        torch.tensor([8.0, 8.0, 0.0, 0.0, 0.0, 2.0]),
        0.5,
    )
    assert returns.tolist() == [4.0, 6.0, 2.0, 4.0, 4.0, 2.0]
    assert returns.dtype == torch.float32


def test_misshapen_input_is_refused():
    flat, column = torch.zeros(3), torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"reward_value.*\(3, 1\)"):
        cloning_loss(flat, column, flat, torch.tensor(0.0), bc_coef=1.0, value_coef=1.0, entropy_coef=1.0)
    with pytest.raises(ValueError, match="shape"):
        discounted_returns(flat, flat.bool(), torch.zeros(2), 0.9)
