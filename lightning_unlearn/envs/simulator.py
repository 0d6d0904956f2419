"""The contract between environments that compute in numpy and the TorchRL environment over them.

Shapes: E environments, O observation size, A action size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from lightning_unlearn.envs.rollout import Actor, RolloutBuffer


@dataclass(slots=True)
class Step:
    """Result of one step of E environments; the arrays belong to the caller."""

    observation: np.ndarray
    """Observation after the step and before any reset. Shape: (E, O), float64."""
    reward: np.ndarray
    """Shape: (E,), float64."""
    costs: dict[str, np.ndarray]
    """Every `cost_*` the task reports, `cost_sum` always among them. Shape of each: (E,), float64."""
    terminated: np.ndarray
    """The task itself ended the episode. Shape: (E,), bool."""
    truncated: np.ndarray
    """The time limit, or a failed simulator, cut the episode. Shape: (E,), bool."""
    failed: np.ndarray
    """The simulator failed or left a non-finite state: truncated without bootstrap. Shape: (E,), bool."""
    goal_met: np.ndarray
    """The task's goal was reached in this step. Shape: (E,), bool."""


@dataclass(frozen=True, slots=True)
class TopView:
    """A map of the scene: positions in the task's own plane."""

    positions: dict[str, np.ndarray] = field(default_factory=dict)
    """Kind ("agent", "goal", "hazards", ...) → xy of each of its objects. Shape of each: (E, n, 2), float64."""
    radii: dict[str, float] = field(default_factory=dict)
    """Kind → radius in metres, for kinds that are drawn as discs."""


class Simulator(Protocol):
    """E independent copies of one task. It never resets an environment by itself."""

    env_id: str
    num_envs: int
    observation_size: int
    observation_layout: dict[str, slice]
    """Name of each part of the observation ("hazards_lidar", ...) → its slice."""
    action_low: np.ndarray
    """Shape: (A,), float64."""
    action_high: np.ndarray
    """Shape: (A,), float64."""
    cost_keys: tuple[str, ...]
    """Names in `Step.costs`; `cost_sum` is the step's cost, and the last one."""
    late_costs: bool
    """True if `cost_keys` may grow, because costs are known only once a step reports them."""
    max_episode_steps: int
    in_plane: bool
    """True if agents have a position and a velocity in a plane."""

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Reset the environments of `mask` (all without one) and return every current observation.

        Args:
            mask: True for environments to reset. Shape: (E,), bool.
            seeds: One seed per environment, used for those that are reset; without it each
                environment goes on with its own random stream.

        Returns:
            Observations, a fresh array. Shape: (E, O), float64.
        """
        ...

    def step(self, actions: np.ndarray) -> Step:
        """Advance every environment by one action. Shape: (E, A); clipped to the bounds."""
        ...

    def rollout_buffer(self, horizon: int) -> "RolloutBuffer":
        """Allocate a buffer for rollouts of `horizon` steps; the one allocated before may no longer be used.

        Raises:
            ValueError: There is not enough memory.
        """
        ...

    def roll_out(self, actor: "Actor", buffer: "RolloutBuffer", action_repeat: int = 1) -> None:
        """Fill a buffer of `rollout_buffer`; see `rollout.roll_out`. The result does not depend on the workers."""
        ...

    def last_failure(self) -> str:
        """Return step and reason of the simulation's last failure; empty if there was none, or they are unknown."""
        ...

    def top_view(self) -> TopView:
        """Return a map of the scene as it is now."""
        ...

    def agent_position(self) -> np.ndarray:
        """Return the agents' present position in the task's own plane. Shape: (E, 2), metres.

        Raises:
            ValueError: There is no plane.
        """
        ...

    def agent_velocity(self) -> np.ndarray:
        """Return the agents' present velocity along the axes of the plane. Shape: (E, 2), metres per second.

        Raises:
            ValueError: There is no plane.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that coming steps depend on, random streams included.

        Nested dicts and lists of arrays and numbers; lists have an entry an environment.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue bit-exactly from what `state_dict` of a simulator of the same task and E returned."""
        ...

    def close(self) -> None:
        """Release worker processes and memory."""
        ...


class NoPlane:
    """Base class of simulators whose agents do not move in a plane."""

    env_id: str
    in_plane = False

    def agent_position(self) -> np.ndarray:
        """Refuse, as there is no plane.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.env_id} has no plane that its agent moves in")

    agent_velocity = agent_position


class FailureCount:
    """Count of each environment's consecutive episodes that a failure of the simulation ended.

    Args:
        env_id: Named in the error.
        num_envs: E.
    """

    MOST_IN_A_ROW = 10

    def __init__(self, env_id: str, num_envs: int) -> None:
        self._env_id = env_id
        self.in_a_row = np.zeros(num_envs, dtype=np.int64)  # (E,)
        self.last = ""
        """Reason of the last failure, if it is known."""

    def add(self, failed: np.ndarray, ended: np.ndarray, reasons: Sequence[str] | None = None) -> None:
        """Count the failures of one step.

        Args:
            failed: True where the simulation failed. Shape: (E,), bool.
            ended: True where an episode ended. Shape: (E,), bool.
            reasons: Reason of each environment's failure, if it is known.

        Raises:
            RuntimeError: An environment failed again and again.
        """
        if not np.count_nonzero(ended):  # a failure is an end, too
            return
        self.in_a_row[ended & ~failed] = 0
        self.in_a_row += failed
        if reasons is not None and failed.any():
            self.last = reasons[int(failed.nonzero()[0][-1])]
        if (self.in_a_row > self.MOST_IN_A_ROW).any():
            row = int(self.in_a_row.argmax())
            what = f"the simulation of environment {row} failed {self.in_a_row[row]} times in a row"
            why = f", the last time {reasons[row]}" if reasons is not None else ""
            raise RuntimeError(f"{self._env_id}: {what}{why}")


def require_mask(mask: np.ndarray, num_envs: int) -> np.ndarray:
    """Return the mask of a reset as bool. Refused if it does not have the shape (E,).

    Raises:
        ValueError: It has another shape.
    """
    if np.shape(mask) != (num_envs,):
        raise ValueError(f"mask must have shape ({num_envs},), got {np.shape(mask)}")
    return np.asarray(mask, dtype=bool)


def require_seeds(seeds: Sequence[int], num_envs: int) -> list[int]:
    """Return the seeds of a reset as integers. Refused if there is not one per environment.

    Raises:
        ValueError: There are more or fewer.
    """
    if len(seeds) != num_envs:
        raise ValueError(f"seeds must hold one seed per environment, {num_envs}, got {len(seeds)}")
    return [int(seed) for seed in seeds]


def all_finite(numbers: np.ndarray) -> bool:
    """Return True if all numbers are finite; for a few numbers, `np.isfinite(numbers).all()` takes twice as long."""
    return bool(np.count_nonzero(np.isfinite(numbers)) == np.size(numbers))


def require_actions(actions: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the actions of a step. Refused if they are not finite numbers of the shape (E, A).

    Raises:
        ValueError: They have another shape, or one of them is not finite.
    """
    if np.shape(actions) != shape:
        raise ValueError(f"actions must have shape {shape}, got {np.shape(actions)}")
    if not all_finite(actions):
        row, component = np.argwhere(~np.isfinite(actions))[0].tolist()
        raise ValueError(
            f"component {component} of the action for environment {row} is {actions[row][component]}: the policy "
            "gives actions that are not finite"
        )
    return actions
