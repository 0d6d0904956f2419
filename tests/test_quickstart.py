"""The five-minute path, shortened, on the real environment and with the shipped expert."""

import json

import imageio.v3 as iio
import mlflow
import pandas as pd
import pytest

from lightning_unlearn import cli, quickstart, training


@pytest.fixture
def printed(store, capsys):
    cli.main(["quickstart", "--updates", "1", "--episodes", "2"])
    return capsys.readouterr().out


def test_it_repairs_compares_draws_and_records(printed, tmp_path):
    out = tmp_path / "quickstart"
    table = pd.read_csv(out / "table.csv", index_col="policy")
    assert table.index.tolist() == ["before", "after"]
    assert table.loc["before", ["kl_near", "kl_far"]].tolist() == pytest.approx([0, 0], abs=1e-9)
    assert (table.loc["after", ["kl_near", "kl_far"]] > 0).all()
    assert (table["return"] > 10).all()
    assert iio.imread(out / "before_after.png").ndim == 3
    assert len(iio.imread(out / "after.gif")) == 200
    models = json.loads((out / "models.json").read_text())
    assert models == {
        "before": "zoo:unsafe.SafetyPointGoal1-v0",
        "after": "models:/concept.SafetyPointGoal1-v0/1",
    }
    (run,) = mlflow.search_runs(experiment_names=["SafetyPointGoal1-v0"], output_format="list")
    stored = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, "eval/quickstart")}
    assert "eval/quickstart/before_after.png" in stored
    assert f"sqlite:///{tmp_path}/mlruns/mlflow.db" in printed
    assert "no interval over seeds" in printed


def test_files_of_the_working_directory_are_not_taken_for_shipped_ones(store, tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 0.001\nhidden: 64\n")
    chain = training.TrainingCLI(quickstart._training_options(1, 0, None))
    assert chain.config.pid is not None
    assert chain.config.tracking_uri is None


@pytest.mark.parametrize(
    ("given", "message"), [(["--episodes", "0"], "episodes=0"), (["--updates", "0"], "max_epochs=0")]
)
def test_impossible_numbers_are_refused(store, capsys, given, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quickstart", *given])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert mlflow.MlflowClient().search_registered_models() == []
