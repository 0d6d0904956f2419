"""Rewards, costs and goals of the navigation tasks over E environments at once.

Source: `calculate_reward`, `specific_step` and `goal_achieved` of the tasks and `cal_cost` of the objects of
safety_gymnasium 1.0.0, and `Builder._cost`, which turns every cost into 1 where it is positive.
Each class of rewards keeps, as arrays, what the original keeps in attributes of E task objects; `read` fetches them
from a task that has just been reset or has got a new goal. Shapes: E environments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Protocol

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import BaseTask, get_body_xvelp
from lightning_unlearn.envs.physics import Snapshot, distance_xy
from lightning_unlearn.envs.sensors import object_bodies

Cost = Callable[[Snapshot], np.ndarray]
"""A cost as a function of the state: True where it is incurred. Shape: (E,), bool."""


@dataclass(slots=True)
class Outcome:
    """Reward, costs and goal of one step. Shape of each array: (E,)."""

    reward: np.ndarray
    costs: dict[str, np.ndarray]
    """1.0 where the cost was incurred."""
    goal_met: np.ndarray

    def void(self, failed: np.ndarray, reward: float) -> None:
        """Give this reward, no cost and no goal where the simulator failed. Shape: (E,), bool."""
        self.reward[failed] = reward
        self.goal_met[failed] = False
        for cost in self.costs.values():
            cost[failed] = 0.0


class RewardRule(Protocol):
    """Reward and goal of a kind of task."""

    kept: tuple[str, ...]
    """Names of the arrays that carry over from step to step. Shape of each: (E,)."""

    def read(self, row: int, task: BaseTask) -> None:
        """Take over a task's state after a reset or with a new goal."""
        ...

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> tuple[np.ndarray, np.ndarray]:
        """Reward and whether the goal is met. Shapes: (E,), (E,) bool."""
        ...


