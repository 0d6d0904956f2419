"""The MLflow run of a training: its config and tags, its metrics, a checkpoint after each update, and its status."""

import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from lightning_unlearn import processes
from lightning_unlearn.seeding import ARITHMETIC, SeedStreams
from lightning_unlearn.tracking.runs import tags_of_new_run
from lightning_unlearn.tracking.store import (
    artifact_location,
    checkpoint_folder,
    experiment_id,
    is_reachable,
    tracking_uri,
    with_retries,
    writing,
)

_VERSIONS = ("lightning-unlearn", "torch", "torchrl", "lightning", "mlflow", "mujoco", "safety-gymnasium", "numpy")


class MLflowRun(MLFlowLogger):
    """One run in the present store; an interrupted one ends as KILLED, a failed one as FAILED.

    Metrics wait in `pending` until `publish`, so that an update becomes visible only when it need not be made again.

    Args:
        env_id: Names the experiment.
        run_name: Name of the run.
        tags: Tags of the run.
        run_id: A run to resume; None: a new one.
    """

    def __init__(self, env_id: str, run_name: str, tags: dict[str, Any], run_id: str | None = None) -> None:
        super().__init__(
            experiment_name=env_id,
            run_name=run_name,
            tags=tags_of_new_run(tags | processes.owner()),
            tracking_uri=tracking_uri(),
            artifact_location=artifact_location(),
            run_id=run_id,
        )
        self.interrupted = False
        self.pending: list[dict[str, Any]] = []

    @property
    def begun(self) -> str | None:
        """The run's id; None before there is a run."""
        return self._run_id

    @property
    def experiment(self) -> MlflowClient:
        """The client. Its first use creates the run, or takes over the one to resume."""
        if self._initialized:
            return super().experiment
        with writing():
            if not self._run_id:
                experiment_id(str(self._experiment_name))
                return super().experiment
            client, run_id = self._mlflow_client, self._run_id
            run = client.get_run(run_id)
            if run.info.status == "RUNNING" and not processes.is_gone(run.data.tags):
                raise ValueError(f"run {run_id} has just been resumed by another process.")
            client.update_run(run_id, status="RUNNING")
            for key, value in processes.owner().items():
                client.set_tag(run_id, key, value)
            return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep metrics for `publish`."""
        self.pending.append({"metrics": dict(metrics), "step": step or 0, "timestamp": int(time.time() * 1000)})

    def publish(self) -> None:
        """Write the pending metrics; while the server is away they stay pending, and training goes on.

        Writing the same points twice changes nothing: points of equal name, step, time and value are one.
        """
        if not is_reachable():
            return
        try:
            self._write_pending()
        except (MlflowException, OSError):
            if is_reachable():
                raise

    def _write_pending(self) -> None:
        for entry in self.pending:
            points = [Metric(key, value, entry["timestamp"], entry["step"]) for key, value in entry["metrics"].items()]
            with writing():
                self.experiment.log_batch(str(self.run_id), metrics=points)
        self.pending = []

    def finalize(self, status: str = "success") -> None:
        """Write the run's final status, once."""
        if self._run_id is None or not self._initialized:
            return
        if status == "success":
            with_retries(self._write_pending, "what was measured")
            with_retries(lambda: self._end("FINISHED"), "the run's end")
            return
        with suppress(MlflowException, OSError):  # a store that is full or locked must not hide why the run ended
            self._end("KILLED" if self.interrupted else "FAILED")

    def _end(self, status: str) -> None:
        with writing():
            self.experiment.set_terminated(str(self._run_id), status)


class RunRecord(pl.Callback):
    """Writes a run's config, and the circumstances in which it was started.

    Args:
        run: The MLflow run.
        config: The resolved config, as YAML.
        params: The same, flat, for MLflow's parameter table.
    """

    def __init__(self, run: MLflowRun, config: str, params: dict[str, Any]) -> None:
        self.run, self.config, self.params = run, config, params

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write parameters, tags, `config.yaml` and the seeds of all random streams; a resumed run has them."""
        client, run_id = self.run.experiment, str(self.run.run_id)
        if "source" in client.get_run(run_id).data.tags:  # the last tag: all of them are there
            return
        tags = {f"version.{name}": version(name) for name in _VERSIONS}
        tags |= {"version.arithmetic": str(ARITHMETIC)}
        tags |= {"version.python": platform.python_version(), "platform": platform.platform()}
        tags |= ({"note": pl_module.note} if pl_module.note else {}) | {"source": pl_module.source_uri or "random"}
        with writing():
            self.run.log_hyperparams(self.params)
            client.log_text(run_id, self.config, "config.yaml")
            client.log_dict(run_id, SeedStreams.of(pl_module.seed).described(), "seed_streams.json")
            for key, value in tags.items():
                client.set_tag(run_id, key, value)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Tell an interruption from a failure."""
        self.run.interrupted = isinstance(exception, KeyboardInterrupt | SystemExit)


class UpdateCheckpoint(pl.Callback):
    """Writes a checkpoint after every update, with the update's metrics in it, and then publishes these.

    It stands before the callback of save points. A run that is killed at any moment resumes bit-exactly: either there
    is no checkpoint and nobody has seen the update, or there is one, and it holds all that was still to be published.

    Args:
        run: The MLflow run.
    """

    def __init__(self, run: MLflowRun) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the checkpoint before the metrics."""
        folder = checkpoint_folder(str(self.run.run_id))
        trainer.save_checkpoint(folder / f"update-{trainer.current_epoch + 1}", weights_only=False)
        self.run.publish()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Publish the metrics that a resumed run had still pending."""
        self.run.publish()

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics that are still to be published."""
        return {"pending": self.run.pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the pending metrics."""
        self.run.pending = state_dict["pending"]
