"""Child processes import what their parent imports, whatever lies in the working directory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_unlearn.envs.compat import safety_gymnasium
from lightning_unlearn.processes import python_command

WORKERS = """
import json
import numpy as np
from lightning_unlearn.envs.batched import make_env
sim = make_env("SafetyPointGoal1-v0", 2, workers=2).simulator
sim.reset(seeds=[7, 7])
print(json.dumps(sim.step(np.ones((2, 2))).reward.tolist()))
sim.close()
"""
SHOW = "import json, sys; print(json.dumps(sys.path), flush=True)"
PARENT = f"{SHOW}; from lightning_unlearn.processes import python_command as command; import subprocess; "
PARENT += "subprocess.run(command('shown'), check=True)"


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """A working directory with a changed safety_gymnasium, and a module that ends its importer."""
    shutil.copytree(Path(safety_gymnasium.__file__).parent, tmp_path / "safety_gymnasium")
    goal = tmp_path / "safety_gymnasium/assets/geoms/goal.py"
    source = goal.read_text()
    goal.write_text(source.replace("reward_distance: float = 1.0", "reward_distance: float = 3.0"))
    assert goal.read_text() != source
    (tmp_path / "pickle.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rewards(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_workers_ignore_the_working_directory_as_their_parent_does(fork):
    (fork.parent / "program.py").write_text(WORKERS)
    first, second = rewards("-P", str(fork.parent / "program.py"))
    assert first == second


def test_workers_find_the_modules_beside_the_program_as_their_parent_does(fork):
    (fork / "pickle.py").unlink()
    (fork / "program.py").write_text(WORKERS)
    os.chdir(fork.parent)
    forked = rewards(str(fork / "program.py"))
    (fork.parent / "program.py").write_text(WORKERS)
    original = rewards("-P", str(fork.parent / "program.py"))
    assert forked[0] == forked[1] == 3 * original[0]


@pytest.mark.parametrize("flags", [[], ["-P"], ["-I"], ["-E", "-s"]])
def test_a_child_has_the_import_path_of_its_parent(fork, flags, tmp_path_factory):
    (fork / "pickle.py").unlink()
    folder = tmp_path_factory.mktemp("ünicode 'quoted'")
    (folder / "shown.py").write_text(SHOW)
    (folder / "program.py").write_text(f"import sys; sys.path += [{str(folder)!r}, 'relative']; {PARENT}")
    done = subprocess.run(
        [sys.executable, *flags, str(folder / "program.py")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(fork)},
    )
    parent, child = map(json.loads, done.stdout.splitlines())
    assert parent == child
    assert (str(fork) in child) == (not flags or flags == ["-P"])


def test_a_module_sees_its_own_arguments(tmp_path, monkeypatch):
    (tmp_path / "told.py").write_text("import sys; print(__name__, *sys.argv[1:])")
    monkeypatch.syspath_prepend(tmp_path)
    done = subprocess.run(python_command("told", "--an", "argument"), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["__main__", "--an", "argument"]
