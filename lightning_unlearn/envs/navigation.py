"""Safety-Gymnasium's navigation tasks, E environments at once, numerically equal to `safety_gymnasium.make`."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from lightning_unlearn.envs.compat import BaseTask, make_task, refused_as_value_error, registered_spec
from lightning_unlearn.envs.layouts import ModelTemplate, lay_out
from lightning_unlearn.envs.physics import Scene, Snapshot
from lightning_unlearn.envs.rollout import InOneProcess
from lightning_unlearn.envs.rules import Fading, Rules
from lightning_unlearn.envs.sensors import (
    AgentMotion,
    Exteroception,
    Proprioception,
    object_bodies,
    observation_slices,
)
from lightning_unlearn.envs.simulator import (
    FailureCount,
    Step,
    TopView,
    require_actions,
    require_mask,
    require_seeds,
)


class NavigationSimulator(InOneProcess):
    """E copies of one navigation task, stepped together; see `Simulator` for the contract.

    Rewards, costs and observations equal those of safety_gymnasium 1.0.0 for the same seeds and actions, to rounding.
    Where MuJoCo gives up on a state, or leaves numbers that are not finite, the episode is truncated and marked failed,
    with the task's reward for an exception, no cost and the last finite observation.

    Args:
        env_id: A registered id such as `SafetyPointGoal1-v0`.
        num_envs: E.
        without: Groups of objects (`hazards`) that are taken out; what senses them reads zeros.
        pictures: Compile textures and cameras, too, to be rendered; an environment may then be reset only once.

    Raises:
        ValueError: The task is unknown, not supported, or refused by the installed MuJoCo.
    """

    in_plane = True
    late_costs = False

    def __init__(self, env_id: str, num_envs: int, without: Sequence[str] = (), pictures: bool = False) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.env_id, self.num_envs = env_id, num_envs
        template, (sample, *tasks) = ModelTemplate(pictures=pictures), [make_task(env_id) for _ in range(num_envs + 1)]
        for task, name in product([sample, *tasks], without):
            getattr(task, name).num = 0  # before the first layout: the group and its sensors stay, without members
        sample.random_generator.set_random_seed(0)  # any layout does to look sizes and names up
        with refused_as_value_error(env_id):
            lay_out(sample, template)  # compiles the template's model
        self._describe(sample)
        self._snapshot = Snapshot(num_envs, sample.model)
        self._scenes = [Scene(task, template) for task in tasks]
        self._tasks = [scene.task for scene in self._scenes]
        self._are_alive = [task.agent.is_alive for task in self._tasks]
        self._rules = Rules(sample, sample.model, num_envs)
        self._fading = Fading(sample) if hasattr(sample, "fadding_objects") else None
        self._motion = AgentMotion(sample.model)
        self._bounds = [np.tile(bound, (num_envs, 1)) for bound in (self.action_low, self.action_high)]
        layout = self.observation_layout
        self._proprioception = Proprioception(sample, sample.model, layout)
        self._exteroception = Exteroception(sample, sample.model, layout, num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._failures = FailureCount(env_id, num_envs)
        self._observation = np.zeros((num_envs, self.observation_size))

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """See `Simulator.reset`.

        Raises:
            ValueError: The shapes are wrong, or an environment was never seeded.
        """
        mask = np.ones(self.num_envs, dtype=bool) if mask is None else require_mask(mask, self.num_envs)
        rows = np.flatnonzero(mask).tolist()
        seeds = None if seeds is None else require_seeds(seeds, self.num_envs)
        for row in rows:
            scene = self._scenes[row]
            if seeds is None and not scene.seeded:
                raise ValueError(
                    f"environment {row} of {self.env_id} has no random stream yet: pass seeds to its first reset"
                )
            scene.reset(None if seeds is None else seeds[row])
            self._rules.read(row, scene.task)
            self._steps[row] = 0
        self._snapshot.read(self._scenes)
        self._observation[rows] = self._observe()[rows]
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `Simulator.step`.

        Raises:
            ValueError: The actions have the wrong shape, or are not finite.
            RuntimeError: An environment was never reset, or failed again and again.
        """
        low, high = self._bounds
        controls = np.minimum(np.maximum(require_actions(actions, low.shape), low), high)
        for scene, control in zip(self._scenes, controls, strict=True):
            scene.step(control)
        self._steps += 1
        failed = self._snapshot.read(self._scenes)
        outcome = self._rules(self._snapshot, self._tasks)
        if np.count_nonzero(failed):
            outcome.void(failed, self._tasks[0].reward_conf.reward_exception)
        if self._fading is not None:
            self._fading(self._tasks, outcome.costs)
        terminated = self._next_goals(outcome.goal_met)
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
        """See `Simulator.top_view`: the agent and every group of objects."""
        positions = {name: self._snapshot.positions[:, ids, :2] for name, ids in self._kinds.items()}
        return TopView(positions=positions, radii=dict(self._radii))

    def simulation(self) -> tuple[Any, Any]:
        """Return model and data of the first environment."""
        return self._tasks[0].model, self._tasks[0].data

    def agent_position(self) -> np.ndarray:
        """See `Simulator.agent_position`."""
        return self._motion.position(self._snapshot)

    def agent_velocity(self) -> np.ndarray:
        """See `Simulator.agent_velocity`."""
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
        """See `Simulator.close`; there is nothing to release."""

    def _describe(self, task: BaseTask) -> None:
        limit = registered_spec(self.env_id).max_episode_steps or task.num_steps
        self.max_episode_steps = min(task.num_steps, limit)
        self.observation_layout = observation_slices(task)
        self.observation_size = max(place.stop for place in self.observation_layout.values())
        self.action_low, self.action_high = task.model.actuator_ctrlrange.T.copy()
        self.cost_keys = (*(key for key in task.calculate_cost() if key != "cost_sum"), "cost_sum")
        self._kinds = {"agent": np.array([task.model.body("agent").id])}
        self._kinds |= {obstacle.name: object_bodies(task.model, obstacle.name) for obstacle in task._obstacles}
        self._radii: dict[str, float] = {}
        for obstacle in task._obstacles:
            size = getattr(obstacle, "radius", getattr(obstacle, "size", None))
            if size and obstacle.name != "sigwalls":  # all others that have a size are drawn as discs
                self._radii[obstacle.name] = float(size)

    def _observe(self) -> np.ndarray:
        observation = np.zeros((self.num_envs, self.observation_size))
        self._proprioception.write(self._snapshot, observation)
        self._exteroception.write(self._snapshot, observation)
        self._rules.hide(observation, self.observation_layout)
        return observation

    def _next_goals(self, met: np.ndarray) -> np.ndarray:
        """Place a new goal where one was met, if the task goes on then.

        Returns:
            True where the episode ends: the only goal was met, there was no room for the next one, or the agent is
            dead. Shape: (E,), bool.
        """
        ended = np.zeros(self.num_envs, dtype=bool)
        if np.count_nonzero(met) and not self._tasks[0].mechanism_conf.continue_goal:
            ended |= met
        elif np.count_nonzero(met):
            for row in np.flatnonzero(met):
                ended[row] = not self._scenes[row].next_goal()
                self._rules.read(row, self._tasks[row])
            self._snapshot.read(self._scenes)
        for row, is_alive in enumerate(self._are_alive):
            if not is_alive():
                ended[row] = True
        return ended
