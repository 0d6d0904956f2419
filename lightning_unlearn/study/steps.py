"""What a study is made of: steps, each one command with references to what other steps leave behind.

Pure: nothing here trains, reads a store or touches a file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter


@dataclass(frozen=True)
class ModelOf:
    """A save point of a training step; becomes the registered model's URI."""

    step: str
    update: int


@dataclass(frozen=True)
class FileOf:
    """A file that another step makes; becomes its path."""

    step: str
    path: str


@dataclass(frozen=True)
class RunOf:
    """The MLflow run of a step; becomes its id."""

    step: str


@dataclass(frozen=True)
class Place:
    """Where something lies; no part of what a step computes. `{digest}` becomes the step's own."""

    path: str


@dataclass(frozen=True)
class Config:
    """A config file that is written before the step runs."""

    path: str
    content: str


@dataclass(frozen=True)
class NameOf:
    """A name that another step gave to what it made: `{digest}` becomes that step's own."""

    step: str
    name: str


Arg = str | ModelOf | FileOf | RunOf | NameOf | Place | Config


@dataclass(frozen=True)
class Work:
    """Environment steps of each kind that a step makes; tells how long it will take."""

    trained: int = 0
    """Collected in many environments and learnt from."""
    rolled: int = 0
    """Only collected."""
    alone: int = 0
    """Collected in one environment and learnt from."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.trained + self.rolled + self.alone


@dataclass(frozen=True)
class Step:
    """One command of a study."""

    name: str
    """Unique: environment, seed and what it does, such as `SafetyPointGoal1-v0/seed0/probe/fit`."""
    stage: str
    """What people call it: a method, or an audit."""
    kind: str
    """The name without environment and seed; steps of one kind take equally long."""
    env: str
    args: tuple[Arg, ...]
    """The command and its options, but those of the machine (store, processes)."""
    facts: str = ""
    """What else its result depends on: the resolved config of a training."""
    after: tuple[str, ...] = ()
    """Steps whose results it reads without naming them."""
    updates: tuple[int, ...] = ()
    """Save points it registers."""
    workers: tuple[str, int] | None = None
    """The option that says how many processes step the environments, and the most that it takes."""
    work: Work = field(default_factory=Work)
    here: bool = False
    """It reads files that only this machine has."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The steps that must be done before it."""
        named = [arg.step for arg in self.args if isinstance(arg, ModelOf | FileOf | RunOf | NameOf)]
        return tuple(dict.fromkeys([*named, *self.after]))


@dataclass(frozen=True)
class Result:
    """What a finished step left in the store."""

    run_id: str
    digest: str
    """Of what came out: the weights of a training, the step's own digest of an audit."""
    models: Mapping[int, str] = field(default_factory=dict)
    """Update → URI of the registered model."""


def in_order(steps: Iterable[Step]) -> list[Step]:
    """The steps so that each comes after what it needs, otherwise as they were listed.

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
    placed: dict[str, Step] = {}
    for step in by_name.values():
        _place(step, by_name, placed)
    return list(placed.values())


def _place(step: Step, by_name: Mapping[str, Step], placed: dict[str, Step]) -> None:
    for need in step.needs:
        if need not in placed:
            _place(by_name[need], by_name, placed)
    placed[step.name] = step


def step_digest(step: Step, results: Mapping[str, Result]) -> str:
    """Tells whether two steps are the same: of its command and facts, and of the results that it reads.

    Where results go, and what the machine decides, is no part of it.
    """
    command = [_identity(arg, results) for arg in step.args if not isinstance(arg, Place | Config)]
    read = sorted(results[name].digest for name in step.after)
    content = json.dumps([command, step.facts, read, list(step.updates)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def done_steps(steps: Sequence[Step], find: Callable[[Step, str], Result | None]) -> dict[str, Result]:
    """The steps that need not run, with their results: those that `find` knows, all they need being done, too.

    Args:
        steps: In order.
        find: Looks up a step of a digest in the store.
    """
    results: dict[str, Result] = {}
    for step in steps:
        if all(need in results for need in step.needs):
            found = find(step, step_digest(step, results))
            if found is not None:
                results[step.name] = found
    return results


def _identity(arg: Arg, results: Mapping[str, Result]) -> object:
    if isinstance(arg, ModelOf):
        return [results[arg.step].digest, arg.update]
    return [results[arg.step].digest] if isinstance(arg, FileOf | RunOf | NameOf) else arg
