"""The MLflow run of a training: parameters, tags, resolved config, metrics against env_steps, and an honest status."""

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
from lightning_unlearn.arithmetic import ARITHMETIC
from lightning_unlearn.seeding import SeedStreams
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.runs import tags_of_new_run
from lightning_unlearn.tracking.store import answers, experiment_id, patiently, writing

_VERSIONS = ("lightning-unlearn", "torch", "torchrl", "lightning", "mlflow", "mujoco", "safety-gymnasium", "numpy")


class MLflowRun(MLFlowLogger):
    """One run in the present store; an interrupted one ends as KILLED, a failed one as FAILED.

    Metrics wait in `pending` until `publish`, so that an update is seen only when it need not be made again.

    Args:
        env_id: Names the experiment.
        run_name: Name of the run.
        tags: Tags of the run.
        run_id: A run to go on with; None: a new one.
    """

    def __init__(self, env_id: str, run_name: str, tags: dict[str, Any], run_id: str | None = None) -> None:
        super().__init__(
            experiment_name=env_id,
            run_name=run_name,
            tags=tags_of_new_run(tags | processes.owner()),
            tracking_uri=registry.tracking_uri(),
            artifact_location=registry.artifact_location(),
            run_id=run_id,
        )
        self.interrupted = False
        self.pending: list[dict[str, Any]] = []

    @property
    def begun(self) -> str | None:
        """The run's id, once there is a run."""
        return self._run_id

    @property
    def experiment(self) -> MlflowClient:
        """The client; the run exists, and is this process's, from the first time on."""
        if not self._initialized:
            with writing():
                self._claim() if self._run_id else experiment_id(str(self._experiment_name))
                return super().experiment
        return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep metrics for `publish`."""
        self.pending.append({"metrics": dict(metrics), "step": step or 0, "timestamp": int(time.time() * 1000)})

    def publish(self) -> None:
        """Write what is pending, unless the server is away: then it stays pending, and training goes on.

        To do so again changes nothing: the same points, with the same times, are one.
        """
        if not answers():
            return
        try:
            self._publish()
        except (MlflowException, OSError):
            if answers():
                raise

    def _publish(self) -> None:
        for entry in self.pending:
            points = [Metric(key, value, entry["timestamp"], entry["step"]) for key, value in entry["metrics"].items()]
            with writing():
                self.experiment.log_batch(str(self.run_id), metrics=points)
        self.pending = []

    def finalize(self, status: str = "success") -> None:
        """Write the run's end, once."""
        if self._run_id is None or not self._initialized:
            return
        if status == "success":
            patiently(self._publish, "what was measured")
            patiently(lambda: self._end("FINISHED"), "the run's end")
            return
        with suppress(MlflowException, OSError):  # a store that is full or locked must not hide why the run ended
            self._end("KILLED" if self.interrupted else "FAILED")

    def _end(self, status: str) -> None:
        with writing():
            self.experiment.set_terminated(str(self._run_id), status)

    def _claim(self) -> None:
        client, run_id = self._mlflow_client, str(self._run_id)
        run = client.get_run(run_id)
        if run.info.status == "RUNNING" and not processes.is_gone(run.data.tags):
            raise ValueError(f"run {run_id} has just been resumed by another process.")
        client.update_run(run_id, status="RUNNING")
        for key, value in processes.owner().items():
            client.set_tag(run_id, key, value)


class RunRecord(pl.Callback):
    """Writes what a run was asked for and where it ran.

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
        if "source" in client.get_run(run_id).data.tags:
            return
        with writing():
            self.run.log_hyperparams(self.params)
            client.log_text(run_id, self.config, "config.yaml")
            client.log_dict(run_id, SeedStreams.of(pl_module.seed).described(), "seed_streams.json")
            for key, value in _circumstances(pl_module).items():
                client.set_tag(run_id, key, value)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Tell an interruption from a failure."""
        self.run.interrupted = isinstance(exception, KeyboardInterrupt | SystemExit)


def _circumstances(module: Any) -> dict[str, str]:
    """Tags: releases, machine, where the weights come from; `source`, the last, tells that all are there."""
    tags = {f"version.{name}": version(name) for name in _VERSIONS}
    tags |= {"version.arithmetic": str(ARITHMETIC)}
    tags |= {"version.python": platform.python_version(), "platform": platform.platform()}
    return tags | ({"note": module.note} if module.note else {}) | {"source": module.source_uri or "random"}
