"""What a study shows: the plan, a table while it runs, and what came of it."""

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from lightning_unlearn.study.estimate import in_words, wall_seconds
from lightning_unlearn.study.execute import Progress, State
from lightning_unlearn.study.steps import Step

HEARTBEAT_S = 60.0
REDRAW_S = 1.0
_OVER = (State.DONE, State.STORED, State.FAILED, State.SKIPPED)


def plan_table(
    stages: Sequence[str], steps: Sequence[Step], done: Mapping[str, object], seconds: Mapping[str, float]
) -> str:
    """One row a stage: its steps, how many are done, and the time that the rest takes, one after the other."""
    rows = [f"{'stage':<24}{'steps':>6}{'done':>6}{'time':>12}   what"]
    for stage in stages:
        own = [step for step in steps if step.stage == stage]
        left = sum(seconds[step.name] for step in own if step.name not in done)
        finished = sum(step.name in done for step in own)
        rows.append(f"{stage:<24}{len(own):>6}{finished:>6}{in_words(left) if left else '-':>12}   {_what(own)}")
    return "\n".join(rows)


def step_table(progress: Progress) -> str:
    """Every step as comma-separated values: stage, step, state, seconds, reason."""
    rows = ["stage,step,state,seconds,reason"]
    for step in progress.steps:
        state, reason = progress.states[step.name], progress.reasons.get(step.name, "").replace('"', "'")
        took = f"{progress.seconds[step.name]:.1f}" if state == State.DONE else ""
        rows.append(f'{step.stage},{step.name},{state},{took},"{reason}"')
    return "\n".join(rows) + "\n"


class View:
    """Shows progress: a table that is redrawn on a terminal, lines elsewhere.

    Args:
        jobs: Steps side by side.
        stream: Where to; standard output when left out.
    """

    def __init__(self, jobs: int, stream: TextIO | None = None) -> None:
        self._jobs, self._stream = jobs, stream or sys.stdout
        self._states: dict[str, State] = {}
        self._drawn, self._last = 0, 0.0

    def show(self, progress: Progress) -> None:
        """Show what changed since, and from time to time what runs."""
        changed = [s for s in progress.steps if self._states.get(s.name, State.WAITING) != progress.states[s.name]]
        self._states = dict(progress.states)
        now, wait = time.perf_counter(), REDRAW_S if self._stream.isatty() else HEARTBEAT_S
        if not changed and now - self._last < wait:
            return
        self._last = now
        self._erase()
        for step in sorted(changed, key=lambda step: progress.states[step.name] not in _OVER):
            if progress.states[step.name] != State.STORED:
                self._stream.write(_news(step, progress) + "\n")
        if self._stream.isatty() or not changed:
            self._draw(progress)
        self._stream.flush()

    def _draw(self, progress: Progress) -> None:
        width = shutil.get_terminal_size().columns
        lines = [_head(progress, self._jobs), *(_now(name, progress) for name in progress.running)]
        self._stream.write("".join(line[: width - 1] + "\n" for line in lines))
        self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn and self._stream.isatty():
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
        self._drawn = 0


def left_of(name: str, progress: Progress) -> float:
    """Seconds left of a running step: by its own progress bar once that has moved, else by the estimate."""
    passed = time.perf_counter() - progress.started[name]
    share = re.findall(r"(\d+)%\|", progress.running[name].says())
    if share and int(share[-1]) >= 5:
        return passed * (100 - int(share[-1])) / int(share[-1])
    return max(0.0, progress.seconds[name] - passed)


def _head(progress: Progress, jobs: int) -> str:
    """How much is done, and how long the rest will take."""
    undone = [step for step in progress.steps if progress.states[step.name] not in _OVER]
    left = {
        s.name: left_of(s.name, progress) if s.name in progress.running else progress.seconds[s.name] for s in undone
    }
    here = {step.name for step in undone}
    seconds = wall_seconds(undone, left, [*progress.running], jobs) if here else 0.0
    return f"{len(progress.steps) - len(undone)} of {len(progress.steps)} steps, about {in_words(seconds)} left"


def _now(name: str, progress: Progress) -> str:
    passed = in_words(time.perf_counter() - progress.started[name])
    return f"  {name}  {passed}  {progress.running[name].says()}"


def _news(step: Step, progress: Progress) -> str:
    state, reason = progress.states[step.name], progress.reasons.get(step.name)
    clock = time.strftime("%H:%M:%S")
    took = f" in {in_words(progress.seconds[step.name])}" if state == State.DONE else ""
    return f"{clock}  {state:<8} {step.name}{took}{f': {reason}' if reason else ''}"


def _what(steps: Sequence[Step]) -> str:
    """What a stage's steps are, without environments and seeds."""
    kinds = list(dict.fromkeys(step.kind for step in steps))
    return ", ".join(kind.partition("/")[2] or kind for kind in kinds)
