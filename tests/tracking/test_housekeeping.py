"""`gc`: it deletes what nothing points to, after showing it, and nothing else."""

import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from unittest import mock

import mlflow
import pytest

from lightning_unlearn import cli, processes
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import housekeeping as gc
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.inventory import model_id
from lightning_unlearn.tracking.verify import verify

ABSENT = "a" * 32
CARD = ModelCard("concept", "ToyLine-v0", "cost_hazards", 0, 7, 100)


def client():
    return mlflow.MlflowClient()


def end(run_id, status="FINISHED"):
    client().set_terminated(run_id, status)


def found(files):
    return {(waste.kind, waste.path.relative_to(files.root).as_posix()) for waste in gc.find_waste(files)}


def everything(files):
    return {path.relative_to(files.root).as_posix() for path in files.root.rglob("*") if path.is_file()} - {
        "mlflow.db", "mlflow.db.lock", "mlflow.db-wal", "mlflow.db-shm"
    }  # fmt: skip


def test_an_empty_or_tidy_store_has_nothing_to_clear(files, register, shown):
    assert "Nothing in" in shown("gc")
    register("concept", 50)
    before = everything(files)
    assert "Nothing in" in shown("gc", "--yes")
    assert everything(files) == before


def test_checkpoints_of_finished_runs_go_and_those_that_a_run_can_resume_from_stay(files, begin, put):
    runs = {status: begin() for status in ("FINISHED", "KILLED", "FAILED", "RUNNING")}
    for status, run_id in runs.items():
        put(files.checkpoints_of(run_id))
        if status != "RUNNING":
            end(run_id, status)
    assert found(files) == {(gc.FINISHED, f"checkpoints/{runs['FINISHED']}")}


def test_files_of_deleted_runs_go_unless_something_points_to_them(files, begin, put, policy_of):
    deleted, named, source = begin(), begin(), begin()
    begin(repedit_artifact=f"runs:/{named}/probes/hazard_direction.pt")
    version = registry.register_policy(policy_of(), CARD, source)
    for run_id in (deleted, named, source):
        put(files.of_run(run_id))
        put(files.checkpoints_of(run_id))
        end(run_id, "KILLED")
        client().delete_run(run_id)
    expected = {(gc.DELETED, f"checkpoints/{run_id}") for run_id in (deleted, named, source)}
    assert found(files) == expected | {(gc.DELETED_RUN, f"artifacts/{deleted}")}
    assert version == "1"


def test_runs_that_still_run_are_left_alone_even_deleted_ones(files, begin, put):
    """A process that cannot be seen from here, on another machine, counts as alive; one that is gone does not."""
    elsewhere = {processes.HOST: "another", processes.PROCESS: "1", processes.STARTED: "1"}
    gone = {processes.HOST: processes.host(), processes.PROCESS: "999999999", processes.STARTED: "1"}
    here, far, dead = begin(), begin(**elsewhere), begin(**gone)
    for run_id in (here, far, dead):
        put(files.of_run(run_id))
        put(files.checkpoints_of(run_id), name="unfinished")
        client().delete_run(run_id)
    assert found(files) == {
        (gc.DELETED_RUN, f"artifacts/{dead}"),
        (gc.DELETED, f"checkpoints/{dead}"),
    }


def test_files_of_runs_that_no_longer_exist_go_when_they_are_old(files, put, store):
    put(files.of_run(ABSENT))
    put(files.checkpoints_of(ABSENT))
    put(files.of_run("b" * 32), age=10)
    expected = {(gc.ABSENT_RUN, f"artifacts/{ABSENT}"), (gc.ABSENT, f"checkpoints/{ABSENT}")}
    assert found(files) == expected


