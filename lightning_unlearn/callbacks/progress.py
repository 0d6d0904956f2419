"""A progress bar over updates."""

from typing import Any

import lightning.pytorch as pl
from tqdm.auto import tqdm

_SHOWN = {
    "return": ("rollout/episode_return", "{:.1f}"),
    "cost/step": ("rollout/cost_rate", "{:.4f}"),
    "λ": ("lagrangian/lambda", "{:.2f}"),
    "episodes kept": ("decremental/episodes_retained", "{:.0f}"),
    "steps/s": ("time/env_steps_per_s", "{:.0f}"),
}


class Progress(pl.Callback):
    """Rate, mean return, cost per step, λ and the time left, redrawn after every update."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._latest: dict[str, str] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the bar."""
        self._bar = tqdm(total=trainer.max_epochs, initial=trainer.current_epoch, desc=pl_module.method, unit="update")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Move the bar by one update."""
        for label, (metric, form) in _SHOWN.items():
            if metric in trainer.callback_metrics:
                self._latest[label] = form.format(float(trainer.callback_metrics[metric]))
        if self._bar is not None:
            self._bar.set_postfix(self._latest, refresh=False)
            self._bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave the bar as it is."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """The same after an exception."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
