"""Pictures of an environment by MuJoCo's own renderer, in a process of its own.

MuJoCo chooses its GL by the variable MUJOCO_GL when it is imported, and a GL driver that fails may end the process.
So the process that evaluates never renders: it has a replica of the environment replayed beside it.
"""

import atexit
import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import mujoco
import numpy as np

from lightning_unlearn.envs.rollout import open_memory
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.envs.worker_process import WorkerProcess

OVERVIEW = "overview"
"""Camera that sees the whole scene."""
TRAIL_STEPS = 100
_TRAIL_WIDTH, _TRAIL_Z = 0.02, 0.02  # metres
_CAPSULE = mujoco.mjtGeom.mjGEOM_CAPSULE
_UNUSED = [int(mujoco.mjtRndFlag.mjRND_REFLECTION), int(mujoco.mjtRndFlag.mjRND_SHADOW)]
_ELEVATION, _MARGIN = -60.0, 0.3  # degrees, metres
_INK, _FLAGGED = (0.1, 0.1, 0.1, 1.0), (0.85, 0.25, 0.0, 1.0)


class MujocoSimulator(Simulator, Protocol):
    """A simulator whose environments may be MuJoCo's."""

    def simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData] | None:
        """Return model and data of the first environment; None if it is not one of MuJoCo's."""
        ...


Factory = Callable[[int], MujocoSimulator]


def start_renderer(make: Factory, gl: str) -> WorkerProcess:
    """Start a process that serves a `ReplayRenderer`.

    Args:
        make: Makes the environment; can be pickled.
        gl: Value of MUJOCO_GL there: egl or osmesa.

    Raises:
        Exception: The process ended, or GL or the environment could not be had there.
    """
    memory = open_memory()
    variables = {"MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
    process = WorkerProcess(partial(ReplayRenderer, make), slice(0, 1), 1, memory, variables)
    os.close(memory)
    try:
        process.answer()
    except BaseException:
        process.close()
        raise
    return process


class ReplayRenderer:
    """Replays episodes of one environment, and renders them.

    Args:
        make: Makes the environment; called for each episode, as cameras are placed for the first layout.
        num_envs: 1.

    Raises:
        Exception: GL cannot be had.
    """

    def __init__(self, make: Factory, num_envs: int) -> None:
        importlib.import_module(f"mujoco.{os.environ['MUJOCO_GL']}")  # raises the reason why it cannot be loaded
        self._make, self._simulator = make, make(num_envs)
        self._simulator.reset(None, [0])
        if self.cameras():
            self._open(16)
            atexit.register(self.close)  # before GL itself ends

    def cameras(self) -> list[str]:
        """Return the names of cameras, the default one first; none if MuJoCo does not simulate the environment."""
        simulation = self._simulator.simulation()
        if simulation is None:
            return []
        model = simulation[0]
        own = [model.camera(number).name for number in range(model.ncam)]
        follows = [] if "agent" in self._simulator.top_view().positions else ["track"]
        return sorted({OVERVIEW, *filter(None, own)}, key=lambda name: (name not in follows, name != OVERVIEW, name))

    def begin(self, seed: int, camera: str, size: int) -> None:
        """Reset the environment.

        Args:
            seed: Seed of the episode's reset.
            camera: One of `cameras`.
            size: Height and width of a picture, pixels.
        """
        self._renderer.close()
        self._simulator.close()
        self._simulator = self._make(1)
        self._simulator.reset(None, [seed])
        self._open(size)
        self._camera = self._overview() if camera == OVERVIEW else camera
        self._trail: list[tuple[np.ndarray, np.ndarray, bool]] = []

    def advance(self, actions: np.ndarray, flags: Sequence[bool]) -> tuple[np.ndarray, list[float]]:
        """Take some actions, and render the scene after them with the path of the last `TRAIL_STEPS` steps.

        Args:
            actions: Shape: (k, A).
            flags: True for steps whose path is drawn in red; length k.

        Returns:
            The picture, shape (size, size, 3), uint8, and the reward of each action.
        """
        rewards = []
        for action, flag in zip(actions, flags, strict=True):
            before = self._place()
            rewards.append(float(self._simulator.step(action[None]).reward[0]))
            if before is not None:
                self._trail.append((before, self._place(), flag))
        self._renderer.update_scene(self._data, self._camera, self._shown)
        for start, end, flag in self._trail[-TRAIL_STEPS:]:
            scene = self._renderer.scene
            geom, colour = scene.geoms[scene.ngeom], np.array(_FLAGGED if flag else _INK, dtype=np.float32)
            mujoco.mjv_initGeom(geom, _CAPSULE, np.zeros(3), np.zeros(3), np.zeros(9), colour)
            mujoco.mjv_connector(geom, _CAPSULE, _TRAIL_WIDTH, np.append(start, _TRAIL_Z), np.append(end, _TRAIL_Z))
            scene.ngeom += 1
        return self._renderer.render(), rewards

    def close(self) -> None:
        """Release GL."""
        self._renderer.close()

    def _open(self, size: int) -> None:
        simulation = self._simulator.simulation()
        assert simulation is not None
        model, self._data = simulation
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = 0  # smooth edges take three times as long without a GPU, reflections twice
        self._renderer = mujoco.Renderer(model, size, size)
        self._renderer.scene.flags[_UNUSED] = 0
        self._shown = mujoco.MjvOption()
        if self._place() is not None:  # the groups of a navigation task are what its lidars see, all to be shown
            self._shown.geomgroup[:] = 1

    def _overview(self) -> mujoco.MjvCamera:
        """A camera that sees all objects of the first scene from obliquely above; MuJoCo's own without a map."""
        camera, model = mujoco.MjvCamera(), self._renderer.model
        mujoco.mjv_defaultFreeCamera(model, camera)
        if placed := list(self._simulator.top_view().positions.values()):
            half = max(np.abs(of_kind[0]).max() for of_kind in placed) + _MARGIN  # arenas lie around the origin
            camera.lookat[:], camera.azimuth, camera.elevation = 0.0, 90.0, _ELEVATION
            camera.distance = 1.2 * half / np.tan(np.deg2rad(model.vis.global_.fovy / 2))
        return camera

    def _place(self) -> Any:
        """The agent's position in the plane of the scene. Shape: (2,), metres; None without a map."""
        agent = self._simulator.top_view().positions.get("agent")
        return None if agent is None else agent[0, 0].copy()
