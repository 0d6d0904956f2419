"""Copied and moved SQLite stores: rewrite the absolute paths in the database for the folder that it lies in now.

MLflow stores absolute paths only. With the paths of its first folder, a copied store would write its new models among
the files of the original, and a moved one would find none of its own. A tag of the default experiment records the
folder whose paths the database holds. Stores of earlier releases have no such tag: there the locations of experiments
are used.
"""

import re
import shlex
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from os.path import exists, isfile, samefile  # unlike pathlib's, False where a folder of another user may not be read
from pathlib import Path, PurePath
from urllib.parse import unquote

from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from lightning_unlearn import processes
from lightning_unlearn.tracking.addresses import sqlite_uri

ARTIFACTS, CHECKPOINTS = "artifacts", "checkpoints"
"""Folders beside a SQLite database: files of runs and models; checkpoints."""
_TAG = "lightning_unlearn.folder"
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
"""Tables and columns in which MLflow looks for files. Options and tags of runs are a record: they stay."""

_LOCAL = re.compile(r"(?P<scheme>file:(//(localhost)?)?)?(?P<path>/.*)", re.DOTALL)


def relocate(database: Path) -> None:
    """Rewrite the paths of a SQLite store that was copied or moved; print one line if there were any.

    Only paths below the store's old folder are rewritten, in one transaction. The caller holds the store's write lock.

    Args:
        database: Absolute path without symbolic links. The database has the schema of the installed MLflow.

    Raises:
        ValueError: The store's files are not in its new folder, another store uses them, or a run still writes to the
            old folder.
    """
    _artifact_repos_cache.clear()  # MLflow remembers a run's folder by the run's id, in whichever store that is
    try:
        with closing(sqlite3.connect(database, timeout=20.0)) as connection, connection:
            recorded = _recorded_folder(connection)
            if recorded is not None and _is_same(recorded, database.parent):
                return
            connection.execute("BEGIN IMMEDIATE")
            folders = [recorded] if recorded is not None else _folders_of_experiments(connection, database)
            for old in folders:
                _require_relocatable(connection, old, database)
            _rewrite(connection, folders, database)
            write_tag = "INSERT OR REPLACE INTO experiment_tags (experiment_id, key, value) VALUES (?, ?, ?)"
            connection.execute(write_tag, (0, _TAG, database.parent.as_uri()))
    except sqlite3.Error as error:
        raise ValueError(f"The paths in {database} cannot be rewritten for its folder: {error}.") from error


def needs_relocation(database: Path) -> bool:
    """Return whether the paths of a SQLite store name another folder than its own. Nothing is written.

    Args:
        database: Absolute, without symbolic links.
    """
    _artifact_repos_cache.clear()  # as in `relocate`
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20.0)) as connection:
            recorded = _recorded_folder(connection)
            if recorded is not None:
                return not _is_same(recorded, database.parent)
            return bool(_folders_of_experiments(connection, database))
    except sqlite3.Error:  # no store of MLflow, which says so itself
        return False


def _recorded_folder(connection: sqlite3.Connection) -> Path | None:
    tag = "SELECT value FROM experiment_tags WHERE experiment_id = 0 AND key = ?"
    row = connection.execute(tag, (_TAG,)).fetchone()
    return _path(row[0]) if row else None


def _folders_of_experiments(connection: sqlite3.Connection, database: Path) -> list[Path]:
    """Other folders in which a store of an earlier release kept its files, by the locations of its experiments.

    A folder counts if its files were copied here, or a store lies there. Every folder counts if there is no such
    folder, and no experiment in the present one.
    """
    here = database.parent
    places = [_path(place) for (place,) in connection.execute("SELECT artifact_location FROM experiments")]
    folders = sorted({place.parent for place in places if place is not None and place.name == ARTIFACTS}, reverse=True)
    others = [folder for folder in folders if not _is_same(folder, here)]
    evident = [
        old
        for old in others
        if isfile(old / database.name) or any(exists(here / path) for path in _run_files(connection, old))
    ]
    return evident if evident or len(others) < len(folders) else others


def _is_same(folder: Path, here: Path) -> bool:
    """True if both are one folder, perhaps by a symbolic link or a bind mount."""
    return folder == here or (exists(folder) and samefile(folder, here))


