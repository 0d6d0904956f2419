"""What the expert earns and costs in training's own rollouts, before anything is learnt: the units of a repair."""

from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.losses.pid import Expert


class ExpertRecord(pl.Callback):
    """Watches the rollouts that `pl_module.expert_rollouts` names; before the last one's update it sets `measured`.

    Of the environments, only `released_rows` count.

    It does nothing for a policy that starts from random weights.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        self._steps: list[int] = []
        """Of each environment's present episode."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Count a rollout of the expert. Batch shape: (E, T)."""
        watched: range = pl_module.expert_rollouts
        if pl_module.source is None or trainer.current_epoch >= watched.stop:
            return
        batch = batch[pl_module.released_rows]
        following = batch[keys.NEXT]
        lengths = self._lengths(following[keys.DONE].squeeze(-1))
        if trainer.current_epoch in watched:
            ended = following[keys.EPISODE_RETURN][following[keys.DONE]]
            reward = following[keys.REWARD]
            counts = (batch.numel(), reward.abs().sum(), reward.sum(), following[keys.C_FORGET].sum())
            for name, number in zip(_SUMS, (*counts, len(lengths), ended.sum(), sum(lengths)), strict=True):
                self._sums[name] += float(number)
        if trainer.current_epoch == watched.stop - 1:
            pl_module.measured = self._expert(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Hand over what a run that is resumed had seen."""
        if pl_module.source is not None and trainer.current_epoch >= pl_module.expert_rollouts.stop:
            pl_module.measured = self._expert(pl_module) if self._sums["steps"] else None

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"sums": self._sums, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums, self._steps = state_dict["sums"], state_dict["steps"]

    def _lengths(self, done: torch.Tensor) -> list[int]:
        """Steps of the episodes that ended in a rollout. Shape: (E, T), bool."""
        lengths: list[int] = []
        self._steps = self._steps or [0] * len(done)
        for row, its in enumerate(done):
            ends = [-self._steps[row], *(torch.nonzero(its).flatten() + 1).tolist()]
            lengths += [stop - start for start, stop in pairwise(ends)]
            self._steps[row] = len(its) - ends[-1]
        return lengths

    def _expert(self, pl_module: Any) -> Expert:
        steps, sizes, rewards, c_forget, episodes, returns, lengths = (self._sums[name] for name in _SUMS)
        if not episodes:
            episodes, lengths = 1.0, float(pl_module.data.env.simulator.max_episode_steps)
            returns = rewards / steps * lengths
        return Expert(
            int(steps), (sizes or 1.0) / steps, (c_forget or 1.0) / steps, returns / episodes, lengths / episodes
        )


_SUMS = ("steps", "reward_sizes", "rewards", "c_forget", "episodes", "returns", "lengths")
