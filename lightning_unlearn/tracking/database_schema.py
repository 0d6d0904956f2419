"""The schema of a SQLite store: MLflow would upgrade that of an older release for good, and without asking."""

import shlex
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import mlflow
from alembic.script import ScriptDirectory

from lightning_unlearn.tracking.addresses import sqlite_uri


def require_current(database: Path) -> None:
    """Refuse a database that another release of MLflow made, before MLflow touches it.

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
            "release, or choose another store with --tracking_uri sqlite:///FOLDER/mlflow.db."
        )
    file, copy = shlex.quote(str(database)), shlex.quote(f"{database}.before-upgrade")
    uri = shlex.quote(sqlite_uri(database))
    raise ValueError(
        f"The database {database} was made by an older MLflow (schema {found}). MLflow {mlflow.__version__} needs it "
        "upgraded, and the older one cannot open it afterwards. To upgrade it, end what uses it, keep a copy, and run\n"
        f"  cp {file} {copy}\n  {sys.executable} -m mlflow db upgrade {uri}\n"
        "To leave it as it is, choose another store with --tracking_uri sqlite:///FOLDER/mlflow.db."
    )


def _revision(database: Path) -> str | None:
    """The schema's revision, empty for another program's database; None where there is no database yet."""
    if not database.exists() or database.stat().st_size == 0:
        return None
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20.0)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" not in tables:
                return "" if tables else None
            return next(
                (str(number) for (number,) in connection.execute("SELECT version_num FROM alembic_version")), ""
            )
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"The database {database} cannot be read ({error}): restore it, or choose another store with "
            "--tracking_uri sqlite:///FOLDER/mlflow.db."
        ) from error
