"""Off-policy agents of OmniSafe, trained by it on SafetyPointGoal1-v0."""

import numpy as np
import pytest
import torch
from fixture_agent import SB3
from off_policy import imported_and_repaired, require_recorded

from lightning_unlearn.importers.omnisafe import OmniSafe

OMNISAFE = SB3.parent / "omnisafe"
REPAIRS = {"SACLag": "concept", "TD3PID": "concept", "DDPGLag": "localized_concept"}
"""Algorithm → the method that repairs its agent."""


def recorded(name):
    """States (64, 60) of the agent's own episodes, and the actions (64, 2) that OmniSafe's own actor took in them."""
    content = np.load(OMNISAFE / "actions.npz")
    return tuple(torch.from_numpy(content[f"{name}_{part}"]) for part in ("states", "actions"))


@pytest.mark.parametrize("name", REPAIRS)
def test_an_agent_does_the_same(goal, name):
    reader = OmniSafe(OMNISAFE / name)
    policy = require_recorded(reader, goal, *recorded(name))
    assert reader.library == f"OmniSafe ({name})"
    assert (policy.config.hidden_sizes, policy.config.activation) == ([32, 32], "relu")
    assert (policy.config.squash, policy.config.normalise_observation) == ("tanh", True)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("name", ["SACLag", *(pytest.param(name, marks=pytest.mark.slow) for name in [*REPAIRS][1:])])
def test_it_is_imported_and_repaired(store, capsys, name):
    agent, env_id = [OMNISAFE / name], "SafetyPointGoal1-v0"
    printed, before, after = imported_and_repaired("omnisafe", agent, env_id, REPAIRS[name], [], capsys)
    assert "stated standard deviation 0.5" in printed
    states, actions = recorded(name)
    torch.testing.assert_close(before.policy.act(states), actions, rtol=0, atol=1e-5)
    assert (after.policy.act(states) - actions).abs().max() > 1e-4
