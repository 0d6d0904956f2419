import pytest
import torch

from lightning_unlearn.losses.td3 import actor_loss, critic_loss, pessimistic, td_targets


def test_targets_by_hand():
    # Two macro-actions; nothing comes after the second one.
    next_values = torch.tensor([[2.0, 9.0], [3.0, 9.0], [4.0, 9.0], [5.0, 9.0]])
    target = td_targets(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0]), torch.tensor([0.9, 0.0]), next_values)
    torch.testing.assert_close(target, torch.tensor([[2.8, 0.5], [2.8, 0.5], [4.5, 1.0], [4.5, 1.0]]))


def test_a_critics_error_counts_half_its_square_up_to_one_and_linearly_beyond():
    values = torch.tensor([[0.5, 0.0], [0.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    loss = critic_loss(values, torch.zeros(4, 2))
    assert loss.reward_critic.item() == pytest.approx(0.125 / 2)
    assert loss.cost_critic.item() == pytest.approx(2.5 / 2)
    assert loss.total.item() == pytest.approx(0.0625 + 1.25)


def test_the_policys_loss_by_hand():
    # min(Q₁, Q₂) is 1 and 2, mean 1.5; max(Q₃, Q₄) is 2 and 4, mean 3.
    loss = actor_loss(torch.tensor([[1.0, 5.0], [4.0, 2.0], [2.0, 4.0], [1.0, 0.0]]), cost_weight=0.25)
    assert loss.reward_value.item() == pytest.approx(1.5)
    assert loss.cost_value.item() == pytest.approx(3.0)
    assert loss.policy.item() == pytest.approx(-(1.5 - 0.25 * 3.0) / 1.25)


def test_the_gradient_goes_through_the_worse_of_two():
    values = torch.tensor([[1.0, 5.0], [4.0, 2.0], [2.0, 4.0], [3.0, 1.0]], requires_grad=True)
    reward, cost = pessimistic(values)
    (reward.sum() + cost.sum()).backward()
    assert values.grad.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
