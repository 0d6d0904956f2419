"""Cheap resets: the scene of a task is compiled once, and each new layout is written into the compiled model.

A task's bodies never change between layouts, only where they stand. safety_gymnasium nevertheless writes, parses and
compiles the XML at every reset, and decodes six pictures of the sky each time (0.33 s). `ReposedWorld` compiles once,
without pictures, and then sets exactly the fields in which two compilations differ.

Layouts are drawn as safety_gymnasium draws them, number for number, without an array per distance: crowded tasks
reject most drawings (Button1: 0.6 s a reset with the original's code).
Source: `RandomGenerator.sample_layout`, `draw_placement` and `Builder.reset` of safety_gymnasium 1.0.0.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import yaml

from lightning_unlearn.envs.compat import BaseTask, safety_gymnasium, swapped

_world, _bases = safety_gymnasium.world, safety_gymnasium.bases
_underlying, _base_task = _bases.underlying, _bases.base_task
_xmltodict, _rot2quat = _world.xmltodict, _world.rot2quat
_read_once = cache(lambda path: yaml.safe_load(Path(path).read_text(encoding="utf-8")))
_TRIES = 100
"""Drawings of one object's place before the whole layout is given up."""

Disc = tuple[float, float, float]
"""x and y in metres, and the radius to keep free."""


@dataclass(slots=True)
class ModelTemplate:
    """The compiled model that the worlds of one task are copies of; None until the first of them is built."""

    model: mujoco.MjModel | None = None
    pictures: bool = False
    """Compile every layout anew, with textures and with cameras placed for it: slow, and to be looked at."""


def lay_out(task: BaseTask, template: ModelTemplate) -> dict[str, float]:
    """Draw and build a new layout in the order of `Builder.reset`, and return its costs, before they are indicators."""
    reset_world(task, template)
    task.update_world()
    task.specific_reset()
    task.agent.reset()
    return task.calculate_cost()


def reset_world(task: BaseTask, template: ModelTemplate) -> None:
    """Do `task.reset()` with a world of the template: same random draws, same state, no recompilation."""
    task.random_generator.sample_layout = partial(sample_layout, task.random_generator)
    # The Race tasks read their walls from a file at each reset, which takes longer than all else.
    reader = SimpleNamespace(load=lambda file, **_: _read_once(file.name), FullLoader=None)
    with swapped(_underlying, "World", partial(ReposedWorld, template)), swapped(_base_task, "yaml", reader):
        task.reset()


class ReposedWorld(_world.World):  # type: ignore[name-defined]
    """A world that is compiled, without pictures, at most once per template and re-posed afterwards.

    All model arrays equal those of a fresh compilation, except for the cameras', which no observation reads.
    The `MjModel` and `MjData` of a world stay the same objects for its whole life, so views of them stay valid.
    """

    def __init__(self, template: ModelTemplate, agent: Any, obstacles: list[Any], config: dict[str, Any]) -> None:
        super().__init__(agent, obstacles, config)
        self.template = template

    def build(self) -> None:
        """Bring model and data to the state right after a compilation of the present layout and one `mj_forward`."""
        if self.template.pictures or (self.engine.model is None and self.template.model is None):
            with compiled(pictures=self.template.pictures):
                super().build()
            self.template.model = copy.copy(self.engine.model)
        elif self.engine.model is None:
            model = copy.copy(self.template.model)
            self.engine.update(model, mujoco.MjData(model))
        self._pose()
        # Constants such as inverse weights were computed at the pose of the last layout. MuJoCo computes them with the
        # mocap bodies where the data have them, hence the first of the two resets.
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_setConst(self.model, self.data)
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    def _pose(self) -> None:
        self._place("agent", np.r_[self.agent_xy, self._agent.z_height], self.agent_rot)
        for name, item in (self.geoms | self.free_geoms).items():
            self._place(name, item["pos"], None if item["type"] == "mesh" else item["rot"])
        for name, item in self.mocaps.items():
            geom, body = self.model.geom(name), self.model.body(name)
            geom.pos, geom.quat = item["pos"], _rot2quat(item["rot"])
            body.ipos, body.iquat = geom.pos, geom.quat
        # Zeros ask mj_setConst to compute the relative pose of welded bodies again.
        self.model.eq_data[self.model.eq_type == mujoco.mjtEq.mjEQ_WELD, 3:10] = 0.0

    def _place(self, name: str, position: np.ndarray, angle: float | None) -> None:
        body = self.model.body(name)
        quaternion = body.quat.copy() if angle is None else _rot2quat(angle)  # meshes never turn
        body.pos, body.quat = position, quaternion
        if body.mass[0] == 0.0:  # the compiler gives the inertial frame of a massless body the body's own pose
            body.ipos, body.iquat = position, quaternion
        joint = body.jntadr[0]
        if joint >= 0 and self.model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            start = self.model.jnt_qposadr[joint]
            self.model.qpos0[start : start + 7] = np.r_[position, quaternion]
            self.model.qpos_spring[start : start + 7] = np.r_[position, quaternion]


@contextmanager
def compiled(*, pictures: bool) -> Iterator[None]:
    """Context manager: all worlds are compiled with pictures, or without.

    Without, no textures: they take nearly all of the compile time and no part in the physics. With pictures, only
    textures whose file is missing are left out: release 1.0.0 lacks those of the Race tasks.
    """
    unparse = partial(_unparse, pictures=pictures)
    with swapped(_world, "xmltodict", SimpleNamespace(**vars(_xmltodict) | {"unparse": unparse})):
        yield


def _unparse(document: dict[str, Any], pictures: bool) -> str:
    asset, folder = document["mujoco"]["asset"], Path(document["mujoco"]["compiler"]["@texturedir"])
    there = [t for t in asset["texture"] if pictures and (folder / t.get("@file", "")).exists()]
    asset["texture"] = there
    for material in asset["material"]:
        if material.get("@texture") not in {texture.get("@name") for texture in there}:
            material.pop("@texture", None)
    return _xmltodict.unparse(document)


def sample_layout(generator: Any) -> bool:
    """Try once to place all objects; on success they are in `generator.layout`. Takes the place of the method.

    Args:
        generator: A `RandomGenerator`; its stream advances exactly as with its own method.
    """
    placed: dict[str, Disc] = {}
    for name, (placements, keepout) in generator.placements.items():
        spot = _free_spot(generator, placements, keepout, list(placed.values()))
        if spot is None:
            return False
        placed[name] = (*spot, keepout)
    generator.layout = {name: np.array(disc[:2]) for name, disc in placed.items()}
    return True


def _free_spot(generator: Any, placements: Any, keepout: float, placed: list[Disc]) -> tuple[float, float] | None:
    # The sum is in the original's order, for the last bit.
    near = [(x, y, other + generator.placements_margin + keepout) for x, y, other in placed]
    uniform = generator.random_generator.random_sample
    for _ in range(_TRIES):
        if placements is not None and len(placements) > 1:  # which of several areas is a draw of its own
            x, y = map(float, generator.draw_placement(placements, keepout))
        else:
            area = generator.placements_extents if placements is None else placements[0]
            x_min, y_min, x_max, y_max = generator.constrain_placement(area, keepout)
            x, y = x_min + (x_max - x_min) * uniform(), y_min + (y_max - y_min) * uniform()
        for a, b, gap in near:
            if math.sqrt((x - a) * (x - a) + (y - b) * (y - b)) < gap:
                break
        else:
            return x, y
    return None
