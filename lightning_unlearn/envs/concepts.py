"""Concepts: which transitions show the behaviour to forget.

A concept is named by `auto`, by an info key, or by a class with its arguments:

    data:
      concept:
        class_path: Disc          # of a class of your own, the whole path
        init_args:
          centre: [1.0, 0.0]
          radius: 0.5

A class of your own needs one method:

    @dataclass
    class Reversing(Concept):
        speed: float = 0.5

        def __call__(self, transitions: Transitions) -> np.ndarray:
            return (transitions.action[:, 0] < 0) & (transitions.speed > self.speed)

The ready classes judge the state that a step led to; only `ActionBox` judges the action of the step.
Shapes: E environments, O observation size, A action size.
"""

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from lightning_unlearn.envs.simulator import Simulator

AUTO = "auto"
HAZARDS = "cost_hazards"
COST_SUM = "cost_sum"
LARGEST = 1e30
"""Largest number that an argument of a ready class may have; no environment has larger ones."""
_EXPECTED = "A concept maps transitions of E environments to an array of E truth values."


class World(Protocol):
    """The part of a `Simulator` that a concept may use."""

    observation_layout: dict[str, slice]

    def agent_position(self) -> np.ndarray:
        """Positions after the step. Shape: (E, 2), metres."""
        ...

    def agent_velocity(self) -> np.ndarray:
        """Velocities after the step. Shape: (E, 2), metres per second."""
        ...


@dataclass(slots=True)
class Transitions:
    """One step of E environments, before any of them is reset."""

    observation: np.ndarray
    """Observation before the step. Shape: (E, O), float32 or float64."""
    action: np.ndarray
    """Action of the step. Shape: (E, A)."""
    next_observation: np.ndarray
    """Observation after the step. Shape: (E, O), float64."""
    costs: dict[str, np.ndarray]
    """Every cost by its info key, `cost_sum` among them. Shape of each: (E,), float64."""
    world: World

    def part(self, name: str) -> np.ndarray:
        """Return a named part of `next_observation`, such as `hazards_lidar`. Shape: (E, its size)."""
        return self.next_observation[:, self.world.observation_layout[name]]

    @property
    def position(self) -> np.ndarray:
        """Position of the agents after the step, in the task's own coordinates. Shape: (E, 2), metres.

        Raises:
            ValueError: The environment has no plane.
        """
        return self.world.agent_position()

    @property
    def velocity(self) -> np.ndarray:
        """Velocity of the agents after the step, along the same axes. Shape: (E, 2), metres per second.

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
    """The behaviour to forget, as a function of transitions. Equal transitions must get equal answers.

    A class keeps every argument of its `__init__` under the argument's own name (a dataclass does that), as numbers,
    words, lists or other concepts: runs and models record the concept in this form.
    """

    @abstractmethod
    def __call__(self, transitions: Transitions) -> np.ndarray:
        """Return True where a transition shows the behaviour. Shape: (E,), bool."""

    def require_possible(self, simulator: Simulator) -> None:  # noqa: B027 (most classes are possible everywhere)
        """Refuse an environment in which the concept makes no sense; called once, before the first step.

        Raises:
            ValueError: The concept is impossible in this environment.
        """


def concept_signal(concept: Concept, transitions: Transitions, failed: np.ndarray) -> np.ndarray:
    """Compute C_forget of a step: 1 where it shows the concept, 0 elsewhere and where the simulator failed.

    Args:
        concept: Judges the transitions.
        transitions: The step.
        failed: True where the simulator failed. Shape: (E,), bool.

    Returns:
        Shape: (E,), float64.

    Raises:
        ValueError: The concept raises an exception, or returns something else than E truth values.
    """
    return (shown(concept, transitions) & ~failed).astype(np.float64)


def shown(concept: Concept, transitions: Transitions) -> np.ndarray:
    """Call a concept and check its result. Shape: (E,), bool.

    Raises:
        ValueError: The concept raises an exception, or returns something else than E truth values.
    """
    try:
        result = np.asarray(concept(transitions))
    except Exception as error:
        raise ValueError(f"{concept_class(concept)} raised {type(error).__name__}: {error}. {_EXPECTED}") from error
    if result.shape != (expected := transitions.action.shape[:1]):
        raise ValueError(f"{concept_class(concept)} gave shape {result.shape}, not {expected}. {_EXPECTED}")
    if result.dtype == bool:
        return result
    if not np.isin(result, (0, 1)).all():
        raise ValueError(f"{concept_class(concept)} gave other values than 0 and 1, of {result.dtype}. {_EXPECTED}")
    return result == 1


def concept_class(concept: Concept) -> str:
    """Name a concept's class in an error message."""
    return f"concept {type(concept).__module__}.{type(concept).__qualname__}"


