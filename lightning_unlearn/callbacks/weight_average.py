"""What save points register in place of the last weights, where asked: their mean, and what lies beyond it."""

import math
from copy import deepcopy
from typing import Any, cast

import lightning.pytorch as pl
from torch.optim.swa_utils import AveragedModel

from lightning_unlearn.policies.actor_critic import ActorCritic, extrapolate


class WeightAverage(pl.Callback):
    """Averages the policy's weights over the last part of the updates; training itself goes on from the last ones.

    Later updates differ by noise more than by what they have learnt, and their mean has less of it: Izmailov et al.
    2018, stochastic weight averaging. What is handed out is θ₀ + α·(θ̄ − θ₀), with θ₀ the weights that training started
    from and θ̄ the mean of the updates that count so far; see `extrapolate`. Before the first one that counts, it is the
    update's own weights, whatever α.

    Args:
        share: Of the updates, how many count: of N, the u-th does if N − u < share·N.
        alpha: α.
    """

    def __init__(self, share: float, alpha: float = 1.0) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"average.share={share} is not possible: use a number above 0 and up to 1.")
        if not 0.0 < alpha < math.inf:
            raise ValueError(f"average.alpha={alpha} is not possible: use a number above 0; 1 is the mean itself.")
        self.share, self.alpha = share, alpha
        self._start: ActorCritic | None = None
        self._mean: AveragedModel | None = None
        self._stored: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """One key whatever the arguments."""
        return "weight_average"

    @property
    def policy(self) -> ActorCritic | None:
        """What is handed out so far; None before the first update that counts."""
        if self._start is None or self._mean is None or not self._mean.n_averaged:
            return None
        return extrapolate(self._start, cast(ActorCritic, self._mean.module), self.alpha)

    @property
    def note(self) -> str:
        """What is handed out, in words."""
        if self._mean is None or not self._mean.n_averaged:
            return ""
        beyond = "" if self.alpha == 1.0 else f", on the line from the start's at {self.alpha:g}"
        return f"mean of the weights of {int(self._mean.n_averaged)} updates{beyond}"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin, or go on from what a run that is resumed had."""
        self._start, self._mean = deepcopy(pl_module.policy), AveragedModel(pl_module.policy)
        if self._stored:
            self._start.load_state_dict(self._stored["start"])
            self._mean.load_state_dict(self._stored["mean"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Count the update's weights in."""
        updates = cast(int, trainer.max_epochs)
        if self._mean is not None and updates - (trainer.current_epoch + 1) < self.share * updates:
            self._mean.update_parameters(pl_module.policy)

    def state_dict(self) -> dict[str, Any]:
        """The weights training started from, the mean, and over how many updates it is."""
        if self._start is None or self._mean is None:
            return {}
        return {"start": self._start.state_dict(), "mean": self._mean.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until training starts."""
        self._stored = state_dict


def average_of(trainer: pl.Trainer) -> WeightAverage | None:
    """The trainer's average, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, WeightAverage)), None)


def released(trainer: pl.Trainer, module: Any) -> ActorCritic:
    """The policy that a method hands out: what a `WeightAverage` makes of its weights, else the last ones."""
    average = average_of(trainer)
    return (average and average.policy) or module.policy
