"""Stores, checkpoints, models and probes that earlier versions wrote are read as they were."""

import json
import zipfile

import before
import mlflow
import numpy as np
import pytest
import record


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """What they have to give, and whether to the bit; in a folder that they are unpacked in."""
    with zipfile.ZipFile(record.FOLDER / "before.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return record.recorded("before")


def assert_equal(expected, found, exact):
    differing = record.differences(expected, json.loads(json.dumps(found)), exact)
    assert not differing, "\n".join(differing)


def test_models_are_whole_and_evaluated_as_before(expected):
    outputs, exact = expected
    assert "moved from" in "".join(record.succeed("models", "list"))
    assert_equal(outputs["finished"], before.models(outputs["finished"]["policies"]), exact)


@pytest.mark.parametrize("method", before.INTERRUPTED)
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(expected, method):
    outputs, exact = expected
    run_id = outputs["interrupted"][method]
    record.succeed(*record.chain(method, *before.INTERRUPTED[method]), "--resume", run_id)
    assert_equal(outputs["ended"][method], record.training(run_id), exact)


def test_a_finished_run_is_made_again_from_its_stored_config(expected):
    outputs, exact = expected
    for run_id in outputs["finished"]["policies"]:
        result = record.run("reproduce", run_id)
        assert result["exit"] == 0 or not exact, result


def test_mlflow_alone_loads_a_model(expected):
    record.succeed("models", "list")
    mlflow.set_tracking_uri(f"sqlite:///{record.Path(record.STORE).resolve()}")
    policy = mlflow.pyfunc.load_model(before.UNSAFE.replace("@update-3", "/1"))
    assert policy.predict(np.zeros((3, 2), np.float32)).shape == (3, 1)


def test_a_file_of_the_published_layout_acts_as_its_model(expected):
    outputs, exact = expected
    (path,) = record.Path("published/models/unsafe").glob("*.pt")
    record.succeed("evaluate", "--env", record.TOY, "--models", path, *before.SUITE, "--out", "suite")
    stored, found = outputs["finished"]["suite"]["per_episode.csv"], record.content("suite/per_episode.csv")
    reward = stored[0].index("reward")
    assert_equal([row[reward] for row in stored[1:4]], [row[reward] for row in found[1:4]], exact)
