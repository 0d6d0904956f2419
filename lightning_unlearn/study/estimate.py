"""How long steps take: from what the store saw of their kind, else from this machine's speed. Pure arithmetic."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_unlearn.study.steps import Step


@dataclass(frozen=True)
class Speeds:
    """Environment steps per second on this machine, and the seconds that a process needs before its first."""

    trained: float
    rolled: float
    alone: float
    start: float


def step_seconds(step: Step, speeds: Speeds, pace: tuple[float, float] | None) -> float:
    """Seconds a step takes.

    Args:
        step: The step.
        speeds: Used where nothing else is known.
        pace: Seconds and environment steps of an earlier step of the kind.
    """
    if pace is not None:
        seconds, steps = pace
        return seconds * step.work.total / steps if steps else seconds
    work = step.work
    return speeds.start + work.trained / speeds.trained + work.rolled / speeds.rolled + work.alone / speeds.alone


def urgency(steps: Sequence[Step], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds from a step's start to the end of the longest chain that waits for it."""
    longest: dict[str, float] = {}
    for step in reversed(steps):
        longest[step.name] = seconds[step.name] + longest.get(step.name, 0.0)
        for need in step.needs:
            longest[need] = max(longest.get(need, 0.0), longest[step.name])
    return longest


def wall_seconds(steps: Sequence[Step], left: Mapping[str, float], running: Sequence[str], jobs: int) -> float:
    """Seconds until all steps are done, the most urgent ready one first.

    Args:
        steps: Those not done yet, in order.
        left: Seconds left of each.
        running: Names of those that run already.
        jobs: Steps side by side.
    """
    rank, waiting = urgency(steps, left), {step.name: step for step in steps if step.name not in running}
    ends = [(left[name], name) for name in running]
    heapq.heapify(ends)
    undone, now = {step.name for step in steps}, 0.0
    while undone:
        for step in _ready(waiting, undone, rank)[: max(0, jobs - len(ends))]:
            heapq.heappush(ends, (now + left[step.name], step.name))
            del waiting[step.name]
        now, name = heapq.heappop(ends)
        undone.discard(name)
    return now


def _ready(waiting: Mapping[str, Step], undone: set[str], rank: Mapping[str, float]) -> list[Step]:
    ready = [step for step in waiting.values() if undone.isdisjoint(step.needs)]
    return sorted(ready, key=lambda step: -rank[step.name])


def in_words(seconds: float) -> str:
    """`2 h 05 min`, `7 min 20 s` or `12 s`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
