"""An experiment that was deleted takes no runs: said before the work, by every command that records at its end."""

import mlflow
import pytest

from lightning_unlearn.audits.probe_data import SplitOptions, make_splits
from lightning_unlearn.audits.probes import StoredProbe, fit_probe, save_probe

TOY = "ToyLine-v0"
CHAIN = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/unsafe.yaml", "-c", "smoke.yaml"]


MODEL = "zoo:unsafe.ToyLine-v0"


@pytest.fixture
def deleted(register, data, dataset, tmp_path):
    register("unsafe", 10, 2.0)
    splits = make_splits(data.labels, data.episode_ids, SplitOptions())
    probe = fit_probe(data.states[splits.train].astype(float), data.labels[splits.train])
    about = {"env": TOY, "dataset_digest": data.digest, "dataset": dataset, "model_path": MODEL}
    about["dataset_states"] = len(data.states)
    save_probe(tmp_path / "probe.npz", StoredProbe(probe, splits, about))
    experiment = mlflow.get_experiment_by_name(TOY).experiment_id
    mlflow.MlflowClient().delete_experiment(experiment)
    return experiment


ON_DATA = ["--model_path", MODEL, "--dataset", "states.npz", "--metrics_out", "out/m.json"]
COMMANDS = [
    ["fit", *CHAIN],
    ["study", "-c", "study/smoke.yaml"],
    ["register", "--env", TOY, "--method", "concept", "--updates", "5", "--model_path", MODEL],
    ["evaluate", "--env", TOY, "--models", "zoo"],
    ["select", "--env", TOY, "--method", "unsafe"],
    ["patch", "--env", TOY, "--models", "random", "--expert", MODEL],
    ["elicit", "--env", TOY, "--models", "random", "--expert", MODEL],
    ["weight-path", "--env", TOY, "--models", "random", "--expert", MODEL],
    ["relearn", "--env", TOY, "--model_path", "random", "--unsafe_model", MODEL],
    ["report", "--env", TOY],
    ["import", "sb3", "no.zip", "--env", TOY],
    ["probe", "collect", "--env", TOY, "--model_path", MODEL, "--out", "out/d.npz"],
    ["probe", "fit", "--env", TOY, "--out", "out/p.npz", *ON_DATA],
    ["probe", "eval", "--probe_path", "probe.npz", *ON_DATA],
    ["probe", "export", "--probe_path", "probe.npz", "--out", "out/d.pt"],
    ["action-control", "--env", TOY, *ON_DATA],
    ["latent-shift", "--env", TOY, "--dataset", "states.npz", "--ref_model_path", MODEL, "--cmp_model_path", MODEL],
]


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file() and "mlruns" not in path.parts}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c[:2] if c[0] == "probe" else c[:1]))
def test_it_is_said_before_the_work(deleted, refused, tmp_path, command):
    before = files(tmp_path)
    told = refused(*command)
    assert f"The experiment {TOY}" in told
    assert f"mlflow experiments restore --experiment-id {deleted}" in told
    assert files(tmp_path) == before