class Rules:
    """The rules of one task for all its environments."""

    def __init__(self, task: BaseTask, model: mujoco.MjModel, num_envs: int) -> None:
        self._clip = task.reward_conf.reward_clip
        self._costs = cost_functions(task, model)
        self._buttons = Buttons(task, model, num_envs) if hasattr(task, "buttons") else None
        self._reward: RewardRule
        if self._buttons is not None:
            self._reward = self._buttons
        elif hasattr(task, "push_box"):
            self._reward = Push(task, model, num_envs)
        elif hasattr(task, "goal"):
            self._reward = Goal(task, model, num_envs)
        else:
            self._reward = Circle(task, model) if hasattr(task, "circle") else Run(task, model, num_envs)

    def read(self, row: int, task: BaseTask) -> None:
        """Take over a task's state after a reset or with a new goal."""
        self._reward.read(row, task)

    def state_dict(self) -> dict[str, Any]:
        """Arrays that the next step's reward is computed from."""
        return {name: getattr(self._reward, name).copy() for name in self._reward.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, value in state.items():
            setattr(self._reward, name, value.copy())

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> Outcome:
        """Compute reward, costs and goal of the state after a step; call it exactly once a step."""
        reward, met = self._reward(state, tasks)
        if self._clip:
            reward = np.minimum(np.maximum(reward, -self._clip), self._clip)  # several times faster than np.clip
        costs = {name: cost(state) for name, cost in self._costs.items()}
        if self._buttons is not None:
            costs |= self._buttons.costs(state)
            self._buttons.tick()
        costs["cost_sum"] = reduce(np.logical_or, costs.values()) if costs else np.zeros(len(met), dtype=bool)
        return Outcome(reward, {name: cost.astype(np.float64) for name, cost in costs.items()}, met)

    def hide(self, observation: np.ndarray, layout: dict[str, slice]) -> None:
        """Blank the lidar of the buttons while they cannot be seen. Shape: (E, O)."""
        if self._buttons is not None:
            observation[self._buttons.timer != 0, layout["buttons_lidar"]] = 0.0


class Goal:
    """Reward: metres by which the agent came nearer to the goal, plus a bonus inside it."""

    kept: tuple[str, ...] = ("_last",)

    def __init__(self, task: BaseTask, model: mujoco.MjModel, num_envs: int) -> None:
        self._goal, self._last = task.goal, np.zeros(num_envs)
        self._body = model.body("goal").id

    def read(self, row: int, task: BaseTask) -> None:
        """Take over the distance to a new goal."""
        self._last[row] = task.last_dist_goal

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> tuple[np.ndarray, np.ndarray]:
        """Reward and whether the agent is inside the goal. Shapes: (E,), (E,) bool."""
        distance = state.distance[:, self._body]
        reward = (self._last - distance) * self._goal.reward_distance
        self._last, met = distance, distance <= self._goal.size
        return reward + met * self._goal.reward_goal, met


class Buttons:
    """Reward: metres nearer to the goal button, plus a bonus for pressing it; the others may cost."""

    kept: tuple[str, ...] = ("_last", "_target", "timer")

    def __init__(self, task: BaseTask, model: mujoco.MjModel, num_envs: int) -> None:
        self._conf, self._last = task.buttons, np.zeros(num_envs)
        self._body = model.body("goal").id
        self._geoms = geoms_named(model, "button")
        self._target = np.zeros(num_envs, dtype=np.intp)
        self.timer = np.zeros(num_envs)
        """Steps until the buttons are seen and count again. Shape: (E,)."""

    def read(self, row: int, task: BaseTask) -> None:
        """Take over a new goal button and the timer."""
        self._last[row] = task.last_dist_goal
        self._target[row], self.timer[row] = task.buttons.goal_button, task.buttons.timer

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> tuple[np.ndarray, np.ndarray]:
        """Reward and whether the goal button is pressed. Shapes: (E,), (E,) bool."""
        distance = state.distance[:, self._body]
        reward = (self._last - distance) * self._conf.reward_distance
        self._last = distance
        met = state.touched[np.arange(len(distance)), self._geoms[self._target]]
        return reward + met * self._conf.reward_goal, met

    def costs(self, state: Snapshot) -> dict[str, np.ndarray]:
        """True where a wrong button is pressed while that counts. Shape: (E,), bool."""
        if not self._conf.is_constrained:
            return {}
        wrong = np.arange(len(self._geoms)) != self._target[:, None]  # (E, buttons)
        return {"cost_buttons": (state.touched[:, self._geoms] & wrong).any(axis=1) & (self.timer == 0)}

    def tick(self) -> None:
        """Count the timers down by one step."""
        self.timer = np.maximum(0, self.timer - 1)


class Push:
    """Reward: metres by which the agent came nearer to the box, and the box to the goal, plus a bonus inside it."""

    kept: tuple[str, ...] = ("_last_box", "_last_goal")

    def __init__(self, task: BaseTask, model: mujoco.MjModel, num_envs: int) -> None:
        self._goal, self._box = task.goal, task.push_box
        self._bodies = [model.body(name).id for name in ("agent", "push_box", "goal")]
        self._last_box, self._last_goal = np.zeros(num_envs), np.zeros(num_envs)

    def read(self, row: int, task: BaseTask) -> None:
        """Take over the distances after a new goal."""
        self._last_box[row], self._last_goal[row] = task.last_dist_box, task.last_box_goal

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> tuple[np.ndarray, np.ndarray]:
        """Reward and whether the box is inside the goal. Shapes: (E,), (E,) bool."""
        agent, box, goal = (state.positions[:, body] for body in self._bodies)
        to_box = np.sqrt(np.sum(np.square(box - agent), axis=-1))
        to_goal = np.sqrt(np.sum(np.square(box - goal), axis=-1))
        far = self._last_box > self._box.null_dist * self._box.size
        reward = (self._last_box - to_box) * self._box.reward_box_dist * far
        reward = reward + (self._last_goal - to_goal) * self._box.reward_box_goal
        self._last_box, self._last_goal, met = to_box, to_goal, to_goal <= self._goal.size
        return reward + met * self._goal.reward_goal, met


class Circle:
    """Reward: speed along the circle, less the farther from it."""

    kept: tuple[str, ...] = ()

    def __init__(self, task: BaseTask, model: mujoco.MjModel) -> None:
        self._radius, self._factor = task.circle.radius, task.reward_factor
        self._agent = model.body("agent").id

    def read(self, row: int, task: BaseTask) -> None:
        """Nothing carries over between steps."""

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> tuple[np.ndarray, np.ndarray]:
        """Reward, and no goal. Shapes: (E,), (E,) bool."""
        x, y, _ = state.positions[:, self._agent].T
        u, v, _ = np.stack([get_body_xvelp(task.model, task.data, "agent") for task in tasks]).T
        radius = np.sqrt(x**2 + y**2)
        reward = ((-u * y + v * x) / radius) / (1 + np.abs(radius - self._radius)) * self._factor
        return reward, np.zeros(len(reward), dtype=bool)


class Run:
    """Reward: metres, times a factor, by which the agent came nearer to a point far away."""

    kept: tuple[str, ...] = ("_last",)

    def __init__(self, task: BaseTask, model: mujoco.MjModel, num_envs: int) -> None:
        self._target, self._factor = np.array(task.goal_pos), task.reward_factor
        self._agent, self._last = model.body("agent").id, np.zeros(num_envs)

    def read(self, row: int, task: BaseTask) -> None:
        """Take over the potential of the start."""
        self._last[row] = task.old_potential

    def __call__(self, state: Snapshot, tasks: list[BaseTask]) -> tuple[np.ndarray, np.ndarray]:
        """Reward, and no goal. Shapes: (E,), (E,) bool."""
        potential = -distance_xy(state.positions[:, self._agent], self._target) * self._factor
        reward, self._last = potential - self._last, potential
        return reward, np.zeros(len(reward), dtype=bool)


class Fading:
    """The objects of a Fading task, which vanish from pictures; no observation, reward or cost depends on it.

    With each step an object loses a share of its opacity. It is opaque again when its kind incurs a cost, and a goal
    also when it is met, of which the task's own `update_world` takes care.
    """

    def __init__(self, task: BaseTask) -> None:
        self._kinds = [
            (task.objects_map_ids[kind.name], kind.alpha, kind.alpha / task.fadding_steps, [*_COSTS.get(kind.name, ())])
            for kind in task.fadding_objects
        ]
        """Geoms, opacity, its loss in a step, and costs of each kind of object."""

    def __call__(self, tasks: list[BaseTask], costs: dict[str, np.ndarray]) -> None:
        """Fade by one step; call it before new goals are placed. Shape of each cost: (E,)."""
        for geoms, alpha, loss, names in self._kinds:
            for row, task in enumerate(tasks):
                opacity, costly = task.model.geom_rgba[:, 3], any(costs[name][row] for name in names)
                opacity[geoms] = alpha if costly else np.maximum(opacity[geoms] - loss, 0.0)


def geoms_named(model: mujoco.MjModel, prefix: str) -> np.ndarray:
    """Ids of the geoms whose name starts with the prefix. Shape: (n,)."""
    return np.array([g for g in range(model.ngeom) if model.geom(g).name.startswith(prefix)], dtype=np.intp)


def cost_functions(task: BaseTask, model: mujoco.MjModel) -> dict[str, Cost]:
    """Name of each cost of the task → its function; the cost of buttons is missing, since it depends on their timer."""
    functions = {
        name: function_of(obstacle, model)
        for obstacle in task._obstacles
        if obstacle.is_constrained
        for name, function_of in _COSTS.get(obstacle.name, {}).items()
    }
    if task._is_load_static_geoms and task.static_geoms_contact_cost:
        geoms = np.array([model.geom(name).id for name in task.static_geoms_names])
        functions["cost_static_geoms_contact"] = _touches(geoms)
    return functions


def cost_names(task: BaseTask) -> list[str]:
    """Names of all costs of a task, the whole cost last; the task need not have a layout."""
    names = [name for kind in task._obstacles if kind.is_constrained for name in _COSTS.get(kind.name, ())]
    if hasattr(task, "buttons") and task.buttons.is_constrained:
        names.append("cost_buttons")
    if task._is_load_static_geoms and task.static_geoms_contact_cost:
        names.append("cost_static_geoms_contact")
    return [*names, "cost_sum"]


def _hazards(hazards: Any, model: mujoco.MjModel) -> Cost:
    bodies = object_bodies(model, "hazards")
    return lambda state: (state.distance.take(bodies, axis=1) < hazards.size).any(axis=1)


def _touches(geoms: np.ndarray) -> Cost:
    return lambda state: np.logical_or.reduce(state.touched[:, geoms], axis=1)


def _touching(prefix: str, _: Any, model: mujoco.MjModel) -> Cost:
    return _touches(geoms_named(model, prefix))


def _moving_vases(vases: Any, model: mujoco.MjModel) -> Cost:
    joints = model.body_jntadr[object_bodies(model, "vases")]
    dofs = model.jnt_dofadr[joints][:, None] + np.arange(3)  # (n, 3)

    def moving(state: Snapshot) -> np.ndarray:
        speed = np.sqrt(np.sum(np.square(state.qvel[:, dofs]), axis=-1))
        return (speed >= vases.velocity_threshold).any(axis=1)

    return moving


def _boundary(walls: Any, model: mujoco.MjModel) -> Cost:
    agent, axes = model.body("agent").id, 1 if walls.num == 2 else 2
    return lambda state: (np.abs(state.positions[:, agent, :axes]) > walls.locate_factor).any(axis=1)


_COSTS: dict[str, dict[str, Callable[[Any, mujoco.MjModel], Cost]]] = {
    "hazards": {"cost_hazards": _hazards},
    "vases": {"cost_vases_contact": partial(_touching, "vase"), "cost_vases_velocity": _moving_vases},
    "pillars": {"cost_pillars": partial(_touching, "pillar")},
    "gremlins": {"cost_gremlins": partial(_touching, "gremlin")},
    "sigwalls": {"cost_out_of_boundary": _boundary},
}
"""Kind of objects → its costs, if they count → what makes the function of each cost."""
