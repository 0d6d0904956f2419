"""Which run `fit --resume` goes on with, and whether it is the same run that is asked for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_unlearn.configuration import flatten
from lightning_unlearn.tracking import checkpoints
from lightning_unlearn.tracking.store import checkpoint_folder, store_address

LAST = "last"
CONFIG_DIGEST = "config.sha256"
THREADS = "torch_threads"
"""Option, and tag of a run that tells how many there were where the option was `auto`."""
FREE = ("tracking_uri", "data.workers", "torch_threads", "resume")
"""Options that a resumed run may be given another value of: no result depends on them, but for rounding."""


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    run_id: str
    source: str | None
    """URI of the model that it started from; None if it started from random weights, or had not got so far."""
    checkpoint: Path | None
    """None: it had not finished an update, and starts again at the first."""
    threads: int | None = None
    """Of PyTorch, that it was trained with; None if that is not known."""

    @property
    def updates(self) -> int:
        """Updates that are made already."""
        return 0 if self.checkpoint is None else checkpoints.update_of(self.checkpoint)


def config_digest(options: Mapping[str, Any]) -> str:
    """What two runs of the same config share. `options` are flat."""
    free = _free(options)
    fixed = {key: value for key, value in options.items() if key not in free}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()


def _free(options: Mapping[str, Any]) -> set[str]:
    """On a cluster each worker draws noise of its own, and results depend on how many there are."""
    return {*FREE} - ({"data.workers"} if options.get("data.collector") == "ray" else set())


def find(wanted: str, env_id: str, tags: Mapping[str, str], options: Mapping[str, Any]) -> Resumption | None:
    """The run that is asked for; None where `last` finds nothing unfinished, and a new run is due.

    Args:
        wanted: `last` or the id of a run.
        env_id: Of the training that is asked for, as the next two.
        tags: method and seed.
        options: All of its options, flat.

    Raises:
        ValueError: There is no such run, it is finished or still running, or its options are others.
    """
    run = _last(env_id, tags, config_digest(options)) if wanted == LAST else _named(wanted)
    if run is None:
        return None
    _require_same(run, options)
    folder, source = checkpoint_folder(run.info.run_id), run.data.tags.get("source", "random")
    checkpoint = checkpoints.newest(folder)
    if checkpoint is None and run.data.metrics:
        raise ValueError(
            f"--resume {wanted}: run {run.info.run_id} has made updates, but {folder} holds no checkpoint that is "
            "whole: resume on the machine that it ran on, or start anew without --resume."
        )
    return Resumption(run.info.run_id, None if source == "random" else source, checkpoint, threads_of(run))


def threads_of(run: Run) -> int | None:
    """Threads of PyTorch that a run was trained with: its tag, else the option of a run from before there was one."""
    threads = str(run.data.tags.get(THREADS) or stored_options(run.info.run_id).get(THREADS))
    return int(threads) if threads.isdigit() and int(threads) else None


def _last(env_id: str, tags: Mapping[str, str], digest: str) -> Run | None:
    """The newest unfinished run; one of the same config, if there is one."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(env_id)
    if experiment is None:
        return None
    own = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("method", "seed"))
    runs = client.search_runs([experiment.experiment_id], own, order_by=["attributes.start_time DESC"])
    unfinished = [run for run in runs if run.info.status in ("KILLED", "FAILED") and CONFIG_DIGEST in run.data.tags]
    same = [run for run in unfinished if run.data.tags[CONFIG_DIGEST] == digest]
    return next(iter(same + unfinished), None)


def _named(run_id: str) -> Run:
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"--resume {run_id}: there is no such run in {store_address()}.") from error
    if run.info.status in ("FINISHED", "RUNNING"):
        state = "finished already" if run.info.status == "FINISHED" else "still running"
        raise ValueError(f"--resume {run_id}: the run is {state}. Leave --resume out to start another.")
    return run


def _require_same(run: Run, options: Mapping[str, Any]) -> None:
    if run.data.tags.get(CONFIG_DIGEST) == config_digest(options):
        return
    theirs = stored_options(run.info.run_id)
    differing = sorted(key for key in {*theirs, *options} - _free(options) if theirs.get(key) != options.get(key))
    if theirs and not differing:  # an option that did not exist when it was started is off
        return
    told = ", ".join(f"{key}={options.get(key)} (the run: {theirs.get(key)})" for key in differing)
    raise ValueError(
        f"--resume: run {run.info.run_id} was started with another config. What differs: {told or 'unknown'}. "
        "Give the same options, or leave --resume out to start another run."
    )


def stored_options(run_id: str) -> dict[str, Any]:
    """A run's options, flat, as its `config.yaml` holds them; empty where it was killed before it had one."""
    try:
        return flatten(yaml.safe_load(stored_config(run_id)))
    except (MlflowException, OSError):
        return {}
    except (yaml.YAMLError, RecursionError, AttributeError) as error:
        raise ValueError(f"the config.yaml of run {run_id} is damaged: {type(error).__name__}.") from error


def stored_config(run_id: str) -> str:
    """A run's resolved config, as YAML."""
    return str(mlflow.artifacts.load_text(f"runs:/{run_id}/config.yaml"))
