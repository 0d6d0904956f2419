"""Reports of a training on the screen: progress bar, seconds of an update, failed episodes, an early end."""

import time
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tensordict import TensorDict
from tqdm.auto import tqdm

from lightning_unlearn.callbacks.weight_average import weight_average_of

_SHOWN = {
    "return": ("rollout/episode_return", "{:.1f}"),
    "cost/step": ("rollout/cost_rate", "{:.4f}"),
    "λ": ("lagrangian/lambda", "{:.2f}"),
    "episodes kept": ("decremental/episodes_retained", "{:.0f}"),
    "steps/s": ("time/env_steps_per_s", "{:.0f}"),
}
"""Label in the progress bar → metric and format."""
_EPISODES, _FAILURES = "rollout/episodes", "rollout/simulator_failures"


class UpdateBar(pl.Callback):
    """A progress bar over updates, with return, cost per step, λ and speed."""

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
        """Leave the bar on the screen."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the bar on the screen after an exception, too."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Throughput(pl.Callback):
    """Logs the seconds of collecting and of updating, and environment steps per second if any were made."""

    def __init__(self) -> None:
        self._started = self._collected = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock before the rollout."""
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Read the clock after the rollout."""
        self._collected = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: TensorDict, batch_idx: int
    ) -> None:
        """Log the times of this update."""
        now = time.perf_counter()
        metrics = {
            "time/collect_s": self._collected - self._started,
            "time/update_s": now - self._collected,
        }
        if steps := pl_module.env_steps_of(batch):
            metrics["time/env_steps_per_s"] = steps / (now - self._started)
        pl_module.log_dict(metrics, batch_size=batch.numel())


class FailedEpisodes(pl.Callback):
    """Warns at the first episode that a simulator failure cut short, and prints their number at the end."""

    def __init__(self) -> None:
        self.counts = {_EPISODES: 0, _FAILURES: 0}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count the episodes that ended in this update's rollout."""
        before = self.counts[_FAILURES]
        for metric in self.counts:
            self.counts[metric] += int(trainer.callback_metrics.get(metric, 0))
        if self.counts[_FAILURES] and not before:
            warnings.warn(self._message(pl_module), stacklevel=2)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the counts if an episode failed."""
        if self.counts[_FAILURES]:
            print(self._message(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """The counts, so that a resumed run reports those of all its updates."""
        return dict(self.counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.counts = dict(state_dict)

    def _message(self, pl_module: Any) -> str:
        simulator = pl_module.data.env.simulator
        why = f", the last one {reason}" if (reason := simulator.last_failure()) else ""
        episodes, failed = self.counts[_EPISODES], self.counts[_FAILURES]
        return f"{simulator.env_id}: the simulation failed in {failed} of {episodes} episodes{why}"


class EarlyEnd(pl.Callback):
    """Refuses a `monitor` that is no metric, and prints after which update another callback ended training early."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the metrics that callbacks of Lightning monitor, before these callbacks read them.

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
        """Print the number of updates if training ended before the last one."""
        if not trainer.should_stop or trainer.current_epoch >= (trainer.max_epochs or 0):
            return
        average = weight_average_of(trainer)
        own = ". That is before the updates that average counts: the result has its own weights"
        tqdm.write(
            f"A callback (trainer.should_stop) ended training after update {trainer.current_epoch} of "
            f"{trainer.max_epochs}{own if average and not average.note else ''}."
        )
