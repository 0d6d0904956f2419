"""The mean of the weights over the last updates: what save points register, where it is asked for."""

from typing import Any, cast

import lightning.pytorch as pl
from torch.optim.swa_utils import AveragedModel

from lightning_unlearn.policies.actor_critic import ActorCritic


class WeightAverage(pl.Callback):
    """Averages the policy's weights over all updates from a given one on; training itself goes on from the last ones.

    Later updates differ by noise more than by what they have learnt, and their mean has less of it. Source: Izmailov et
    al. 2018, stochastic weight averaging.

    Args:
        first: The first update whose weights count, from 1. Save points before it are those of the update itself.
    """

    def __init__(self, first: int) -> None:
        if first < 1:
            raise ValueError(f"WeightAverage: first={first} is not possible: updates are counted from 1.")
        self.first = first
        self._mean: AveragedModel | None = None
        self._stored: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """One key whatever the argument."""
        return "weight_average"

    @property
    def policy(self) -> ActorCritic | None:
        """The mean so far; None before the first update that counts."""
        if self._mean is None or not self._mean.n_averaged:
            return None
        return cast(ActorCritic, self._mean.module)

    def require_within(self, last_update: int) -> None:
        """Refuse an average that training would never begin.

        Raises:
            ValueError: The first update lies beyond the last one.
        """
        if self.first > last_update:
            raise ValueError(
                f"WeightAverage: first={self.first} lies beyond trainer.max_epochs={last_update} (the number of "
                "updates): name an earlier update or train longer."
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin, or go on from what a run that is resumed had."""
        self._mean = AveragedModel(pl_module.policy)
        if self._stored:
            self._mean.load_state_dict(self._stored)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Count the update's weights in."""
        if self._mean is not None and trainer.current_epoch + 1 >= self.first:
            self._mean.update_parameters(pl_module.policy)

    def state_dict(self) -> dict[str, Any]:
        """The mean, and over how many updates it is."""
        return {} if self._mean is None else self._mean.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until training starts."""
        self._stored = state_dict


def released(trainer: pl.Trainer, module: Any) -> ActorCritic:
    """The policy that a method hands out: the mean of its weights where that is asked for, else the last ones."""
    means = (callback.policy for callback in trainer.callbacks if isinstance(callback, WeightAverage))  # type: ignore[attr-defined]
    return next((mean for mean in means if mean is not None), module.policy)
