"""Velocity tasks of Safety-Gymnasium and any Gymnasium environment with `info["cost"]`, E at once, at their own speed.

Every environment is the original object; only stepping, resetting and reporting are shared with the fast tasks.
Shapes: E environments, O observation size, A action size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import gymnasium, is_navigation, make_original
from lightning_unlearn.envs.concepts import COST_SUM
from lightning_unlearn.envs.failures import FailureCount
from lightning_unlearn.envs.simulator import NoPlane, Step, TopView, require_actions
from lightning_unlearn.envs.workers import Workers

_NO_TIME_LIMIT = 1_000_000
"""`max_episode_steps` of an environment that has none of its own."""


def serves(env_id: str) -> bool:
    """Whether an id is registered, and none of the navigation tasks, which have a faster simulator."""
    return env_id in gymnasium.registry and not is_navigation(env_id)


@dataclass(slots=True)
class _Outcome:
    """One environment's step."""

    observation: np.ndarray
    reward: float
    costs: dict[str, float]
    terminated: bool
    truncated: bool
    failed: bool
    goal_met: bool


@dataclass(slots=True)
class _Episode:
    """How an environment came to where it is: all that can be known of the state of an environment of any kind."""

    start: int | dict[str, Any] | None = None
    """The seed of the reset, or the state of the environment's random stream before it; None before the first."""
    actions: list[np.ndarray] = field(default_factory=list)
    """Taken since. Shape of each: (A,)."""


class GymnasiumSimulator(NoPlane):
    """E original environments, stepped together; see `Simulator` for the contract.

    A failure of MuJoCo, or numbers that are not finite, truncate the episode and mark it failed, with no reward, no
    cost and the last finite observation. Any other exception of an environment is raised by `step`.

    Args:
        env_id: A registered id with one-dimensional, continuous observations and bounded actions, and a cost.
        num_envs: E.
        workers: Threads that step the environments; they do not influence the results.

    Raises:
        ValueError: the environment is of another kind, reports no cost, or is refused by the installed MuJoCo.
    """

    def __init__(self, env_id: str, num_envs: int, workers: int = 1) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.env_id, self.num_envs = env_id, num_envs
        sample = make_original(env_id)
        try:
            self._describe(sample)
        finally:
            sample.close()
        self._envs = [make_original(env_id) for _ in range(num_envs)]
        self._episodes = [_Episode() for _ in range(num_envs)]
        self._workers, self._failures = Workers(workers), FailureCount(env_id, num_envs)
        self._observation = np.zeros((num_envs, self.observation_size))

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Reset the environments of `mask` (all without one) and return every current observation.

        Args:
            mask: Which environments to reset. Shape: (E,), bool.
            seeds: One seed per environment, used for those that are reset.

        Returns:
            Observations, a fresh array. Shape: (E, O), float64.

        Raises:
            ValueError: An environment was never seeded.
        """
        for row in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            self._reset_one(row, None if seeds is None else int(seeds[row]))
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Advance every environment by one action, clipped to the bounds. Shape: (E, A).

        Raises:
            ValueError: The actions have the wrong shape.
            RuntimeError: An environment failed again and again.
        """
        require_actions(actions, (self.num_envs, len(self.action_low)))
        outcomes: list[_Outcome | None] = [None] * self.num_envs
        controls = np.clip(actions, self.action_low, self.action_high)
        self._workers.each(partial(self._step_one, controls, outcomes), self.num_envs)
        return self._gathered([outcome for outcome in outcomes if outcome is not None])

    def top_view(self) -> TopView:
        """Nothing: these environments have no map."""
        return TopView()

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`: how each environment came to where it is."""
        shape = (-1, len(self.action_low))
        return {
            "episodes": [{"start": e.start, "actions": np.reshape(e.actions, shape)} for e in self._episodes],
            "failures": self._failures.in_a_row.copy(),
            "observation": self._observation.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`; exact where all of an environment's chance comes from its `np_random`."""
        for row, episode in enumerate(state["episodes"]):
            self._replay(row, episode["start"], episode["actions"])
        self._failures.in_a_row[:] = state["failures"]
        self._observation = state["observation"].copy()

    def close(self) -> None:
        """End the threads and close the environments."""
        self._workers.close()
        for env in self._envs:
            env.close()

    def _describe(self, sample: gymnasium.Env) -> None:
        observation, action = (
            _require_vector(self.env_id, part, getattr(sample, f"{part}_space")) for part in ("observation", "action")
        )
        self.observation_size = int(observation.shape[0])
        self.observation_layout = {"observation": slice(0, self.observation_size)}
        self._action_dtype = action.dtype
        self.action_low, self.action_high = action.low.astype(np.float64), action.high.astype(np.float64)
        if not np.isfinite([self.action_low, self.action_high]).all():
            raise ValueError(f"{self.env_id} has unbounded actions: wrap it so that every bound is a finite number")
        self.cost_keys = _reported_costs(self.env_id, sample)
        spec = sample.spec
        self.max_episode_steps = (spec.max_episode_steps if spec else None) or _NO_TIME_LIMIT

    def _reset_one(self, row: int, seed: int | None) -> None:
        if seed is None and self._episodes[row].start is None:
            raise ValueError(
                f"environment {row} of {self.env_id} has no random stream yet: pass seeds to its first reset"
            )
        stream = self._envs[row].unwrapped.np_random.bit_generator
        self._episodes[row] = _Episode(dict(stream.state) if seed is None else seed)
        self._observation[row] = self._envs[row].reset(seed=seed)[0]

    def _replay(self, row: int, start: int | dict[str, Any], actions: np.ndarray) -> None:
        self._reset_one(row, start if isinstance(start, int) else 0)
        if isinstance(start, dict):
            self._envs[row].unwrapped.np_random.bit_generator.state = start
            self._reset_one(row, None)
        for action in actions:
            self._advance(row, action)

    def _advance(self, row: int, action: np.ndarray) -> tuple[Any, ...]:
        self._episodes[row].actions.append(action.copy())
        return self._envs[row].step(action.astype(self._action_dtype))

    def _step_one(self, controls: np.ndarray, outcomes: list[_Outcome | None], row: int) -> None:
        try:
            result = self._advance(row, controls[row])
        except mujoco.FatalError:
            outcomes[row] = self._failure(row)
            return
        observation, reward, terminated, truncated, costs, info = _unpacked(result)
        if not (np.isfinite(observation).all() and np.isfinite(reward)):
            outcomes[row] = self._failure(row)
            return
        outcomes[row] = _Outcome(
            np.asarray(observation, dtype=np.float64),
            float(reward),
            {key: costs.get(key, 0.0) for key in self.cost_keys},
            bool(terminated),
            bool(truncated),
            failed=False,
            goal_met=bool(info.get("goal_met", False)),
        )

    def _failure(self, row: int) -> _Outcome:
        return _Outcome(self._observation[row], 0.0, dict.fromkeys(self.cost_keys, 0.0), False, True, True, False)

    def _gathered(self, outcomes: list[_Outcome]) -> Step:
        self._observation = np.stack([outcome.observation for outcome in outcomes])
        flags = ("terminated", "truncated", "failed", "goal_met")
        terminated, truncated, failed, met = (np.array([getattr(o, flag) for o in outcomes]) for flag in flags)
        self._failures.add(failed, terminated | truncated)
        return Step(
            observation=self._observation.copy(),
            reward=np.array([outcome.reward for outcome in outcomes]),
            costs={key: np.array([outcome.costs[key] for outcome in outcomes]) for key in self.cost_keys},
            terminated=terminated,
            truncated=truncated,
            failed=failed,
            goal_met=met,
        )


