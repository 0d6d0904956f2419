"""Actors of TorchRL, trained by it; for other distributions, TorchRL itself computes the actions."""

import json

import pytest
import torch
from fixture_agent import SB3
from hostile_files import Bomb
from off_policy import imported_and_repaired
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import MLP, Delta, IndependentNormal, ProbabilisticActor, TanhDelta, TanhNormal

from lightning_unlearn.importers.import_command import require_same_actions
from lightning_unlearn.importers.torchrl_actor import TorchRL

TORCHRL = SB3.parent / "torchrl"
LOW, HIGH = torch.tensor([-1.0, -0.5]), torch.tensor([3.0, 0.5])
"""Bounds of the task."""


def own_action(actor, states):
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        return actor(TensorDict({"observation": states}, [len(states)]))["action"]


def described(actor, path, **more):
    """Write an actor and its description."""
    states = torch.randn(16, 4)
    content = {"activation": "ReLU", "low": LOW.tolist(), "high": HIGH.tolist()}
    content |= {"observations": states.tolist(), "actions": own_action(actor, states).tolist(), **more}
    torch.save(actor.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(content))
    return path


def actor(kind, *, width=2, tail=None, **options):
    net = [MLP(4, width, num_cells=[9, 7], activation_class=nn.ReLU), *([] if tail is None else [tail])]
    keys = ["loc", "scale"] if tail is not None else ["param"]
    module = TensorDictModule(nn.Sequential(*net), in_keys=["observation"], out_keys=keys)
    return ProbabilisticActor(module, in_keys=keys, distribution_class=kind, distribution_kwargs=options)


BOUNDS = {"low": LOW, "high": HIGH}
DISTRIBUTIONS = {
    "TanhNormal": lambda: actor(TanhNormal, width=4, tail=NormalParamExtractor(), **BOUNDS),
    "IndependentNormal": lambda: actor(IndependentNormal, width=4, tail=NormalParamExtractor()),
    "TanhDelta": lambda: actor(TanhDelta, **BOUNDS),
    "Delta": lambda: actor(Delta),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_an_actor_does_the_same(push, tmp_path, kind):
    original = DISTRIBUTIONS[kind]()
    reader = TorchRL(described(original, tmp_path / "actor.pt", distribution=kind))
    policy, states = reader.policy(push, torch.Generator()), torch.randn(100, 4)
    torch.testing.assert_close(policy.act(states), own_action(original, states).clamp(LOW, HIGH), rtol=0, atol=1e-5)
    assert require_same_actions(reader.reference(push), policy, states.double()) < 1e-5
    unit = torch.ones(2) if "Tanh" in kind else (HIGH - LOW) / 2
    torch.testing.assert_close(policy.std, 0.5 * unit)
    assert reader.agent(push).stated_std == 0.5


@pytest.mark.parametrize("mapping", ["exp", "biased_softplus_1.0"])
def test_a_std_that_is_a_parameter_is_kept(push, tmp_path, mapping):
    scale = AddStateIndependentNormalScale(2, scale_mapping=mapping, init_value=-0.7)
    original = actor(TanhNormal, tail=scale, **BOUNDS)
    path = described(original, tmp_path / "actor.pt", distribution="TanhNormal", scale_mapping=mapping)
    reader = TorchRL(path)
    expected = scale(torch.zeros(1, 2))[1][0].detach()
    torch.testing.assert_close(reader.policy(push, torch.Generator()).std, expected)
    assert reader.agent(push).stated_std == 0.0


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("name", ["sac", "ddpg"])
def test_a_trained_actor_is_imported_and_repaired(store, capsys, push_line, name):
    printed, before, after = imported_and_repaired(
        "torchrl", [TORCHRL / f"{name}.pt"], push_line, "concept", [], capsys
    )
    assert "TorchRL 0.14.1" in printed
    content = json.loads((TORCHRL / f"{name}.json").read_text())
    states, actions = torch.tensor(content["observations"]), torch.tensor(content["actions"])
    assert ((actions - LOW) / (HIGH - LOW)).std() > 0.02
    torch.testing.assert_close(before.policy.act(states), actions, rtol=0, atol=1e-5)
    assert (after.policy.act(states) - actions).abs().max() > 1e-4


BAD = {
    "another activation": ({"activation": "Tanh"}, "off those in the description"),
    "an unknown activation": ({"activation": "Swish"}, "activation is 'Swish'"),
    "another distribution": ({"distribution": "TanhDelta"}, "off those in the description"),
    "an unknown distribution": ({"distribution": "OneHotCategorical"}, "distribution is 'OneHotCategorical'"),
    "other bounds": ({"high": [3.0, 1.0]}, "high bounds.*--env"),
    "no bounds": ({"high": None}, "high of its description should be numbers"),
    "another field": ({"tanh_loc": True}, "should hold"),
    "no numbers": ({"observations": "none"}, "should be numbers"),
    "states of another task": ({"observations": [[0.0, 1.0]]}, "do not fit"),
    "no states": ({"observations": [], "actions": []}, "do not fit"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_wrong_descriptions_are_refused(push, tmp_path, change, message):
    given = {"distribution": "TanhNormal"} | change
    path = described(DISTRIBUTIONS["TanhNormal"](), tmp_path / "actor.pt", **given)
    with pytest.raises(ValueError, match=message) as refused:
        TorchRL(path).policy(push, torch.Generator())
    assert "supported are plain networks" in str(refused.value)


def test_another_network_and_a_missing_description_are_refused(push, tmp_path):
    path = described(DISTRIBUTIONS["Delta"](), tmp_path / "actor.pt", distribution="Delta")
    weights = torch.load(path, weights_only=True)
    torch.save(weights | {"norm.weight": torch.ones(9), "norm.bias": torch.ones(9)}, path)
    with pytest.raises(ValueError, match="norm is no linear layer"):
        TorchRL(tmp_path).agent(push)
    torch.save(dict(reversed(weights.items())), path)
    with pytest.raises(ValueError, match=r"do not follow each other|off those in the description"):
        TorchRL(path).agent(push)
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"actor\.json was not found"):
        TorchRL(path).agent(push)


def test_nothing_in_a_file_is_run(push, tmp_path):
    path = described(DISTRIBUTIONS["Delta"](), tmp_path / "actor.pt", distribution="Delta")
    torch.save({"0.weight": Bomb(tmp_path / "sprung")}, path)
    with pytest.raises(ValueError, match="cannot be read safely"):
        TorchRL(path).agent(push)
    assert not (tmp_path / "sprung").exists()
