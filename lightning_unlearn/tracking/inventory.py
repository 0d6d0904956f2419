"""Content of a store: its runs, models and versions, deleted ones included, and their files on this machine.

Paths that a database names are not trusted: a folder is found by the id of its run or model, in the store's own
folders. No link is followed, and nothing outside those folders is ever deleted.
"""

import os
import re
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, ViewType
from mlflow.entities.model_registry import ModelVersion

from lightning_unlearn.tracking.registry import save_point_aliases
from lightning_unlearn.tracking.runs import StoredRun, utc
from lightning_unlearn.tracking.store import ARTIFACTS, checkpoints_root, database_file, pages, store_folder

SETTLED_S = 3600.0
"""Seconds without a change after which unknown files count as left behind: before that they may be in the making."""
_PAGE = 1000
_RUN_ID, _MODEL_ID = re.compile(r"[0-9a-f]{32}"), re.compile(r"m-[0-9a-f]{32}")
_LATEST = "latest"


def all_runs(env_id: str | None = None) -> list[StoredRun]:
    """Return every run of all experiments, or of an environment's, oldest first; deleted ones too."""
    client = mlflow.MlflowClient()
    ids = [experiment.experiment_id for experiment in all_experiments() if env_id in (None, experiment.name)]
    if not ids:
        return []
    order = ["attributes.start_time ASC"]
    found = pages(lambda token: client.search_runs(ids, "", ViewType.ALL, _PAGE, order, token))
    return [StoredRun.of(run) for run in found]


def all_versions() -> list[ModelVersion]:
    """Return every version of every registered model, by name and number, with its aliases."""
    client = mlflow.MlflowClient()
    found = pages(lambda token: client.search_model_versions(None, _PAGE, page_token=token))
    versions = sorted(found, key=lambda version: (version.name, int(version.version)))
    aliases = {name: client.get_registered_model(name).aliases for name in {v.name for v in versions}}
    for version in versions:  # a search leaves them out
        own = aliases[version.name].items()
        version.aliases = [alias for alias, number in own if str(number) == str(version.version)]
    return versions


def all_models() -> list[LoggedModel]:
    """Return every stored model, whether or not it became a version; deleted ones are left out."""
    client = mlflow.MlflowClient()
    ids = [experiment.experiment_id for experiment in all_experiments()]
    return list(pages(lambda token: client.search_logged_models(ids, max_results=50, page_token=token)))


def deleted_models() -> set[str]:
    """Return the ids of deleted models of a SQLite store, which no search of MLflow finds; none of another store."""
    database = database_file()
    if database is None:
        return set()
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT model_id FROM logged_models WHERE lifecycle_stage = 'deleted'")
        return {model_id for (model_id,) in rows}


def all_experiments() -> list[Any]:
    """Return every experiment, deleted ones too."""
    client = mlflow.MlflowClient()
    return list(pages(lambda token: client.search_experiments(ViewType.ALL, page_token=token)))


def model_id(version: ModelVersion) -> str | None:
    """Return the id of a version's model, by which its files are found; None if it has none."""
    found = _MODEL_ID.search(f"{version.model_id} {version.source}")
    return found and found[0]


def derived_from(version: ModelVersion, runs: Sequence[StoredRun], versions: Sequence[ModelVersion]) -> list[StoredRun]:
    """Return the runs, deleted ones apart, that started from a version.

    An alias in a run's tag `source` is resolved to the version that it pointed to when the run started. For `latest`,
    `update-<n>` and `seed-<s>-update-<n>` that is the newest one of that time; for any other alias, the present one.
    """
    return [
        run
        for run in runs
        if not run.is_deleted and any(_names(uri, version, run, versions) for uri in run.tags.get("source", "").split())
    ]


def _names(uri: str, version: ModelVersion, run: StoredRun, versions: Sequence[ModelVersion]) -> bool:
    """True if a URI named this version when the run started."""
    kind, _, rest = uri.partition(":")
    rest = rest.lstrip("/")
    if kind == "runs":
        return rest == f"{version.run_id}/update-{version.tags.get('update')}"
    if kind != "models":
        return False
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return name == version.name and _pointed(alias, version, run, versions)
    name, _, number = rest.partition("/")
    if number == _LATEST:
        return name == version.name and _pointed(_LATEST, version, run, versions)
    return (name, number) == (version.name, str(version.version)) or rest == model_id(version)


