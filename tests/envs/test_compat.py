import subprocess
import sys

import mujoco
import numpy as np
import pytest

from lightning_unlearn.envs import compat
from lightning_unlearn.envs.compat import make_task, navigation_ids, refused_as_value_error

TRACELESS = """
import dataclasses, logging, os, warnings
import numpy  # adds warning filters of its own
def state():
    logger = logging.getLogger()
    return dataclasses.dataclass, list(warnings.filters), logger.handlers, logger.level, os.environ.get(BANNER)
BANNER = "PYGAME_HIDE_SUPPORT_PROMPT"
before = state()
import lightning_unlearn.envs.compat
assert state() == before
"""


BUILDS = """
from lightning_unlearn.envs.batched import make_env
make_env("SafetyPointGoal1-v0", 1).close()
"""


@pytest.mark.parametrize("code", [TRACELESS, BUILDS], ids=["traceless", "builds"])
def test_it_is_silent_and_leaves_no_trace(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_array_defaults_are_shared_as_in_python_3_10():
    first, second = compat.safety_gymnasium.assets.geoms.Hazards(), compat.safety_gymnasium.assets.geoms.Hazards()
    assert first.color is second.color
    assert isinstance(first.color, np.ndarray)


def test_every_navigation_task_is_listed():
    # 5 agents × (4 families × 3 levels + Run0)
    assert len(navigation_ids()) == 65


def test_unknown_id_names_the_nearest():
    with pytest.raises(ValueError, match=r"'SafetyPointGaol1-v0'.*SafetyPointGoal1-v0"):
        make_task("SafetyPointGaol1-v0")


@pytest.mark.parametrize("env_id", ["SafetyPointGoal1", "SafetyPointGoal1-v1", "safetypointgoal1-v0", "PointGoal1-v0"])
def test_an_incomplete_id_names_the_whole_one_first(env_id):
    with pytest.raises(ValueError, match=f"'{env_id}'; the nearest are SafetyPointGoal1-v0,"):
        make_task(env_id)


def test_the_toy_is_among_the_nearest():
    with pytest.raises(ValueError, match=r"the nearest are ToyLine-v0,"):
        make_task("toyline-v0")


@pytest.mark.parametrize("variant", ["Gymnasium", "Debug", "Vision", "VisionGymnasium", "DebugGymnasium"])
def test_a_variant_of_a_supported_task_names_the_plain_id(variant):
    with pytest.raises(ValueError, match=r"is not supported; .*: use SafetyPointGoal1-v0$"):
        make_task(f"SafetyPointGoal1{variant}-v0")


@pytest.mark.parametrize(
    "env_id",
    ["SafetyPointGoal1Vision-v0", "SafetyPointGoal1Debug-v0", "SafetyCarRace1-v0", "SafetyPointFadingEasy0-v0"],
)
def test_other_kinds_are_refused(env_id):
    with pytest.raises(ValueError, match=rf"{env_id} is not supported; supported are the agents Point"):
        make_task(env_id)


def test_velocity_tasks_are_refused():
    with pytest.raises(ValueError, match="SafetyAntVelocity-v1 is not supported"):
        make_task("SafetyAntVelocity-v1")


def test_xml_that_mujoco_refuses_names_the_environment():
    message = r"(?s)MuJoCo .* refuses the XML of SafetyX-v0 .*supported are"
    with pytest.raises(ValueError, match=message), refused_as_value_error("SafetyX-v0"):
        mujoco.MjModel.from_xml_string("<mujoco><nonsense/></mujoco>")


def test_swapped_restores_after_an_error():
    class Holder:
        value = 1

    with pytest.raises(RuntimeError), compat.swapped(Holder, "value", 2):
        raise RuntimeError
    assert Holder.value == 1
