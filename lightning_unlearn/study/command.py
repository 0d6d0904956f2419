"""The `study` command: everything a study file asks for, in order, without what the store holds already."""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile

from lightning_unlearn.configuration import find_config, origin
from lightning_unlearn.options import CommandParser
from lightning_unlearn.study.check import require_known_there, require_possible
from lightning_unlearn.study.conduct import Conduct
from lightning_unlearn.study.estimate import Speeds, in_words, step_seconds, wall_seconds
from lightning_unlearn.study.execute import Executor, Progress, State, execute, initial
from lightning_unlearn.study.local import LocalExecutor
from lightning_unlearn.study.measure import measure
from lightning_unlearn.study.plan import plan, stages
from lightning_unlearn.study.schema import Study, read_study, require_single_keys
from lightning_unlearn.study.steps import Result, Step, done_steps
from lightning_unlearn.study.store import FAILED, FINISHED, KILLED, StudyStore, stored_digest
from lightning_unlearn.study.trainings import Training, resolve
from lightning_unlearn.study.view import View, plan_table, step_table
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, tracking_uri, ui_command, with_retries


@dataclass(frozen=True)
class Planned:
    """A study before it runs."""

    study: Study
    trainings: dict[str, list[Training]]
    """Environment id → its methods."""
    steps: list[Step]
    done: dict[str, Result]
    """Steps whose result is stored."""
    seconds: dict[str, float]
    """Step → how long it takes."""
    jobs: int
    """Steps side by side."""
    workers: int
    """For the physics of each."""
    out: str


def main(args: Sequence[str]) -> None:
    """Plan the study, and unless only the plan is wanted, run it."""
    found = _with_files(args)
    try:
        options = _parser().parse_args(found)
    except ValueError as error:
        raise ValueError(f"{error}{origin(str(error), found)}") from error
    _require_sane(options)
    study = read_study(options.as_dict())
    out = options.out or f"studies/{study.name}"
    open_store(options.tracking_uri)
    trainings = resolve(study)
    steps = plan(study, trainings, out, stored_digest)
    require_possible(steps)
    require_known_there(trainings, steps)
    executor, store = _executor(options, out), StudyStore(list(trainings))
    jobs = options.jobs or executor.cores
    workers, done = max(1, executor.cores // jobs), done_steps(steps, store.find)
    seconds = _seconds(steps, done, store, next(iter(trainings.values())), workers)
    planned = Planned(study, trainings, steps, done, seconds, jobs, workers, out)
    _print_plan(planned)
    if not options.dry_run:
        _run(planned, store, executor, options.retries)


def _run(planned: Planned, store: StudyStore, executor: Executor, retries: int) -> None:
    """Run what is not done; the exit code is 1 if anything failed, and 130 if it was interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    results, view = dict(planned.done), View(planned.jobs)
    progress = initial(planned.steps, results, planned.seconds)
    conduct = Conduct(store, results, executor, planned.study.name, planned.out, planned.workers)
    started, status = time.perf_counter(), FAILED
    conduct.begin(yaml.safe_dump(json.loads(json.dumps(asdict(planned.study))), sort_keys=False))
    try:
        execute(progress, results, conduct.doing(view.show, planned.jobs, retries))
        status = FAILED if progress.failed else FINISHED
    except KeyboardInterrupt:
        status = KILLED
    finally:
        table = step_table(progress)
        Path(planned.out, "steps.csv").write_text(table, encoding="utf-8")
        with_retries(lambda: store.end(conduct.parent, status, table), "how the study ended")
    _print_end(progress, status, conduct.parent, planned.out, time.perf_counter() - started)
    if status != FINISHED:
        raise SystemExit(130 if status == KILLED else 1)


def _executor(options: Any, out: str) -> Executor:
    if options.executor == "local":
        return LocalExecutor(out)
    from lightning_unlearn.study.ray_executor import RayExecutor  # an extra

    return RayExecutor(out, tracking_uri(), options.ray_address, options.retries)


def _seconds(
    steps: Sequence[Step], done: dict[str, Result], store: StudyStore, trainings: Sequence[Training], workers: int
) -> dict[str, float]:
    """How long each step takes; the machine is timed only if some kind of step was never seen."""
    paces = {_pace_of(step): store.pace(step) for step in {_pace_of(step): step for step in steps}.values()}
    unseen = [step for step in steps if step.name not in done and paces[_pace_of(step)] is None]
    speeds = Speeds(1.0, 1.0, 1.0, 0.0)
    if unseen:
        print(f"Timing {trainings[0].env_id} on this machine, for {len(unseen)} steps that the store knows no time of.")
        speeds = measure(trainings[0].config["data"], workers)
    return {step.name: step_seconds(step, speeds, paces[_pace_of(step)]) for step in steps}


def _pace_of(step: Step) -> tuple[str, bool]:
    """What steps share that take equally long: of one kind, some trainings may only be registered."""
    return step.kind, bool(step.work.total)


def _print_plan(planned: Planned) -> None:
    study, steps, done = planned.study, planned.steps, planned.done
    print(f"Study {study.name}: {', '.join(planned.trainings)}; seeds {', '.join(map(str, study.seeds))}\n")
    print(plan_table(stages(study, next(iter(planned.trainings.values()))), steps, done, planned.seconds))
    left = [step for step in steps if step.name not in done]
    wall = in_words(wall_seconds(left, planned.seconds, [], planned.jobs))
    print(f"\n{len(steps)} steps, {len(done)} done already; the rest takes about {wall}, {planned.jobs} at a time.")


def _print_end(progress: Progress, status: str, parent: str, out: str, seconds: float) -> None:
    counts = {state: [*progress.states.values()].count(state) for state in State}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"\nThe study is {status} after {in_words(seconds)}: {told}.")
    for name, reason in progress.reasons.items():
        print(f"  {progress.states[name]}: {name}: {reason}")
    if status != FINISHED:
        print("The same command goes on from here.")
    print(f"Files: {Path(out).resolve()} (weights, probes, evaluations, logs, steps.csv)")
    print(f"MLflow run: {parent}\nOpen it with: {ui_command()}")


def _require_sane(options: Any) -> None:
    for name, least in (("jobs", 1), ("retries", 0)):
        if options[name] is not None and options[name] < least:
            raise ValueError(f"--{name} {options[name]} is not possible: use at least {least}.")


def _with_files(args: Sequence[str]) -> list[str]:
    """Config files where they are, on disk or in the package."""
    found = [*args]
    for position, arg in enumerate(args[:-1]):
        if arg in ("-c", "--config"):
            path = find_config(args[position + 1])
            require_single_keys(path.read_text(encoding="utf-8"), str(path))
            found[position + 1] = str(path)
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
    add("--executor", type=Literal["local", "ray"], default="local", help="this machine, or a Ray cluster")
    add(
        "--ray_address", type=str | None, default=None, help="of the cluster; default: RAY_ADDRESS, else a new one here"
    )
    add("--out", type=str | None, default=None, help="folder of the files; default: studies/<name>")
    add("--dry-run", action="store_true", help="show the plan, and run nothing")
    add("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
