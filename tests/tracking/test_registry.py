import json
from hashlib import sha256

import mlflow
import numpy as np
import pytest
import torch

from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.published_format import save_published
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import experiment_id


@pytest.fixture
def run_id(store):
    return new_run()


def new_run():
    return mlflow.MlflowClient().create_run(experiment_id("ToyLine-v0")).info.run_id


def card(update=50, seed=3, method="concept"):
    return ModelCard(method, "ToyLine-v0", "cost_hazards", seed, update, 1000)


def test_a_save_point_is_found_by_version_alias_and_run(policy, run_id):
    version = registry.register_policy(policy, card(), run_id)
    name = "concept.ToyLine-v0"
    uris = [f"models:/{name}/{version}", f"models:/{name}/latest", f"runs:/{run_id}/update-50"]
    uris += [f"models:/{name}@update-50", f"models:/{name}@seed-3-update-50"]
    for uri in uris:
        stored = registry.load_policy(uri)
        assert stored.card == card()
        assert torch.equal(stored.policy.trunk[0].weight, policy.trunk[0].weight)
    for uri in (uris[0], uris[1], *uris[3:]):
        assert registry.pinned(uri) == f"models:/{name}/{version}"
    tags = mlflow.MlflowClient().get_model_version(name, version).tags
    assert {k: tags[k] for k in ("method", "env", "seed", "update")} == {
        "method": "concept",
        "env": "ToyLine-v0",
        "seed": "3",
        "update": "50",
    }


def test_an_alias_points_to_the_newest(policy, store):
    versions = [registry.register_policy(policy, card(seed=seed), new_run()) for seed in (0, 1)]
    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("concept.ToyLine-v0", "update-50").version == int(versions[1])
    assert client.get_model_version_by_alias("concept.ToyLine-v0", "seed-0-update-50").version == int(versions[0])


def test_anybody_can_load_it_as_a_generic_model(policy, run_id):
    registry.register_policy(policy, card(), run_id)
    model = mlflow.pyfunc.load_model("models:/concept.ToyLine-v0@update-50")
    observations = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    actions = model.predict(observations)
    expected = policy.act(torch.from_numpy(observations)).detach().numpy()
    np.testing.assert_array_equal(actions, expected)
    assert actions.dtype == np.float32
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(np.zeros((7, 3), np.float32))


def test_the_expert_of_the_same_seed_is_preferred(policy, store):
    assert registry.expert_uri("ToyLine-v0", 1) == "zoo:unsafe.ToyLine-v0"
    for seed in (1, 2, 1):
        registry.register_policy(policy, card(300, seed, "unsafe"), new_run())
    assert registry.expert_uri("ToyLine-v0", 1) == "models:/unsafe.ToyLine-v0/3"
    assert registry.expert_uri("ToyLine-v0", 2) == "models:/unsafe.ToyLine-v0/2"
    with pytest.raises(ValueError, match="no unsafe expert of Other-v0"):
        registry.expert_uri("Other-v0", 0)


@pytest.mark.parametrize("task", ["SafetyPointGoal1-v0", "SafetyPointCircle1-v0", "SafetyCarGoal1-v0"])
def test_an_expert_and_a_repair_of_it_are_shipped_for(task):
    assert registry.shipped_models(task) == [f"zoo:concept_tuned.{task}", f"zoo:unsafe.{task}"]


@pytest.mark.parametrize(
    "folder", [folder for folder in registry.ZOO.iterdir() if folder.is_dir()], ids=lambda f: f.name
)
def test_shipped_models_load_and_are_what_their_provenance_says(folder):
    stored = registry.load_policy(f"zoo:{folder.name}")
    assert registry.model_name(stored.card.method, stored.card.env) == folder.name
    told = json.loads((folder / "provenance.json").read_text())["sha256"]
    assert told == {name: sha256((folder / name).read_bytes()).hexdigest() for name in told}
    assert set(told) == {"policy.json", "policy.safetensors"}


@pytest.mark.parametrize(
    "uri", ["models:/nope/1", "models:/nope@best", "runs:/abc/update-1", "zoo:nope", "nowhere/policy", "nowhere.pt"]
)
def test_what_is_not_there_is_said_not_to_be(store, uri):
    with pytest.raises(ValueError, match=r"was not found"):
        registry.load_policy(uri)


def test_a_failed_save_registers_nothing(policy, run_id):
    policy.log_std.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="log_std"):
        registry.register_policy(policy, card(), run_id)
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_foreign_file_in_a_model_is_refused(policy, run_id, tmp_path):
    registry.register_policy(policy, card(), run_id)
    weights = next((tmp_path / "mlruns").rglob("policy.safetensors"))
    weights.write_bytes(b"PK\x03\x04 not weights")
    with pytest.raises(ValueError, match="damaged"):
        registry.load_policy("models:/concept.ToyLine-v0@update-50")


def test_a_local_folder_is_a_model(policy, tmp_path):
    save_policy(tmp_path / "p", policy, card())
    assert registry.load_policy(str(tmp_path / "p")).card.seed == 3


def test_the_newest_version_of_every_save_point_of_a_seed_is_listed(policy, store):
    for update, seed in ((50, 3), (100, 3), (50, 3), (50, 4)):
        registry.register_policy(policy, card(update, seed), new_run())
    found = registry.registered_models("ToyLine-v0", 3)
    assert [(m.uri, m.update) for m in found] == [
        ("models:/concept.ToyLine-v0/3", 50),
        ("models:/concept.ToyLine-v0/2", 100),
    ]
    assert registry.registered_models("Other-v0", 3) == []
    assert registry.shipped_models("ToyLine-v0") == ["zoo:unsafe.ToyLine-v0"]


def test_a_published_file_is_known_by_its_name(policy, tmp_path):
    save_published(tmp_path / "safe_concept_ToyLine-v0_50.pt", policy)
    stored = registry.load_policy(str(tmp_path / "safe_concept_ToyLine-v0_50.pt"))
    assert stored.card == ModelCard("concept", "ToyLine-v0", update=50)


def test_a_save_point_of_a_run_is_registered_once(policy, run_id):
    registered = [registry.register_policy(policy, card(), run_id) for _ in range(2)]
    assert registered == ["1", "1"]
    assert len(mlflow.MlflowClient().search_model_versions("name='concept.ToyLine-v0'")) == 1


def test_a_redone_save_point_takes_no_alias_from_a_newer_one(policy, store):
    runs = [new_run(), new_run()]
    for run in (*runs, runs[0]):
        registry.register_policy(policy, card(), run)
    assert registry.load_policy("models:/concept.ToyLine-v0@update-50").card == card()
    assert int(mlflow.MlflowClient().get_model_version_by_alias("concept.ToyLine-v0", "update-50").version) == 2


def test_a_save_that_fails_halfway_leaves_no_model(policy, run_id, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.Model, "log", full)
    with pytest.raises(OSError, match="No space"):
        registry.register_policy(policy, card(), run_id)
    client = mlflow.MlflowClient()
    assert client.search_registered_models() == []
    assert client.search_logged_models([experiment_id("ToyLine-v0")]) == []
    monkeypatch.undo()
    assert registry.register_policy(policy, card(), run_id) == "1"
