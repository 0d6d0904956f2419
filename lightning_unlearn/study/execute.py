"""Running a plan: ready steps side by side, the most urgent first; what fails takes only its dependants with it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from lightning_unlearn.study.estimate import urgency
from lightning_unlearn.study.jobs import Job
from lightning_unlearn.study.steps import Result, Step

POLL_S = 0.2


class State(StrEnum):
    """Where a step is."""

    WAITING = "waiting"
    RUNNING = "running"
    STORED = "stored"
    """Its result was in the store already."""
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


class Running(Protocol):
    """A step under way."""

    def poll(self) -> int | None:
        """The exit code once it has ended; negative: it was killed."""

    def says(self) -> str:
        """The last line of its output."""

    def interrupt(self) -> None:
        """Ask it to end."""

    def wait(self) -> None:
        """Until it has ended."""


class Executor(Protocol):
    """Starts steps."""

    @property
    def cores(self) -> int:
        """For steps to share."""

    def start(self, job: Job) -> Running:
        """Start one."""


@dataclass
class Progress:
    """Where a study is."""

    steps: Sequence[Step]
    states: dict[str, State]
    seconds: dict[str, float]
    """That each took, or is expected to take."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a step failed or was skipped."""
    started: dict[str, float] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)

    def ready(self) -> list[Step]:
        """Steps that can start, the most urgent first."""
        rank = urgency(self.steps, self.seconds)
        have = (State.DONE, State.STORED)
        ready = [s for s in self.steps if self.states[s.name] == State.WAITING]
        ready = [s for s in ready if all(self.states[need] in have for need in s.needs)]
        return sorted(ready, key=lambda step: -rank[step.name])

    @property
    def failed(self) -> bool:
        """Something failed."""
        return State.FAILED in self.states.values()


@dataclass(frozen=True)
class Doing:
    """How steps are run: what the loop asks of the rest of the study."""

    start: Callable[[Step], Running]
    """Start a step; all it needs is done."""
    settle: Callable[[Step, float], Result]
    """Take over the result of a step that ended well, after so many seconds."""
    show: Callable[[Progress], None]
    """Show how things are."""
    jobs: int
    """Steps side by side."""
    retries: int
    """How often a step whose process was killed is started again."""


def execute(progress: Progress, results: dict[str, Result], doing: Doing) -> None:
    """Run every step that is waiting. `progress` and `results` hold what came of it, whatever happens.

    Raises:
        KeyboardInterrupt: It was interrupted; the steps that ran have ended.
    """
    left = {step.name: doing.retries for step in progress.steps}
    try:
        while progress.running or progress.ready():
            for step in progress.ready()[: doing.jobs - len(progress.running)]:
                _start(step, progress, doing)
            doing.show(progress)
            time.sleep(POLL_S)
            for step in [s for s in progress.steps if s.name in progress.running]:
                code = progress.running[step.name].poll()
                if code is not None:
                    _end(step, code, progress, results, doing, left)
    finally:
        _stop(progress)
        doing.show(progress)


def _start(step: Step, progress: Progress, doing: Doing) -> None:
    progress.started[step.name] = time.perf_counter()
    try:
        progress.running[step.name] = doing.start(step)
        progress.states[step.name] = State.RUNNING
    except (ValueError, OSError) as error:
        _fail(step, f"could not start: {error}", progress)


def _end(
    step: Step, code: int, progress: Progress, results: dict[str, Result], doing: Doing, left: dict[str, int]
) -> None:
    seconds = time.perf_counter() - progress.started[step.name]
    said = progress.running.pop(step.name).says()
    if code < 0 and left[step.name] > 0:
        left[step.name] -= 1
        progress.states[step.name] = State.WAITING
        return
    progress.seconds[step.name] = seconds
    if code != 0:
        _fail(step, f"exit code {code}: {said}" if code > 0 else f"killed by signal {-code}", progress)
        return
    try:
        results[step.name] = doing.settle(step, seconds)
        progress.states[step.name] = State.DONE
    except (ValueError, OSError) as error:
        _fail(step, str(error), progress)


def _fail(step: Step, reason: str, progress: Progress) -> None:
    progress.states[step.name], progress.reasons[step.name] = State.FAILED, reason
    _skip_dependants(progress)


def _skip_dependants(progress: Progress) -> None:
    """Everything that needs what failed, or what was skipped; steps are in order."""
    lost = (State.FAILED, State.SKIPPED)
    for step in progress.steps:
        broken = [need for need in step.needs if progress.states[need] in lost]
        if progress.states[step.name] == State.WAITING and broken:
            progress.states[step.name] = State.SKIPPED
            progress.reasons[step.name] = f"needs {broken[0]}, which {progress.states[broken[0]]}"


def _stop(progress: Progress) -> None:
    """End what still runs."""
    for running in progress.running.values():
        running.interrupt()
    for name, running in progress.running.items():
        running.wait()
        progress.states[name], progress.reasons[name] = State.FAILED, "interrupted"
    progress.running.clear()


def initial(steps: Sequence[Step], results: Mapping[str, Result], seconds: Mapping[str, float]) -> Progress:
    """Before anything runs."""
    states = {step.name: State.STORED if step.name in results else State.WAITING for step in steps}
    return Progress(steps, states, dict(seconds))
