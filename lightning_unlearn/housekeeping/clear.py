"""The `gc` command: shows what nothing in the store points to, and deletes it with --yes.

That is: files of runs that were deleted, checkpoints of finished runs (nothing resumes from them), models that never
became a version, and what an interrupted write left. Nothing of a run that may still write is touched. Files of runs
and models that the database does not know are shown, and deleted only with --foreign: they may be another store's.
"""

from collections.abc import Sequence
from contextlib import suppress

import mlflow
from mlflow.exceptions import MlflowException

from lightning_unlearn.housekeeping.disk import Files, megabytes
from lightning_unlearn.housekeeping.plan import FOREIGN, MODELS, Waste, find_waste, other_databases
from lightning_unlearn.options import CommandParser
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address


def main(args: Sequence[str]) -> None:
    """Show, and delete if asked to; ends with exit code 1 if something could not be deleted."""
    options = _parser().parse_args(args)
    open_store(options.tracking_uri)
    files = Files.of_store()
    waste = find_waste(files)
    print("\n".join([*_notes(files), *(_shown(waste, files) or [f"Nothing in {files.root} is to be cleared up."])]))
    doomed = [one for one in waste if options.foreign or one.kind not in FOREIGN]
    if len(doomed) < len(waste):
        print(
            "What the store does not know stays: it may belong to another store, such as a copy of this one. "
            "Add --foreign if it does not."
        )
    if not doomed:
        return
    if not options.yes:
        print("Nothing was deleted. Add --yes to delete it.")
        return
    kept = delete(doomed, files)
    print(f"Deleted {megabytes(sum(one.size for one in doomed if one.path not in kept))} MB.")
    if kept:
        print("\n".join(f"NOT deleted: {path}: {why}" for path, why in kept.items()))
        raise SystemExit(1)


def delete(waste: Sequence[Waste], files: Files) -> dict[object, str]:
    """Delete what was found; returns what could not be deleted, and why."""
    kept: dict[object, str] = {}
    for one in waste:
        try:
            files.delete(one.path)
        except (OSError, ValueError) as error:
            kept[one.path] = str(error)
            continue
        if one.kind == MODELS:
            with suppress(MlflowException):  # it may be one that the store does not know
                mlflow.MlflowClient().delete_logged_model(one.path.name)
    return kept


def _shown(waste: Sequence[Waste], files: Files) -> list[str]:
    lines = []
    for kind in dict.fromkeys(one.kind for one in waste):
        own = [one for one in waste if one.kind == kind]
        lines.append(f"{kind}: {len(own)}, {megabytes(sum(one.size for one in own))} MB")
        lines += [
            f"  {megabytes(one.size):>9} MB  {one.path.relative_to(files.root)}  {one.what}".rstrip() for one in own
        ]
    total = f"In all {megabytes(sum(one.size for one in waste))} MB in {files.root}."
    return [*lines, total] if lines else []


def _notes(files: Files) -> list[str]:
    if files.artifacts is None:
        return [
            f"The files of runs and models are kept by the server {store_address()}: clear them up there "
            "(`mlflow gc`). Here only checkpoints are looked at."
        ]
    links = [
        path for path in (files.artifacts, files.models, files.checkpoints) if path is not None and path.is_symlink()
    ]
    notes = [f"{path} is a link: nothing behind it is looked at." for path in links]
    if others := other_databases(files):
        names = ", ".join(path.name for path in others)
        notes.append(
            f"Other databases lie beside {store_address()}: {names}. Their runs may have files here, so that "
            "what this store does not know stays. Move them elsewhere if they are copies."
        )
    return notes


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn gc", description=__doc__)
    parser.add_argument("--yes", action="store_true", help="delete it; without this it is only shown")
    parser.add_argument(
        "--foreign", action="store_true", help="also files of runs and models that the store does not know"
    )
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
