"""A run is trained again from its stored config, and compared bit by bit."""

import json

import killing
import mlflow
import pytest
import torch

from lightning_unlearn import cli, fit
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.tracking.store import open_store

SHORT = ["--updates", "3", "--save_points", "2"]


def test_a_run_is_made_again_from_what_it_left(store, capsys, monkeypatch):
    run = fit.train(killing.options("concept", *SHORT))
    cli.main(["reproduce", run.run_id])
    told = capsys.readouterr().out
    assert "weights after update 2" in told
    assert "Reproduced: 1 save points" in told
    streams = json.loads(mlflow.artifacts.load_text(f"runs:/{run.run_id}/seed_streams.json"))
    assert streams["minibatches"] == {"entropy": 0, "spawn_key": [3]}
    monkeypatch.setattr(DualHeadPPO, "_values", lambda self, observation: torch.zeros(*observation.shape[:-1], 2))
    open_store(store)
    with pytest.raises(SystemExit):
        cli.main(["reproduce", run.run_id])
    assert "NOT reproduced: weights after update 2" in capsys.readouterr().out
    open_store(store)
    mlflow.MlflowClient().delete_tag(run.run_id, "version.arithmetic")  # as runs from before it was recorded
    with pytest.raises(SystemExit):
        cli.main(["reproduce", run.run_id])
    assert "Changed since: arithmetic 1 → 2" in capsys.readouterr().out
