"""What an earlier attempt at a step left is found again, on its machine or through the store."""

import hashlib
import os
import shutil

import mlflow
import pytest

from lightning_unlearn import processes
from lightning_unlearn.study import jobs
from lightning_unlearn.study.cache import DIGEST
from lightning_unlearn.study.jobs import resume_options, sending_checkpoints
from lightning_unlearn.tracking.store import checkpoint_folder

ENV = "ToyLine-v0"


@pytest.fixture
def attempt(store):
    """Makes a run that was an attempt at the step `abc`; returns its id."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment(ENV)

    def make(status="KILLED", parent="this study", checkpoint=b"weights"):
        tags = {DIGEST: "abc", "mlflow.parentRunId": parent}
        run_id = client.create_run(experiment, tags=tags).info.run_id
        client.update_run(run_id, status=status)
        if checkpoint:
            folder = checkpoint_folder(run_id)
            folder.mkdir(parents=True)
            (folder / f"update-3.{hashlib.sha256(checkpoint).hexdigest()}.ckpt").write_bytes(checkpoint)
        return run_id

    return make


def options(digest="abc"):
    return resume_options(ENV, digest, "this study")


ATTEMPTS = {
    "none": ([], None, []),
    "interrupted": ([{}], 0, ["KILLED"]),
    "finished, or without a checkpoint": ([{"status": "FINISHED"}, {"checkpoint": None}], None, ["FINISHED", "KILLED"]),
    "dead: of this study, and running elsewhere": ([{"status": "RUNNING"}], 0, ["KILLED"]),
    "running for another study": ([{"status": "RUNNING", "parent": "another study"}], None, ["RUNNING"]),
}


@pytest.mark.parametrize(("made", "resumed", "after"), ATTEMPTS.values(), ids=ATTEMPTS)
def test_an_attempt_that_is_over_and_left_a_checkpoint_is_resumed(store, attempt, made, resumed, after):
    ids = [attempt(**one) for one in made]
    assert options("another") == []
    assert options() == ([] if resumed is None else ["--resume", ids[resumed]])
    assert [mlflow.get_run(run_id).info.status for run_id in ids] == after


def test_an_attempt_that_a_killed_study_left_behind_is_not_doubled(attempt):
    run_id = attempt(status="RUNNING")
    for key, value in processes.owner().items():  # this process is there, certainly
        mlflow.MlflowClient().set_tag(run_id, key, value)
    with pytest.raises(ValueError, match=f"still under way in process {os.getpid()}"):
        options()
    assert mlflow.get_run(run_id).info.status == "RUNNING"


def test_a_checkpoint_travels_through_the_store(attempt, monkeypatch, tmp_path):
    run_id = attempt()
    monkeypatch.setattr(jobs, "_LOOK_S", 0.01)
    monkeypatch.setattr(jobs, "EVERY_S", 0.02)
    folder = checkpoint_folder(run_id)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as a worker is; checkpoints lie where the store says
    sends = iter([lambda _: False])  # the first time, the server does not answer
    real = jobs._send
    monkeypatch.setattr(jobs, "_send", lambda checkpoint: next(sends, real)(checkpoint))
    with sending_checkpoints():
        for _ in range(500):
            if mlflow.MlflowClient().list_artifacts(run_id, jobs.SENT):
                break
            jobs.time.sleep(0.01)
    shutil.rmtree(folder)
    assert options() == ["--resume", run_id]
    (received,) = folder.glob("*.ckpt")
    assert received.read_bytes() == b"weights"


def test_a_damaged_checkpoint_is_not_gone_on_with(attempt):
    run_id = attempt()
    (file,) = checkpoint_folder(run_id).glob("*.ckpt")
    file.write_bytes(b"something else")
    assert options() == []
