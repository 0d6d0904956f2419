"""Episodes of a training that a failure of the simulation cut short."""

import warnings
from typing import Any

import lightning.pytorch as pl

_EPISODES, _FAILURES = "rollout/episodes", "rollout/simulator_failures"


class FailedEpisodes(pl.Callback):
    """Warns at the first failed episode, and tells at the end how many of all failed."""

    def __init__(self) -> None:
        self.counts = {_EPISODES: 0, _FAILURES: 0}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count the episodes that ended in this update's rollout."""
        before = self.counts[_FAILURES]
        for metric in self.counts:
            self.counts[metric] += int(trainer.callback_metrics.get(metric, 0))
        if self.counts[_FAILURES] and not before:
            warnings.warn(self._told(trainer), stacklevel=2)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print the counts, if an episode failed."""
        if self.counts[_FAILURES]:
            print(self._told(trainer))

    def state_dict(self) -> dict[str, Any]:
        """The counts, so that a resumed run tells those of all its updates."""
        return dict(self.counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.counts = dict(state_dict)

    def _told(self, trainer: pl.Trainer) -> str:
        simulator = trainer.datamodule.env.simulator  # type: ignore[attr-defined]
        why = f", the last one {reason}" if (reason := simulator.last_failure()) else ""
        episodes, failed = self.counts[_EPISODES], self.counts[_FAILURES]
        return f"{simulator.env_id}: the simulation failed in {failed} of {episodes} episodes{why}"
