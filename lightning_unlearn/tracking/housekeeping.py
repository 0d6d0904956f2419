"""The `gc` command: show files in the store that nothing refers to any more, and delete them with --yes.

These are files of deleted runs, checkpoints of finished runs (nothing resumes from them), models that never became a
version, and rests of interrupted writes. Files of a run that may still write are never touched. Files of runs and
models that the database does not know are shown, and deleted only with --foreign: they may be another store's.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException

from lightning_unlearn.options import CommandParser
from lightning_unlearn.tracking import inventory
from lightning_unlearn.tracking.inventory import Files, is_settled, megabytes, size
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, database_file, open_store, store_address

DELETED_RUN, ABSENT_RUN = "artifacts of deleted runs", "artifacts of runs that the store does not know"
FINISHED, DELETED, ABSENT = (
    f"checkpoints of {whose}" for whose in ("finished runs", "deleted runs", "runs that the store does not know")
)
MODELS, LEFTOVERS = "files of models that are no version", "what an interrupted write left"
ABSENT_MODEL = "files of models that the store does not know"
FOREIGN = (ABSENT_RUN, ABSENT, ABSENT_MODEL)
"""Kinds that may belong to another store, such as a copy of this one."""
_IDS = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")
_SQLITE_MAGIC = b"SQLite format 3\0"
_OWN_MODEL = re.compile(r"update-\d+")


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
    kept = _delete(doomed, files)
    print(f"Deleted {megabytes(sum(one.size for one in doomed if one.path not in kept))} MB.")
    if kept:
        print("\n".join(f"NOT deleted: {path}: {why}" for path, why in kept.items()))
        raise SystemExit(1)


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn gc", description=__doc__)
    parser.add_argument("--yes", action="store_true", help="delete it; without this it is only shown")
    parser.add_argument(
        "--foreign", action="store_true", help="also files of runs and models that the store does not know"
    )
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser


def _notes(files: Files) -> list[str]:
    """Lines about folders that are left out."""
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


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing refers to."""

    kind: str
    path: Path
    size: int
    """Bytes."""
    name: str = ""
    """Name of its run or model; empty if unknown."""


def _shown(waste: Sequence[Waste], files: Files) -> list[str]:
    lines = []
    for kind in dict.fromkeys(one.kind for one in waste):
        own = [one for one in waste if one.kind == kind]
        lines.append(f"{kind}: {len(own)}, {megabytes(sum(one.size for one in own))} MB")
        lines += [
            f"  {megabytes(one.size):>9} MB  {one.path.relative_to(files.root)}  {one.name}".rstrip() for one in own
        ]
    total = f"In all {megabytes(sum(one.size for one in waste))} MB in {files.root}."
    return [*lines, total] if lines else []


def _delete(waste: Sequence[Waste], files: Files) -> dict[Path, str]:
    """Delete waste; return the paths that could not be deleted, with the reasons."""
    kept = {}
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


def find_waste(files: Files) -> list[Waste]:
    """Find files that nothing refers to, by kind; none of them belongs to a run that may still write.

    Folders are listed before the database is asked, so that it knows whatever comes into being meanwhile.
    """
    run_folders, model_folders = list(files.run_folders()), list(files.model_folders())
    checkpoints = list(files.checkpoint_folders())
    database = _Database.read(files.artifacts is not None and not other_databases(files))
    found = []
    for folder in run_folders:
        run_id = folder.name
        if database.is_deleted(run_id) and run_id not in database.referred:
            found.append(database.waste(DELETED_RUN, folder, run_id))
        elif database.is_absent(run_id) and is_settled(folder):
            found.append(database.waste(ABSENT_RUN, folder, run_id))
    found += [waste for folder in checkpoints for waste in _checkpoints(folder, database)]
    found += [waste for folder in model_folders for waste in _model(folder, database)]
    if (own := database_file()) is not None:
        found += [Waste(LEFTOVERS, path, size(path)) for path in sorted(files.root.glob(f"{own.name}.part*"))]
    return found


def other_databases(files: Files) -> list[Path]:
    """Return SQLite databases beside the store's own, whose runs have their files in the same folders."""
    if files.artifacts is None:
        return []
    own = database_file()
    candidates = [path for path in sorted(files.root.iterdir()) if path.is_file() and path != own]
    databases = []
    for path in candidates:
        with path.open("rb") as file:
            if ".db.part" not in path.name and file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC:
                databases.append(path)
    return databases


@dataclass(frozen=True)
class _Database:
    """The content of the store's database."""

    runs: dict[str, StoredRun]
    models: dict[str, LoggedModel]
    """By id; deleted ones are left out."""
    deleted_models: set[str]
    referred: set[str]
    """Ids of runs and models that versions, or the options and tags of runs that are not deleted, refer to."""
    is_complete: bool
    """All that lies in the store's folders belongs to runs of this database."""

    @classmethod
    def read(cls, is_complete: bool) -> "_Database":
        """Read the present store."""
        runs = {run.run_id: run for run in inventory.all_runs()}
        models = {model.model_id: model for model in inventory.all_models()}
        alive = [run for run in runs.values() if not run.is_deleted]
        texts = [text for run in alive for text in (*run.params.values(), *run.tags.values())]
        texts += [f"{v.source} {v.model_id} {v.run_id}" for v in inventory.all_versions()]
        referred = {found for text in texts for found in _IDS.findall(text)}
        return cls(runs, models, inventory.deleted_models(), referred, is_complete)

    def is_deleted(self, run_id: str) -> bool:
        """Return whether a run is deleted, and does not write any more."""
        run = self.runs.get(run_id)
        return run is not None and run.is_deleted and not run.may_write

    def is_absent(self, run_id: str) -> bool:
        """Return whether there certainly is no such run, and nothing that refers to it."""
        return self.is_complete and run_id not in self.runs and run_id not in self.referred

    def may_write(self, run_id: str) -> bool:
        """Return whether a run may still write."""
        return run_id in self.runs and self.runs[run_id].may_write

    def waste(self, kind: str, path: Path, run_id: str) -> Waste:
        """Return a path of a run as waste."""
        return Waste(kind, path, size(path), self.runs[run_id].name if run_id in self.runs else "")


def _checkpoints(folder: Path, database: _Database) -> Iterator[Waste]:
    run_id, run = folder.name, database.runs.get(folder.name)
    if database.may_write(run_id):
        return
    if database.is_deleted(run_id):
        yield database.waste(DELETED, folder, run_id)
    elif run is not None and run.status == "FINISHED":
        yield database.waste(FINISHED, folder, run_id)
    elif database.is_absent(run_id) and is_settled(folder):
        yield database.waste(ABSENT, folder, run_id)
    elif run is not None and (begun := folder / "unfinished").is_file() and is_settled(begun):
        yield database.waste(LEFTOVERS, begun, run_id)


def _model(folder: Path, database: _Database) -> Iterator[Waste]:
    """A model that is no version, and that this package made, that was deleted, or that the store does not know."""
    model = database.models.get(folder.name)
    if folder.name in database.referred or not is_settled(folder) or (model is None and not database.is_complete):
        return
    if model is None:
        yield Waste(MODELS if folder.name in database.deleted_models else ABSENT_MODEL, folder, size(folder))
    elif _OWN_MODEL.fullmatch(model.name or "") and not database.may_write(model.source_run_id or ""):
        yield Waste(MODELS, folder, size(folder), str(model.name))
