"""Opening a store, and the runs in it whose process is gone."""

import subprocess
import sys

import mlflow
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from lightning_unlearn import processes
from lightning_unlearn.tracking.addresses import sqlite_uri
from lightning_unlearn.tracking.store import experiment_id, open_store


def test_what_names_no_store_is_refused():
    with pytest.raises(ValueError, match=r"tracking_uri='nonsense' names no store: use sqlite:///"):
        open_store("nonsense")


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written.*--tracking_uri"):
        open_store(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_only_the_making_of_a_store_does_not_wait_for_the_disk(tmp_path, store):
    database, seen = tmp_path / "new" / "mlflow.db", {}

    def look(connection, *_):
        seen.setdefault(connection.engine.url.database, connection.exec_driver_sql("PRAGMA synchronous").scalar())

    event.listen(Engine, "commit", look)
    try:
        open_store(sqlite_uri(database))
        mlflow.MlflowClient().create_experiment("new")
    finally:
        event.remove(Engine, "commit", look)
    assert seen == {f"{database}.part": 0, str(database): 2}


def test_a_run_whose_process_is_gone_is_marked_killed_by_the_next_command(store):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    client, experiment = mlflow.MlflowClient(), experiment_id("ToyLine-v0")
    tags = {processes.HOST: processes.host(), processes.PROCESS: str(process.pid)}
    alive = client.create_run(experiment, tags=tags | {processes.STARTED: processes.started(process.pid)})
    renumbered = client.create_run(experiment, tags=tags | {processes.STARTED: "1"})
    elsewhere = client.create_run(experiment, tags=tags | {processes.HOST: "another", processes.STARTED: "1"})

    def statuses():
        open_store(store)
        return [client.get_run(run.info.run_id).info.status for run in (alive, renumbered, elsewhere)]

    assert statuses() == ["RUNNING", "KILLED", "RUNNING"]
    process.communicate()
    assert statuses() == ["KILLED", "KILLED", "RUNNING"]
