"""The tags by which MLflow's UI shows an experiment."""

import json
import re
from pathlib import Path

import mlflow
import pytest

from lightning_unlearn import fit
from lightning_unlearn.tracking import experiment_page
from lightning_unlearn.tracking.store import experiment_id, key_figures_address

TOY = "ToyLine-v0"
SCRIPTS = sorted(Path(mlflow.__file__).parent.glob("server/js/build/static/js/*.js"))


def tags_of(experiment):
    return mlflow.MlflowClient().get_experiment(experiment).tags


def test_a_new_experiment_opens_in_the_view_of_trainings(store):
    tags = tags_of(experiment_id(TOY))
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.experiment.primaryMetric.name"] == "rollout/episode_return"


def test_an_experiment_of_before_gets_the_tags_and_one_that_somebody_changed_keeps_its_own(store):
    client = mlflow.MlflowClient()
    before, changed = client.create_experiment(TOY), client.create_experiment("Other-v0")
    client.set_experiment_tag(changed, experiment_page.KIND, "genai_development")
    assert (experiment_id(TOY), experiment_id("Other-v0")) == (before, changed)
    assert tags_of(before).items() >= experiment_page.page_tags().items()
    assert tags_of(changed)[experiment_page.KIND] == "genai_development"


def test_key_figures_are_columns_that_a_run_has(store):
    run = fit.train(["-c", "method/concept.yaml", "-c", "smoke.yaml"])
    view = json.loads(tags_of(run.experiment_id)["mlflow.sharedViewState.key-figures"])
    assert {type(view[name]) for name in ("name", "state")} == {str}
    assert {type(view[name]) for name in ("createdAt", "updatedAt")} == {int}
    data = mlflow.get_run(run.run_id).data
    has = {"metrics": data.metrics, "params": data.params, "tags": data.tags, "attributes": ["Models"]}
    for column in json.loads(view["state"])["selectedColumns"]:
        kind, name = re.fullmatch(r"(\w+)\.`(.+)`", column).groups()
        assert name in has[kind] or name.startswith("repair.")  # those of the verdict


def test_the_address_of_the_key_figures_is_printed(store, capsys):
    fit.main(["-c", "method/unsafe.yaml", "-c", "smoke.yaml"])
    found = re.search("Key figures of all runs: (.*)", capsys.readouterr().out)[1]
    experiment = mlflow.get_experiment_by_name(TOY).experiment_id
    assert found == key_figures_address(experiment)
    assert found.startswith(f"http://localhost:5000/#/experiments/{experiment}/runs?")


@pytest.mark.skipif(not SCRIPTS, reason="this MLflow has no UI")
def test_mlflows_ui_reads_these_very_tags():
    """The UI is compiled: the names that it goes by are all that can be checked of it here."""
    scripts = "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
    names = [experiment_page.KIND, experiment_page.MODEL_TRAINING, experiment_page.PRIMARY_METRIC]
    for name in (*names, "mlflow.sharedViewState.", "viewStateShareKey", "workflowType", "machine_learning"):
        assert f'"{name}"' in scripts
    assert "string `name`, number `createdAt`, and string `state`" in scripts
