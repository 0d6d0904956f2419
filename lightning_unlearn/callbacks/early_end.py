"""Training that a further callback ends early, such as Lightning's `EarlyStopping`."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tqdm.auto import tqdm

from lightning_unlearn.callbacks.weight_average import average_of


class EarlyEnd(pl.Callback):
    """Refuses a `monitor` that is no metric, and prints after which update a callback ended training early."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check what other callbacks monitor; Lightning asks them last, after an update.

        Raises:
            ValueError: There is no such metric.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, EarlyStopping | ModelCheckpoint) or getattr(callback, "strict", True) is False:
                continue
            if callback.monitor is not None and callback.monitor not in trainer.callback_metrics:
                raise ValueError(
                    f"trainer.callbacks: {type(callback).__name__}.monitor={callback.monitor} is not possible: use one "
                    f"of {', '.join(sorted(trainer.callback_metrics))}."
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print how far training came, if that is not the last update."""
        if not trainer.should_stop or trainer.current_epoch >= (trainer.max_epochs or 0):
            return
        average = average_of(trainer)
        own = ". That is before the updates that average counts: the result has its own weights"
        tqdm.write(
            f"A callback (trainer.should_stop) ended training after update {trainer.current_epoch} of "
            f"{trainer.max_epochs}{own if average and not average.note else ''}."
        )
