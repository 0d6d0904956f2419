"""MLflow's runs: found and read, their config and artifacts, and finished audits recorded as runs of their own."""

import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from lightning_unlearn import processes
from lightning_unlearn.old_names import with_current_paths, without_removed_options
from lightning_unlearn.options import flatten
from lightning_unlearn.tracking.addresses import without_password
from lightning_unlearn.tracking.store import experiment_id, pages, writing

SEEDS_TAG = "training_seeds"
COST_LIMITS = ("pid.init_args.cost_limit", "pid.cost_limit")
"""Names of a training's parameter `cost_limit`: today's, and that of older runs."""
EXECUTION_OPTIONS = ("tracking_uri", "data.workers", "torch_threads", "resume")
"""Options that say how a training is executed: results depend on them by rounding at most."""


def utc(milliseconds: int) -> datetime:
    """Convert a time of MLflow, in milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@dataclass(frozen=True)
class StoredRun:
    """A run of an environment's experiment."""

    run_id: str
    name: str
    status: str
    """FINISHED, RUNNING, KILLED or FAILED."""
    started: datetime
    params: dict[str, str]
    tags: dict[str, str]
    """This project's own, not MLflow's."""
    metrics: dict[str, float]
    """Last value of each metric."""
    is_deleted: bool = False
    """MLflow keeps the files of a deleted run until they are cleared up."""

    @classmethod
    def of(cls, run: Run) -> "StoredRun":
        """Return MLflow's entity of a run as one of ours."""
        info, data = run.info, run.data
        tags = {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")}
        about = str(info.run_name), info.status, utc(info.start_time or 0), dict(data.params), tags, dict(data.metrics)
        return cls(info.run_id, *about, is_deleted=info.lifecycle_stage == LifecycleStage.DELETED)

    @property
    def audit(self) -> str:
        """Name of the audit; empty for a training."""
        return self.tags.get("audit", "")

    @property
    def seeds(self) -> set[int]:
        """Seed of a training, or training seeds of the models of an audit as far as they are known."""
        named = self.tags.get(SEEDS_TAG if self.audit else "seed", "").split()
        return {int(seed) for seed in named if seed.isdecimal()}  # anybody may store runs and set tags

    @property
    def cost_limit(self) -> float | None:
        """Limit on C_forget of an episode that a training aimed at; None if it had none."""
        try:
            limit = float(next(self.params[name] for name in COST_LIMITS if name in self.params))
        except (StopIteration, ValueError):  # not recorded, or `None`
            return None
        return limit if 0 <= limit < math.inf else None

    @property
    def may_write(self) -> bool:
        """True if the run may still write; a process that cannot be seen from here counts as alive."""
        return self.status in ("RUNNING", "SCHEDULED") and not processes.is_gone(self.tags)


def stored_runs(env_id: str, tags: Mapping[str, str] | None = None) -> list[StoredRun]:
    """Return the runs of an environment's experiment, oldest first; deleted ones are left out.

    Args:
        env_id: The environment.
        tags: Only runs with these tags.
    """
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(env_id)
    if experiment is None:
        return []
    ids, order = [experiment.experiment_id], ["attributes.start_time ASC"]
    condition = " and ".join(f"tags.`{key}` = '{value}'" for key, value in (tags or {}).items())
    found = pages(lambda token: client.search_runs(ids, condition, order_by=order, page_token=token))
    return [StoredRun.of(run) for run in found]


def find_run(run_id: str) -> StoredRun | None:
    """Return a run, a deleted one too; None if the store does not know it."""
    try:
        return StoredRun.of(mlflow.MlflowClient().get_run(run_id))
    except MlflowException:
        return None


def history(run_id: str, metric: str) -> list[tuple[int, float]]:
    """Return step and value of a run's metric, in order; empty if it was never logged."""
    points = mlflow.MlflowClient().get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)


def stored_config(run_id: str) -> str:
    """Return a run's resolved config, as YAML, with today's paths of classes and without removed options."""
    text = str(mlflow.artifacts.load_text(f"runs:/{run_id}/config.yaml"))
    return without_removed_options(with_current_paths(text))


def stored_options(run_id: str) -> dict[str, Any]:
    """Return a run's options, flat, from its `config.yaml`; empty if it was killed before it had one.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return flatten(yaml.safe_load(stored_config(run_id)))
    except (MlflowException, OSError):
        return {}
    except (yaml.YAMLError, RecursionError, AttributeError) as error:
        raise ValueError(f"the config.yaml of run {run_id} is damaged: {type(error).__name__}.") from error


def as_text(run: StoredRun) -> str:
    """Format a run, metrics included, as a log file."""
    lines = [f"# Written from the MLflow run {run.run_id}; the run left no other log file.", f"status: {run.status}"]
    for title, entries in (("tags", run.tags), ("parameters", run.params)):
        lines += ["", f"## {title}", *(f"{key}: {value}" for key, value in sorted(entries.items()))]
    lines += ["", "## metrics (step: value)"]
    for metric in sorted(run.metrics):
        lines += [f"{metric}: " + " ".join(f"{step}: {value:.6g}" for step, value in history(run.run_id, metric))]
    return "\n".join(lines) + "\n"


def artifact_paths(run_id: str, folder: str) -> list[str]:
    """Return the path of every file among a run's artifacts under a folder."""
    found = mlflow.MlflowClient().list_artifacts(run_id, folder)
    deeper = [path for entry in found if entry.is_dir for path in artifact_paths(run_id, entry.path)]
    return [entry.path for entry in found if not entry.is_dir] + deeper


