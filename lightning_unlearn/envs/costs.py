"""The costs of Safety-Gymnasium's navigation tasks over E environments at once, as indicators.

Source: `cal_cost` of each kind of object in safety_gymnasium 1.0.0, then `Builder._cost`, which turns every cost into 1
where it is positive. Shapes: E environments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask
from lightning_unlearn.envs.observation import object_bodies
from lightning_unlearn.envs.physics import Snapshot

Cost = Callable[[Snapshot], np.ndarray]
"""From the state to where the cost is incurred. Shape: (E,), bool."""


def geoms_named(model: mujoco.MjModel, prefix: str) -> np.ndarray:
    """Ids of the geoms whose name starts with the prefix. Shape: (n,)."""
    return np.array([g for g in range(model.ngeom) if model.geom(g).name.startswith(prefix)], dtype=np.intp)


def cost_functions(task: BaseTask, model: mujoco.MjModel) -> dict[str, Cost]:
    """Name of each cost of the task → its function, but for the buttons', which depends on their timer."""
    functions: dict[str, Cost] = {}
    for obstacle in task._obstacles:
        if obstacle.is_constrained and obstacle.name in _FUNCTIONS:
            functions |= _FUNCTIONS[obstacle.name](obstacle, model)
    return functions


def _hazards(hazards: Any, model: mujoco.MjModel) -> dict[str, Cost]:
    bodies = object_bodies(model, "hazards")
    return {"cost_hazards": lambda state: (state.distance.take(bodies, axis=1) < hazards.size).any(axis=1)}


def _touching(name: str, prefix: str, _: Any, model: mujoco.MjModel) -> dict[str, Cost]:
    geoms = geoms_named(model, prefix)
    return {name: lambda state: state.touched[:, geoms].any(axis=1)}


def _vases(vases: Any, model: mujoco.MjModel) -> dict[str, Cost]:
    joints = model.body_jntadr[object_bodies(model, "vases")]
    dofs = model.jnt_dofadr[joints][:, None] + np.arange(3)  # (n, 3)

    def moving(state: Snapshot) -> np.ndarray:
        speed = np.sqrt(np.sum(np.square(state.qvel[:, dofs]), axis=-1))
        return (speed >= vases.velocity_threshold).any(axis=1)

    return _touching("cost_vases_contact", "vase", vases, model) | {"cost_vases_velocity": moving}


def _boundary(walls: Any, model: mujoco.MjModel) -> dict[str, Cost]:
    agent, axes = model.body("agent").id, 1 if walls.num == 2 else 2

    def outside(state: Snapshot) -> np.ndarray:
        return (np.abs(state.positions[:, agent, :axes]) > walls.locate_factor).any(axis=1)

    return {"cost_out_of_boundary": outside}


_FUNCTIONS: dict[str, Callable[[Any, mujoco.MjModel], dict[str, Cost]]] = {
    "hazards": _hazards,
    "vases": _vases,
    "pillars": partial(_touching, "cost_pillars", "pillar"),
    "gremlins": partial(_touching, "cost_gremlins", "gremlin"),
    "sigwalls": _boundary,
}
