import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig, extrapolate
from lightning_unlearn.policies.latent_editor import GatedEditor


def squashed_gaussian(mean, std, low, high):
    """PyTorch's own distribution of low + (high − low)/2·(tanh(u) + 1), u ~ N(mean, std)."""
    half = (high - low) / 2
    transforms = [TanhTransform(), AffineTransform(low + half, half)]
    return Independent(TransformedDistribution(Normal(mean, std), transforms), 1)


def make(generator, **options):
    return ActorCritic(PolicyConfig(3, [-1.0, -2.0], [1.0, 4.0], hidden_sizes=[8, 5], **options), generator)


def test_log_prob_is_that_of_the_squashed_gaussian(generator):
    policy = make(generator).double()
    policy.log_std.data = torch.tensor([-0.7, 0.4], dtype=torch.float64)
    observation = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    mean = policy.mean(observation)
    pre_tanh = mean + policy.std * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    expected = squashed_gaussian(mean, policy.std, policy.action_low, policy.action_high)
    torch.testing.assert_close(
        policy.log_prob(mean, pre_tanh), expected.log_prob(policy.squash(pre_tanh)), rtol=1e-6, atol=1e-6
    )


def test_log_prob_stays_finite_where_tanh_saturates(generator):
    policy = make(generator)
    pre_tanh = torch.tensor([[40.0, -40.0]])
    assert torch.isfinite(policy.log_prob(torch.zeros(1, 2), pre_tanh)).all()


def test_without_squashing_the_density_is_the_gaussians_and_the_action_is_clipped(generator):
    policy = make(generator, squash="none")
    mean, draw = torch.zeros(1, 2), torch.tensor([[0.5, 9.0]])
    expected = Independent(Normal(mean, policy.std), 1).log_prob(draw)
    torch.testing.assert_close(policy.log_prob(mean, draw), expected)
    assert policy.squash(draw).tolist() == [[0.5, 4.0]]


def test_scaling_takes_the_range_from_minus_one_to_one_to_the_bounds(generator):
    """To [−1, 1] and [−2, 4]: half ranges 1 and 3, so the density of the action is that of the draw over 1·3."""
    policy = make(generator, squash="scale")
    mean, draw = torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])
    expected = Independent(Normal(mean, policy.std), 1).log_prob(draw) - math.log(3.0)
    torch.testing.assert_close(policy.log_prob(mean, draw), expected)
    assert policy.squash(torch.tensor([[0.5, 0.5], [-9.0, 9.0]])).tolist() == [[0.5, 2.5], [-1.0, 4.0]]


def test_actions_stay_inside_the_bounds_and_reach_them(generator):
    policy = make(generator)
    assert policy.squash(torch.tensor([[-50.0, -50.0], [50.0, 50.0]])).tolist() == [[-1.0, -2.0], [1.0, 4.0]]
    assert policy.squash(torch.zeros(1, 2)).tolist() == [[0.0, 1.0]]


def test_entropy_is_that_of_the_gaussian_before_tanh(generator):
    policy = make(generator)
    policy.log_std.data = torch.tensor([-1.0, 0.5])
    expected = Independent(Normal(torch.zeros(2), policy.std), 1).entropy()
    torch.testing.assert_close(policy.entropy(), expected)


@pytest.mark.parametrize(("raw", "clamped"), [(-9.0, -5.0), (3.0, 1.0)])
def test_log_std_is_clamped(generator, raw, clamped):
    policy = make(generator)
    policy.log_std.data.fill_(raw)
    assert policy.std[0].item() == pytest.approx(math.exp(clamped))


def test_one_pass_equals_its_parts(generator):
    policy = make(generator)
    observation = torch.randn(7, 3, generator=generator)
    output = policy(observation)
    torch.testing.assert_close(output.mean, policy.mean(observation))
    torch.testing.assert_close(output.reward_value, policy.reward_value(policy.latent(observation)).squeeze(-1))
    assert output.cost_value.shape == (7,)
    torch.testing.assert_close(policy.act(observation), policy.squash(output.mean))


def test_separate_critics_do_not_touch_the_policys_trunk(generator):
    policy = make(generator, critics="separate")
    policy(torch.randn(4, 3, generator=generator)).cost_value.sum().backward()
    assert all(p.grad is None for p in policy.trunk.parameters())
    assert all(p.grad is not None for p in policy.critic_trunk.parameters())


def test_separate_critics_may_be_of_another_shape(generator):
    policy = make(generator, critics="separate", critic_hidden_sizes=[7])
    assert [layer.out_features for layer in policy.critic_trunk if hasattr(layer, "out_features")] == [7]
    output = policy(torch.randn(4, 3, generator=generator))
    assert (output.mean.shape, output.cost_value.shape) == ((4, 2), (4,))


def test_a_wider_range_of_log_std_is_kept(generator):
    policy = make(generator, log_std_range=[-9.0, 2.0])
    policy.log_std.data.fill_(-8.0)
    assert policy.std[0].item() == pytest.approx(math.exp(-8.0))


def test_normaliser_adds_its_epsilon_and_clips(generator):
    policy = make(generator, normalise_observation=True, normaliser_epsilon=3.0, normaliser_clip=2.5)
    # variance 1 + epsilon 3: divided by 2; 8/2 = 4 is beyond the clip
    normalised = policy.normaliser(torch.tensor([[1.0, -3.0, 8.0]]))
    torch.testing.assert_close(normalised, torch.tensor([[0.5, -1.5, 2.5]]))


def test_statistics_in_float64_are_used_as_such(generator):
    policy = make(generator, normalise_observation=True, normaliser_dtype="float64")
    policy.normaliser.mean.fill_(1e8 + 0.25)  # float32 would make it 1e8
    normalised = policy.normaliser(torch.full((1, 3), 1e8))
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised, torch.full((1, 3), -0.25))


def test_float64_observations_reach_the_normaliser(generator):
    policy = make(generator, normalise_observation=True, normaliser_dtype="float64", observation_dtype="float64")
    policy.normaliser.mean.fill_(1e8)
    near = torch.rand(5, 3, dtype=torch.float64)
    assert policy.observation_dtype == torch.float64
    expected = policy.trunk((near / (1.0 + 1e-8) ** 0.5).float())
    torch.testing.assert_close(policy.latent(1e8 + near), expected, rtol=0, atol=1e-6)


def test_other_policies_round_observations_to_float32(generator):
    policy = make(generator)
    states = torch.rand(5, 3, dtype=torch.float64)
    assert torch.equal(policy.act(states), policy.act(states.float()))


def test_normaliser_is_part_of_the_policy(generator):
    policy = make(generator, normalise_observation=True)
    policy.normaliser.mean.fill_(2.0)
    policy.normaliser.variance.fill_(4.0)
    torch.testing.assert_close(policy.latent(torch.full((1, 3), 4.0)), policy.trunk(torch.ones(1, 3)))
    assert "normaliser.mean" in policy.state_dict()


def test_weights_come_from_the_given_stream_alone():
    first, second, third = (make(torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first.trunk[0].weight, second.trunk[0].weight)
    assert not torch.equal(first.trunk[0].weight, third.trunk[0].weight)


@pytest.mark.parametrize(
    "wrong", [{"observation_size": 0}, {"hidden_sizes": []}, {"hidden_sizes": [4, 0]}, {"action_high": [1.0, 1.0]}]
)
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PolicyConfig(**({"observation_size": 3, "action_low": [-1.0], "action_high": [1.0]} | wrong))


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
