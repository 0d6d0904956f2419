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
    """What one step of E environments returns; the arrays belong to the caller."""

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
    """Positions of what a map of the scene shows, in the task's own plane."""

    positions: dict[str, np.ndarray] = field(default_factory=dict)
    """Kind ("agent", "goal", "hazards", ...) → xy of each object of it. Shape of each: (E, n, 2), float64."""
    radii: dict[str, float] = field(default_factory=dict)
    """Kind → radius in metres, for those that are drawn as discs."""


class NoPlane:
    """A simulator whose agents have no place in a plane."""

    env_id: str
    in_plane = False

    def agent_position(self) -> np.ndarray:
        """There is none.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{self.env_id} has no plane that its agent moves in")

    agent_velocity = agent_position


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
    """Whether `cost_keys` may grow, because costs are known only once a step reports them."""
    max_episode_steps: int
    in_plane: bool
    """Whether agents have a place in a plane, and a velocity there."""

    def reset(self, mask: np.ndarray | None = None, seeds: Sequence[int] | None = None) -> np.ndarray:
        """Reset the environments of `mask` (all without one) and return every current observation.

        Args:
            mask: Which environments to reset. Shape: (E,), bool.
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
        """A buffer for rollouts of so many steps; one made before may no longer be used.

        Raises:
            ValueError: There is not that much memory.
        """
        ...

    def roll_out(self, actor: "Actor", buffer: "RolloutBuffer", hold: int = 1) -> None:
        """Fill a buffer of `rollout_buffer`; see `rollout.roll_out`. How many processes take part changes nothing."""
        ...

    def last_failure(self) -> str:
        """Where and why the simulation failed last; empty if it never did, or nothing is known of it."""
        ...

    def top_view(self) -> TopView:
        """Where things are now."""
        ...

    def agent_position(self) -> np.ndarray:
        """Of the agents now, in the task's own plane. Shape: (E, 2), metres.

        Raises:
            ValueError: There is no plane.
        """
        ...

    def agent_velocity(self) -> np.ndarray:
        """Of the agents now, along the axes of the plane. Shape: (E, 2), metres per second.

        Raises:
            ValueError: There is no plane.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that coming steps depend on, random streams included: nested dicts and lists of arrays and numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, to the bit, from what `state_dict` of a simulator of the same task and E returned."""
        ...

    def close(self) -> None:
        """Release worker processes and memory."""
        ...


def require_mask(mask: np.ndarray, num_envs: int) -> np.ndarray:
    """The mask of a reset, if it has an entry an environment. Shape: (E,), bool.

    Raises:
        ValueError: It has another shape.
    """
    if np.shape(mask) != (num_envs,):
        raise ValueError(f"mask must have shape ({num_envs},), got {np.shape(mask)}")
    return np.asarray(mask, dtype=bool)


def require_seeds(seeds: Sequence[int], num_envs: int) -> list[int]:
    """The seeds of a reset, if there is one an environment.

    Raises:
        ValueError: There are more or fewer.
    """
    if len(seeds) != num_envs:
        raise ValueError(f"seeds must hold one seed per environment, {num_envs}, got {len(seeds)}")
    return [int(seed) for seed in seeds]


def all_finite(numbers: np.ndarray) -> bool:
    """Whether all are finite; of a few numbers, `np.isfinite(numbers).all()` takes twice as long."""
    return bool(np.count_nonzero(np.isfinite(numbers)) == np.size(numbers))


def require_actions(actions: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The actions of a step, if they are finite numbers of the shape (E, A).

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
