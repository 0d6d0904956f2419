"""What a simulator has to remember to go on as if it had never stopped: plain arrays and numbers, no objects."""

from typing import Any

import mujoco
import numpy as np

_POSED = (
    "actuator_acc0",
    "body_invweight0",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "cam_mat0",
    "cam_pos0",
    "cam_poscom0",
    "dof_M0",
    "dof_invweight0",
    "eq_data",
    "geom_pos",
    "geom_quat",
    "light_poscom0",
    "qpos0",
    "qpos_spring",
)
"""The arrays of a model in which two layouts of one task differ; a test compares all others."""
_STATISTICS = ("center", "extent", "meaninertia", "meanmass", "meansize")
_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)


def world_state(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, Any]:
    """A layout as the compiled model holds it, and the physics, with the solver's warm start and the mocap bodies."""
    physics = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
    mujoco.mj_getState(model, data, physics, _INTEGRATION)
    return {
        "model": {name: getattr(model, name).copy() for name in _POSED},
        "statistics": {name: np.array(getattr(model.stat, name)) for name in _STATISTICS},
        "physics": physics,
    }


def restore_world(model: mujoco.MjModel, data: mujoco.MjData, state: dict[str, Any]) -> None:
    """Write back what `world_state` returned. The next step then computes the same bits as it would have there."""
    for name, values in state["model"].items():
        getattr(model, name)[...] = values
    for name, values in state["statistics"].items():
        setattr(model.stat, name, values)
    mujoco.mj_resetData(model, data)
    mujoco.mj_setState(model, data, state["physics"], _INTEGRATION)
    mujoco.mj_forward(model, data)  # what is derived from the state; it moves the warm start, so the state comes again
    mujoco.mj_setState(model, data, state["physics"], _INTEGRATION)


def stream_state(stream: np.random.RandomState) -> dict[str, Any]:
    """Where a random stream stands; its words as int64, which every reader of tensors knows."""
    kind, words, *rest = stream.get_state(legacy=True)
    return {"kind": kind, "words": np.asarray(words, dtype=np.int64), "rest": rest}


def restore_stream(stream: np.random.RandomState, state: dict[str, Any]) -> None:
    """Go on from where `stream_state` was taken."""
    stream.set_state((state["kind"], state["words"].astype(np.uint32), *state["rest"]))
