"""Save points: after chosen updates the policy becomes a version of a registered model."""

from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from lightning_unlearn import registry
from lightning_unlearn.callbacks.run_record import MLflowRun
from lightning_unlearn.callbacks.weight_average import average_of, released
from lightning_unlearn.policies.storage import ModelCard
from lightning_unlearn.store import patiently


class SavePoints(pl.Callback):
    """Registers the policy after each of some updates.

    Args:
        run: The MLflow run the models belong to.
        updates: After which updates, counted from 1; None: after the last one.
    """

    def __init__(self, run: MLflowRun, updates: list[int] | None = None) -> None:
        if updates is not None and (not updates or min(updates) < 1):
            raise ValueError(f"save_points={updates} is not possible: name updates from 1 on.")
        self.run, self.updates = run, updates
        self.saved: dict[int, str] = {}
        self._due: ModelCard | None = None

    def require_within(self, last_update: int) -> None:
        """Refuse save points that training would never reach.

        Raises:
            ValueError: A save point lies beyond the last update.
        """
        beyond = [update for update in self.updates or [] if update > last_update]
        if beyond:
            raise ValueError(
                f"save_points={beyond} lie beyond trainer.max_epochs={last_update} (the number of updates): "
                "leave them out or train longer."
            )

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Note what has to be registered, so that the update's checkpoint knows it too."""
        update = trainer.current_epoch + 1
        if update in self.updates if self.updates else update == trainer.max_epochs:
            data = pl_module.data
            origin = (pl_module.method, data.env_id, data.env.concept, pl_module.seed, update, pl_module.env_steps)
            average = average_of(trainer)
            notes = (pl_module.note, average.note if average else "")
            self._due = ModelCard(*origin, note="; ".join(note for note in notes if note))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register, if this update is a save point."""
        self._register(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register what a run that is resumed was about to."""
        self._register(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What was registered, and what is about to be."""
        return {"saved": self.saved, "due": None if self._due is None else asdict(self._due)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.saved = state_dict["saved"]
        self._due = None if state_dict["due"] is None else ModelCard(**state_dict["due"])

    def _register(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._due is None:
            return
        policy = released(trainer, pl_module)
        due, run_id = self._due, str(self.run.run_id)
        version = patiently(lambda: registry.register_policy(policy, due, run_id), f"update {due.update}")
        self.saved[self._due.update] = f"models:/{registry.model_name(self._due.method, self._due.env)}/{version}"
        self._due = None
