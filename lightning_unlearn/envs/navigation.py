"""Safety-Gymnasium's navigation tasks, E environments at once, numerically equal to `safety_gymnasium.make`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_unlearn.envs.compat import BaseTask, make_task, refused_as_value_error, registered_spec
from lightning_unlearn.envs.failures import FailureCount
from lightning_unlearn.envs.motion import AgentMotion
from lightning_unlearn.envs.observation import Exteroception, Proprioception, object_bodies, observation_slices
from lightning_unlearn.envs.physics import Scene, Snapshot, lay_out
from lightning_unlearn.envs.rollout import InOneProcess
from lightning_unlearn.envs.rules import Rules
from lightning_unlearn.envs.simulator import Step, TopView, require_actions, require_mask, require_seeds
from lightning_unlearn.envs.world import Blueprint


class NavigationSimulator(InOneProcess):
    """E copies of one navigation task, stepped together; see `Simulator` for the contract.

    Rewards, costs and observations equal those of safety_gymnasium 1.0.0 for the same seeds and actions, to rounding.
    Where MuJoCo gives up on a state, or leaves numbers that are not finite, the episode is truncated and marked failed,
    with the task's reward for an exception, no cost and the last finite observation.

    Args:
        env_id: A registered id such as `SafetyPointGoal1-v0`.
        num_envs: E.

    Raises:
        ValueError: the task is unknown, not supported, or refused by the installed MuJoCo.
    """

    in_plane = True
    late_costs = False

    def __init__(self, env_id: str, num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.env_id, self.num_envs = env_id, num_envs
        blueprint = Blueprint()
        self._describe(sample := self._sample(blueprint))
        self._snapshot = Snapshot(num_envs, sample.model)
        self._scenes = [Scene(make_task(env_id), blueprint) for _ in range(num_envs)]
        self._tasks = [scene.task for scene in self._scenes]
        self._are_alive = [task.agent.is_alive for task in self._tasks]
        self._rules = Rules(sample, sample.model, num_envs)
        self._motion = AgentMotion(sample.model)
        self._bounds = [np.tile(bound, (num_envs, 1)) for bound in (self.action_low, self.action_high)]
        layout = self.observation_layout
        self._proprioception = Proprioception(sample, sample.model, layout)
        self._exteroception = Exteroception(sample, sample.model, layout, num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._failures = FailureCount(env_id, num_envs)
        self._observation = np.zeros((num_envs, self.observation_size))

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Reset the environments of `mask` (all without one) and return every current observation.

        Args:
            mask: Which environments to reset. Shape: (E,), bool.
            seeds: One seed per environment, used for those that are reset.

        Returns:
            Observations, a fresh array. Shape: (E, O), float64.

        Raises:
            ValueError: the shapes are wrong, or an environment was never seeded.
        """
        rows = (
            list(range(self.num_envs)) if mask is None else np.flatnonzero(require_mask(mask, self.num_envs)).tolist()
        )
        seeds = None if seeds is None else require_seeds(seeds, self.num_envs)
        for row in rows:
            self._reset_one(row, None if seeds is None else seeds[row])
        self._snapshot.read(self._scenes)
        self._observation[rows] = self._observe()[rows]
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Advance every environment by one action, clipped to the bounds. Shape: (E, A).

        Raises:
            ValueError: the actions have the wrong shape.
            RuntimeError: an environment was never reset, or failed again and again.
        """
        controls = self._controls(actions)
        for scene, control in zip(self._scenes, controls, strict=True):
            scene.step(control)
        self._steps += 1
        failed = self._snapshot.read(self._scenes)
        outcome = self._rules(self._snapshot, self._tasks)
        if np.count_nonzero(failed):
            outcome.void(failed, self._tasks[0].reward_conf.reward_exception)
        terminated = self._next_goals(outcome.goal_met)
        self._add_dead(terminated)
        truncated = self._steps >= self.max_episode_steps
        observation = self._observe()
        if np.count_nonzero(failed):
            terminated &= ~failed
            truncated |= failed
            observation[failed] = self._observation[failed]
        self._observation = observation
        self._failures.add(failed, terminated | truncated)
        return Step(
            observation=observation.copy(),
            reward=outcome.reward,
            costs={key: outcome.costs[key] for key in self.cost_keys},
            terminated=terminated,
            truncated=truncated,
            failed=failed,
            goal_met=outcome.goal_met,
        )

    def top_view(self) -> TopView:
        """Where the agent and every group of objects are now."""
        positions = {name: self._snapshot.positions[:, ids, :2] for name, ids in self._kinds.items()}
        return TopView(positions=positions, radii=dict(self._radii))

    def agent_position(self) -> np.ndarray:
        """Of the agents now, in the task's own plane. Shape: (E, 2), metres."""
        return self._motion.position(self._snapshot)

    def agent_velocity(self) -> np.ndarray:
        """Of the agents now, along the axes of the plane. Shape: (E, 2), metres per second."""
        return self._motion.velocity(self._snapshot)

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`."""
        return {
            "scenes": [scene.state_dict() for scene in self._scenes],
            "rules": self._rules.state_dict(),
            "steps": self._steps.copy(),
            "failures": self._failures.in_a_row.copy(),
            "observation": self._observation.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`."""
        for scene, its in zip(self._scenes, state["scenes"], strict=True):
            scene.load_state_dict(its)
        self._snapshot.read(self._scenes)
        self._rules.load_state_dict(state["rules"])
        self._steps[:] = state["steps"]
        self._failures.in_a_row[:] = state["failures"]
        self._observation = state["observation"].copy()

    def close(self) -> None:
        """Nothing: the garbage collector has it all."""

    def _sample(self, blueprint: Blueprint) -> BaseTask:
        """A task with some layout, to look sizes and names up in; it compiles the blueprint."""
        task = make_task(self.env_id)
        task.random_generator.set_random_seed(0)
        with refused_as_value_error(self.env_id):
            lay_out(task, blueprint)
        return task

    def _describe(self, task: BaseTask) -> None:
        limit = registered_spec(self.env_id).max_episode_steps or task.num_steps
        self.max_episode_steps = min(task.num_steps, limit)
        self.observation_layout = observation_slices(task)
        self.observation_size = max(place.stop for place in self.observation_layout.values())
        self.action_low, self.action_high = task.model.actuator_ctrlrange.T.copy()
        self.cost_keys = (*(key for key in task.calculate_cost() if key != "cost_sum"), "cost_sum")
        self._kinds = {"agent": np.array([task.model.body("agent").id])}
        self._kinds |= {obstacle.name: object_bodies(task.model, obstacle.name) for obstacle in task._obstacles}
        self._radii = {obstacle.name: radius for obstacle in task._obstacles if (radius := _radius(obstacle))}

    def _reset_one(self, row: int, seed: int | None) -> None:
        scene = self._scenes[row]
        if seed is None and not scene.seeded:
            raise ValueError(
                f"environment {row} of {self.env_id} has no random stream yet: pass seeds to its first reset"
            )
        scene.reset(seed)
        self._rules.read(row, scene.task)
        self._steps[row] = 0

    def _controls(self, actions: np.ndarray) -> np.ndarray:
        low, high = self._bounds
        return np.minimum(np.maximum(require_actions(actions, low.shape), low), high)

    def _observe(self) -> np.ndarray:
        observation = np.zeros((self.num_envs, self.observation_size))
        self._proprioception.write(self._snapshot, observation)
        self._exteroception.write(self._snapshot, observation)
        self._rules.hide(observation, self.observation_layout)
        return observation

    def _next_goals(self, met: np.ndarray) -> np.ndarray:
        """Place a new goal where one was met; return where there was no room for it. Shape: (E,), bool."""
        stuck = np.zeros(self.num_envs, dtype=bool)
        if np.count_nonzero(met):
            for row in np.flatnonzero(met):
                stuck[row] = not self._scenes[row].next_goal()
                self._rules.read(row, self._tasks[row])
            self._snapshot.read(self._scenes)
        return stuck

    def _add_dead(self, terminated: np.ndarray) -> None:
        for row, is_alive in enumerate(self._are_alive):
            if not is_alive():
                terminated[row] = True


def _radius(obstacle: Any) -> float | None:
    """Metres, of those that are drawn as discs."""
    size = getattr(obstacle, "radius", getattr(obstacle, "size", None))
    return None if obstacle.name == "sigwalls" or size is None else float(size)
