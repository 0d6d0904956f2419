"""Housekeeping of a store whose files a server keeps: only what is on this machine is looked at."""

from pathlib import Path

import mlflow

from lightning_unlearn import cli
from lightning_unlearn.tracking import store

CHAIN = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/unsafe.yaml", "-c", "smoke.yaml"]


def test_files_that_a_server_keeps_are_left_to_it(tmp_path, server, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    at = ["--tracking_uri", server.address]
    cli.main(["fit", *CHAIN, *at])
    run_id = mlflow.search_runs(experiment_names=["ToyLine-v0"], output_format="list")[0].info.run_id
    kept = {path for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    unknown = Path("mlruns/remote/checkpoints") / ("a" * 32)
    unknown.mkdir()
    assert any(store.checkpoint_folder(run_id).iterdir())

    def printed(*command):
        capsys.readouterr()
        cli.main([*command, *at])
        return capsys.readouterr().out

    row = printed("runs", "list").splitlines()[1].split()
    assert (row[0], row[-4], row[-1]) == (run_id, "-", "-")
    assert "MB -: the files are not in this store's folder" in printed("models", "list")
    cleared = printed("gc", "--yes")
    assert "are kept by the server http://127.0.0.1" in cleared
    assert "checkpoints of finished runs: 1" in cleared
    assert not store.checkpoint_folder(run_id).exists()
    assert unknown.is_dir()  # perhaps a run of another server
    deleted = printed("models", "delete", "models:/unsafe.ToyLine-v0/1", "--yes")
    assert "no files of its own in the store's folder here" in deleted
    assert "where `mlflow gc` clears them up" in deleted
    assert {path for path in (tmp_path / "kept").rglob("*") if path.is_file()} == kept
    assert "unsafe.ToyLine-v0/1" not in printed("models", "list")
