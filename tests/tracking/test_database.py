"""Databases that another release of MLflow, or another program, made: never touched."""

import shlex
import shutil
import sqlite3
from contextlib import closing

import mlflow
import pytest
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from lightning_unlearn.tracking.addresses import sqlite_uri
from lightning_unlearn.tracking.store import open_store

OF_MLFLOW_2_9 = "acf3f17fdcc7"


def revision(database):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]


@pytest.fixture(scope="session")
def older(tmp_path_factory):
    """A database as MLflow 2.9 made it, by its own migrations."""
    database = tmp_path_factory.mktemp("older") / "mlflow.db"
    engine = create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    command.upgrade(_get_alembic_config(f"sqlite:///{database}"), OF_MLFLOW_2_9)
    engine.dispose()
    return database


@pytest.mark.parametrize("name", ["my store.db", "why? 100%20.db"])
def test_a_database_of_an_older_mlflow_is_not_upgraded_without_asking(older, tmp_path, name):
    database = tmp_path / name
    shutil.copy(older, database)
    before = database.read_bytes()
    with pytest.raises(ValueError, match="made by an older MLflow") as refused:
        open_store(sqlite_uri(database))
    assert database.read_bytes() == before
    told = str(refused.value)
    assert f"cp '{database}' '{database}.before-upgrade'" in told
    uri = shlex.split(told.partition("-m mlflow db upgrade ")[2])[0]
    assert make_url(uri).database == str(database)


def test_after_the_upgrade_it_is_opened(older, tmp_path):
    database = tmp_path / "mlflow.db"
    shutil.copy(older, database)
    command.upgrade(_get_alembic_config(f"sqlite:///{database}"), "heads")
    open_store(f"sqlite:///{database}")
    assert mlflow.MlflowClient().get_experiment("0").name == "Default"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "UPDATE alembic_version SET version_num = 'f00f00f00f00'",
            "schema f00f00f00f00, which MLflow .* does not know",
        ),
        ("DROP TABLE alembic_version", "schema of no release of MLflow"),
    ],
    ids=["a newer MLflow", "another program"],
)
def test_a_database_of_something_else_is_left_alone(store, tmp_path, statement, message):
    database = tmp_path / "mlruns" / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(statement)
        connection.commit()
    before = database.read_bytes()
    with pytest.raises(ValueError, match=message):
        open_store()
    assert database.read_bytes() == before


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database, and long enough to look at\n" * 50)
    with pytest.raises(ValueError, match=r"notes\.txt cannot be read"):
        open_store(f"sqlite:///{tmp_path}/notes.txt")
