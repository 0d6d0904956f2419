"""What nothing in a store points to any more.

Folders are listed before the database is asked, so that whatever came into being meanwhile is known to it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModel, Run

from lightning_unlearn.housekeeping import inventory
from lightning_unlearn.housekeeping.disk import Files, is_settled, size
from lightning_unlearn.tracking.store import database_file

DELETED_RUN, ABSENT_RUN = "artifacts of deleted runs", "artifacts of runs that the store does not know"
FINISHED, DELETED, ABSENT = (
    f"checkpoints of {whose}" for whose in ("finished runs", "deleted runs", "runs that the store does not know")
)
MODELS, LEFTOVERS = "files of models that are no version", "what an interrupted write left"
ABSENT_MODEL = "files of models that the store does not know"
FOREIGN = (ABSENT_RUN, ABSENT, ABSENT_MODEL)
"""They may belong to another store, such as a copy of this one."""
_IDS = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")
_SQLITE_MAGIC = b"SQLite format 3\0"
_OWN_MODEL = re.compile(r"update-\d+")


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing points to."""

    kind: str
    path: Path
    size: int
    """Bytes."""
    what: str = ""
    """Name of its run or model, as far as it is known."""


@dataclass(frozen=True)
class Known:
    """What the database says."""

    runs: dict[str, Run]
    models: dict[str, LoggedModel]
    """By id; no deleted ones."""
    deleted_models: set[str]
    pointed_to: set[str]
    """Ids of runs and models that versions come from, or that runs, deleted ones apart, name in options and tags."""
    is_complete: bool
    """Whether all that lies in the store's folders belongs to runs of this store."""

    @classmethod
    def of_store(cls, is_complete: bool) -> "Known":
        """Ask the present store."""
        runs = {run.info.run_id: run for run in inventory.all_runs()}
        models = {model.model_id: model for model in inventory.all_models()}
        texts = [text for run in runs.values() if not inventory.is_deleted(run) for text in _texts(run)]
        texts += [f"{v.source} {v.model_id} {v.run_id}" for v in inventory.all_versions()]
        pointed_to = {found for text in texts for found in _IDS.findall(text)}
        return cls(runs, models, inventory.deleted_models(), pointed_to, is_complete)

    def is_deleted(self, run_id: str) -> bool:
        """Whether a run is deleted, and at rest."""
        run = self.runs.get(run_id)
        return run is not None and inventory.is_deleted(run) and not inventory.is_at_work(run)

    def is_absent(self, run_id: str) -> bool:
        """Whether there surely is no such run, and none that names it."""
        return self.is_complete and run_id not in self.runs and run_id not in self.pointed_to

    def is_at_work(self, run_id: str) -> bool:
        """Whether a run may still write."""
        return run_id in self.runs and inventory.is_at_work(self.runs[run_id])

    def name(self, run_id: str) -> str:
        """A run's name; empty where it is not known."""
        return str(self.runs[run_id].info.run_name) if run_id in self.runs else ""


def find_waste(files: Files) -> list[Waste]:
    """What nothing points to, by kind; nothing of it belongs to a run that may still write."""
    run_folders, model_folders = list(files.run_folders()), list(files.model_folders())
    checkpoints = list(files.checkpoint_folders())
    known = Known.of_store(files.artifacts is not None and not other_databases(files))
    found = [waste for folder in run_folders for waste in _artifacts(folder, known)]
    found += [waste for folder in checkpoints for waste in _checkpoints(folder, known)]
    found += [waste for folder in model_folders for waste in _model(folder, known)]
    return found + list(_unfinished_database(files))


def other_databases(files: Files) -> list[Path]:
    """SQLite databases beside the store's own, whose runs have their files in the same folders."""
    if files.artifacts is None:
        return []
    own = database_file()
    candidates = [path for path in sorted(files.root.iterdir()) if path.is_file() and path != own]
    return [path for path in candidates if ".db.part" not in path.name and _is_database(path)]


def _artifacts(folder: Path, known: Known) -> Iterator[Waste]:
    if known.is_deleted(folder.name) and folder.name not in known.pointed_to:
        yield _waste(DELETED_RUN, folder, known)
    elif known.is_absent(folder.name) and is_settled(folder):
        yield _waste(ABSENT_RUN, folder, known)


def _checkpoints(folder: Path, known: Known) -> Iterator[Waste]:
    run = known.runs.get(folder.name)
    if known.is_at_work(folder.name):
        return
    if known.is_deleted(folder.name):
        yield _waste(DELETED, folder, known)
    elif run is not None and run.info.status == "FINISHED":
        yield _waste(FINISHED, folder, known)
    elif known.is_absent(folder.name) and is_settled(folder):
        yield _waste(ABSENT, folder, known)
    elif run is not None and (begun := folder / "unfinished").is_file() and is_settled(begun):
        yield _waste(LEFTOVERS, begun, known, folder.name)


def _model(folder: Path, known: Known) -> Iterator[Waste]:
    """A model that this package made, that was deleted, or that the store does not know, and that is no version."""
    model = known.models.get(folder.name)
    if folder.name in known.pointed_to or not is_settled(folder) or (model is None and not known.is_complete):
        return
    if model is None:
        yield Waste(MODELS if folder.name in known.deleted_models else ABSENT_MODEL, folder, size(folder))
    elif _OWN_MODEL.fullmatch(model.name or "") and not known.is_at_work(model.source_run_id or ""):
        yield Waste(MODELS, folder, size(folder), str(model.name))


def _unfinished_database(files: Files) -> Iterator[Waste]:
    own = database_file()
    if own is not None:
        yield from (Waste(LEFTOVERS, path, size(path)) for path in sorted(files.root.glob(f"{own.name}.part*")))


def _waste(kind: str, path: Path, known: Known, run_id: str | None = None) -> Waste:
    return Waste(kind, path, size(path), known.name(run_id or path.name))


def _texts(run: Run) -> Iterator[Any]:
    yield from run.data.params.values()
    yield from (value for key, value in run.data.tags.items() if not key.startswith("mlflow."))


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
