"""`envs list`: its costs are those of the simulators, and every registered task is either listed or refused."""

import os
import re
import subprocess
import sys

import pytest

from lightning_unlearn import cli
from lightning_unlearn.envs.compat import make_task, navigation_tasks, refused_ids, safe_registry, velocity_ids
from lightning_unlearn.envs.navigation import NavigationSimulator
from lightning_unlearn.envs.rules import cost_names


def printed(capsys, *options):
    cli.main(["envs", "list", *options])
    return capsys.readouterr().out


@pytest.mark.parametrize("task", ["Goal2", "Button1", "Circle1", "FadingHard2", "Race2", "Run0"])
def test_costs_are_those_of_the_simulator(task, capsys):
    env_id = f"SafetyPoint{task}-v0"
    sim = NavigationSimulator(env_id, 1)
    (row,) = re.findall(rf"^  SafetyAGENT{task}-v0 +(\d+) steps   (.*)$", printed(capsys), re.MULTILINE)
    assert row[0] == str(sim.max_episode_steps)
    assert sorted(row[1].split(", ")) == sorted(sim.cost_keys)
    assert row[1].endswith("cost_sum")


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [env_id for ids in navigation_tasks().values() for env_id in ids])
def test_costs_of_every_task_are_those_of_the_simulator(env_id):
    assert sorted(cost_names(make_task(env_id))) == sorted(NavigationSimulator(env_id, 1).cost_keys)


def test_every_registered_task_is_listed_or_refused(capsys):
    text = printed(capsys)
    listed = [env_id for ids in navigation_tasks().values() for env_id in ids] + velocity_ids()
    refused = [env_id for ids in refused_ids().values() for env_id in ids]
    assert {*listed, *refused} >= safe_registry
    assert not {*listed} & {*refused}
    assert all(env_id in text for env_id in velocity_ids())
    assert all(reason in text for reason in refused_ids())


def test_one_task_shows_what_a_policy_sees_and_what_it_may_forget(capsys):
    text = printed(capsys, "--env", "SafetyPointGoal1-v0")
    for part in ("1000 steps", "one batch", "60 numbers", "hazards_lidar [28, 44]", "2 numbers: [-1, 1], [-1, 1]"):
        assert part in text
    assert "costs        cost_hazards, cost_sum\n" in text
    assert "auto (cost_hazards), the costs, ObservationRange, ActionBox, AnyOf, Rectangle, Disc, SpeedAbove" in text
    assert "Rectangle" not in printed(capsys, "--env", "ToyLine-v0")


def test_a_task_of_ones_own_is_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "lab_line.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Line(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)\n"
        "    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        return np.zeros(1, np.float32), {}\n"
        "    def step(self, action):\n"
        "        return np.zeros(1, np.float32), 0.0, False, False, {'cost': 0.0, 'cost_wall': 1.0}\n"
        "gymnasium.register('LabLine-v0', Line, max_episode_steps=20)\n"
    )
    monkeypatch.chdir(tmp_path)
    text = printed(capsys, "--env", "lab_line:LabLine-v0")
    assert "20 steps an episode; environments are stepped one by one" in text
    assert "cost_wall, cost_sum, and others that a step reports later" in text


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("SafetyPointGaol1-v0", "the nearest are SafetyPointGoal1-v0"),
        ("SafetyPointGoal1Vision-v0", "not supported.*: use SafetyPointGoal1-v0"),
        ("CartPole-v1", "action space Discrete"),
    ],
)
def test_an_impossible_task_is_refused(env_id, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["envs", "list", "--env", env_id])
    assert re.search(message, capsys.readouterr().err)


def test_it_works_without_gl():
    variables = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYOPENGL_PLATFORM")}
    command = [sys.executable, "-m", "lightning_unlearn", "envs", "list"]
    done = subprocess.run(
        command, env=variables | {"MUJOCO_GL": "disable"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "SafetyAGENTRace2-v0" in done.stdout
