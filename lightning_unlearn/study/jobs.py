"""Make a step ready to run: replace references, write and fetch files, and resume an earlier attempt.

An earlier attempt left a checkpoint on this machine, or another machine sent it to the store.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lightning_unlearn import processes
from lightning_unlearn.processes import python_command
from lightning_unlearn.study.cache import DIGEST, KILLED, RUNNING, fetch
from lightning_unlearn.study.steps import (
    Arg,
    ConfigFile,
    FileRef,
    Location,
    ModelRef,
    NameRef,
    RunRef,
    StepResult,
    StudyStep,
)
from lightning_unlearn.tracking import checkpoints, store

SENT = "checkpoints"
"""Folder, among a run's artifacts, of its checkpoint. The file has the checkpoint's name in its first line."""
EVERY_S = 30.0
"""Least seconds between two checkpoints that are sent."""
_LOOK_S = 2.0
_NEWEST = "newest"
_SIGN_IN = [f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS")]
"""Variables that MLflow's client needs on every machine if its server asks for them."""


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to run a step; can be sent to another machine."""

    name: str
    args: tuple[str, ...]
    """Arguments of `python -m lightning_unlearn`."""
    log: str
    """File for its output."""
    env: Mapping[str, str]
    """Environment variables."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Files to write first: path → content."""
    fetched: tuple[tuple[str, str], ...] = ()
    """Files to copy from the store first: run, path."""
    tracking_uri: str = ""
    resumes: tuple[str, str, str] | None = None
    """Environment, cache key and study's run of a training: earlier attempts are found by them."""
    workers: int = 1
    here: bool = False
    """It reads files of the machine on which the job was made."""


def make_job(
    step: StudyStep,
    digest: str,
    results: Mapping[str, StepResult],
    tags: Mapping[str, str],
    tracking_uri: str,
    out: str,
    workers: int,
) -> Job:
    """Make the job of a step whose needs are done."""
    args = [_as_text(arg, results, digest) for arg in step.args]
    if step.workers is not None:
        option, most = step.workers
        args += [option, str(min(workers, most))]
    return Job(
        name=step.name,
        args=(*args, "--tracking_uri", tracking_uri),
        log=log_file(out, step),
        env={key: os.environ[key] for key in _SIGN_IN if key in os.environ}
        | {"MLFLOW_RUN_CONTEXT": json.dumps(tags), "OMP_NUM_THREADS": str(workers)},
        written={arg.path: arg.content for arg in step.args if isinstance(arg, ConfigFile)},
        fetched=tuple((results[arg.step].run_id, arg.path) for arg in step.args if isinstance(arg, FileRef)),
        tracking_uri=tracking_uri,
        resumes=(step.env, digest, tags[MLFLOW_PARENT_RUN_ID]) if args[0] == "fit" else None,
        workers=workers,
        here=step.here,
    )


def _as_text(arg: Arg, results: Mapping[str, StepResult], digest: str) -> str:
    if isinstance(arg, ModelRef):
        return results[arg.step].models[arg.update]
    if isinstance(arg, RunRef):
        return results[arg.step].run_id
    if isinstance(arg, NameRef):
        return arg.name.replace("{digest}", results[arg.step].digest[:8])
    if isinstance(arg, Location):
        return arg.path.replace("{digest}", digest[:8])
    return arg if isinstance(arg, str) else arg.path


def log_file(out: str, step: StudyStep) -> str:
    """Return the path of a step's output."""
    return f"{out}/logs/{step.name.replace('/', '.').replace(' ', '-')}.log"


def prepare(job: Job) -> Job:
    """Write and fetch a job's files, in the present folder and from the present store.

    Returns:
        The job, as a resumption if there is something to resume from.
    """
    for path, content in job.written.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(content, encoding="utf-8")
    for run_id, path in job.fetched:
        fetch(run_id, Path(path))
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    return job if job.resumes is None else replace(job, args=(*job.args, *resume_options(*job.resumes)))


