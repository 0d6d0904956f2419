import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss

from lightning_unlearn.losses.dual_ppo import dual_ppo_loss
from lightning_unlearn.losses.gae import combine, normalise

BATCH, OBSERVATIONS, ACTIONS = 64, 5, 2


class Net(nn.Module):
    """The smallest Gaussian policy with a value, for both implementations."""

    def __init__(self):
        super().__init__()
        self.mean, self.value = nn.Linear(OBSERVATIONS, ACTIONS), nn.Linear(OBSERVATIONS, 1)
        self.log_std = nn.Parameter(torch.tensor([-0.3, 0.2]))

    def forward(self, observation):
        mean = self.mean(observation)
        return mean, self.log_std.exp().expand_as(mean)


def torchrl_loss(net, batch, clip_epsilon, entropy_coef):
    module = TensorDictModule(net, ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(
        module, in_keys=["loc", "scale"], distribution_class=IndependentNormal, return_log_prob=True
    )
    assert isinstance(actor, ProbabilisticTensorDictSequential)
    critic = ValueOperator(net.value, in_keys=["observation"])
    loss = ClipPPOLoss(
        actor,
        critic,
        clip_epsilon=clip_epsilon,
        entropy_coeff=entropy_coef,
        critic_coeff=0.5 * 0.5,  # value_coef times the ½ of ½MSE
        loss_critic_type="l2",
        functional=False,
    )(batch)
    return loss["loss_objective"] + loss["loss_critic"] + loss["loss_entropy"], loss


def test_equal_to_torchrls_clip_ppo_loss_when_lambda_is_zero(generator):
    torch.manual_seed(0)
    net = Net()
    batch = TensorDict(
        {
            "observation": torch.randn(BATCH, OBSERVATIONS, generator=generator),
            "action": torch.randn(BATCH, ACTIONS, generator=generator),
            "action_log_prob": torch.randn(BATCH, generator=generator) - 3,
            "advantage": normalise(torch.randn(BATCH, 1, generator=generator)),
            "value_target": torch.randn(BATCH, 1, generator=generator),
        },
        [BATCH],
    )
    cost_advantage, cost_target = torch.randn(BATCH, generator=generator), torch.randn(BATCH, generator=generator)
    mean, std = net(batch["observation"])
    gaussian = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
    value = net.value(batch["observation"]).squeeze(-1)
    ours = dual_ppo_loss(
        gaussian.log_prob(batch["action"]),
        batch["action_log_prob"],
        combine(batch["advantage"].squeeze(-1), cost_advantage, 0.0, "sum"),
        (value, cost_target),  # a cost critic that is right already adds nothing
        (batch["value_target"].squeeze(-1), cost_target),
        gaussian.entropy()[0],
        clip_epsilon=0.2,
        value_coef=0.5,
        entropy_coef=0.03,
    )
    expected, terms = torchrl_loss(net, batch, 0.2, 0.03)
    torch.testing.assert_close(ours.total, expected.sum())
    torch.testing.assert_close(ours.clip_fraction, terms["clip_fraction"])
    ours_grad = torch.autograd.grad(ours.total, list(net.parameters()), retain_graph=True)
    theirs_grad = torch.autograd.grad(expected.sum(), list(net.parameters()))
    for mine, theirs in zip(ours_grad, theirs_grad, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_by_hand():
    # ratios 2 and 0.5 with ε = 0.2; advantages 1 and −1: min(2, 1.2) = 1.2 and min(−0.5, −0.8) = −0.8; mean 0.2.
    # critics: ½·(1² + 0²)/2 = 0.25 and ½·(2² + 0)/2 = 1; total = −0.2 + 0.5·1.25 − 0.1·3 = 0.125.
    ratio = torch.tensor([2.0, 0.5])
    loss = dual_ppo_loss(
        ratio.log(),
        torch.zeros(2),
        torch.tensor([1.0, -1.0]),
        (torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])),
        (torch.zeros(2), torch.zeros(2)),
        torch.tensor(3.0),
        clip_epsilon=0.2,
        value_coef=0.5,
        entropy_coef=0.1,
    )
    assert loss.total.item() == pytest.approx(0.125)
    assert loss.clip_fraction.item() == 1.0
    assert loss.approximate_kl.item() == pytest.approx(0.0, abs=1e-7)  # log 2 + log ½


def test_columns_are_refused():
    column, flat = torch.zeros(3, 1), torch.zeros(3)
    with pytest.raises(ValueError, match="one shape"):
        dual_ppo_loss(
            flat,
            flat,
            column,
            (flat, flat),
            (flat, flat),
            torch.zeros(()),
            clip_epsilon=0.2,
            value_coef=0.5,
            entropy_coef=0.0,
        )
