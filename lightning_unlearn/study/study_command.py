"""The `study` command: everything a study file asks for, in order, without what the store holds already."""

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ActionConfigFile

from lightning_unlearn.audits import policy_suite
from lightning_unlearn.audits.videos import VideoRecorder
from lightning_unlearn.configuration import find_config, origin
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.concept_config import RECORDED, add_concept_option, parse_with_concept
from lightning_unlearn.options import CommandParser
from lightning_unlearn.study.cache import FAILED, FINISHED, KILLED, StudyStore, stored_digest
from lightning_unlearn.study.estimate import Speeds, in_words, measure_speeds, step_seconds, wall_seconds
from lightning_unlearn.study.executors import LocalExecutor, RayExecutor
from lightning_unlearn.study.plan import plan, stages
from lightning_unlearn.study.run import Executor, StudyRunner
from lightning_unlearn.study.schema import Study, read_study, require_single_keys
from lightning_unlearn.study.steps import StepResult, StudyStep, done_steps
from lightning_unlearn.study.study_progress import (
    ProgressView,
    State,
    StudyProgress,
    initial_progress,
    plan_table,
    step_table,
)
from lightning_unlearn.study.trainings import PlannedTraining, resolve
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, tracking_uri, ui_command, with_retries


@dataclass(frozen=True)
class PlannedStudy:
    """A study before it runs."""

    study: Study
    trainings: Mapping[str, Sequence[PlannedTraining]]
    """Environment id → its methods."""
    steps: Sequence[StudyStep]
    done: Mapping[str, StepResult]
    """Steps whose result is stored."""
    seconds: Mapping[str, float]
    """Estimated seconds of each step."""
    jobs: int
    """Steps side by side."""
    workers: int
    """Processes for the environments of each step."""
    out: str
    """Folder of the study's files."""