def test_files_that_the_store_does_not_know_go_only_with_foreign(files, begin, put, shown):
    """They may be those of a copy's runs; what the store knows to be over goes without."""
    foreign = [put(files.of_run(ABSENT)), put(files.checkpoints_of(ABSENT)), put(files.of_model(f"m-{ABSENT}"))]
    printed = shown("gc", "--yes")
    assert f"{gc.ABSENT_MODEL}: 1, 0.00 MB" in printed
    assert "What the store does not know stays: it may belong to another store" in printed
    assert "Deleted" not in printed
    run_id = begin()
    end(run_id)
    own = put(files.checkpoints_of(run_id), 2_000_000)
    assert "Deleted 2.00 MB." in shown("gc", "--yes")
    assert not own.exists()
    assert all((folder / "file").is_file() for folder in foreign)
    printed = shown("gc", "--foreign")
    assert "Nothing was deleted. Add --yes to delete it." in printed
    assert all((folder / "file").is_file() for folder in foreign)
    shown("gc", "--foreign", "--yes")
    assert not any(folder.exists() for folder in foreign)


def test_a_model_that_was_deleted_is_known(files, begin, old, policy_of):
    cut_off = registry._log_model(policy_of(), CARD, begin())
    old(files.of_model(cut_off))
    client().delete_logged_model(cut_off)
    assert found(files) == {(gc.MODELS, f"artifacts/models/{cut_off}")}


def test_runs_of_another_database_in_the_same_folder_are_not_taken_for_absent(files, put, shown):
    put(files.of_run(ABSENT))
    put(files.checkpoints_of(ABSENT))
    put(files.of_model(f"m-{ABSENT}"))
    shutil.copy(files.root / "mlflow.db", files.root / "other.sqlite")
    assert found(files) == set()
    printed = shown("gc", "--yes")
    assert "Other databases lie beside" in printed
    assert "other.sqlite" in printed
    (files.root / "other.sqlite").unlink()
    assert len(found(files)) == 3


def test_models_that_never_became_a_version_go_and_others_stay(files, begin, old, policy_of):
    killed, running = begin(), begin()
    registered = registry.register_policy(policy_of(), CARD, killed)
    cut_off = registry._log_model(policy_of(), CARD, killed)
    in_the_making = registry._log_model(policy_of(), CARD, running)
    own = mlflow.MlflowClient().create_logged_model(client().get_run(killed).info.experiment_id, "mine", killed)
    files.of_model(own.model_id).mkdir(exist_ok=True)
    end(killed, "KILLED")
    assert found(files) == set()  # an hour has not passed
    for folder in files.model_folders():
        old(folder)
    assert found(files) == {(gc.MODELS, f"artifacts/models/{cut_off}")}
    cli.main(["gc", "--yes"])
    left = {folder.name for folder in files.model_folders()}
    version = client().get_model_version("concept.ToyLine-v0", registered)
    assert left == {model_id(version), in_the_making, own.model_id}
    assert {model.model_id for model in client().search_logged_models(["1"])} == left
    registry.load_policy(f"models:/concept.ToyLine-v0/{registered}")


def test_models_of_versions_deleted_elsewhere_go(files, register, old):
    register("concept", 50)
    (folder,) = files.model_folders()
    client().delete_model_version("concept.ToyLine-v0", "1")
    old(folder)
    assert found(files) == {(gc.MODELS, f"artifacts/models/{folder.name}")}


def test_what_interrupted_writes_left_goes(files, begin, put):
    killed, running = begin(), begin()
    put(files.checkpoints_of(killed), name="unfinished")
    put(files.checkpoints_of(killed), name="update-1.ckpt")
    put(files.checkpoints_of(running), name="unfinished")
    end(killed, "KILLED")
    (files.root / "mlflow.db.part").write_bytes(b"SQLite format 3\0")
    expected = {
        (gc.LEFTOVERS, f"checkpoints/{killed}/unfinished"),
        (gc.LEFTOVERS, "mlflow.db.part"),
    }
    assert found(files) == expected


def test_it_shows_first_and_deletes_only_with_yes(files, begin, put, shown):
    run_id = begin("oracle-seed3")
    put(files.checkpoints_of(run_id), 2_500_000)
    put(files.of_run(run_id))
    end(run_id)
    before = everything(files)
    printed = shown("gc")
    assert f"checkpoints of finished runs: 1, 2.50 MB\n       2.50 MB  checkpoints/{run_id}  oracle-seed3" in printed
    assert "Nothing was deleted. Add --yes to delete it." in printed
    assert everything(files) == before
    assert "Deleted 2.50 MB." in shown("gc", "--yes")
    assert everything(files) == before - {f"checkpoints/{run_id}/file"}
    assert "Nothing in" in shown("gc", "--yes")


