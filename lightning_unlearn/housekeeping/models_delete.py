"""`models delete`: delete versions of registered models, with their files; shows what it would delete without --yes."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lightning_unlearn.housekeeping import inventory
from lightning_unlearn.housekeeping.disk import Files, megabytes, size
from lightning_unlearn.housekeeping.lineage import derived_from
from lightning_unlearn.options import CommandParser
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.registry import delete_version, registered_version
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address


@dataclass(frozen=True)
class Doomed:
    """A version that is asked to be deleted."""

    version: ModelVersion
    model_id: str | None
    """None where it has no model of its own: another version shares it, or it was registered by other means."""
    folder: Path | None
    """The model's files; None where they are not in the store's own folder here."""

    @property
    def uri(self) -> str:
        """As it is printed."""
        return f"models:/{self.version.name}/{self.version.version}"

    def described(self) -> str:
        """What will be lost."""
        aliases = f", aliases {', '.join(sorted(self.version.aliases))}" if self.version.aliases else ""
        stay = "no files of its own in the store's folder here: what it has stays"
        where = stay if self.folder is None else f"{megabytes(size(self.folder))} MB"
        return f"  {self.uri}: {where}{aliases}"


def main(args: Sequence[str]) -> None:
    """Delete what the options name, all of it or nothing."""
    options = _parser().parse_args(args)
    open_store(options.tracking_uri)
    files = Files.of_store()
    runs, every = inventory.all_runs(), inventory.all_versions()
    doomed = list({one.uri: one for one in (_doomed(uri, files, every) for uri in options.models)}.values())
    _require_at_rest(doomed, runs)
    if not options.force:
        _require_underived(doomed, runs, every)
    print("\n".join(one.described() for one in doomed))
    if not options.yes:
        print("Nothing was deleted. Add --yes to delete it.")
        return
    for one in doomed:
        _delete(one, files)
    if files.artifacts is None:
        print(f"Files are kept by the server {store_address()}, where `mlflow gc` clears them up.")


def _doomed(uri: str, files: Files, every: Sequence[ModelVersion]) -> Doomed:
    if not uri.startswith(("models:", "runs:")):
        kind = "a model that the package ships" if registry.is_shipped(uri) else "no version of a registered model"
        raise ValueError(f"{uri} is {kind}: only models:/… and runs:/… can be deleted (see `models list`).")
    named = registered_version(uri)
    version = next(v for v in every if (v.name, str(v.version)) == (named.name, str(named.version)))
    model = inventory.model_id(version)
    if model is None or sum(inventory.model_id(other) == model for other in every) > 1:
        return Doomed(version, None, None)
    folder = files.of_model(model)
    return Doomed(version, model, folder if folder is not None and files.owns(folder) else None)


def _require_at_rest(doomed: Sequence[Doomed], runs: Sequence[Run]) -> None:
    working = {run.info.run_id for run in runs if inventory.is_at_work(run)}
    for one in doomed:
        if one.version.run_id in working:
            raise ValueError(f"{one.uri} is of run {one.version.run_id}, which still runs: wait, or stop it first.")


def _require_underived(doomed: Sequence[Doomed], runs: Sequence[Run], every: Sequence[ModelVersion]) -> None:
    for one in doomed:
        derived = derived_from(one.version, runs, every)
        if derived:
            told = ", ".join(f"{run.info.run_name} ({run.info.run_id}, {run.info.status})" for run in derived)
            raise ValueError(
                f"{one.uri} is what other runs started from: {told}. Without it they can be neither reproduced nor "
                "resumed. Nothing was deleted; to delete it nevertheless, add --force."
            )


def _delete(one: Doomed, files: Files) -> None:
    """The version first, so that nothing ever points to files that are gone."""
    delete_version(one.version.name, str(one.version.version))
    if one.model_id is not None:
        with suppress(MlflowException):  # it may be deleted already
            mlflow.MlflowClient().delete_logged_model(one.model_id)
    if one.folder is not None:
        files.delete(one.folder)
    print(f"Deleted {one.uri}.")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn models delete", description=__doc__)
    parser.add_argument(
        "models", type=str, nargs="+", help="models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN/update-N"
    )
    parser.add_argument("--yes", action="store_true", help="delete; without this it is only shown")
    parser.add_argument("--force", action="store_true", help="also what other runs started from")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
