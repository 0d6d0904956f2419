"""Progress of a study: states of its steps, and how they are shown on a terminal and in a file."""

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TextIO

from lightning_unlearn.study.estimate import in_words, urgency, wall_seconds
from lightning_unlearn.study.steps import StudyStep

HEARTBEAT_S = 60.0
REDRAW_S = 1.0


class State(StrEnum):
    """State of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    STORED = "stored"
    """Its result was in the store already."""
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


_OVER = (State.DONE, State.STORED, State.FAILED, State.SKIPPED)


class RunningStep(Protocol):
    """A step under way."""

    def poll(self) -> int | None:
        """Return the exit code once it has ended; a negative one if it was killed."""

    def last_line(self) -> str:
        """Return the last line of its output."""

    def interrupt(self) -> None:
        """Ask it to end."""

    def wait(self) -> None:
        """Wait until it has ended."""


@dataclass
class StudyProgress:
    """States of all steps."""

    steps: Sequence[StudyStep]
    states: dict[str, State]
    seconds: dict[str, float]
    """Seconds that each step took, or is expected to take."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a step failed or was skipped."""
    started: dict[str, float] = field(default_factory=dict)
    running: dict[str, RunningStep] = field(default_factory=dict)

    def ready(self) -> list[StudyStep]:
        """Return the steps that can start, the most urgent first."""
        rank = urgency(self.steps, self.seconds)
        have = (State.DONE, State.STORED)
        waiting = [step for step in self.steps if self.states[step.name] == State.WAITING]
        ready = [step for step in waiting if all(self.states[need] in have for need in step.needs)]
        return sorted(ready, key=lambda step: -rank[step.name])

    def fail(self, name: str, reason: str) -> None:
        """Mark a step as failed, and skip every waiting step that needs it."""
        self.states[name], self.reasons[name] = State.FAILED, reason
        for step in self.steps:  # each comes after its needs
            lost = [need for need in step.needs if self.states[need] in (State.FAILED, State.SKIPPED)]
            if self.states[step.name] == State.WAITING and lost:
                self.states[step.name] = State.SKIPPED
                self.reasons[step.name] = f"needs {lost[0]}, which {self.states[lost[0]]}"

    @property
    def failed(self) -> bool:
        """True if a step failed."""
        return State.FAILED in self.states.values()


def initial_progress(
    steps: Sequence[StudyStep], results: Mapping[str, object], seconds: Mapping[str, float]
) -> StudyProgress:
    """Return the progress before anything runs."""
    states = {step.name: State.STORED if step.name in results else State.WAITING for step in steps}
    return StudyProgress(steps, states, dict(seconds))


def plan_table(
    stages: Sequence[str], steps: Sequence[StudyStep], done: Mapping[str, object], seconds: Mapping[str, float]
) -> str:
    """Format one row per stage: its steps, how many are done, and the total duration of the others."""
    rows = [f"{'stage':<24}{'steps':>6}{'done':>6}{'time':>12}   what"]
    for stage in stages:
        own = [step for step in steps if step.stage == stage]
        left = sum(seconds[step.name] for step in own if step.name not in done)
        finished = sum(step.name in done for step in own)
        kinds = dict.fromkeys(step.kind.partition("/")[2] or step.kind for step in own)
        took = in_words(left) if left else "-"
        rows.append(f"{stage:<24}{len(own):>6}{finished:>6}{took:>12}   {', '.join(kinds)}")
    return "\n".join(rows)


def step_table(progress: StudyProgress) -> str:
    """Format every step as comma-separated values: stage, step, state, seconds, reason."""
    rows = ["stage,step,state,seconds,reason"]
    for step in progress.steps:
        state, reason = progress.states[step.name], progress.reasons.get(step.name, "").replace('"', "'")
        took = f"{progress.seconds[step.name]:.1f}" if state == State.DONE else ""
        rows.append(f'{step.stage},{step.name},{state},{took},"{reason}"')
    return "\n".join(rows) + "\n"


class ProgressView:
    """Shows progress: a table that is redrawn on a terminal, lines elsewhere.

    Args:
        jobs: Steps side by side.
        stream: Where to write; standard output if left out.
    """

    def __init__(self, jobs: int, stream: TextIO | None = None) -> None:
        self._jobs, self._stream = jobs, stream or sys.stdout
        self._states: dict[str, State] = {}
        self._drawn, self._last = 0, 0.0

    def show(self, progress: StudyProgress) -> None:
        """Show what changed since the last call, and from time to time what runs."""
        changed = [s for s in progress.steps if self._states.get(s.name, State.WAITING) != progress.states[s.name]]
        self._states = dict(progress.states)
        on_terminal, now = self._stream.isatty(), time.perf_counter()
        if not changed and now - self._last < (REDRAW_S if on_terminal else HEARTBEAT_S):
            return
        self._last = now
        if self._drawn and on_terminal:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
        self._drawn = 0
        for step in sorted(changed, key=lambda step: progress.states[step.name] not in _OVER):
            state, reason = progress.states[step.name], progress.reasons.get(step.name)
            if state != State.STORED:
                took = f" in {in_words(progress.seconds[step.name])}" if state == State.DONE else ""
                line = f"{time.strftime('%H:%M:%S')}  {state:<8} {step.name}{took}{f': {reason}' if reason else ''}"
                self._stream.write(f"{line}\n")
        if on_terminal or not changed:
            self._draw(progress)
        self._stream.flush()

    def _draw(self, progress: StudyProgress) -> None:
        width, count = shutil.get_terminal_size().columns, len(progress.steps)
        undone = [step for step in progress.steps if progress.states[step.name] not in _OVER]
        left = {step.name: _seconds_left(step.name, progress) for step in undone}
        seconds = wall_seconds(undone, left, [*progress.running], self._jobs) if undone else 0.0
        lines = [f"{count - len(undone)} of {count} steps, about {in_words(seconds)} left"]
        for name, running in progress.running.items():
            lines.append(f"  {name}  {in_words(time.perf_counter() - progress.started[name])}  {running.last_line()}")
        self._stream.write("".join(line[: width - 1] + "\n" for line in lines))
        self._drawn = len(lines)


def _seconds_left(name: str, progress: StudyProgress) -> float:
    """Estimate the seconds left of a step: by its own progress bar once that has moved, else by the plan."""
    if name not in progress.running:
        return progress.seconds[name]
    passed = time.perf_counter() - progress.started[name]
    share = re.findall(r"(\d+)%\|", progress.running[name].last_line())
    if share and int(share[-1]) >= 5:
        return passed * (100 - int(share[-1])) / int(share[-1])
    return max(0.0, progress.seconds[name] - passed)
