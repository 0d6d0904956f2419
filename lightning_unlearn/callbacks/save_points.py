"""Save points: after chosen updates the policy, or the mean of its late weights, is registered as a model version."""

from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl

from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.callbacks.weight_average import averaged_policy, weight_average_of
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import with_retries


class SavePoints(pl.Callback):
    """Registers the policy after chosen updates, and after the last one if another callback ends training early.

    Args:
        run: The MLflow run the models belong to.
        updates: Numbers of the updates, counted from 1; None: the last one.
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
        """Refuse a method or an environment whose name cannot be part of a model's name.

        Raises:
            ValueError: It has a character that is not possible there.
        """
        try:
            ModelCard(method, env_id)
        except ValueError as error:
            raise ValueError(
                f"model.method={method} and data.env={env_id} name the models, as {method}.{env_id}: {error} "
                "(Environments may have dots and hyphens, too.)"
            ) from error

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Note what has to be registered, so that the update's checkpoint holds it."""
        update, average = trainer.current_epoch + 1, weight_average_of(trainer)
        notes = (pl_module.note, average.note if average else "")
        self._latest = ModelCard(
            pl_module.method,
            pl_module.data.env_id,
            pl_module.data.env.concept,
            pl_module.seed,
            update,
            pl_module.env_steps,
            note="; ".join(note for note in notes if note),
        )
        if update in self.updates if self.updates else update == trainer.max_epochs:
            self._due = self._latest

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register the policy if this update is a save point."""
        self._register(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register the last update of a run that another callback ended early."""
        updates = trainer.max_epochs or 0
        if self._latest is not None and self._latest.update < updates and self._latest.update not in self.saved:
            self._due = self._latest
            self._register(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Register what a resumed run had not yet registered."""
        self._register(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Registered models, and the one that is still to be registered."""
        return {"saved": self.saved, "due": None if self._due is None else asdict(self._due)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.saved = state_dict["saved"]
        self._due = None if state_dict["due"] is None else ModelCard(**state_dict["due"])

    def _register(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._due is None:
            return
        policy = averaged_policy(trainer, pl_module)
        due, run_id = self._due, str(self.run.run_id)
        version = with_retries(lambda: registry.register_policy(policy, due, run_id), f"update {due.update}")
        self.saved[self._due.update] = f"models:/{registry.model_name(self._due.method, self._due.env)}/{version}"
        self._due = None
