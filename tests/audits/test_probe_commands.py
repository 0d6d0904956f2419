import json
import pickle
import re
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from lightning_unlearn import cli
from lightning_unlearn.audits.action_control import predict, report
from lightning_unlearn.audits.audited_models import read_model
from lightning_unlearn.audits.probe_data import SplitOptions, load_data, make_splits, save_data
from lightning_unlearn.audits.probes import fit_with_controls, load_probe
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.latent_editor import GatedEditor, load_direction
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import open_store

EXPERT = "zoo:unsafe.ToyLine-v0"
ENV = ["--env", "ToyLine-v0"]


@pytest.fixture
def model(policy, tmp_path):
    save_policy(tmp_path / "model", policy, ModelCard(env="ToyLine-v0"))
    return str(tmp_path / "model")


def run(command, *options):
    cli.main([*command.split(), *options])


def fit(dataset, model, *more):
    run("probe fit", *ENV, "--dataset", dataset, "--model_path", model, "--out", "probes/p.pkl", "--metrics_out",
        "probes/m.json", *more)  # fmt: skip


def refused(capsys, message, command, *options):
    with pytest.raises(SystemExit) as stopped:
        run(command, *options)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said, re.DOTALL), said


def content_of(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def only_run(name):
    (found,) = mlflow.search_runs(
        experiment_names=["ToyLine-v0"], filter_string=f"run_name = '{name}'", output_format="list"
    )
    return found


def artifacts(found):
    client = mlflow.MlflowClient()
    return {item.path for item in client.list_artifacts(found.info.run_id, "probes")}


def test_the_seeds_chain_on_the_shipped_expert(store, tmp_path, capsys):
    out = "artifacts/probes"
    run("probe collect", *ENV, "--model_path", EXPERT, "--out", f"{out}/s.npz", "--n_per_class", "200",
        "--max_env_steps", "20000", "--seed", "42", "--num_envs", "8")  # fmt: skip
    data = load_data(f"{out}/s.npz", "ToyLine-v0")
    assert data.counts == {"safe": 200, "hazard": 200}
    about = ["--dataset", f"{out}/s.npz", "--model_path", EXPERT]
    run("probe fit", *ENV, *about, "--out", f"{out}/hazard_probe.pkl", "--metrics_out", f"{out}/m.json",
        "--batch_size", "64", "--val_frac", "0.15", "--test_frac", "0.15", "--seed", "42",
        "--split_tries", "256")  # fmt: skip
    assert "a pickle can run code" in capsys.readouterr().out
    run("export-hazard-direction", "--probe_path", f"{out}/hazard_probe.pkl", "--out", f"{out}/d.pt")
    run("probe export", "--probe_path", f"{out}/hazard_probe.pkl", "--out", f"{out}/tau.pt", "--include_tau")
    size = registry.load_policy(EXPERT).policy.config.latent_size
    assert load_direction(tmp_path / out / "d.pt", size).tau is None
    assert load_direction(tmp_path / out / "tau.pt", size).tau == pytest.approx(
        load_probe(f"{out}/hazard_probe.npz").probe.direction().tau
    )
    run("probe eval", "--probe_path", f"{out}/hazard_probe.pkl", *about, "--metrics_out", f"{out}/e.json")
    fitted, scored = (content_of(f"{out}/{name}") for name in ("m.json", "e.json"))
    for split in ("train", "val", "test"):
        assert scored[split] == fitted[split] == scored["refitted"][split]
    assert not (tmp_path / out / "hazard_probe.pkl").exists()


def test_fit_records_everything_in_mlflow(store, dataset, model, data):
    fit(dataset, model)
    found = only_run("probe-fit")
    assert found.info.status == "FINISHED"
    assert found.data.params["model_path"] == model
    metrics = content_of("probes/m.json")
    assert found.data.metrics["model/test/auroc"] == pytest.approx(metrics["test"]["auroc"])
    assert {"floor/val/auroc", "ceiling/train/balanced_accuracy", "shuffled_labels/test/auroc"} <= set(
        found.data.metrics
    )
    assert artifacts(found) == {f"probes/{name}" for name in ("p.npz", "p.meta.json", "m.json", "m.png")}
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("states", data.digest)
    assert [metrics[split]["n"] for split in ("train", "val", "test")] == [560, 120, 120]
    assert metrics["ceiling"]["test"]["auroc"] > 0.999  # the label is x > 0.3, and x is seen


def test_shuffled_labels_teach_nothing(data):
    splits = make_splits(data.labels, data.episode_ids, SplitOptions())
    noise = np.random.default_rng(1).normal(size=(len(data.labels), 3))
    features = {"model": data.states.astype(np.float64), "noise": noise}
    _, outcomes = fit_with_controls(features, data.labels, splits, seed=0)
    control = outcomes["shuffled labels"]
    assert control.labels.sum() == data.labels.sum()
    assert np.corrcoef(control.labels, data.labels)[0, 1] == pytest.approx(0.0, abs=0.1)
    assert np.corrcoef(control.decision[splits.test], control.labels[splits.test])[0, 1] < 0.25


def test_eval_reads_the_latent_it_is_asked_for(store, dataset, model, policy, tmp_path):
    """An editor that removes the whole score along the probe's direction blinds the stored probe, not the raw one."""
    fit(dataset, model)
    direction = load_probe("probes/p.npz").probe.direction()
    edited = policy.with_editor(GatedEditor(direction.vector, 1.0, -1e3, 1e3))  # z·d becomes -1000 everywhere
    save_policy(tmp_path / "edited", edited, ModelCard(env="ToyLine-v0"))
    about = ["--probe_path", "probes/p.npz", "--dataset", dataset, "--model_path", str(tmp_path / "edited")]
    run("probe eval", *about, "--metrics_out", "probes/raw.json")
    run("probe eval", *about, "--metrics_out", "probes/edited.json", "--use_editor_features")
    fitted, raw, blind = (content_of(f"probes/{name}.json") for name in ("m", "raw", "edited"))
    assert raw["test"] == fitted["test"]
    assert blind["features"] == "edited"
    assert blind["test"]["confusion_matrix"][1][1] == 0
    assert blind["test"]["balanced_accuracy"] == pytest.approx(0.5)


def test_action_control_of_a_policy_without_editor_is_perfect(store, dataset, model):
    run("action-control", *ENV, "--dataset", dataset, "--model_path", model)
    content = content_of("artifacts/probes/action_control_metrics.json")
    assert content["test"]["r2"] > 0.99  # the head is linear in the latent; the ridge penalty costs the rest
    assert content["floor"]["test"].keys() == {"mse", "r2", "n"}
    assert artifacts(only_run("action-control")) == {f"probes/action_control_metrics.{end}" for end in ("json", "png")}


def test_ridge_by_hand(data):
    # One feature ±1, centred, target 3x: w = 3n/(n + alpha)
    splits = make_splits(data.labels, data.episode_ids, SplitOptions())
    x = np.zeros((len(data.labels), 1))
    x[splits.train[::2]], x[splits.train[1::2]] = 1.0, -1.0
    x[splits.test] = 1.0
    x[splits.val[::2]] = 1.0
    n = len(splits.train)
    predicted = predict(x, 3 * x, splits)
    assert predicted[splits.test] == pytest.approx(3 * n / (n + 1))
    assert report(predicted, 3 * x, splits)["test"]["mse"] == pytest.approx((3 / (n + 1)) ** 2)


def test_a_dataset_of_another_environment_or_size_is_refused(store, dataset, data, model, tmp_path, capsys):
    probe = ["--dataset", dataset, "--model_path", model, "--out", "p.npz", "--metrics_out", "m.json"]
    refused(
        capsys,
        "collected in ToyLine-v0, not in SafetyPointGoal1-v0",
        "probe fit",
        "--env",
        "SafetyPointGoal1-v0",
        *probe,
    )
    save_policy(tmp_path / "wide", ActorCritic(PolicyConfig(3, [-1.0], [1.0])), ModelCard())
    wide = str(tmp_path / "wide")
    refused(capsys, "--model .*wide takes 3 observations.*have 2", "probe fit", *ENV, *probe[:3], wide, *probe[4:])
    refused(capsys, "takes 3 observations", "action-control", *ENV, *probe[:3], wide)
    pair = ["--ref_model_path", model, "--cmp_model_path", wide]
    refused(capsys, "--model .*takes 3", "latent-shift", *ENV, *probe[:2], *pair)
    assert mlflow.search_experiments(filter_string="name = 'ToyLine-v0'") == []


def test_a_probe_of_another_latent_size_is_refused(store, dataset, model, tmp_path, capsys):
    fit(dataset, model)
    save_policy(tmp_path / "big", ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[9])), ModelCard())
    about = ["--probe_path", "probes/p.npz", "--dataset", dataset, "--model_path", str(tmp_path / "big")]
    refused(capsys, "reads 8 features.*latent has 9", "probe eval", *about, "--metrics_out", "e.json")


