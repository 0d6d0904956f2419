"""What arguments of the ready concepts must be; stored files name them, so that types are checked, too."""

from typing import Any

LARGEST = 1e30
"""Larger numbers are none that an environment could have."""


def require(holds: bool, what: str, remedy: str) -> None:
    """Refuse what is not so, and say what to do instead."""
    if not holds:
        raise ValueError(f"concept: {what} is not possible: {remedy}.")


def require_number(name: str, value: Any) -> None:
    """Refuse all but finite numbers."""
    finite = type(value) in (int, float) and abs(value) <= LARGEST  # and no NaN
    require(finite, f"{name}={value!r}", "use a finite number")


def require_list(name: str, values: Any, length: int | None = None) -> None:
    """Refuse all but lists that are not empty, of a length if one is given."""
    right = isinstance(values, list) and len(values) > 0 and length in (None, len(values))
    require(right, f"{name}={values!r}", f"list {'at least one' if length is None else length}")


def require_range(name: str, low: tuple[str, Any], high: tuple[str, Any]) -> None:
    """Refuse ends that are no numbers, in the wrong order, or not there at all."""
    ends = [(f"{name}.{end}", value) for end, value in (low, high) if value is not None]
    require(len(ends) > 0, f"{name} without {low[0]} and {high[0]}", "give at least one")
    for end, value in ends:
        require_number(end, value)
    in_order = len(ends) < 2 or ends[0][1] < ends[1][1]
    require(in_order, " and ".join(f"{end}={value}" for end, value in ends), "the first must be below the second")