@dataclass(frozen=True)
class InfoKey(Concept):
    """Transitions with a positive cost.

    Args:
        key: Key of the cost in the step's info, such as `cost_hazards`.
    """

    key: str

    def __post_init__(self) -> None:
        """Refuse a key that is no string."""
        _require(isinstance(self.key, str), f"InfoKey.key={self.key!r}", "name an info key")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        return transitions.costs.get(self.key, np.zeros(len(transitions.action))) > 0

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse a key that the environment never reports; warn of one that it may report later."""
        if self.key in simulator.cost_keys:
            return
        known = f"Choose one of {', '.join(simulator.cost_keys)}, or {AUTO!r}"
        if not (simulator.late_costs and self.key.startswith("cost_")):
            raise ValueError(f"concept={self.key!r} is never reported by this environment. {known}.")
        warnings.warn(
            f"concept={self.key!r}: {simulator.env_id} has not reported it in random steps. It counts as 0 until a "
            f"step reports it. {known}, if that is no name of a cost.",
            stacklevel=2,
        )


@dataclass(frozen=True)
class ObservationRange(Concept):
    """Transitions to an observation with numbers in an open range, such as a lidar above 0.9.

    Args:
        part: Name of a part of the observation (`hazards_lidar`), or its first index and the one after its last
            ([12, 28]).
        above: Lower end, in the observation's units; null: none.
        below: Upper end; null: none.
        which: `any`: one number in the range is enough; `all`: all must be in it.
    """

    part: list[int] | str
    above: float | None = None
    below: float | None = None
    which: Literal["any", "all"] = "any"

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        part, whole = self.part, isinstance(self.part, list) and all(type(end) is int for end in self.part)
        _require(
            isinstance(part, str) or (whole and len(part) == 2 and 0 <= part[0] < part[1]),
            f"ObservationRange.part={part!r}",
            "name a part of the observation, or give the first number and the one after the last, such as [12, 28]",
        )
        _require_range("ObservationRange", ("above", self.above), ("below", self.below))
        _require(self.which in ("any", "all"), f"ObservationRange.which={self.which!r}", "use any or all")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        part, whole = self.part, transitions.next_observation
        values = transitions.part(part) if isinstance(part, str) else whole[:, slice(*part)]
        inside = _inside(values, self.above, self.below)
        return np.logical_or.reduce(inside, axis=1) if self.which == "any" else np.logical_and.reduce(inside, axis=1)

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse a part that the observation does not have."""
        layout, size = simulator.observation_layout, simulator.observation_size
        if self.part not in layout if isinstance(self.part, str) else self.part[1] > size:
            known = ", ".join(f"{name} [{place.start}, {place.stop}]" for name, place in layout.items())
            raise ValueError(
                f"concept: ObservationRange.part={self.part!r} is not in the {size} numbers that {simulator.env_id} "
                f"observes. Its parts are {known}."
            )


