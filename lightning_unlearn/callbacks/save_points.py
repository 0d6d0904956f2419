"""Save points: after chosen updates the policy becomes a version of a registered model."""

from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.callbacks.weight_average import average_of, released
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import patiently


class SavePoints(pl.Callback):
    """Registers the policy after each of some updates.

    Args:
        run: The MLflow run the models belong to.
        updates: After which updates, counted from 1; None: after the last one. Training that another callback ends
            early has its last update as a save point, too.
    """

    def __init__(self, run: MLflowRun, updates: list[int] | None = None) -> None:
        if updates is not None and (not updates or min(updates) < 1):
            raise ValueError(f"save_points={updates} is not possible: name updates from 1 on.")
        self.run, self.updates = run, updates
        self.saved: dict[int, str] = {}
        self._due: ModelCard | None = None
        self._latest: ModelCard | None = None

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

    def require_names(self, method: str, env_id: str) -> None:
        """Refuse a method or an environment that no model can be named after.

        Raises:
            ValueError: There is a letter in its name that is not possible.
        """
        try:
            ModelCard(method, env_id)
        except ValueError as error:
            raise ValueError(
                f"model.method={method} and data.env={env_id} name the models, as {method}.{env_id}: {error} "
                "(Environments may have dots and hyphens, too.)"
            ) from error

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Note what has to be registered, so that the update's checkpoint knows it too."""
        update = trainer.current_epoch + 1
        self._latest = _card(trainer, pl_module, update)
        if update in self.updates if self.updates else update == trainer.max_epochs:
            self._due = self._latest

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register, if this update is a save point."""
        self._register(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register the last update of a run that another callback ended early, whichever save points it had."""
        updates = trainer.max_epochs or 0
        if self._latest is not None and self._latest.update < updates and self._latest.update not in self.saved:
            self._due = self._latest
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


def _card(trainer: pl.Trainer, module: Any, update: int) -> ModelCard:
    data, average = module.data, average_of(trainer)
    notes = (module.note, average.note if average else "")
    origin = (module.method, data.env_id, data.env.concept, module.seed, update, module.env_steps)
    return ModelCard(*origin, note="; ".join(note for note in notes if note))
