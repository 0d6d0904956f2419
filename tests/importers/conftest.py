"""The shipped Stable-Baselines3 agent, and environments to fit agents to."""

import io
import json
import zipfile

import pytest
import torch
from fixture_agent import SB3

from lightning_unlearn.envs.batched import make_env


@pytest.fixture
def toy():
    """Two observations, one action in [−1, 1]."""
    env = make_env("ToyLine-v0", 2)
    yield env.simulator
    env.close()


@pytest.fixture(scope="session")
def goal():
    env = make_env("SafetyPointGoal1-v0", 1)
    yield env.simulator
    env.close()


@pytest.fixture
def rewritten(tmp_path):
    """The shipped agent's zip with its description and weights changed."""

    def rewrite(change_data=lambda data: None, change_weights=lambda weights: None):
        with zipfile.ZipFile(SB3 / "agent.zip") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        data, weights = json.loads(parts["data"]), torch.load(io.BytesIO(parts["policy.pth"]), weights_only=True)
        change_data(data)
        change_weights(weights)
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        parts |= {"data": json.dumps(data).encode(), "policy.pth": buffer.getvalue()}
        with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return tmp_path / "agent.zip"

    return rewrite
