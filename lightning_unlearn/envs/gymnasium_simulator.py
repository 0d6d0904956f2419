"""Velocity tasks of Safety-Gymnasium and any Gymnasium environment with `info["cost"]`, E at once, at their own speed.

Every environment is the original object; only stepping, resetting and reporting are shared with the fast tasks.
Shapes: E environments, O observation size, A action size.
"""

import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from lightning_unlearn.envs.compat import gymnasium, is_navigation, make_original, registered_id
from lightning_unlearn.envs.concepts import COST_SUM
from lightning_unlearn.envs.rollout import InOneProcess
from lightning_unlearn.envs.simulator import FailureCount, NoPlane, Step, TopView, require_actions

_NO_TIME_LIMIT = 1_000_000
"""`max_episode_steps` of an environment that has none of its own."""
_PROBE, _LONGEST_PROBE = 100, 1000
"""Random steps that a new environment is tried with; at most, while none of them reports a cost."""
_LARGEST_BOUND, _MOST_ACTIONS, _MOST_OBSERVATIONS = 1e30, 1 << 12, 1 << 16
"""Limits of what a stored policy can describe."""
_CALLERS = ("gymnasium", "lightning_unlearn")
"""Packages that call an environment."""


def is_supported(env_id: str) -> bool:
    """Return True if an id is registered and is no navigation task: those have a faster simulator."""
    return registered_id(env_id) in gymnasium.registry and not is_navigation(env_id)


class GymnasiumFactory:
    """Make simulators of a registered environment in any process, even if it is not registered there."""

    def __init__(self, env_id: str) -> None:
        self._env_id, self._spec = env_id, gymnasium.registry[registered_id(env_id)]

    def __call__(self, num_envs: int) -> "GymnasiumSimulator":
        """Make a simulator of `num_envs` environments."""
        gymnasium.registry.setdefault(registered_id(self._env_id), self._spec)
        return GymnasiumSimulator(self._env_id, num_envs)


@dataclass(slots=True)
class _Outcome:
    """Result of one environment's step."""

    observation: np.ndarray
    reward: float
    costs: dict[str, float]
    terminated: bool
    truncated: bool
    failure: str
    """Reason of a failure; empty if nothing failed."""
    goal_met: bool


@dataclass(slots=True)
class _Episode:
    """Start and actions of a running episode: the state of an environment of unknown kind, to be replayed."""

    start: int | dict[str, Any] | None = None
    """Seed of the reset, or state of the environment's random stream before it; None before the first reset."""
    actions: list[np.ndarray] = field(default_factory=list)
    """Actions since the reset. Shape of each: (A,)."""


