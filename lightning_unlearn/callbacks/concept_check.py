"""Whether the expert shows the behaviour that it is to forget: else λ has nothing to act on."""

from typing import Any

import lightning.pytorch as pl
from tensordict import TensorDict

from lightning_unlearn import keys

STEPS = 8192
"""Steps of the first rollouts that must hold both kinds of transitions; one rollout, unless it is shorter."""


class NothingToForgetError(ValueError):
    """The concept is never, or always, shown. The run has nothing to go on with."""


class ConceptCheck(pl.Callback):
    """Looks at the first rollouts of a method that starts from an expert; a run that is resumed looks on."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._seen, self._shown = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to count, if this is the start of a repair."""
        if self._left is None:
            self._left = STEPS if trainer.current_epoch == 0 and pl_module.source is not None else 0

    def state_dict(self) -> dict[str, Any]:
        """What was counted."""
        return {"left": self._left, "seen": self._seen, "shown": self._shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._left, self._seen, self._shown = state_dict["left"], state_dict["seen"], state_dict["shown"]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Count, and judge when there were steps enough.

        Raises:
            NothingToForgetError: The concept was never, or always, shown.
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
