import pytest
import torch
from torch import nn

from lightning_unlearn.policies.q_ensemble import QEnsemble

SEEN, ACTS, B = 5, 2, 7


def made(critics=3, sizes=(8, 6)):
    return QEnsemble(critics, SEEN, ACTS, sizes, torch.Generator().manual_seed(0))


def alone(values, index):
    """One of the critics, of PyTorch's own layers."""
    layers = []
    for weight, bias in zip(values.weights, values.biases, strict=True):
        linear = nn.Linear(*weight.shape[1:])
        linear.weight.data, linear.bias.data = weight[index].T, bias[index, 0]
        layers += [linear, nn.LayerNorm(weight.shape[2]), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


def test_each_critic_is_a_network_of_its_own():
    values, observation, action = made(), torch.randn(B, SEEN), torch.randn(B, ACTS)
    found = values(observation, action)
    assert found.shape == (3, B)
    seen = torch.cat([observation / (1.0 + 1e-4) ** 0.5, action], -1)
    for index in range(3):
        torch.testing.assert_close(found[index], alone(values, index)(seen).squeeze(-1))


def test_observations_are_seen_in_units_of_those_shown():
    values, shown = made(), 3.0 + 2.0 * torch.randn(1000, SEEN)
    values.normalise_by(shown)
    seen = values.normaliser(shown)
    torch.testing.assert_close(seen.mean(0), torch.zeros(SEEN), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(seen.std(0), torch.ones(SEEN), atol=1e-2, rtol=0.0)
    assert "normaliser.mean" in values.state_dict()


def test_the_critics_learn_a_value_that_depends_on_the_action():
    values, generator = made(sizes=(32, 32)), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(values.parameters(), lr=3e-3)
    for _ in range(400):
        observation, action = torch.randn(64, SEEN, generator=generator), torch.randn(64, ACTS, generator=generator)
        loss = (values(observation, action) - observation[:, 0] * action[:, 1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(0.0, abs=0.3)
