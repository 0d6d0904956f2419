"""What a concept is: a class that says which transitions show the behaviour to forget.

A class of your own needs one method:

    @dataclass
    class Reversing(Concept):
        speed: float = 0.5

        def __call__(self, transitions: Transitions) -> np.ndarray:
            return (transitions.action[:, 0] < 0) & (transitions.speed > self.speed)

Shapes: E environments, O observation size, A action size.
"""

import inspect
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lightning_unlearn.envs.simulator import Simulator


class World(Protocol):
    """The part of a `Simulator` that a concept may ask."""

    observation_layout: dict[str, slice]

    def agent_position(self) -> np.ndarray:
        """Shape: (E, 2), metres."""
        ...

    def agent_velocity(self) -> np.ndarray:
        """Shape: (E, 2), metres per second."""
        ...


@dataclass(slots=True)
class Transitions:
    """One step of E environments, as it was just made and before anything is reset."""

    observation: np.ndarray
    """What the agent saw. Shape: (E, O), float32 or float64."""
    action: np.ndarray
    """What it did. Shape: (E, A)."""
    next_observation: np.ndarray
    """What that led to. Shape: (E, O), float64."""
    costs: dict[str, np.ndarray]
    """Every info key with a cost, `cost_sum` among them. Shape of each: (E,), float64."""
    world: World

    def part(self, name: str) -> np.ndarray:
        """A named part of `next_observation`, such as `hazards_lidar`. Shape: (E, its size)."""
        return self.next_observation[:, self.world.observation_layout[name]]

    @property
    def position(self) -> np.ndarray:
        """Of the agents after the step, in the task's own coordinates. Shape: (E, 2), metres.

        Raises:
            ValueError: The environment has no plane.
        """
        return self.world.agent_position()

    @property
    def velocity(self) -> np.ndarray:
        """Of the agents after the step, along the same axes. Shape: (E, 2), metres per second.

        Raises:
            ValueError: The environment has no plane.
        """
        return self.world.agent_velocity()

    @property
    def speed(self) -> np.ndarray:
        """Length of the velocity. Shape: (E,), metres per second.

        Raises:
            ValueError: The environment has no plane.
        """
        x, y = self.world.agent_velocity().T
        return np.sqrt(x * x + y * y)


class Concept(ABC):
    """Which transitions show the behaviour to forget. The same transitions must always get the same answer.

    A class keeps every argument of its `__init__` under the argument's own name (a dataclass does that), as numbers,
    words, lists or other concepts: this is how runs and models record what was forgotten.
    """

    @abstractmethod
    def __call__(self, transitions: Transitions) -> np.ndarray:
        """True where a transition shows it. Shape: (E,), bool."""

    def require_possible(self, simulator: Simulator) -> None:  # noqa: B027 (most classes are possible everywhere)
        """Refuse environments that it makes no sense in; asked once, before anything is stepped.

        Raises:
            ValueError: It is impossible there.
        """


def judged(concept: Concept, transitions: Transitions, failed: np.ndarray) -> np.ndarray:
    """C_forget of a step: 1 where it shows the concept, 0 elsewhere and where the simulator failed.

    Args:
        concept: Judges.
        transitions: The step.
        failed: Where the simulator failed. Shape: (E,), bool.

    Returns:
        Shape: (E,), float64.

    Raises:
        ValueError: The concept raises, or gives something else.
    """
    return (truth(concept, transitions) & ~failed).astype(np.float64)


def truth(concept: Concept, transitions: Transitions) -> np.ndarray:
    """What a concept answers. Shape: (E,), bool.

    Raises:
        ValueError: It raises, or gives something else.
    """
    try:
        shown = np.asarray(concept(transitions))
    except Exception as error:
        raise ValueError(f"{_called(concept)} raised {type(error).__name__}: {error}. {_EXPECTED}") from error
    if shown.shape != (expected := transitions.action.shape[:1]):
        raise ValueError(f"{_called(concept)} gave shape {shown.shape}, not {expected}. {_EXPECTED}")
    if shown.dtype == bool:
        return shown
    if not np.isin(shown, (0, 1)).all():
        raise ValueError(f"{_called(concept)} gave other values than 0 and 1, of {shown.dtype}. {_EXPECTED}")
    return shown == 1


def require_sound(concept: Concept, simulator: Simulator) -> None:
    """Refuse a concept that is impossible in an environment, or cannot judge a transition of its sizes.

    Raises:
        ValueError: It is so.
    """
    concept.require_possible(simulator)
    num_envs = simulator.num_envs
    observation = np.zeros((num_envs, simulator.observation_size))
    transitions = Transitions(
        observation.astype(np.float32),
        np.zeros((num_envs, len(simulator.action_low))),
        observation,
        {key: np.zeros(num_envs) for key in simulator.cost_keys},
        _AtRest(simulator) if simulator.in_plane else simulator,
    )
    with np.errstate(all="ignore"):  # zeros are no state that an agent was ever in
        judged(concept, transitions, np.zeros(num_envs, dtype=bool))


def as_data(concept: Concept) -> dict[str, Any]:
    """The class and its arguments, as a config file has them.

    Raises:
        ValueError: An argument was not kept under its own name, or is no plain value.
    """
    cls = type(concept)
    arguments = {name: _argument(concept, name) for name in inspect.signature(cls).parameters}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def as_json(concept: Concept) -> str:
    """`as_data` in one line; equal concepts have equal lines."""
    return json.dumps(as_data(concept), sort_keys=True)


_EXPECTED = "A concept maps transitions of E environments to an array of E truth values."


def _called(concept: Concept) -> str:
    return f"concept {type(concept).__module__}.{type(concept).__qualname__}"


def _argument(concept: Concept, name: str) -> Any:
    if not hasattr(concept, name):
        raise ValueError(
            f"{_called(concept)} does not keep its argument {name!r}: set self.{name}, for runs to record it."
        )
    return _plain(concept, name, getattr(concept, name))


def _plain(concept: Concept, name: str, value: Any) -> Any:
    if isinstance(value, Concept):
        return as_data(value)
    if isinstance(value, list | tuple):
        return [_plain(concept, name, entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{_called(concept)} has {name}={value!r}: use numbers, words, lists or other concepts, for runs to record it."
    )


class _AtRest:
    """Agents at the origin."""

    def __init__(self, simulator: Simulator) -> None:
        self.observation_layout, self._num_envs = simulator.observation_layout, simulator.num_envs

    def agent_position(self) -> np.ndarray:
        return np.zeros((self._num_envs, 2))

    agent_velocity = agent_position
