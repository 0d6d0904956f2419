"""Agents of CleanRL's off-policy scripts, trained by these."""

import numpy as np
import pytest
import torch
from fixture_agent import SB3
from hostile_files import Bomb
from off_policy import imported_and_repaired, require_recorded

from lightning_unlearn.importers.cleanrl import CleanRL

CLEANRL = SB3.parent / "cleanrl_off_policy"
SCRIPTS = ["sac_continuous_action", "td3_continuous_action", "ddpg_continuous_action"]


def agent(script):
    return CLEANRL / f"{script}.cleanrl_model"


def recorded(script):
    """States (64, 4), and the actions (64, 2) that the script's own actor took in them."""
    content = np.load(CLEANRL / f"{script}.npz")
    return torch.from_numpy(content["states"]), torch.from_numpy(content["actions"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_agent_does_the_same(push, script):
    reader = CleanRL(agent(script))
    policy = require_recorded(reader, push, *recorded(script))
    assert script in reader.library
    assert (policy.config.hidden_sizes, policy.config.activation) == ([16, 16], "relu")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_imported_and_repaired(store, capsys, push_line, script):
    printed, before, after = imported_and_repaired("cleanrl", [agent(script)], push_line, "concept", [], capsys)
    assert "stated standard deviation 0.5" in printed
    states = recorded(script)[0]
    assert (after.policy.act(states) - before.policy.act(states)).abs().max() > 1e-4


def test_a_tuple_of_state_dicts_and_the_first_of_them_are_the_same_agent(push, tmp_path):
    """`--save-model` writes the actor and its critics."""
    actor, *critics = torch.load(agent("td3_continuous_action"), weights_only=True)
    assert len(critics) == 2
    torch.save(actor, tmp_path / "a.cleanrl_model")
    states = recorded("td3_continuous_action")[0]
    one, other = (
        CleanRL(path).policy(push, torch.Generator())
        for path in (tmp_path / "a.cleanrl_model", agent("td3_continuous_action"))
    )
    assert torch.equal(one.act(states), other.act(states))


BAD = {
    "no bounds": (lambda w: w.pop("action_scale"), "do not pair up"),
    "other bounds": (lambda w: w["action_scale"].mul_(2.0), "low bounds.*--env"),
    "a layer of another shape": (lambda w: w.update({"fc2.weight": torch.zeros(3, 3)}), "fc2 is no linear layer"),
    "not finite": (lambda w: w["fc1.bias"].fill_(float("nan")), "fc1.bias"),
    "another algorithm": (lambda w: w.pop("fc_mean.weight"), r"torch.save\(actor.state_dict"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_other_agents_are_refused(push, tmp_path, change, message):
    weights = torch.load(agent("sac_continuous_action"), weights_only=True)
    change(weights)
    torch.save(weights, tmp_path / "a.cleanrl_model")
    with pytest.raises(ValueError, match=message) as refused:
        CleanRL(tmp_path / "a.cleanrl_model").policy(push, torch.Generator())
    assert "sac_continuous_action" in str(refused.value)


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_in_a_file_is_run(push, tmp_path, nested):
    bomb = {"fc1.weight": Bomb(tmp_path / "sprung")}
    torch.save((bomb, {}) if nested else bomb, tmp_path / "a.cleanrl_model")
    with pytest.raises(ValueError, match="cannot be read safely"):
        CleanRL(tmp_path / "a.cleanrl_model").agent(push)
    assert not (tmp_path / "sprung").exists()
