"""Cheap resets: the scene of a task is compiled once, and each new layout is written into the compiled model.

A task's bodies never change between layouts, only where they stand. safety_gymnasium nevertheless writes, parses and
compiles the XML at every reset, and decodes six pictures of the sky each time (0.33 s). `ReposedWorld` compiles once,
without pictures, and then sets exactly the fields in which two compilations differ.
"""

import copy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask, safety_gymnasium, swapped
from lightning_unlearn.envs.layout import sample_layout

_world, _underlying = safety_gymnasium.world, safety_gymnasium.bases.underlying
_xmltodict, _rot2quat = _world.xmltodict, _world.rot2quat


@dataclass(slots=True)
class Blueprint:
    """The compiled model that all worlds of one task start from."""

    model: mujoco.MjModel | None = None


def _unparse_without_pictures(document: dict[str, Any]) -> str:
    """The scene's XML without textures: they take nearly all of the compile time and no part in the physics."""
    asset = document["mujoco"]["asset"]
    asset.pop("texture", None)
    for material in asset["material"]:
        material.pop("@texture", None)
    return _xmltodict.unparse(document)


class ReposedWorld(_world.World):  # type: ignore[name-defined]
    """A world that is compiled, without pictures, at most once per blueprint and re-posed afterwards.

    All model arrays equal those of a fresh compilation, except for the cameras', which no observation reads.
    The `MjModel` and `MjData` of a world stay the same objects for its whole life, so views of them stay valid.
    """

    def __init__(self, blueprint: Blueprint, agent: Any, obstacles: list[Any], config: dict[str, Any]) -> None:
        super().__init__(agent, obstacles, config)
        self.blueprint = blueprint

    def build(self) -> None:
        """Bring model and data to the state right after a compilation of the present layout and one `mj_forward`."""
        if self.engine.model is None:
            self._instantiate()
        self._pose()
        # Constants such as inverse weights were computed at the pose of the last layout. MuJoCo computes them with the
        # mocap bodies where the data have them, hence the first of the two resets.
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_setConst(self.model, self.data)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    def _instantiate(self) -> None:
        if self.blueprint.model is None:
            with swapped(
                _world, "xmltodict", SimpleNamespace(**vars(_xmltodict) | {"unparse": _unparse_without_pictures})
            ):
                super().build()
            self.blueprint.model = copy.copy(self.engine.model)
        else:
            model = copy.copy(self.blueprint.model)
            self.engine.update(model, mujoco.MjData(model))

    def _pose(self) -> None:
        self._place("agent", np.r_[self.agent_xy, self._agent.z_height], self.agent_rot)
        for name, item in (self.geoms | self.free_geoms).items():
            self._place(name, item["pos"], item["rot"])
        for name, item in self.mocaps.items():
            self._place_mocap_geom(name, item["pos"], item["rot"])
        # Zeros ask mj_setConst to compute the relative pose of welded bodies again.
        self.model.eq_data[self.model.eq_type == mujoco.mjtEq.mjEQ_WELD, 3:10] = 0.0

    def _place(self, name: str, position: np.ndarray, angle: float) -> None:
        body, quaternion = self.model.body(name), _rot2quat(angle)
        body.pos, body.quat = position, quaternion
        if body.mass[0] == 0.0:  # the compiler gives the inertial frame of a massless body the body's own pose
            body.ipos, body.iquat = position, quaternion
        joint = body.jntadr[0]
        if joint >= 0 and self.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            start = self.model.jnt_qposadr[joint]
            self.model.qpos0[start : start + 7] = np.r_[position, quaternion]
            self.model.qpos_spring[start : start + 7] = np.r_[position, quaternion]

    def _place_mocap_geom(self, name: str, position: np.ndarray, angle: float) -> None:
        geom, body = self.model.geom(name), self.model.body(name)
        geom.pos, geom.quat = position, _rot2quat(angle)
        body.ipos, body.iquat = geom.pos, geom.quat


def reset_world(task: BaseTask, blueprint: Blueprint) -> None:
    """`task.reset()` with a world of the blueprint: same random draws, same state, no recompilation."""
    task.random_generator.sample_layout = partial(sample_layout, task.random_generator)
    with swapped(_underlying, "World", partial(ReposedWorld, blueprint)):
        task.reset()
