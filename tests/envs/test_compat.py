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
    # 5 agents × (7 families × 3 levels + Run0)
    assert len(navigation_ids()) == 110


PLAIN = r"is not supported; .*: use SafetyPointGoal1-v0$"
KINDS = "is not supported; supported are the agents Point"
INCOMPLETE = ("SafetyPointGoal1", "SafetyPointGoal1-v1", "safetypointgoal1-v0", "PointGoal1-v0")
VARIANTS = ("Gymnasium", "Debug", "Vision", "VisionGymnasium", "DebugGymnasium")
OTHERS = ("CartPole-v1", "SafetyAntVelocity-v1")
REFUSED = {
    "SafetyPointGaol1-v0": "'SafetyPointGaol1-v0'.*SafetyPointGoal1-v0",
    "toyline-v0": "the nearest are ToyLine-v0,",
    **{env_id: f"'{env_id}'; the nearest are SafetyPointGoal1-v0," for env_id in INCOMPLETE},
    **{f"SafetyPointGoal1{variant}-v0": PLAIN for variant in VARIANTS},
    **{env_id: f"{env_id} {KINDS}" for env_id in OTHERS},
}


@pytest.mark.parametrize(("env_id", "message"), REFUSED.items(), ids=REFUSED)
def test_other_ids_are_refused_with_the_nearest_or_the_supported_ones(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_task(env_id)


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