class InPlane(Concept):
    """Base class of concepts that need the agent's position or velocity."""

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse environments without a plane."""
        if not simulator.in_plane:
            raise ValueError(
                f"concept: {type(self).__name__} is not possible in {simulator.env_id}, which has no plane that its "
                "agent moves in: use an info key, ObservationRange, ActionBox or a class of your own."
            )


@dataclass(frozen=True)
class Rectangle(InPlane):
    """Transitions into a rectangle of the plane, in the task's own coordinates.

    Args:
        x: Lowest and highest x, not included, in metres; null for an end that is open.
        y: Lowest and highest y, the same.
    """

    x: list[float | None]
    y: list[float | None]

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        for axis, ends in (("x", self.x), ("y", self.y)):
            _require_list(f"Rectangle.{axis}", ends, 2)
            if any(end is not None for end in ends):
                _require_range("Rectangle", (f"{axis}[0]", ends[0]), (f"{axis}[1]", ends[1]))
        _require([*self.x, *self.y] != [None] * 4, "Rectangle without any end", "close at least one")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        x, y = transitions.position.T
        return _inside(x, *self.x) & _inside(y, *self.y)


@dataclass(frozen=True)
class Disc(InPlane):
    """Transitions into a disc of the plane, in the task's own coordinates.

    Args:
        centre: Its x and y, metres.
        radius: Metres; the edge does not belong to the disc.
    """

    centre: list[float]
    radius: float

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        _require_list("Disc.centre", self.centre, 2)
        for number in self.centre:
            _require_number("Disc.centre", number)
        _require_number("Disc.radius", self.radius)
        _require(self.radius > 0, f"Disc.radius={self.radius}", "use metres above 0")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        x, y = transitions.position.T
        right, up = x - self.centre[0], y - self.centre[1]
        return right * right + up * up < self.radius * self.radius


@dataclass(frozen=True)
class SpeedAbove(InPlane):
    """Transitions that leave the agent faster than a limit.

    Args:
        limit: Speed in the plane, metres per second.
    """

    limit: float

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        _require_number("SpeedAbove.limit", self.limit)
        _require(self.limit >= 0, f"SpeedAbove.limit={self.limit}", "use 0 or more metres per second")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        return transitions.speed > self.limit


@dataclass(frozen=True)
class ActionBox(Concept):
    """Transitions made by an action in an open box.

    Args:
        low: Lower ends, one per component of the action, in its own units; null for none.
        high: Upper ends, the same.
    """

    low: list[float | None]
    high: list[float | None]

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        _require_list("ActionBox.low", self.low)
        _require_list("ActionBox.high", self.high, len(self.low))
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (low is None and high is None):
                _require_range("ActionBox", (f"low[{index}]", low), (f"high[{index}]", high))
        ends = [end for end in (*self.low, *self.high) if end is not None]
        _require(len(ends) > 0, "ActionBox without any end", "close at least one")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        inside = np.ones(len(transitions.action), dtype=bool)
        for component, low, high in zip(transitions.action.T, self.low, self.high, strict=True):
            inside &= _inside(component, low, high)
        return inside

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse a box whose size is not the action's."""
        if len(self.low) != (size := len(simulator.action_low)):
            raise ValueError(
                f"concept: ActionBox has {len(self.low)} components, but an action of {simulator.env_id} has {size}: "
                "give as many lower and upper ends, null for none."
            )


@dataclass(frozen=True)
class AnyOf(Concept):
    """Transitions that show at least one of some concepts.

    Args:
        concepts: The concepts.
    """

    concepts: list[Concept]

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        _require_list("AnyOf.concepts", self.concepts)
        for concept in self.concepts:
            _require(isinstance(concept, Concept), f"AnyOf.concepts with {concept!r}", "list concepts")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        first, *others = (shown(concept, transitions) for concept in self.concepts)
        for other in others:
            first = first | other
        return first

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse an environment that one of the concepts refuses."""
        for concept in self.concepts:
            concept.require_possible(simulator)


READY_CONCEPTS: tuple[type[Concept], ...] = (
    InfoKey,
    ObservationRange,
    Rectangle,
    Disc,
    SpeedAbove,
    ActionBox,
    AnyOf,
)
"""The classes that may be built from a stored file, which names them."""


def _inside(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """Return True where values are in an open range. Any shape."""
    if low is None:
        return values < (math.inf if high is None else high)
    return values > low if high is None else (values > low) & (values < high)


def _require(holds: bool, what: str, remedy: str) -> None:
    """Refuse an argument of a ready class unless a condition holds; the message names the remedy."""
    if not holds:
        raise ValueError(f"concept: {what} is not possible: {remedy}.")


def _require_number(name: str, value: Any) -> None:
    """Refuse all but finite numbers; the type is checked too, since arguments come from stored files."""
    finite = type(value) in (int, float) and abs(value) <= LARGEST  # and no NaN
    _require(finite, f"{name}={value!r}", "use a finite number")


def _require_list(name: str, values: Any, length: int | None = None) -> None:
    """Refuse all but lists that are not empty, of a length if one is given."""
    right = isinstance(values, list) and len(values) > 0 and length in (None, len(values))
    _require(right, f"{name}={values!r}", f"list {'at least one' if length is None else length}")


def _require_range(name: str, low: tuple[str, Any], high: tuple[str, Any]) -> None:
    """Refuse ends that are no numbers, are in the wrong order, or are both missing."""
    ends = [(f"{name}.{end}", value) for end, value in (low, high) if value is not None]
    _require(len(ends) > 0, f"{name} without {low[0]} and {high[0]}", "give at least one")
    for end, value in ends:
        _require_number(end, value)
    in_order = len(ends) < 2 or ends[0][1] < ends[1][1]
    _require(in_order, " and ".join(f"{end}={value}" for end, value in ends), "the first must be below the second")
