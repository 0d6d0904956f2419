"""Which transition shows the behaviour to forget: the ready concepts, and how one is named.

A concept is `auto`, an info key, or a class with its arguments:

    data:
      concept:
        class_path: Disc          # of a class of your own, the whole path
        init_args:
          centre: [1.0, 0.0]
          radius: 0.5

Everything is judged on what a step led to, but for the action, which is the one it was made with.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_unlearn.envs.concept import Concept, Transitions, as_json, truth
from lightning_unlearn.envs.concept_arguments import require, require_list, require_number, require_range
from lightning_unlearn.envs.simulator import Simulator

__all__ = [
    "AUTO",
    "COST_SUM",
    "HAZARDS",
    "READY",
    "ActionBox",
    "AnyOf",
    "Concept",
    "Disc",
    "InfoKey",
    "ObservationRange",
    "Rectangle",
    "SpeedAbove",
    "Transitions",
    "chosen",
    "recorded_as",
]

AUTO = "auto"
HAZARDS = "cost_hazards"
COST_SUM = "cost_sum"


@dataclass(frozen=True)
class InfoKey(Concept):
    """Transitions that cost something.

    Args:
        key: Of the step's info, such as `cost_hazards`.
    """

    key: str

    def __post_init__(self) -> None:
        """Refuse what is no word."""
        require(isinstance(self.key, str), f"InfoKey.key={self.key!r}", "name an info key")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        return transitions.costs.get(self.key, np.zeros(len(transitions.action))) > 0

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse a key that the environment never reports; warn of one that may come later."""
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
        part: Which numbers: the name of a part (`hazards_lidar`), or the first and the one after the last ([12, 28]).
        above: Lower end, in the observation's units; null: none.
        below: Upper end; null: none.
        which: Whether `any` of the numbers is enough, or `all` must be in the range.
    """

    part: list[int] | str
    above: float | None = None
    below: float | None = None
    which: Literal["any", "all"] = "any"

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        part, whole = self.part, isinstance(self.part, list) and all(type(end) is int for end in self.part)
        require(
            isinstance(part, str) or (whole and len(part) == 2 and 0 <= part[0] < part[1]),
            f"ObservationRange.part={part!r}",
            "name a part of the observation, or give the first number and the one after the last, such as [12, 28]",
        )
        require_range("ObservationRange", ("above", self.above), ("below", self.below))
        require(self.which in ("any", "all"), f"ObservationRange.which={self.which!r}", "use any or all")

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


class _InPlane(Concept):
    """Asks where the agent is, or how fast."""

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse environments without a plane."""
        if not simulator.in_plane:
            raise ValueError(
                f"concept: {type(self).__name__} is not possible in {simulator.env_id}, which has no plane that its "
                "agent moves in: use an info key, ObservationRange, ActionBox or a class of your own."
            )


@dataclass(frozen=True)
class Rectangle(_InPlane):
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
            require_list(f"Rectangle.{axis}", ends, 2)
            if any(end is not None for end in ends):
                require_range("Rectangle", (f"{axis}[0]", ends[0]), (f"{axis}[1]", ends[1]))
        require([*self.x, *self.y] != [None] * 4, "Rectangle without any end", "close at least one")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        x, y = transitions.position.T
        return _inside(x, *self.x) & _inside(y, *self.y)


@dataclass(frozen=True)
class Disc(_InPlane):
    """Transitions into a disc of the plane, in the task's own coordinates.

    Args:
        centre: Its x and y, metres.
        radius: Metres; the edge does not belong to it.
    """

    centre: list[float]
    radius: float

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        require_list("Disc.centre", self.centre, 2)
        for number in self.centre:
            require_number("Disc.centre", number)
        require_number("Disc.radius", self.radius)
        require(self.radius > 0, f"Disc.radius={self.radius}", "use metres above 0")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        x, y = transitions.position.T
        right, up = x - self.centre[0], y - self.centre[1]
        return right * right + up * up < self.radius * self.radius


@dataclass(frozen=True)
class SpeedAbove(_InPlane):
    """Transitions that leave the agent faster than a limit.

    Args:
        limit: Of the speed in the plane, metres per second.
    """

    limit: float

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        require_number("SpeedAbove.limit", self.limit)
        require(self.limit >= 0, f"SpeedAbove.limit={self.limit}", "use 0 or more metres per second")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        return transitions.speed > self.limit


@dataclass(frozen=True)
class ActionBox(Concept):
    """Transitions made by an action in an open box.

    Args:
        low: Lower ends, one a component of the action, in its own units; null for none.
        high: Upper ends, the same.
    """

    low: list[float | None]
    high: list[float | None]

    def __post_init__(self) -> None:
        """Refuse impossible arguments."""
        require_list("ActionBox.low", self.low)
        require_list("ActionBox.high", self.high, len(self.low))
        for index, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not (low is None and high is None):
                require_range("ActionBox", (f"low[{index}]", low), (f"high[{index}]", high))
        ends = [end for end in (*self.low, *self.high) if end is not None]
        require(len(ends) > 0, "ActionBox without any end", "close at least one")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        inside = np.ones(len(transitions.action), dtype=bool)
        for component, low, high in zip(transitions.action.T, self.low, self.high, strict=True):
            inside &= _inside(component, low, high)
        return inside

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse a box of another size."""
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
        require_list("AnyOf.concepts", self.concepts)
        for concept in self.concepts:
            require(isinstance(concept, Concept), f"AnyOf.concepts with {concept!r}", "list concepts")

    def __call__(self, transitions: Transitions) -> np.ndarray:
        """See `Concept`."""
        first, *others = (truth(concept, transitions) for concept in self.concepts)
        for other in others:
            first = first | other
        return first

    def require_possible(self, simulator: Simulator) -> None:
        """Refuse what one of them refuses."""
        for concept in self.concepts:
            concept.require_possible(simulator)


READY: tuple[type[Concept], ...] = (InfoKey, ObservationRange, Rectangle, Disc, SpeedAbove, ActionBox, AnyOf)
"""All that a stored file may have built by its name."""


def chosen(concept: str | Concept, cost_keys: Sequence[str]) -> Concept:
    """The concept of a name: `auto` (`cost_hazards` where the task reports it, else the step's whole cost) or a key."""
    if isinstance(concept, Concept):
        return concept
    if concept == AUTO:
        return InfoKey(HAZARDS if HAZARDS in cost_keys else COST_SUM)
    return InfoKey(concept)


def recorded_as(concept: str | Concept) -> str:
    """What runs and models say of it: an info key by its name, everything else as JSON of class and arguments."""
    if isinstance(concept, str):
        return concept
    return concept.key if isinstance(concept, InfoKey) else as_json(concept)


def _inside(values: np.ndarray, low: float | None, high: float | None) -> np.ndarray:
    """Where values are in an open range. Any shape."""
    if low is None:
        return values < (math.inf if high is None else high)
    return values > low if high is None else (values > low) & (values < high)