def _require_vector(env_id: str, part: str, space: gymnasium.Space) -> gymnasium.spaces.Box:
    """The space, if it is one-dimensional and continuous."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or np.dtype(space.dtype).kind != "f":
        raise ValueError(
            f"{env_id} has the {part} space {space}: only one-dimensional Box spaces of real numbers are supported, "
            "no images, discrete or composite ones"
        )
    return space


def _reported_costs(env_id: str, sample: gymnasium.Env) -> tuple[str, ...]:
    """Every `cost_*` key of a step's info, and the step's whole cost last."""
    sample.reset(seed=0)
    result = sample.step(sample.action_space.sample())
    if len(result) == 5 and "cost" not in result[-1]:
        raise ValueError(f'{env_id} reports no cost: its steps must give info["cost"]')
    *_, costs, _ = _unpacked(result)
    return (*(key for key in costs if key != COST_SUM), COST_SUM)


def _unpacked(result: tuple[Any, ...]) -> tuple[Any, Any, Any, Any, dict[str, float], dict[str, Any]]:
    """A step of either kind as observation, reward, terminated, truncated, costs by name, and info."""
    *before, terminated, truncated, info = result
    observation, reward, cost = before if len(before) == 3 else (*before, info.get("cost", 0.0))
    costs = {key: float(value) for key, value in info.items() if key.startswith("cost_") and np.ndim(value) == 0}
    return observation, reward, terminated, truncated, costs | {COST_SUM: float(cost)}, info