def _pointed(alias: str, version: ModelVersion, run: StoredRun, versions: Sequence[ModelVersion]) -> bool:
    """True if an alias of the version's registered model pointed to the version when the run started."""
    if alias != _LATEST and not re.fullmatch(r"(seed-\d+-)?update-\d+", alias):
        return alias in version.aliases
    there = [v for v in versions if v.name == version.name and utc(v.creation_timestamp) <= run.started]
    named = [
        int(v.version)
        for v in there
        if alias == _LATEST or alias in save_point_aliases(v.tags.get("seed"), v.tags.get("update"))
    ]
    return max(named, default=0) == int(version.version)


@dataclass(frozen=True)
class Files:
    """The present store's own folders on this machine."""

    root: Path
    """Folder that holds all the others. If a server keeps the store's files, only checkpoints are here."""
    checkpoints: Path
    artifacts: Path | None
    """Artifacts of runs; None if a server keeps them."""
    models: Path | None
    """Files of models; None if a server keeps them."""

    @classmethod
    def of_store(cls) -> "Files":
        """Return the folders of the present store."""
        root, checkpoints = store_folder(), checkpoints_root()
        if root is None:
            return cls(checkpoints.parent, checkpoints, None, None)
        return cls(root, checkpoints, root / ARTIFACTS, root / ARTIFACTS / "models")

    def of_run(self, run_id: str) -> Path | None:
        """Return the folder of a run's artifacts."""
        return _child(self.artifacts, run_id, _RUN_ID)

    def of_model(self, model_id: str) -> Path | None:
        """Return the folder of a model's files."""
        return _child(self.models, model_id, _MODEL_ID)

    def checkpoints_of(self, run_id: str) -> Path | None:
        """Return the folder of a run's checkpoints."""
        return _child(self.checkpoints, run_id, _RUN_ID)

    def run_folders(self) -> Iterator[Path]:
        """Iterate over folders of runs' artifacts, whether or not there are such runs."""
        return _children(self.artifacts, _RUN_ID)

    def model_folders(self) -> Iterator[Path]:
        """Iterate over folders of models, whether or not there are such models."""
        return _children(self.models, _MODEL_ID)

    def checkpoint_folders(self) -> Iterator[Path]:
        """Iterate over folders of checkpoints, whether or not there are such runs."""
        return _children(self.checkpoints, _RUN_ID)

    def owns(self, path: Path) -> bool:
        """Return whether a path exists, lies in the store's own folders, and behind no link."""
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else Path()
        if not inside.parts or ".." in inside.parts or not os.path.lexists(path):
            return False
        return path.resolve() == self.root.resolve() / inside

    def delete(self, path: Path) -> None:
        """Delete a file, or a folder with all that is in it; links inside are deleted, not their targets.

        Raises:
            ValueError: It is gone, lies elsewhere than in the store's folders, or behind a link.
        """
        if not self.owns(path):
            raise ValueError(f"{path} is not deleted: it is gone, not in the store's own folders, or behind a link.")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _child(folder: Path | None, name: str, kind: re.Pattern[str]) -> Path | None:
    return folder / name if folder is not None and kind.fullmatch(name) else None


def _children(folder: Path | None, kind: re.Pattern[str]) -> Iterator[Path]:
    if folder is None or folder.is_symlink() or folder.parent.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if kind.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def size(path: Path | None) -> int:
    """Return the bytes of a file, or of all files in a folder; each file counts once, and no link is followed."""
    if path is None:
        return 0
    found = {(s.st_dev, s.st_ino): s.st_size for s in _stats(path) if stat.S_ISREG(s.st_mode)}
    return sum(found.values())


def is_settled(path: Path) -> bool:
    """Return whether nothing in a folder has changed for a while."""
    return time.time() - max((s.st_mtime for s in _stats(path)), default=0.0) > SETTLED_S


def megabytes(size_in_bytes: int | None) -> str:
    """Format a size in MB of 10⁶ bytes; a dash for files that are not on this machine."""
    return "-" if size_in_bytes is None else f"{size_in_bytes / 1e6:.2f}"


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Status of a file or folder and of everything in it; what vanishes meanwhile is left out."""
    places = [str(path)]
    for folder, folders, files in () if path.is_symlink() else os.walk(path):
        places += [os.path.join(folder, name) for name in (*folders, *files)]
    for place in places:
        try:
            yield os.lstat(place)
        except FileNotFoundError:
            continue