class GymnasiumSimulator(InOneProcess, NoPlane):
    """E original environments, stepped together; see `Simulator` for the contract.

    A failure of MuJoCo, or numbers that are not finite, truncate the episode and mark it failed, with no reward, no
    cost and the last finite observation. Any other exception of an environment is raised by `step`, with a note that
    names environment, step and line. A cost that a step does not report is 0; `cost_keys` grows with the first report
    of another one.

    Args:
        env_id: A registered id with one-dimensional, continuous observations and bounded actions, and a cost.
        num_envs: E.

    Raises:
        ValueError: The environment is of another kind, reports no cost in its first random steps, or is refused by
            the installed MuJoCo.
    """

    late_costs = True
    cost_keys: tuple[str, ...]

    def __init__(self, env_id: str, num_envs: int) -> None:
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
        self._failures = FailureCount(env_id, num_envs)
        self._observation = np.zeros((num_envs, self.observation_size))

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """See `Simulator.reset`.

        Raises:
            ValueError: An environment was never seeded.
        """
        for row in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            self._reset_one(row, None if seeds is None else int(seeds[row]))
        return self._observation.copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `Simulator.step`.

        Raises:
            ValueError: The actions have the wrong shape, or an environment returned an observation of another one.
            RuntimeError: An environment failed again and again.
        """
        require_actions(actions, (self.num_envs, len(self.action_low)))
        controls = np.clip(actions, self.action_low, self.action_high)
        outcomes = [self._step_one(row, control) for row, control in enumerate(controls)]
        self._observation = np.stack([outcome.observation for outcome in outcomes])
        for outcome in outcomes:
            self._add_cost_keys(outcome.costs)
        terminated, truncated, met = (
            np.array([getattr(o, flag) for o in outcomes]) for flag in ("terminated", "truncated", "goal_met")
        )
        failures = [outcome.failure for outcome in outcomes]
        failed = np.array([failure != "" for failure in failures])
        self._failures.add(failed, terminated | truncated, failures)
        return Step(
            observation=self._observation.copy(),
            reward=np.array([outcome.reward for outcome in outcomes]),
            costs={key: np.array([outcome.costs.get(key, 0.0) for outcome in outcomes]) for key in self.cost_keys},
            terminated=terminated,
            truncated=truncated,
            failed=failed,
            goal_met=met,
        )

    def last_failure(self) -> str:
        """See `Simulator.last_failure`."""
        return self._failures.last

    def top_view(self) -> TopView:
        """See `Simulator.top_view`; these environments have no map."""
        return TopView()

    def simulation(self) -> tuple[Any, Any] | None:
        """Return model and data of the first environment; None if it is not one of MuJoCo's."""
        inner = self._envs[0].unwrapped
        model, data = getattr(inner, "model", None), getattr(inner, "data", None)
        return (model, data) if isinstance(model, mujoco.MjModel) and isinstance(data, mujoco.MjData) else None

    def state_dict(self) -> dict[str, Any]:
        """See `Simulator.state_dict`: start and actions of each episode."""
        shape = (-1, len(self.action_low))
        return {
            "episodes": [{"start": e.start, "actions": np.reshape(e.actions, shape)} for e in self._episodes],
            "failures": self._failures.in_a_row.copy(),
            "observation": self._observation.copy(),
            "cost_keys": [list(self.cost_keys) for _ in self._envs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Simulator.load_state_dict`: replays episodes, exact if `np_random` is all of their randomness."""
        for row, episode in enumerate(state["episodes"]):
            start = episode["start"]
            self._reset_one(row, start if isinstance(start, int) else 0)
            if isinstance(start, dict):
                self._envs[row].unwrapped.np_random.bit_generator.state = start
                self._reset_one(row, None)
            for action in episode["actions"]:
                self._advance(row, action)
        self._failures.in_a_row[:] = state["failures"]
        self._observation = state["observation"].copy()
        for keys in state.get("cost_keys", []):  # older checkpoints have none
            self._add_cost_keys(keys)

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()

    def _describe(self, sample: gymnasium.Env) -> None:
        spaces = {part: getattr(sample, f"{part}_space") for part in ("observation", "action")}
        for part, space in spaces.items():
            is_vector = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
            if not is_vector or np.dtype(space.dtype).kind != "f":
                raise ValueError(
                    f"{self.env_id} has the {part} space {space}: only one-dimensional Box spaces of real numbers are "
                    "supported, no images, discrete or composite ones"
                )
        self.observation_size = int(spaces["observation"].shape[0])
        if self.observation_size > _MOST_OBSERVATIONS:
            raise ValueError(
                f"{self.env_id} has {self.observation_size} observations: use at most {_MOST_OBSERVATIONS}"
            )
        self.observation_layout = {"observation": slice(0, self.observation_size)}
        action = spaces["action"]
        self._action_dtype = action.dtype
        self.action_low, self.action_high = action.low.astype(np.float64), action.high.astype(np.float64)
        _require_bounds(self.env_id, self.action_low, self.action_high)
        self.cost_keys = (COST_SUM,)
        self._probe(sample)
        spec = sample.spec
        self.max_episode_steps = (spec.max_episode_steps if spec else None) or _NO_TIME_LIMIT

    def _reset_one(self, row: int, seed: int | None) -> None:
        if seed is None and self._episodes[row].start is None:
            raise ValueError(
                f"environment {row} of {self.env_id} has no random stream yet: pass seeds to its first reset"
            )
        env = self._envs[row]
        stream = env.unwrapped.np_random.bit_generator
        self._episodes[row] = _Episode(dict(stream.state) if seed is None else seed)
        self._observation[row] = self._begin(env, seed, row)

    def _advance(self, row: int, action: np.ndarray) -> tuple[Any, ...]:
        env, taken = self._envs[row], self._episodes[row].actions
        taken.append(action.copy())
        return self._stepped(env, action, row, len(taken))

    def _begin(self, env: gymnasium.Env, seed: int | None, row: int) -> np.ndarray:
        """Reset one environment. Shape: (O,)."""
        try:
            observation = env.reset(seed=seed)[0]
        except (Exception, SystemExit) as error:
            _add_note(error, env, "reset", f"{self.env_id}: environment {row} raised this in a reset")
            raise
        return self._require_shape(observation, env, "reset", f"the reset of environment {row}")

    def _stepped(self, env: gymnasium.Env, action: np.ndarray, row: int, number: int) -> tuple[Any, ...]:
        """Step one environment and return its results; the observation is checked for its shape."""
        try:
            observation, *rest = env.step(action.astype(self._action_dtype))
        except mujoco.FatalError:
            raise
        except (Exception, SystemExit) as error:
            _add_note(
                error, env, "step", f"{self.env_id}: environment {row} raised this in step {number} of its episode"
            )
            raise
        if len(rest) not in (4, 5) or not isinstance(rest[-1], dict):
            raise ValueError(
                f"{self.env_id}: a step must return observation, reward, terminated, truncated and the dict info: "
                f"{_written_at(env, 'step')}"
            )
        where = f"step {number} of an episode of environment {row}"
        return self._require_shape(observation, env, "step", where), *rest

    def _require_shape(self, observation: Any, env: gymnasium.Env, method: str, where: str) -> np.ndarray:
        shape = np.shape(observation) if not isinstance(observation, dict) else type(observation).__name__
        if shape != (self.observation_size,):
            raise ValueError(
                f"{self.env_id}: {where} returned an observation of shape {shape}, but its observation_space has shape "
                f"({self.observation_size},): {_written_at(env, method)}"
            )
        return np.asarray(observation, dtype=np.float64)

    def _probe(self, sample: gymnasium.Env) -> None:
        """Find the first names of costs by random steps.

        Raises:
            ValueError: None of them reports `cost`.
        """
        sample.action_space.seed(0)
        reported, ended, number = False, True, 0
        for taken in range(_LONGEST_PROBE):
            if reported and taken >= _PROBE:
                return
            if ended:
                self._begin(sample, taken, 0)
                number = 0
            number += 1
            try:
                result = self._stepped(sample, sample.action_space.sample(), 0, number)
            except mujoco.FatalError:
                ended = True
                continue
            *_, terminated, truncated, costs, info = self._unpacked(result, sample)
            reported |= len(result) == 6 or "cost" in info
            self._add_cost_keys(costs)
            ended = bool(terminated or truncated)
        if not reported:
            raise ValueError(
                f'{self.env_id} reports no cost: none of {_LONGEST_PROBE} random steps gave info["cost"]. If a cost is '
                f'rare, report info["cost"] = 0.0 in the other steps: {_written_at(sample, "step")}'
            )

    def _add_cost_keys(self, costs: Iterable[str]) -> None:
        """Add names that were not reported before; the whole cost stays last."""
        new = [key for key in costs if key not in self.cost_keys]
        if new:
            self.cost_keys = (*self.cost_keys[:-1], *new, COST_SUM)

    def _step_one(self, row: int, control: np.ndarray) -> _Outcome:
        env = self._envs[row]
        try:
            result = self._advance(row, control)
        except mujoco.FatalError as error:
            return self._failure(row, f"MuJoCo: {error}")
        observation, reward, terminated, truncated, costs, info = self._unpacked(result, env)
        for name, numbers in (("observation", observation), ("reward", reward), ("cost", [*costs.values()])):
            if not np.isfinite(numbers).all():
                return self._failure(row, f"the {name} is not finite: {_written_at(env, 'step')}")
        goal_met = bool(info.get("goal_met", False))
        return _Outcome(observation, reward, costs, bool(terminated), bool(truncated), "", goal_met)

    def _failure(self, row: int, what: str) -> _Outcome:
        what = f"in step {len(self._episodes[row].actions)} of its episode, {what}"
        return _Outcome(self._observation[row], 0.0, {}, False, True, what, False)

    def _unpacked(
        self, result: tuple[Any, ...], env: gymnasium.Env
    ) -> tuple[np.ndarray, float, Any, Any, dict[str, float], dict[str, Any]]:
        """Return a step of either API as observation, reward, terminated, truncated, costs by name, and info."""
        *before, terminated, truncated, info = result
        observation, reward, cost = before if len(before) == 3 else (*before, info.get("cost", 0.0))
        gained, whole = (self._one_number(name, value, env) for name, value in (("reward", reward), ("cost", cost)))
        named = {key: _number(value) for key, value in info.items() if key.startswith("cost_") and key != COST_SUM}
        costs = {key: value for key, value in named.items() if value is not None}
        return observation, gained, terminated, truncated, costs | {COST_SUM: whole}, info

    def _one_number(self, name: str, value: Any, env: gymnasium.Env) -> float:
        number = _number(value)
        if number is None:
            raise ValueError(f"{self.env_id}: the {name} must be one number, not {value!r}: {_written_at(env, 'step')}")
        return number


def _number(value: Any) -> float | None:
    """Return a number, also one in an array, as a float; None for anything else."""
    array = np.asarray(value)
    return float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "biuf" else None


def _require_bounds(env_id: str, low: np.ndarray, high: np.ndarray) -> None:
    """Refuse actions that a stored policy cannot describe.

    Raises:
        ValueError: They are unbounded, locked, or too many.
    """
    if not (np.abs([low, high]) <= _LARGEST_BOUND).all():
        raise ValueError(f"{env_id} has unbounded actions: wrap it so that every bound is a finite number")
    if (locked := np.flatnonzero(low >= high)).size:
        raise ValueError(
            f"{env_id}: component {locked[0]} of its actions is locked (low {low[locked[0]]:g}, high "
            f"{high[locked[0]]:g}): wrap it so that the action space has only components that can be chosen"
        )
    if len(low) > _MOST_ACTIONS:
        raise ValueError(f"{env_id} has {len(low)} actions: use at most {_MOST_ACTIONS}")


def _add_note(error: BaseException, env: gymnasium.Env, method: str, what: str) -> None:
    """Add a note to an exception that an environment raised: what happened, and the environment's line.

    If none of its lines raised it, because its method takes or returns something else than Gymnasium expects, the
    note names the method.

    Args:
        error: Raised by the environment or by a wrapper around it.
        env: The environment with its wrappers.
        method: Name of the method that was called: reset or step.
        what: Beginning of the note.
    """
    lines, inner = traceback.extract_tb(error.__traceback__), type(env.unwrapped)
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    code = getattr(getattr(inner, method), "__code__", None)
    files = {vars(sys.modules[inner.__module__]).get("__file__"), code and code.co_filename}
    own = [line for line in lines if line.filename in files]
    if not own and str(last.f_globals.get("__name__")).partition(".")[0] in _CALLERS:
        error.add_note(f"{what}: {_written_at(env, method)}")
        return
    line = (own or lines)[-1]
    error.add_note(f"{what}, at {line.filename}:{line.lineno}, in {line.name}")


def _written_at(env: gymnasium.Env, method: str) -> str:
    """File and line of a method of an environment, below all wrappers, for an error message."""
    inner = type(env.unwrapped)
    code = getattr(getattr(inner, method), "__code__", None)
    place = "" if code is None else f" at {code.co_filename}:{code.co_firstlineno}"
    return f"see {inner.__qualname__}.{method}{place}"
