"""The shipped Stable-Baselines3 agents, and environments to fit agents to."""

import io
import json
import runpy
import zipfile

import gymnasium
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
def push_line():
    """Id of the task, of two actions of different ranges, that the agents of several fixtures were trained in."""
    runpy.run_path(str(SB3.parent / "push_line.py"))
    yield "PushLine-v0"
    del gymnasium.registry["PushLine-v0"]


@pytest.fixture
def push(push_line):
    env = make_env(push_line, 2)
    yield env.simulator
    env.close()


@pytest.fixture
def rewritten(tmp_path):
    """A shipped agent's zip with its description, weights and other parts changed."""

    def rewrite(
        change_data=lambda data: None, change_weights=lambda weights: None, agent=SB3 / "agent.zip", other_parts=()
    ):
        with zipfile.ZipFile(agent) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        data, weights = json.loads(parts["data"]), torch.load(io.BytesIO(parts["policy.pth"]), weights_only=True)
        change_data(data)
        change_weights(weights)
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        parts |= {"data": json.dumps(data).encode(), "policy.pth": buffer.getvalue(), **dict(other_parts)}
        with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        return tmp_path / "agent.zip"

    return rewrite