def read_artifact(run_id: str, path: str) -> bytes:
    """Return the content of one file among a run's artifacts."""
    with tempfile.TemporaryDirectory() as scratch:
        copied = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=scratch)
        return Path(copied).read_bytes()


def copy_artifacts(run_id: str, artifact_path: str, folder: Path) -> None:
    """Copy a run's artifacts under `artifact_path`, if there are any, to the same path under a folder."""
    if mlflow.MlflowClient().list_artifacts(run_id, artifact_path):
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=artifact_path, dst_path=str(folder))


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """Yield a path to a file: one of a run (`runs:/<run id>/probes/hazard_direction.pt`), or one that is on disk.

    Raises:
        ValueError: The run has no such file.
    """
    if not uri.startswith("runs:"):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=scratch)
        except (MlflowException, OSError) as error:
            raise ValueError(f"file {uri} was not found: {error}") from error
        yield Path(path)


def log_files(run_id: str, folder: Path, artifact_path: str) -> None:
    """Store a folder's files with a run, under `artifact_path`."""
    mlflow.MlflowClient().log_artifacts(run_id, str(folder), artifact_path)


def log_table(run_id: str, table: Any, artifact_file: str) -> None:
    """Store a pandas table with a run, so that MLflow shows it as a table."""
    mlflow.MlflowClient().log_table(run_id, table, artifact_file)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    with writing():
        for key, value in tags.items():
            mlflow.MlflowClient().set_tag(run_id, key, value)


def tags_of_new_run(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags for a new run: the given ones, MLflow's own about the process, and the outer run as parent.

    The outer run is the program's active run, or the one that `mlflow run` began for this process (MLFLOW_RUN_ID), if
    this store has it. It changes nothing else: our runs are never logged into it, and stay in their own experiment.
    """
    active = mlflow.active_run()
    outer = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID", "")
    run = find_run(outer) if outer else None
    parent = {} if run is None or run.is_deleted else {MLFLOW_PARENT_RUN_ID: outer}
    return parent | resolve_tags(dict(tags))  # a study's steps name their parent in MLFLOW_RUN_CONTEXT


@dataclass(frozen=True)
class AuditData:
    """The labelled states that an audit looked at."""

    name: str
    path: Path
    digest: str
    states: np.ndarray
    """Shape: (N, O)."""
    labels: np.ndarray
    """Shape: (N,)."""

    def as_input(self) -> DatasetInput:
        """Return the states as a dataset of MLflow."""
        from mlflow.data.numpy_dataset import from_numpy
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

        # given only the path, from_numpy finds two kinds of source that fit, and warns
        source = LocalArtifactDatasetSource(self.path.resolve().as_uri())
        dataset = from_numpy(self.states, source=source, targets=self.labels, name=self.name, digest=self.digest)
        return DatasetInput(Dataset(**dataset.to_dict()), [InputTag(MLFLOW_DATASET_CONTEXT, "probe")])


def record_audit(
    env_id: str,
    name: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    files: Mapping[Path, str],
    data: AuditData | None = None,
    seeds: Iterable[int | None] = (),
) -> str:
    """Store a finished audit as a run of its own in the environment's experiment; returns the run's id.

    Args:
        env_id: The environment, which names the experiment.
        name: Name of the run, such as `probe-fit`.
        params: The options.
        metrics: Metric → value.
        files: File → folder among the run's artifacts, such as `probes`.
        data: Logged as the run's dataset.
        seeds: Training seeds of the models that were looked at, as far as they are known.
    """
    known = sorted({seed for seed in seeds if seed is not None and seed >= 0})
    tags = {"audit": name, "env": env_id, SEEDS_TAG: " ".join(map(str, known)), **processes.owner()}
    given = [Param(key, without_password(str(value))) for key, value in params.items() if value is not None]
    now = int(time.time() * 1000)
    measured = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
    with writing(), _finished_run(env_id, name, tags) as run_id:
        client = mlflow.MlflowClient()
        client.log_batch(run_id, metrics=measured, params=given)
        if data is not None:
            client.log_inputs(run_id, [data.as_input()])
        for file, folder in files.items():
            client.log_artifact(run_id, str(file), folder)
    return run_id


def record_training(env_id: str, name: str, tags: Mapping[str, str]) -> str:
    """Create a finished run for models that were trained elsewhere; returns its id."""
    with writing(), _finished_run(env_id, name, tags) as run_id:
        return run_id


@contextmanager
def _finished_run(env_id: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Create a run in the environment's experiment and end it as FINISHED, or as FAILED after an error."""
    client = mlflow.MlflowClient()
    run = client.create_run(experiment_id(env_id), tags=tags_of_new_run(tags), run_name=name)
    run_id = str(run.info.run_id)
    try:
        yield run_id
    except BaseException:
        with suppress(MlflowException, OSError):  # the error that stopped the record is the one to report
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
