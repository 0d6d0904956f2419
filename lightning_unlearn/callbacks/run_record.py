"""The MLflow run of a training: parameters, tags, resolved config, metrics against env_steps, and an honest status."""

import platform
from importlib.metadata import version
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import MLFlowLogger

from lightning_unlearn import registry

_VERSIONS = ("lightning-unlearn", "torch", "torchrl", "lightning", "mlflow", "mujoco", "safety-gymnasium", "numpy")


class MLflowRun(MLFlowLogger):
    """One run in the present store; an interrupted one ends as KILLED, a failed one as FAILED.

    Args:
        env_id: Names the experiment.
        run_name: Name of the run.
        tags: Tags of the run.
    """

    def __init__(self, env_id: str, run_name: str, tags: dict[str, Any]) -> None:
        super().__init__(
            experiment_name=env_id,
            run_name=run_name,
            tags=tags,
            tracking_uri=registry.tracking_uri(),
            artifact_location=registry.artifact_location(),
        )
        self.interrupted = False

    def finalize(self, status: str = "success") -> None:
        """Write the run's end, once."""
        if self._run_id is not None and status != "success" and self.interrupted:
            self.experiment.set_terminated(self._run_id, "KILLED")
        else:
            super().finalize(status)


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
        """Write parameters, tags and `config.yaml`."""
        self.run.log_hyperparams(self.params)
        client, run_id = self.run.experiment, self.run.run_id
        client.log_text(run_id, self.config, "config.yaml")
        tags = {f"version.{name}": version(name) for name in _VERSIONS} | {"platform": platform.platform()}
        tags |= {"source": pl_module.source_uri or "random"} | ({"note": pl_module.note} if pl_module.note else {})
        for key, value in tags.items():
            client.set_tag(run_id, key, value)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Tell an interruption from a failure."""
        self.run.interrupted = isinstance(exception, KeyboardInterrupt | SystemExit)
