"""Steps of a study: commands with references to the results of other steps, and the cache key of each step.

Pure: nothing here trains, reads a store or touches a file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter


@dataclass(frozen=True)
class ModelRef:
    """A save point of a training step; becomes the URI of the registered model."""

    step: str
    update: int


@dataclass(frozen=True)
class FileRef:
    """A file that another step makes; becomes its path."""

    step: str
    path: str


@dataclass(frozen=True)
class RunRef:
    """The MLflow run of another step; becomes its id."""

    step: str


@dataclass(frozen=True)
class NameRef:
    """A name of another step's result; `{digest}` in it becomes that step's cache key."""

    step: str
    name: str


@dataclass(frozen=True)
class Location:
    """A path or name outside the cache key; `{digest}` in it becomes the step's own cache key."""

    path: str


@dataclass(frozen=True)
class ConfigFile:
    """A config file that is written before the step runs; outside the cache key, which has `facts` for it."""

    path: str
    content: str


Arg = str | ModelRef | FileRef | RunRef | NameRef | Location | ConfigFile


@dataclass(frozen=True)
class Workload:
    """Environment steps that a step makes, by kind; its duration is estimated from them."""

    trained: int = 0
    """Collected in many environments, and learnt from."""
    rolled: int = 0
    """Collected in many environments only."""
    alone: int = 0
    """Collected in one environment, and learnt from."""

    @property
    def total(self) -> int:
        """Environment steps of all kinds."""
        return self.trained + self.rolled + self.alone


@dataclass(frozen=True)
class StudyStep:
    """One command of a study."""

    name: str
    """Unique: environment, seed and kind, such as `SafetyPointGoal1-v0/seed0/probe/fit`."""
    stage: str
    """A method, or an audit."""
    kind: str
    """The name without environment and seed; steps of one kind take equally long."""
    env: str
    args: tuple[Arg, ...]
    """The command and its options, without those of the machine (store, processes)."""
    facts: str = ""
    """Further content of the cache key, such as the resolved config of a training."""
    after: tuple[str, ...] = ()
    """Steps whose results it reads without naming them."""
    updates: tuple[int, ...] = ()
    """Save points that it registers."""
    workers: tuple[str, int] | None = None
    """Option for the number of environment processes, and its largest useful value."""
    work: Workload = field(default_factory=Workload)
    here: bool = False
    """It reads files of this machine, so that it must run here."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the steps that must be done before it."""
        named = [arg.step for arg in self.args if isinstance(arg, ModelRef | FileRef | RunRef | NameRef)]
        return tuple(dict.fromkeys([*named, *self.after]))


@dataclass(frozen=True)
class StepResult:
    """Result of a finished step in the store."""

    run_id: str
    digest: str
    """Digest of a training's weights; the cache key of an audit."""
    models: Mapping[int, str] = field(default_factory=dict)
    """Update → URI of the registered model."""


def in_order(steps: Iterable[StudyStep]) -> list[StudyStep]:
    """Sort steps so that each comes after its needs; otherwise they keep their order.

    Raises:
        ValueError: Steps need each other in a circle, or one needs what no step makes.
    """
    by_name = {step.name: step for step in steps}
    for step in by_name.values():
        for need in step.needs:
            if need not in by_name:
                raise ValueError(f"{step.name} needs {need}, which this study does not make: add it.")
    try:
        TopologicalSorter({name: step.needs for name, step in by_name.items()}).prepare()
    except CycleError as error:
        raise ValueError(f"a cyclic source: {' needs '.join(reversed(error.args[1]))}. Change one of them.") from None
    placed: dict[str, StudyStep] = {}
    for step in by_name.values():
        _place(step, by_name, placed)
    return list(placed.values())


def _place(step: StudyStep, by_name: Mapping[str, StudyStep], placed: dict[str, StudyStep]) -> None:
    for need in step.needs:
        if need not in placed:
            _place(by_name[need], by_name, placed)
    placed[step.name] = step


def step_digest(step: StudyStep, results: Mapping[str, StepResult]) -> str:
    """Return the cache key of a step: a digest of its command and facts, and of the results that it reads.

    Locations and the options of the machine are no part of it.
    """

    def identity(arg: Arg) -> object:
        if isinstance(arg, ModelRef):
            return [results[arg.step].digest, arg.update]
        return [results[arg.step].digest] if isinstance(arg, FileRef | RunRef | NameRef) else arg

    command = [identity(arg) for arg in step.args if not isinstance(arg, Location | ConfigFile)]
    read = sorted(results[name].digest for name in step.after)
    content = json.dumps([command, step.facts, read, list(step.updates)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def done_steps(
    steps: Sequence[StudyStep], find: Callable[[StudyStep, str], StepResult | None]
) -> dict[str, StepResult]:
    """Return the results of the steps that need not run: `find` knows them, and all their needs are done, too.

    Args:
        steps: In order.
        find: Looks up the result of a step by its cache key.
    """
    results: dict[str, StepResult] = {}
    for step in steps:
        if all(need in results for need in step.needs):
            found = find(step, step_digest(step, results))
            if found is not None:
                results[step.name] = found
    return results
