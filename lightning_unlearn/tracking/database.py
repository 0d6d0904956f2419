"""The SQLite file of a store: checked before MLflow touches it, created whole, and locked for writing."""

import fcntl
import os
import shlex
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import Engine

from lightning_unlearn.tracking.addresses import sqlite_uri

_ANOTHER = "choose another store with --tracking_uri sqlite:///FOLDER/mlflow.db."


def require_writable(database: Path) -> None:
    """Refuse a database, or a folder for a new one, that cannot be written; the folder is made if need be.

    Raises:
        ValueError: It cannot.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent) as probe:
            probe.write(b"\0" * 65536)
        if database.exists():
            with database.open("ab"):
                pass
    except OSError as error:
        raise ValueError(
            f"The store at {database.parent} cannot be written ({error.strerror}): free some space or "
            f"change its permissions, or {_ANOTHER}"
        ) from error


def require_current_schema(database: Path) -> None:
    """Refuse a database of another release of MLflow, which would upgrade it for good, and without asking.

    Raises:
        ValueError: Its schema is an older or a newer one, or it is no database of MLflow.
    """
    found = _revision(database)
    if found is None:
        return
    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if found in scripts.get_heads():
        return
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise ValueError(
            f"The database {database} has the schema {found or 'of no release of MLflow'}, which MLflow "
            f"{mlflow.__version__} does not know: a newer release of MLflow or another program made it. Install that "
            f"release, or {_ANOTHER}"
        )
    file, copy = shlex.quote(str(database)), shlex.quote(f"{database}.before-upgrade")
    raise ValueError(
        f"The database {database} was made by an older MLflow (schema {found}). MLflow {mlflow.__version__} needs it "
        "upgraded, and the older one cannot open it afterwards. To upgrade it, end what uses it, keep a copy, and run\n"
        f"  cp {file} {copy}\n  {sys.executable} -m mlflow db upgrade {shlex.quote(sqlite_uri(database))}\n"
        f"To leave it as it is, {_ANOTHER}"
    )


def _revision(database: Path) -> str | None:
    """The schema's revision, empty for another program's database; None if there is no database yet."""
    if not database.exists() or database.stat().st_size == 0:
        return None
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20.0)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" not in tables:
                return "" if tables else None
            numbers = connection.execute("SELECT version_num FROM alembic_version")
            return next((str(number) for (number,) in numbers), "")
    except sqlite3.DatabaseError as error:
        raise ValueError(f"The database {database} cannot be read ({error}): restore it, or {_ANOTHER}") from error


def create(database: Path) -> None:
    """Create the database of a new store under another name first: MLflow cannot continue an interrupted creation."""
    unfinished = database.with_name(f"{database.name}.part")
    unfinished.unlink(missing_ok=True)
    thread = threading.get_ident()

    def wait_for_no_disk(connection: object, _: object) -> None:
        """MLflow makes some 80 transactions, each of which would wait for the disk several times."""
        if isinstance(connection, sqlite3.Connection) and threading.get_ident() == thread:
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", wait_for_no_disk)
    try:
        mlflow.MlflowClient(sqlite_uri(unfinished)).search_experiments(max_results=1)
    finally:
        event.remove(Engine, "connect", wait_for_no_disk)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, database)


class WriteLock:
    """One lock for all processes that write to a SQLite store; the thread that holds it may take it again.

    SQLite lets writers wait for each other, but a reader that becomes a writer is refused at once, and two processes
    that look for the highest version number find the same one.
    """

    def __init__(self) -> None:
        self._threads, self._depth = threading.RLock(), 0

    @contextmanager
    def held(self, database: Path) -> Iterator[None]:
        """Hold the lock of a database."""
        with self._threads:
            self._depth += 1
            try:
                if self._depth > 1:
                    yield
                    return
                with database.with_name(f"{database.name}.lock").open("ab") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, or the process killed
                    yield
            finally:
                self._depth -= 1
