"""Each update is made durable before anything is seen of it, so that a killed run goes on as if it never stopped."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_unlearn.callbacks.run_record import MLflowRun
from lightning_unlearn.tracking.store import checkpoint_folder


class Durability(pl.Callback):
    """Writes a checkpoint after every update, with the update's metrics in it, and then publishes these.

    Stands before the callback of save points. Whatever moment a kill comes at, either the checkpoint is not there and
    nobody has seen the update, or it is and holds all that was still to be shown; that is then shown at the resumption.

    Args:
        run: The MLflow run.
    """

    def __init__(self, run: MLflowRun) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """First the checkpoint, then the metrics."""
        trainer.save_checkpoint(self._folder / f"update-{trainer.current_epoch + 1}", weights_only=False)
        self.run.publish()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Publish what a run that is resumed was about to."""
        self.run.publish()

    def state_dict(self) -> dict[str, Any]:
        """Metrics that are still to be published."""
        return {"pending": self.run.pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.run.pending = state_dict["pending"]

    @property
    def _folder(self) -> Path:
        return checkpoint_folder(str(self.run.run_id))
