"""A step made ready to run: every reference replaced, every file in place."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lightning_unlearn.processes import python_command
from lightning_unlearn.study.attempts import resume_options
from lightning_unlearn.study.steps import Arg, Config, FileOf, ModelOf, NameOf, Place, Result, RunOf, Step
from lightning_unlearn.study.store import fetch

_SIGN_IN = [f"MLFLOW_TRACKING_{what}" for what in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS")]
"""Variables that MLflow's client needs on every machine, where its server asks for them."""


@dataclass(frozen=True)
class Job:
    """What a process needs; can be sent to another machine."""

    name: str
    args: tuple[str, ...]
    """Of `python -m lightning_unlearn`."""
    log: str
    """File that its output goes to."""
    env: Mapping[str, str]
    """Environment variables."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Files to write first: path → content."""
    fetched: tuple[tuple[str, str], ...] = ()
    """Files to copy from the store first: run, path."""
    tracking_uri: str = ""
    resumes: tuple[str, str, str] | None = None
    """Environment, digest and study's run of a training: what its earlier attempts are known by."""
    workers: int = 1
    here: bool = False
    """It reads files that only the machine has that it was made on."""


def make_job(
    step: Step,
    digest: str,
    results: Mapping[str, Result],
    tags: Mapping[str, str],
    tracking_uri: str,
    out: str,
    workers: int,
) -> Job:
    """A step's job, once all it needs is done."""
    args = [_text(arg, results, digest) for arg in step.args]
    if step.workers is not None:
        option, most = step.workers
        args += [option, str(min(workers, most))]
    return Job(
        name=step.name,
        args=(*args, "--tracking_uri", tracking_uri),
        log=log_file(out, step),
        env={key: os.environ[key] for key in _SIGN_IN if key in os.environ}
        | {"MLFLOW_RUN_CONTEXT": json.dumps(tags), "OMP_NUM_THREADS": str(workers)},
        written={arg.path: arg.content for arg in step.args if isinstance(arg, Config)},
        fetched=tuple((results[arg.step].run_id, arg.path) for arg in step.args if isinstance(arg, FileOf)),
        tracking_uri=tracking_uri,
        resumes=(step.env, digest, tags[MLFLOW_PARENT_RUN_ID]) if args[0] == "fit" else None,
        workers=workers,
        here=step.here,
    )


def log_file(out: str, step: Step) -> str:
    """Where a step's output goes."""
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


def command(job: Job) -> list[str]:
    """Its command line on this machine."""
    return python_command("lightning_unlearn", *job.args)


def environment(job: Job, bytecode: Path) -> dict[str, str]:
    """Its environment variables on this machine.

    Where Python is told to keep no compiled files, every process of a study would compile everything again, for
    longer than most steps take: they share a folder instead.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    kept = {"PYTHONPYCACHEPREFIX": str(bytecode.resolve())} if sys.dont_write_bytecode else {}
    return {**inherited, **kept, "PYTHONIOENCODING": "utf-8", **job.env}  # logs are UTF-8 in any locale


def last_line(log: str) -> str:
    """What a log file says last."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2000))
            return last_line_of(file.read().decode(errors="replace"))
    except OSError:
        return ""


def last_line_of(text: str) -> str:
    """The error that a command reported, else the last line; a progress bar's lines end with a carriage return."""
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    refused = [line for line in lines if line.startswith("lightning-unlearn: error:")]
    return (refused or lines or [""])[-1]


def _text(arg: Arg, results: Mapping[str, Result], digest: str) -> str:
    if isinstance(arg, ModelOf):
        return results[arg.step].models[arg.update]
    if isinstance(arg, RunOf):
        return results[arg.step].run_id
    if isinstance(arg, NameOf):
        return arg.name.replace("{digest}", results[arg.step].digest[:8])
    if isinstance(arg, Place):
        return arg.path.replace("{digest}", digest[:8])
    return arg if isinstance(arg, str) else arg.path