def test_another_dataset_than_the_probes_is_refused(store, dataset, data, model, tmp_path, capsys):
    fit(dataset, model)
    data.states[0, 0] += 0.25
    save_data(tmp_path / "other.npz", data)
    about = ["--probe_path", "probes/p.npz", "--dataset", str(tmp_path / "other.npz"), "--model_path", model]
    refused(capsys, "not the one that probes/p.npz was fitted on", "probe eval", *about, "--metrics_out", "e.json")


def test_a_pickled_probe_is_refused(store, dataset, model, capsys):
    Path("old.pkl").write_bytes(pickle.dumps({"coef_": [1.0]}))
    about, more = ["--probe_path", "old.pkl"], ["--dataset", dataset, "--model_path", model, "--metrics_out", "e.json"]
    refused(capsys, "never read; fit a probe", "probe eval", *about, *more)
    refused(capsys, "never read; fit a probe", "export-hazard-direction", *about, "--out", "d.pt")
    refused(capsys, "none.npz was not found; fit a probe", "probe export", "--probe_path", "none.pkl", "--out", "d.pt")


COLLECT = ["probe collect", *ENV, "--model_path", EXPERT, "--out", "s.npz"]
BAD = {
    "none of a class": ([*COLLECT, "--n_per_class", "0"], "n_per_class=0"),
    "no steps": ([*COLLECT, "--max_env_steps", "1"], "max_env_steps=1"),
    "abbreviated": ([*COLLECT, "--n_per", "3"], "Did you mean n_per_class"),
    "missing option": (["probe collect", *ENV], "required.*model_path"),
    "no such environment": (["probe collect", "--env", "ToyLine-v1", *COLLECT[3:]], "ToyLine-v1"),
    "no such concept": ([*COLLECT, "--concept", "cost_vases"], "cost_hazards, cost_sum"),
    "no such model": ([*COLLECT[:4], "zoo:nope", *COLLECT[5:]], "zoo:nope was not found"),
    "a file that cannot be written": ([*COLLECT[:-1], "/proc/x/s.npz"], "--out /proc/x/s.npz cannot be written"),
    "no such subcommand": (["probe colect"], "Did you mean collect"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_anything_is_made(store, capsys, given, message):
    refused(capsys, message, *given)
    open_store(store)
    assert mlflow.search_experiments(filter_string="name = 'ToyLine-v0'") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--val_frac", "1.5"], "val_frac=1.5"),
        (["--test_frac", "0.9"], "leave nothing"),
        (["--batch_size", "0"], "batch_size=0"),
        (["--split_tries", "0"], "split_tries=0"),
        (["--val_frac", "0.02", "--test_frac", "0.02"], "25 are needed"),
    ],
)
def test_bad_split_options_are_refused(store, dataset, model, capsys, given, message):
    about = ["--dataset", dataset, "--model_path", model, "--out", "p.npz", "--metrics_out", "m.json"]
    refused(capsys, message, "probe fit", *ENV, *about, *given)


def test_a_model_of_another_environment_is_refused_though_its_sizes_fit(store, policy, tmp_path, capsys):
    for name, env in (("other", "Other-v0"), ("nameless", ""), ("same", "ToyLine-v0")):
        save_policy(tmp_path / name, policy, ModelCard(env=env))
    said = r"--model other is a model of Other-v0, not of ToyLine-v0"
    with pytest.raises(ValueError, match=said):
        read_model("other", "ToyLine-v0", "model")
    for name in ("nameless", "same"):
        assert read_model(name, "ToyLine-v0", "model").policy.config == policy.config
    refused(capsys, said, "probe collect", *ENV, "--model_path", "other", "--out", "s.npz")
    assert not (tmp_path / "s.npz").exists()


def test_a_random_network_is_the_floor(policy):
    from lightning_unlearn.audits.audited_models import latents, random_twin

    states = np.zeros((3, 2), np.float32)
    one, same, other = (latents(random_twin(policy, seed), states) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (3, 8)


def test_the_help_lists_the_commands(capsys):
    cli.main(["--help"])
    listed = capsys.readouterr().out
    for name in ("probe", "export-hazard-direction", "action-control", "latent-shift"):
        assert f"  {name} " in listed
    torch.set_num_threads(1)
