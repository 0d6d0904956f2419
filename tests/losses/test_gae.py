import pytest
import torch
from torchrl.objectives.value.functional import generalized_advantage_estimate

from lightning_unlearn.losses.gae import combine, generalised_advantage, normalise


def random_rollout(generator, envs=4, steps=50, signals=2):
    signal, value, next_value = (torch.randn(envs, steps, signals, generator=generator) for _ in range(3))
    terminated, truncated = (torch.rand(envs, steps, 1, generator=generator) < 0.1 for _ in range(2))
    return signal, value, next_value, terminated, terminated | truncated


def test_equal_to_torchrl_with_truncations_and_terminations_inside_the_batch(generator):
    signal, value, next_value, terminated, done = random_rollout(generator)
    assert (done & ~terminated).any()
    assert terminated.any()
    advantage, target = generalised_advantage(
        signal, value, next_value, bootstrap=~terminated, done=done, gamma=0.97, gae_lambda=0.9
    )
    for k in range(2):
        expected, expected_target = generalized_advantage_estimate(
            0.97, 0.9, *(x[..., k : k + 1] for x in (value, next_value, signal)), done, terminated
        )
        torch.testing.assert_close(advantage[..., k : k + 1], expected)
        torch.testing.assert_close(target[..., k : k + 1], expected_target)


def test_by_hand_a_truncation_bootstraps_with_the_final_observation_and_cuts_the_recursion():
    # γ = λ = 0.5. Rewards 1, 2, 4; values 1, 1, 1; of the true next observations 3, 10, 5; cut after step 1.
    # δ = 1 + 0.5·3 − 1 = 1.5;  2 + 0.5·10 − 1 = 6;  4 + 0.5·5 − 1 = 5.5.
    # A_2 = 5.5;  A_1 = 6 (nothing of A_2);  A_0 = 1.5 + 0.25·6 = 3.
    column = lambda *xs: torch.tensor(xs).reshape(1, -1, 1)  # noqa: E731
    advantage, target = generalised_advantage(
        column(1.0, 2.0, 4.0),
        column(1.0, 1.0, 1.0),
        column(3.0, 10.0, 5.0),
        bootstrap=column(True, True, True),
        done=column(False, True, False),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantage.flatten().tolist() == [3.0, 6.0, 5.5]
    assert target.flatten().tolist() == [4.0, 7.0, 6.5]


def test_by_hand_a_termination_is_worth_nothing_afterwards():
    # As above, but step 1 terminates: δ_1 = 2 − 1 = 1, A_0 = 1.5 + 0.25·1 = 1.75.
    column = lambda *xs: torch.tensor(xs).reshape(1, -1, 1)  # noqa: E731
    advantage, _ = generalised_advantage(
        column(1.0, 2.0, 4.0),
        column(1.0, 1.0, 1.0),
        column(3.0, 10.0, 5.0),
        bootstrap=column(True, False, True),
        done=column(False, True, False),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantage.flatten().tolist() == [1.75, 1.0, 5.5]


def test_normalise_uses_the_population_std_and_spares_constants():
    torch.testing.assert_close(normalise(torch.tensor([1.0, 3.0])), torch.tensor([-1.0, 1.0]))
    assert normalise(torch.full((4,), 0.3)).abs().max() < 1e-6


def test_combination_by_hand():
    reward, cost = torch.tensor([5.0, 1.0]), torch.tensor([-1.0, 1.0])  # normalised: 1, -1 and -1, 1
    assert combine(reward, cost, 3.0, "sum").tolist() == [4.0, -4.0]
    assert combine(reward, cost, 3.0, "convex").tolist() == [1.0, -1.0]
    assert torch.equal(combine(reward, cost, 0.0, "sum"), normalise(reward))


def test_a_penalty_is_a_price_in_units_of_reward():
    reward, cost = torch.tensor([5.0, 1.0]), torch.tensor([-1.0, 1.0])  # the reward's deviation is 2
    assert combine(reward, cost, 3.0, "penalty").tolist() == [2.5, -2.5]  # of 8 and -2
    assert combine(reward, 0.1 * cost, 3.0, "penalty").tolist() == pytest.approx([1.15, -1.15])  # of 5.3 and 0.7
    assert combine(reward, 0.1 * cost, 3.0, "sum").tolist() == [4.0, -4.0]  # however small the costs are
    assert torch.equal(combine(reward, cost, 0.0, "penalty"), normalise(reward))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="broadcast"):
        combine(torch.zeros(3, 1), torch.zeros(3), 1.0, "sum")
