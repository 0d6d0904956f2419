"""Where agents are in the plane, and how fast, over E environments at once."""

import mujoco
import numpy as np

from lightning_unlearn.envs.physics import Snapshot


class AgentMotion:
    """Position and velocity of the agent's body, equal to MuJoCo's to rounding.

    Args:
        model: Of the task.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._body = model.body("agent").id
        joint = model.body_jntadr[self._body]
        self._free = model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE
        start = model.jnt_dofadr[joint]
        self._velocities = slice(start, start + 2)
        start = model.sensor("velocimeter").adr[0]
        self._velocimeter = slice(start, start + 3)

    def position(self, state: Snapshot) -> np.ndarray:
        """In the task's own coordinates. Shape: (E, 2), metres."""
        return state.positions[:, self._body, :2].copy()

    def velocity(self, state: Snapshot) -> np.ndarray:
        """Along the axes of the plane. Shape: (E, 2), metres per second.

        A free joint's velocities are those of its body's origin. Point slides along axes that turn with each layout:
        its velocimeter, at its origin, is turned back. (Those of other agents are elsewhere on the body.)
        """
        if self._free:
            return state.qvel[:, self._velocities].copy()
        velocity: np.ndarray = state.rotation[:, :2] @ state.sensors[:, self._velocimeter, None]  # (E, 2, 1)
        return velocity[..., 0]
