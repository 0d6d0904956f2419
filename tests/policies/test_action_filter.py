"""Action filters, against means worked out by hand."""

import math

import numpy as np
import torch

from lightning_unlearn.audits.repair_pairs import acting_digest
from lightning_unlearn.collectors.acting import TorchActor, actor_of
from lightning_unlearn.policies.action_filter import FilteredPolicy, repulsion
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig


def test_a_filter_pushes_where_a_reading_is_above_its_threshold(pushed):
    policy = pushed(1.0)
    filtered = FilteredPolicy(policy, torch.tensor([[2.0], [0.0]]), 0.3)
    states = torch.tensor([[0.2, 0.9], [0.4, 0.9]])
    torch.testing.assert_close(filtered.mean(states), policy.mean(states) - torch.tensor([[0.0], [0.2]]))
    actor = actor_of(filtered)
    assert isinstance(actor, TorchActor)
    np.testing.assert_array_equal(actor.mean(states.double().numpy(), 0), filtered.mean(states).detach().numpy())


def test_behind_a_filter_is_the_policy_itself(pushed):
    policy = pushed(1.0)
    filtered = FilteredPolicy(policy, torch.tensor([[2.0], [0.0]]), 0.3)
    behind = filtered.without_editor()
    assert type(behind) is ActorCritic
    assert acting_digest(behind) == acting_digest(policy) != acting_digest(filtered)
    assert acting_digest(filtered) != acting_digest(FilteredPolicy(policy, torch.tensor([[2.0], [0.0]]), 0.4))


def test_a_ring_of_readings_pushes_away_from_its_near_side():
    push = repulsion(slice(1, 5), size=6, actions=2, ahead=2.0, aside=3.0)
    half = math.sqrt(0.5)  # four readings, at 45, 135, 225 and 315 degrees to the left
    torch.testing.assert_close(push[1:5, 0], 2.0 * half * torch.tensor([1.0, -1.0, -1.0, 1.0]))
    torch.testing.assert_close(push[1:5, 1], 3.0 * half * torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert not push[[0, 5]].any()
    assert repulsion(slice(0, 1), size=2, actions=1, ahead=2.0, aside=3.0).tolist() == [[2.0], [0.0]]
    policy = FilteredPolicy(ActorCritic(PolicyConfig(6, [-1.0] * 2, [1.0] * 2)), push, 0.8)
    clear, left = torch.zeros(6), torch.tensor([0.0, 0.9, 0.0, 0.0, 0.0, 0.0])
    moved = super(FilteredPolicy, policy).mean(left) - policy.mean(left)
    torch.testing.assert_close(moved, 0.1 * push[1])  # back, and to the right
    assert torch.equal(super(FilteredPolicy, policy).mean(clear), policy.mean(clear))
