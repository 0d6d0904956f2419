"""The mean of late weights, and the point beyond it, that save points hold in place of the last weights."""

import math
from copy import deepcopy
from typing import Any, cast

import lightning.pytorch as pl
from torch.optim.swa_utils import AveragedModel

from lightning_unlearn.policies.actor_critic import ActorCritic, extrapolate


class WeightAverage(pl.Callback):
    """Averages the policy's weights over the last part of the updates; training itself goes on from the last ones.

    Late updates differ by noise more than by learning, and their mean has less of it (Izmailov et al. 2018, stochastic
    weight averaging). Save points hold θ₀ + α·(θ̄ − θ₀), with θ₀ the weights at the start of training and θ̄ the mean
    of the updates that count so far; see `extrapolate`. Before the first one that counts, they hold the update's own
    weights, whatever α.

    Args:
        share: Share of the updates that count: of N, the u-th does if N − u < share·N.
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
        """The averaged policy; None before the first update that counts."""
        if self._start is None or self._mean is None or not self._mean.n_averaged:
            return None
        return extrapolate(self._start, cast(ActorCritic, self._mean.module), self.alpha)

    @property
    def note(self) -> str:
        """Remark on the averaged policy for its model card; empty before the first update that counts."""
        if self._mean is None or not self._mean.n_averaged:
            return ""
        beyond = "" if self.alpha == 1.0 else f", on the line from the start's at {self.alpha:g}"
        return f"mean of the weights of {int(self._mean.n_averaged)} updates{beyond}"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start averaging, or continue as a resumed run had."""
        self._start, self._mean = deepcopy(pl_module.policy), AveragedModel(pl_module.policy)
        if self._stored:
            self._start.load_state_dict(self._stored["start"])
            self._mean.load_state_dict(self._stored["mean"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Add the update's weights to the mean."""
        updates = cast(int, trainer.max_epochs)
        if self._mean is not None and updates - (trainer.current_epoch + 1) < self.share * updates:
            self._mean.update_parameters(pl_module.policy)

    def state_dict(self) -> dict[str, Any]:
        """The weights at the start, the mean and its number of updates."""
        if self._start is None or self._mean is None:
            return {}
        return {"start": self._start.state_dict(), "mean": self._mean.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until training starts."""
        self._stored = state_dict


def weight_average_of(trainer: pl.Trainer) -> WeightAverage | None:
    """The trainer's `WeightAverage`, if it has one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, WeightAverage)), None)


def averaged_policy(trainer: pl.Trainer, module: Any) -> ActorCritic:
    """The policy of save points: the `WeightAverage`'s, or that of the last update."""
    average = weight_average_of(trainer)
    return (average and average.policy) or module.policy
