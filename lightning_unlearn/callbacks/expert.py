"""Checks and measures of the expert in training's first rollouts."""

from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.losses.pid import ExpertMeasures

STEPS = 8192
"""Steps of the first rollouts that must hold both kinds of transitions; one rollout, unless it is shorter."""


class NothingToForgetError(ValueError):
    """The expert never or always shows the concept, or keeps the limit already: the run cannot be continued."""


class ConceptCheck(pl.Callback):
    """Check that the expert shows the concept in some of its steps and not in others; otherwise λ has no effect."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._seen, self._shown = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start counting at the first update of a method that starts from an expert."""
        if self._left is None:
            self._left = STEPS if trainer.current_epoch == 0 and pl_module.source is not None else 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Count the steps of a rollout, and judge after `STEPS` of them.

        Raises:
            NothingToForgetError: The concept was shown in none or in all of them.
        """
        if self._left is None or self._left <= 0:
            return
        self._left -= batch.numel()
        self._seen += batch.numel()
        self._shown += float(batch[keys.NEXT, keys.C_FORGET].sum())
        if self._left <= 0 and self._shown in (0.0, float(self._seen)):
            raise NothingToForgetError(
                f"data.concept: {pl_module.source_uri or 'the expert'} shows {pl_module.data.env.concept} in "
                f"{self._shown:.0f} of its first {self._seen} steps (a rate of {self._shown / self._seen:g}), so that "
                "there is nothing to tell apart. Name another concept, or a model.source that shows it now and then."
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"left": self._left, "seen": self._seen, "shown": self._shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._left, self._seen, self._shown = state_dict["left"], state_dict["seen"], state_dict["shown"]


class ExpertRecord(pl.Callback):
    """Measures the expert in the rollouts `expert_rollouts` of a `LagrangianMethod`, and sets its `expert_measures`.

    Only the environments `measured_envs` count. Nothing is measured if the weights start from random.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        self._steps: list[int] = []
        """Steps of each environment's present episode."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Add a rollout of the expert; after the last one, set the measures. Batch shape: (E, T)."""
        rollouts: range = pl_module.expert_rollouts
        if pl_module.source is None or trainer.current_epoch >= rollouts.stop:
            return
        batch = batch[pl_module.measured_envs]
        following = batch[keys.NEXT]
        done = following[keys.DONE].squeeze(-1)
        lengths: list[int] = []  # steps of the episodes that ended
        self._steps = self._steps or [0] * len(done)
        for row, its in enumerate(done):
            ends = [-self._steps[row], *(torch.nonzero(its).flatten() + 1).tolist()]
            lengths += [stop - start for start, stop in pairwise(ends)]
            self._steps[row] = len(its) - ends[-1]
        if trainer.current_epoch in rollouts:
            ended = following[keys.EPISODE_RETURN][following[keys.DONE]]
            reward = following[keys.REWARD]
            counts = (batch.numel(), reward.abs().sum(), reward.sum(), following[keys.C_FORGET].sum())
            for name, number in zip(_SUMS, (*counts, len(lengths), ended.sum(), sum(lengths)), strict=True):
                self._sums[name] += float(number)
        if trainer.current_epoch == rollouts.stop - 1:
            pl_module.expert_measures = self._measures(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Set the measures of a resumed run."""
        if pl_module.source is not None and trainer.current_epoch >= pl_module.expert_rollouts.stop:
            pl_module.expert_measures = self._measures(pl_module) if self._sums["steps"] else None

    def state_dict(self) -> dict[str, Any]:
        """The sums, and the steps of the present episodes."""
        return {"sums": self._sums, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums, self._steps = state_dict["sums"], state_dict["steps"]

    def _measures(self, pl_module: Any) -> ExpertMeasures:
        steps, sizes, rewards, c_forget, episodes, returns, lengths = (self._sums[name] for name in _SUMS)
        if not episodes:
            episodes, lengths = 1.0, float(pl_module.data.env.simulator.max_episode_steps)
            returns = rewards / steps * lengths
        return ExpertMeasures(
            int(steps), (sizes or 1.0) / steps, (c_forget or 1.0) / steps, returns / episodes, lengths / episodes
        )


_SUMS = ("steps", "reward_sizes", "rewards", "c_forget", "episodes", "returns", "lengths")
