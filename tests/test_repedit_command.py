"""Representation editing through the command line, with the options of the published script."""

import re

import mlflow
import pytest
import torch

from lightning_unlearn import cli, fit
from lightning_unlearn.configuration import expand
from lightning_unlearn.losses.latent_directions import random_direction
from lightning_unlearn.policies.latent_editor import Direction, save_direction
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import open_store

CHAIN = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/repedit.yaml", "-c", "smoke.yaml"]
SMALL = ["--model.calibration_steps", "400", "--updates", "1", "--save_points", "1"]
UNUSED = ["--lr", "3e-4", "--ent_coef", "0.03", "--ppo_epochs", "6", "--batch_size", "256"]


@pytest.fixture
def artifact(store, tmp_path):
    latent_size = registry.load_policy("zoo:unsafe.ToyLine-v0").policy.config.latent_size
    vector = random_direction(latent_size, torch.Generator().manual_seed(1))
    save_direction(tmp_path / "hazard_direction.pt", Direction(vector, 0.25))
    return str(tmp_path / "hazard_direction.pt")


PUBLISHED = {
    "quantile": (["--repedit_tau_quantile", "0.8", *UNUSED], "quantile 0.8"),
    "manual": (["--repedit_tau", "0.5"], "tau 0.5 (given)"),
    "artifact": (["--repedit_use_artifact_tau"], "tau 0.25 (of the artifact)"),
}


@pytest.mark.filterwarnings("ignore:The edit does next to nothing")
@pytest.mark.parametrize(("options", "origin"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_variants_of_tau(artifact, options, origin, capsys):
    given = ["--seed", "0", "--unsafe_updates", "300", "--repedit_artifact", artifact, "--repedit_alpha", "1.5"]
    run = fit.train([*CHAIN, *SMALL, *given, *options, "--repedit_beta", "10.0"])
    stored = registry.load_policy(run.saved[1])
    assert stored.policy.config.editor == "gated"
    assert origin in stored.card.note
    printed = capsys.readouterr().out
    assert stored.card.note in printed
    assert ("--lr, --ent_coef, --ppo_epochs, --batch_size: without effect on the method RepEdit" in printed) == (
        options[-1] == "256"
    )
    assert mlflow.get_run(run.run_id).data.tags["note"] == stored.card.note
    assert mlflow.pyfunc.load_model(run.saved[1]).predict(torch.zeros(2, 2).numpy()).shape == (2, 1)


def test_the_registered_model_is_the_experts_weights_and_an_editor(store, capsys):
    run = fit.train([*CHAIN, *SMALL])
    assert capsys.readouterr().out.count("Mean score of states, before → after the edit: near ") == 1
    stored = registry.load_policy(run.saved[1]).policy.without_editor().state_dict()
    for name, weight in registry.load_policy("zoo:unsafe.ToyLine-v0").policy.state_dict().items():
        assert torch.equal(stored[name], weight)
    metrics = mlflow.get_run(run.run_id).data.metrics
    for name in ("gate_open", "suppression", "action_move", "action_move_max", "score_before_mean", "score_after_mean"):
        assert f"repedit/{name}_near" in metrics


@pytest.mark.parametrize("control", ["random", "flipped", "mean_difference", "leace"])
@pytest.mark.filterwarnings("ignore:The edit does next to nothing")
def test_controls_are_one_option_away(store, control):
    run = fit.train([*CHAIN, *SMALL, "--model.direction", control])
    assert run.saved[1] == f"models:/repedit_{control}.ToyLine-v0/1"  # it must not pass for the published edit
    stored = registry.load_policy(run.saved[1])
    assert stored.policy.config.editor == ("affine" if control == "leace" else "gated")
    assert f"direction {control}" in stored.card.note
    assert "repedit/latent_shift_near" in mlflow.get_run(run.run_id).data.metrics


def test_an_edit_without_effect_warns_once(store):
    with pytest.warns(UserWarning, match=r"The edit does next to nothing.*lower model\.repedit_tau") as told:
        fit.train([*CHAIN, *SMALL, "--updates", "2", "--repedit_tau", "1000"])
    assert sum("does next to nothing" in str(warning.message) for warning in told) == 1


def test_bad_input_makes_no_run(store, capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", *CHAIN, "--repedit_artifact", "nowhere.pt"])
    assert "nowhere.pt was not found" in capsys.readouterr().err
    open_store(store)
    assert mlflow.search_experiments(filter_string="name = 'ToyLine-v0'") == []


def test_a_switch_stands_for_true_unless_a_value_follows():
    switch = "--model.repedit_use_artifact_tau"
    assert expand(["--repedit_use_artifact_tau"]) == [switch, "true"]
    assert expand(["--repedit_use_artifact_tau", "--seed", "1"]) == [switch, "true", "--seed_everything", "1"]
    assert expand(["--repedit_use_artifact_tau", "false"]) == [switch, "false"]
    assert expand(["--repedit_use_artifact_tau=false"]) == [switch, "false"]


def test_a_misspelt_option_is_suggested(store, capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", *CHAIN, "--repedit_alhpa", "2"])
    assert re.search(r"Did you mean (model\.)?repedit_alpha", capsys.readouterr().err)