def test_files_and_folders_of_others_are_never_touched(files, put, tmp_path, shown):
    """Whatever has no id for a name is somebody's: notes, backups, experiments of other tools, links."""
    outside = put(tmp_path / "outside" / ABSENT)
    kept = [put(files.artifacts / "notes"), put(files.root / "0" / ABSENT), put(files.checkpoints / "best"), outside]
    kept += [put(files.artifacts / "models" / "mine"), put(files.artifacts / ABSENT.upper())]
    (files.artifacts / ABSENT).symlink_to(outside)
    (files.checkpoints / ABSENT).symlink_to(outside)
    assert "Nothing in" in shown("gc", "--yes")
    assert all((folder / "file").is_file() for folder in kept)
    assert (files.artifacts / ABSENT).is_symlink()


def test_a_folder_that_is_a_link_is_said_to_be_left_out(files, put, tmp_path, shown):
    outside = put(tmp_path / "outside" / ABSENT)
    files.checkpoints.symlink_to(tmp_path / "outside")
    assert f"{files.checkpoints} is a link: nothing behind it is looked at." in shown("gc", "--yes")
    assert (outside / "file").is_file()


def test_places_that_the_database_names_are_not_believed(files, begin, put, tmp_path):
    """A deleted run whose artifacts are said to be somewhere else, such as in another run's folder."""
    run_id, victim = begin(), begin()
    target = put(files.of_run(victim))
    outside = put(tmp_path / "outside")
    end(victim)
    for place in (target.as_uri(), outside.as_uri(), (files.artifacts / run_id / ".." / victim).as_uri()):
        move(files, run_id, place)
        if client().get_run(run_id).info.lifecycle_stage == "deleted":
            client().restore_run(run_id)
        end(run_id)
        client().delete_run(run_id)
        cli.main(["gc", "--yes"])
    assert (target / "file").is_file()
    assert (outside / "file").is_file()


def move(files, run_id, place):
    with sqlite3.connect(files.root / "mlflow.db") as database:
        database.execute("update runs set artifact_uri = ? where run_uuid = ?", (place, run_id))


def test_what_cannot_be_deleted_is_named_and_the_rest_is_deleted(files, begin, put, monkeypatch, capsys):
    first, second = sorted((begin(), begin()))
    for run_id in (first, second):
        put(files.checkpoints_of(run_id))
        end(run_id)
    remove = shutil.rmtree

    def stubborn(path):
        if path.name == first:
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", stubborn)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["gc", "--yes"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert f"NOT deleted: {files.checkpoints_of(first)}: [Errno 13] Permission denied" in printed
    assert files.checkpoints_of(first).exists()
    assert not files.checkpoints_of(second).exists()


def test_a_training_in_another_process_does_not_notice(files, tmp_path):
    """`gc` all the while, with nothing left to settle: the training ends, and all that it stored is whole."""
    chain = ["base.yaml", "env/point_goal1.yaml", "method/unsafe.yaml", "smoke.yaml"]
    options = [part for name in chain for part in ("-c", name)]
    options += ["--updates", "6", "--save_points", *(str(update) for update in range(1, 7))]
    command = [sys.executable, "-m", "lightning_unlearn", "fit", *options]
    collected = 0
    with (tmp_path / "log").open("w") as log, mock.patch("lightning_unlearn.tracking.inventory.SETTLED_S", -1.0):
        training = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        while training.poll() is None:
            cli.main(["gc", "--yes"])
            collected += any(files.model_folders())
            time.sleep(0.2)
    assert training.returncode == 0, (tmp_path / "log").read_text()
    assert collected > 0
    for number in range(1, 7):
        assert verify(f"models:/unsafe.ToyLine-v0/{number}").is_sound
    cli.main(["gc", "--yes"])
    assert not any(files.checkpoint_folders())


def test_a_store_that_is_none_is_refused(refused):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    assert "does not answer" in refused("gc", "--tracking_uri", address)
    assert "names no store" in refused("runs", "list", "--tracking_uri", "somewhere")
