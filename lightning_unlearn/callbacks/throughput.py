"""How fast an update is, and where its time goes."""

import time
from typing import Any

import lightning.pytorch as pl
from tensordict import TensorDict


class Throughput(pl.Callback):
    """Logs the seconds spent collecting and updating, and `time/env_steps_per_s` where the environment was stepped."""

    def __init__(self) -> None:
        self._started = self._collected = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The rollout begins."""
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """The rollout is there."""
        self._collected = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: TensorDict, batch_idx: int
    ) -> None:
        """The update is done."""
        now = time.perf_counter()
        metrics = {
            "time/collect_s": self._collected - self._started,
            "time/update_s": now - self._collected,
        }
        if steps := pl_module.steps_in(batch):
            metrics["time/env_steps_per_s"] = steps / (now - self._started)
        pl_module.log_dict(metrics, batch_size=batch.numel())
