"""A tracking server that is not there, or goes away: refused before training, waited for in the middle of it."""

import re
import subprocess
import sys

import mlflow
import pytest

from lightning_unlearn import cli
from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.tracking import registry, store
from lightning_unlearn.tracking.store import open_store

CHAIN = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/unsafe.yaml", "-c", "smoke.yaml"]
NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize("command", [["fit", *CHAIN], ["study", "-c", "study/smoke.yaml"]], ids=lambda c: c[0])
def test_a_server_that_does_not_answer_is_named_before_anything_runs(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--tracking_uri", NOBODY])
    assert stopped.value.code == 2
    assert f"tracking_uri={NOBODY} does not answer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_kept_while_the_server_is_away(store, monkeypatch):
    run = MLflowRun("ToyLine-v0", "a run", {})
    run.log_metrics({"x": 1.0}, 1)
    monkeypatch.setattr("lightning_unlearn.callbacks.mlflow_run.is_reachable", lambda: False)
    run.publish()
    assert len(run.pending) == 1
    monkeypatch.undo()
    run.log_metrics({"x": 2.0}, 2)
    run.publish()
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "x")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0)]


def test_a_write_is_tried_until_the_server_is_back(monkeypatch, capsys):
    there = iter([False, False, True])
    monkeypatch.setattr(store, "is_reachable", lambda: next(there))
    monkeypatch.setattr(store, "RETRY_S", 0.0)
    tries = iter([OSError("refused"), None])

    def write():
        problem = next(tries)
        if problem:
            raise problem
        return "written"

    assert store.with_retries(write, "update 5") == "written"
    assert "update 5 is kept" in capsys.readouterr().out


def test_a_write_that_the_server_refuses_is_an_error():
    def write():
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        store.with_retries(write, "update 5")  # the present store is a file: it always answers


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_is_restarted(server, tmp_path, monkeypatch, wait_for):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "lightning_unlearn", "fit", *CHAIN, "--updates", "400", "--save_points", "400"]
    with (tmp_path / "told").open("w") as told:
        training = subprocess.Popen([*command, "--tracking_uri", server.address], stdout=told, stderr=told)
    open_store(server.address)
    client = mlflow.MlflowClient()

    def seen():
        found = mlflow.search_runs(experiment_names=["ToyLine-v0"], output_format="list")
        return [run for run in found if run.data.metrics]

    (run,) = wait_for(seen, 600)
    server.stop()
    shown = re.compile(r"(\d+)/400")  # the progress bar, which leaves updates out when they are fast

    def last_update():
        return int((shown.findall((tmp_path / "told").read_text()) or [0])[-1])

    before = last_update()
    wait_for(lambda: last_update() > before + 5, 600)
    assert training.poll() is None
    server.start()
    assert training.wait(900) == 0, (tmp_path / "told").read_text()
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "rollout/cost_rate")) == 400
    assert registry.load_policy("models:/unsafe.ToyLine-v0@update-400").card.update == 400