def command_line(job: Job) -> list[str]:
    """Return a job's command line on this machine."""
    return python_command("lightning_unlearn", *job.args)


def environment(job: Job, bytecode: Path) -> dict[str, str]:
    """Return a job's environment variables on this machine.

    If Python is told to keep no compiled files, every process of a study would compile everything again, for longer
    than most steps take. They share the folder `bytecode` instead.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    kept = {"PYTHONPYCACHEPREFIX": str(bytecode.resolve())} if sys.dont_write_bytecode else {}
    return {**inherited, **kept, "PYTHONIOENCODING": "utf-8", **job.env}  # logs are UTF-8 in any locale


def last_line(log: str) -> str:
    """Return the last line of a log file; empty if there is no file."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2000))
            return last_line_of(file.read().decode(errors="replace"))
    except OSError:
        return ""


def last_line_of(text: str) -> str:
    """Return the error that a command reported, else the last line, also of a progress bar."""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    refused = [line for line in lines if line.startswith("lightning-unlearn: error:")]
    return (refused or lines or [""])[-1]


def resume_options(env: str, digest: str, parent: str) -> list[str]:
    """Return `--resume <run>` if an earlier attempt at the step left a checkpoint here or in the store; else nothing.

    An attempt of the same study with status RUNNING on another machine is dead: this study is its only owner.

    Args:
        env: Environment id.
        digest: Cache key of the step.
        parent: The study's run.

    Raises:
        ValueError: An attempt still runs on this machine, left behind by a study that was killed.
    """
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(env)
    if experiment is None:
        return []
    newest_first, condition = ["attributes.start_time DESC"], f"tags.`{DIGEST}` = '{digest}'"
    for run in client.search_runs([experiment.experiment_id], condition, order_by=newest_first):
        run_id, tags = str(run.info.run_id), run.data.tags
        if run.info.status == RUNNING and tags.get(MLFLOW_PARENT_RUN_ID) == parent:
            if processes.lives_here(tags):
                raise ValueError(
                    f"run {run_id} of this step is still under way in process {tags[processes.PROCESS]}, left behind "
                    "by a study that was killed: wait for it, or end it."
                )
            client.set_terminated(run_id, KILLED)
        elif run.info.status not in (KILLED, "FAILED"):
            continue
        folder = store.checkpoint_folder(run_id)
        if checkpoints.newest(folder) is not None or _receive(run_id, folder):
            return ["--resume", run_id]
    return []


@contextmanager
def sending_checkpoints() -> Iterator[None]:
    """Context manager that sends new checkpoints to the store, so that another machine can resume from them."""
    over = Event()

    def send_until_over() -> None:
        sent, last, folder = None, -EVERY_S, store.checkpoints_root()
        while not over.wait(_LOOK_S):
            newest = max(folder.glob("*/*.ckpt"), key=checkpoints.update_of, default=None)
            if newest is not None and newest != sent and time.monotonic() - last >= EVERY_S:
                sent, last = newest if _send(newest) else sent, time.monotonic()

    sender = Thread(target=send_until_over, daemon=True)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


def _send(checkpoint: Path) -> bool:
    """Send a checkpoint; False if it was replaced meanwhile or the server does not answer: a later one is sent."""
    try:
        content = f"{checkpoint.name}\n".encode() + checkpoint.read_bytes()
        file = checkpoint.parent / _NEWEST
        file.write_bytes(content)
        mlflow.MlflowClient().log_artifact(checkpoint.parent.name, str(file), SENT)
    except (OSError, MlflowException):
        return False
    return True


def _receive(run_id: str, folder: Path) -> bool:
    """Fetch the checkpoint that another machine sent into a run's folder; False if there is none."""
    try:
        file = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{SENT}/{_NEWEST}"))
    except (MlflowException, OSError):
        return False
    name, _, content = file.read_bytes().partition(b"\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Path(name.decode()).name).write_bytes(content)
    return checkpoints.newest(folder) is not None