def _require_relocatable(connection: sqlite3.Connection, old: Path, database: Path) -> None:
    here = database.parent
    if isfile(old / database.name):
        _require_apart(old, here, (database.name, ARTIFACTS, CHECKPOINTS))
    elif working := _runs_at_work(connection, old):
        program = (
            f"import mlflow; client = mlflow.MlflowClient({sqlite_uri(database)!r}); "
            f"[client.set_terminated(run, 'KILLED') for run in {working!r}]"
        )
        raise ValueError(
            f"The store at {here} was in {old} before, and runs that have not ended may still write there: "
            f"{', '.join(working)}. Wait until they have ended. If their processes are gone, end them with\n"
            f"  {shlex.join([sys.executable, '-c', program])}"
        )
    kept = "SELECT artifact_location FROM logged_models WHERE lifecycle_stage != 'deleted'"
    models, runs = _all_below(old, connection.execute(kept)), _run_files(connection, old)
    left = [path for path in (*models, *runs) if exists(old / path) and not exists(here / path)]
    if left:
        folders = [str(old / name) for name in (ARTIFACTS, CHECKPOINTS) if exists(old / name)]
        raise ValueError(
            f"The store at {here} was copied or moved without all of its files: {len(left)} folders of its runs and "
            f"models are in {old} only. Bring them, too:\n  {shlex.join(['cp', '-rn', *folders, str(here)])}"
        )
    if models and not any(exists(here / path) for path in models):
        raise ValueError(
            f"The store at {here} was copied or moved without its files: its {len(models)} models are neither there "
            f"nor in {old}, where the store was before. Bring {ARTIFACTS} and {CHECKPOINTS} from where that folder is "
            f"now:\n  cp -rn OLD_FOLDER/{ARTIFACTS} OLD_FOLDER/{CHECKPOINTS} {shlex.quote(str(here))}"
        )


def _require_apart(old: Path, here: Path, names: Iterable[str]) -> None:
    """Refuse a copy made with links, which would share its database or folders with the original."""
    for name in names:
        if exists(here / name) and exists(old / name) and samefile(here / name, old / name):
            mine, part = shlex.quote(str(here / name)), shlex.quote(str(here / f"{name}.copy"))
            raise ValueError(
                f"{here / name} and {old / name} are one, by a link, so that two stores would write to it. Make it a "
                f"copy:\n  cp -rL {mine} {part} && rm {mine} && mv {part} {mine}"
            )


def _runs_at_work(connection: sqlite3.Connection, old: Path) -> list[str]:
    """Ids of runs below the old folder that may still write; one that cannot be seen from here counts as alive."""
    running = connection.execute("SELECT run_uuid, artifact_uri FROM runs WHERE status = 'RUNNING'").fetchall()
    ids = [run_id for run_id, place in running if _below(old, place) is not None]
    tags = {
        run_id: dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,))) for run_id in ids
    }
    return [run_id for run_id in ids if not processes.is_gone(tags[run_id])]


def _run_files(connection: sqlite3.Connection, old: Path) -> list[PurePath]:
    """Artifact folders of runs, below the old folder. Such a folder need not exist."""
    return _all_below(old, connection.execute("SELECT artifact_uri FROM runs"))


def _all_below(old: Path, places: Iterable[tuple[str | None]]) -> list[PurePath]:
    return [path for (place,) in places if (path := _below(old, place)) is not None]


def _rewrite(connection: sqlite3.Connection, folders: Sequence[Path], database: Path) -> None:
    """Rewrite paths below any of the folders; of two folders, one in the other, the inner one comes first."""
    here = database.parent

    def relocated(place: str | None) -> str | None:
        inside = next((path for old in folders if (path := _below(old, place)) is not None), None)
        return place if inside is None else (here / inside).as_uri()

    connection.create_function("relocated", 1, relocated, deterministic=True)
    changed = sum(
        connection.execute(
            f"UPDATE {table} SET {column} = relocated({column}) WHERE {column} IS NOT relocated({column})"
        ).rowcount
        for table, column in _COLUMNS
    )
    for old in folders:
        quoted = f'"{old.as_uri()}/', f'"{here.as_uri()}/'  # in JSON
        connection.execute("UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)", quoted)
    if changed:
        how = "copied" if any(isfile(old / database.name) for old in folders) else "moved"
        old_places = " and ".join(map(str, folders))
        print(f"This store was {how} from {old_places}: {changed} paths in its database now name {here}.", flush=True)


def _below(old: Path, place: str | None) -> PurePath | None:
    """The path relative to the old folder; None if it is elsewhere."""
    path = _path(place)
    return path.relative_to(old) if path is not None and path.is_relative_to(old) else None


def _path(place: str | None) -> Path | None:
    """The absolute path that a file URI or a path names; None for other places, and for paths with `..`."""
    found = _LOCAL.fullmatch(place or "")
    if found is None:
        return None
    path = Path(unquote(found["path"]) if found["scheme"] else found["path"])
    return None if ".." in path.parts else path
