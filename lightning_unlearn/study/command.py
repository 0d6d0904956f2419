"""The `study` command: everything a study file asks for, in order, without what the store holds already."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile

from lightning_unlearn import registry
from lightning_unlearn.configuration import find_config
from lightning_unlearn.options import CommandParser
from lightning_unlearn.study.check import require_possible
from lightning_unlearn.study.conduct import Conduct
from lightning_unlearn.study.estimate import Speeds, in_words, step_seconds, wall_seconds
from lightning_unlearn.study.execute import Progress, State, execute, initial
from lightning_unlearn.study.local import LocalExecutor
from lightning_unlearn.study.measure import measure
from lightning_unlearn.study.plan import plan, stages
from lightning_unlearn.study.schema import Study, read_study
from lightning_unlearn.study.steps import Result, Step, done_steps
from lightning_unlearn.study.store import FAILED, FINISHED, KILLED, StudyStore, stored_digest
from lightning_unlearn.study.trainings import Training, resolve
from lightning_unlearn.study.view import View, plan_table, step_table


def main(args: Sequence[str]) -> None:
    """Plan the study, and unless only the plan is wanted, run it."""
    options = _parser().parse_args(_with_files(args))
    study, jobs = read_study(options.as_dict()), _jobs(options.jobs)
    out = options.out or f"studies/{study.name}"
    registry.open_store(options.tracking_uri)
    trainings = resolve(study)
    steps = plan(study, trainings, out, stored_digest)
    require_possible(steps)
    store = StudyStore(list(trainings))
    results = done_steps(steps, store.find)
    seconds = _seconds(steps, results, store, next(iter(trainings.values())), _threads(jobs))
    _print_plan(study, trainings, steps, results, seconds, jobs)
    if not options.dry_run:
        _run(options, steps, results, seconds, store, jobs, out)


def _run(
    options: Any,
    steps: list[Step],
    results: dict[str, Result],
    seconds: dict[str, float],
    store: StudyStore,
    jobs: int,
    out: str,
) -> None:
    """Run what is not done; the exit code is 1 if anything failed, and 130 if it was interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    progress, view = initial(steps, results, seconds), View(jobs)
    conduct = Conduct(store, results, LocalExecutor(out), options.name, out, _threads(jobs))
    started, status = time.perf_counter(), FAILED
    conduct.begin(_parser().dump(options))
    try:
        execute(progress, results, conduct.doing(view.show, jobs, options.retries))
        status = FAILED if progress.failed else FINISHED
    except KeyboardInterrupt:
        status = KILLED
    finally:
        table = step_table(progress)
        Path(out, "steps.csv").write_text(table, encoding="utf-8")
        store.end(conduct.parent, status, table)
    _print_end(progress, status, conduct.parent, out, time.perf_counter() - started)
    if status != FINISHED:
        raise SystemExit(130 if status == KILLED else 1)


def _seconds(
    steps: Sequence[Step], done: dict[str, Result], store: StudyStore, trainings: Sequence[Training], threads: int
) -> dict[str, float]:
    """How long each step takes; the machine is timed only if some kind of step was never seen."""
    paces = {step.kind: store.pace(step) for step in {step.kind: step for step in steps}.values()}
    unseen = [step for step in steps if step.name not in done and paces[step.kind] is None]
    speeds = Speeds(1.0, 1.0, 1.0, 0.0)
    if unseen:
        print(f"Timing {trainings[0].env_id} on this machine, for {len(unseen)} steps that the store knows no time of.")
        speeds = measure(trainings[0].config["data"], threads)
    return {step.name: step_seconds(step, speeds, paces[step.kind]) for step in steps}


def _print_plan(
    study: Study,
    trainings: dict[str, list[Training]],
    steps: Sequence[Step],
    done: dict[str, Result],
    seconds: dict[str, float],
    jobs: int,
) -> None:
    print(f"Study {study.name}: {', '.join(trainings)}; seeds {', '.join(map(str, study.seeds))}\n")
    print(plan_table(stages(study, next(iter(trainings.values()))), steps, done, seconds))
    left = [step for step in steps if step.name not in done]
    wall = in_words(wall_seconds(left, seconds, [], jobs))
    print(f"\n{len(steps)} steps, {len(done)} done already; the rest takes about {wall}, {jobs} at a time.", flush=True)


def _print_end(progress: Progress, status: str, parent: str, out: str, seconds: float) -> None:
    counts = {state: [*progress.states.values()].count(state) for state in State}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"\nThe study is {status} after {in_words(seconds)}: {told}.")
    for name, reason in progress.reasons.items():
        print(f"  {progress.states[name]}: {name}: {reason}")
    if status != FINISHED:
        print("The same command goes on from here.")
    print(f"Files: {Path(out).resolve()} (weights, probes, evaluations, logs, steps.csv)")
    print(f"MLflow run: {parent}\nOpen it with: {registry.ui_command()}")


def _jobs(given: int | None) -> int:
    """Steps side by side."""
    if given is not None and given < 1:
        raise ValueError(f"--jobs {given} is not possible: use at least 1.")
    return given or _cores()


def _threads(jobs: int) -> int:
    """Threads for the physics of each of several steps."""
    return max(1, _cores() // jobs)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_files(args: Sequence[str]) -> list[str]:
    """Config files where they are, on disk or in the package."""
    given, found = [*args], [*args]
    for position, arg in enumerate(given[:-1]):
        if arg in ("-c", "--config"):
            found[position + 1] = str(find_config(given[position + 1]))
    return found


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn study", description=__doc__)
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="a study file")
    add("--name", type=str, required=True, help="of the study")
    add("--envs", type=str, nargs="+", required=True, help="environments: names of their configs, or files")
    add("--seeds", type=int, nargs="+", required=True, help="training seeds")
    add("--methods", type=list[str | dict[str, Any]], required=True, help="methods: names of their configs, or parts")
    add("--audits", type=dict[str, dict[str, Any] | None], default={}, help="audits and their options")
    add("--weights", type=list[dict[str, Any]], default=[], help="stored weights that stand in for training")
    add("--overlays", type=str, nargs="*", default=[], help="config files that come last in every training's chain")
    add("--jobs", type=int | None, default=None, help="steps side by side; default: one a core")
    add("--retries", type=int, default=1, help="how often a step whose process was killed is started again")
    add("--out", type=str | None, default=None, help="folder of the files; default: studies/<name>")
    add("--dry-run", action="store_true", help="show the plan, and run nothing")
    add("--tracking_uri", type=str, default=registry.DEFAULT_TRACKING_URI, help="MLflow store")
    return parser