def main(args: Sequence[str]) -> None:
    """Plan the study, and run it unless only the plan is asked for."""
    options = _read_options(args)
    study = read_study(options.as_dict())
    out = options.out or f"studies/{study.name}"
    open_store(options.tracking_uri)
    trainings = resolve(study)
    steps = plan(study, trainings, out, stored_digest)
    require_reported(trainings, steps)
    require_videos(steps)
    executor: Executor = LocalExecutor(out)
    if options.executor == "ray":
        executor = RayExecutor(out, tracking_uri(), options.ray_address, options.retries)
    store = StudyStore(list(trainings))
    jobs = options.jobs or executor.cores
    workers, done = max(1, executor.cores // jobs), done_steps(steps, store.find)
    seconds = _estimate(steps, done, store, next(iter(trainings.values())), workers)
    planned = PlannedStudy(study, trainings, steps, done, seconds, jobs, workers, out)
    _print_plan(planned)
    if not options.dry_run:
        _run(planned, store, executor, options.retries)


def require_reported(trainings: Mapping[str, Sequence[PlannedTraining]], steps: Sequence[StudyStep]) -> None:
    """Build each environment with each concept, and refuse a concept that it never reports.

    Raises:
        ValueError: A method or an audit asks for one.
    """
    asked = {(env, t.concept): f"methods: {t.name}" for env, of_env in trainings.items() for t in of_env}
    for step in steps:
        if "--concept" in step.args:
            concept = str(step.args[step.args.index("--concept") + 1])
            if concept != RECORDED:
                asked.setdefault((step.env, concept), f"audits.{step.stage}")
    parser = CommandParser(prog="lightning-unlearn study")
    add_concept_option(parser)
    for (env_id, concept), where in asked.items():
        try:
            env = make_env(env_id, 1, parse_with_concept(parser, ["--concept", concept])[1])
        except ValueError as error:
            raise ValueError(f"{where} in {env_id}: {error}") from error
        env.close()


def require_videos(steps: Sequence[StudyStep]) -> None:
    """Refuse videos that evaluations ask for and that cannot be made.

    Raises:
        ValueError: An environment can be neither rendered nor drawn, or not as the options ask.
    """
    for step in (step for step in steps if "--record_videos" in step.args):
        words = [arg if isinstance(arg, str) else "from-the-study" for arg in step.args[1:]]
        video, env = policy_suite.read_options(words)[1].video, make_env(step.env, 1)
        try:
            assert video is not None
            VideoRecorder(Path(), step.env, video, env.simulator).close()
        except ValueError as error:
            raise ValueError(f"audits.{step.stage}: {error}") from error
        finally:
            env.close()


def _estimate(
    steps: Sequence[StudyStep],
    done: Mapping[str, StepResult],
    store: StudyStore,
    trainings: Sequence[PlannedTraining],
    workers: int,
) -> dict[str, float]:
    """Estimate the seconds of each step; the machine is timed only if the store has no step of some kind."""

    def kind(step: StudyStep) -> tuple[str, bool]:
        return step.kind, bool(step.work.total)  # some trainings of a kind may only be registered

    paces = {key: store.pace(step) for key, step in {kind(step): step for step in steps}.items()}
    unseen = [step for step in steps if step.name not in done and paces[kind(step)] is None]
    speeds = Speeds(1.0, 1.0, 1.0, 0.0)
    if unseen:
        print(f"Timing {trainings[0].env_id} on this machine, for {len(unseen)} steps that the store knows no time of.")
        speeds = measure_speeds(trainings[0].config["data"], workers)
    return {step.name: step_seconds(step, speeds, paces[kind(step)]) for step in steps}


def _print_plan(planned: PlannedStudy) -> None:
    study, steps, done = planned.study, planned.steps, planned.done
    print(f"Study {study.name}: {', '.join(planned.trainings)}; seeds {', '.join(map(str, study.seeds))}\n")
    print(plan_table(stages(study, next(iter(planned.trainings.values()))), steps, done, planned.seconds))
    left = [step for step in steps if step.name not in done]
    wall = in_words(wall_seconds(left, planned.seconds, [], planned.jobs))
    print(f"\n{len(steps)} steps, {len(done)} done already; the rest takes about {wall}, {planned.jobs} at a time.")


def _run(planned: PlannedStudy, store: StudyStore, executor: Executor, retries: int) -> None:
    """Run what is not done; the exit code is 1 if anything failed, and 130 if it was interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):  # also if a shell started this in the background
        signal.signal(number, signal.default_int_handler)
    results, view = dict(planned.done), ProgressView(planned.jobs)
    progress = initial_progress(planned.steps, results, planned.seconds)
    runner = StudyRunner(store, results, executor, planned.study.name, planned.out, planned.workers)
    started, status = time.perf_counter(), FAILED
    runner.begin(yaml.safe_dump(json.loads(json.dumps(asdict(planned.study))), sort_keys=False))
    try:
        runner.run(progress, view.show, planned.jobs, retries)
        status = FAILED if progress.failed else FINISHED
    except KeyboardInterrupt:
        status = KILLED
    finally:
        table = step_table(progress)
        Path(planned.out, "steps.csv").write_text(table, encoding="utf-8")
        with_retries(lambda: store.end(runner.run_id, status, table), "how the study ended")
    _print_end(progress, status, runner.run_id, planned.out, time.perf_counter() - started)
    if status != FINISHED:
        raise SystemExit(130 if status == KILLED else 1)


def _print_end(progress: StudyProgress, status: str, run_id: str, out: str, seconds: float) -> None:
    counts = {state: [*progress.states.values()].count(state) for state in State}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"\nThe study is {status} after {in_words(seconds)}: {summary}.")
    for name, reason in progress.reasons.items():
        print(f"  {progress.states[name]}: {name}: {reason}")
    if status != FINISHED:
        print("The same command goes on from here.")
    print(f"Files: {Path(out).resolve()} (weights, probes, evaluations, logs, steps.csv)")
    print(f"MLflow run: {run_id}\nOpen it with: {ui_command()}")


def _read_options(args: Sequence[str]) -> Any:
    """Read the command's options and study files, on disk or in the package.

    Raises:
        ValueError: One is unknown or impossible.
    """
    found = [*args]
    for position, arg in enumerate(args[:-1]):
        if arg in ("-c", "--config"):
            path = find_config(args[position + 1])
            require_single_keys(path.read_text(encoding="utf-8"), str(path))
            found[position + 1] = str(path)
    try:
        options = _parser().parse_args(found)
    except ValueError as error:
        raise ValueError(f"{error}{origin(str(error), found)}") from error
    for name, least in (("jobs", 1), ("retries", 0)):
        if options[name] is not None and options[name] < least:
            raise ValueError(f"--{name} {options[name]} is not possible: use at least {least}.")
    return options


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
