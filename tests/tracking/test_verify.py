"""Digests of a model's files: what `verify` compares, and what it says of files that were changed."""

import json
import shutil

import mlflow
import pytest
import torch
from hostile_files import seal

from lightning_unlearn import cli
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.published_format import save_published
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.model_files import digest_tag
from lightning_unlearn.tracking.registry import registered_version
from lightning_unlearn.tracking.store import artifact_location, open_store, tracking_uri
from lightning_unlearn.tracking.verify import verify

CARD = ModelCard("concept", "ToyLine-v0", "cost_hazards", 3, 50, 1000)
NAME = "concept.ToyLine-v0"


@pytest.fixture(scope="module")
def registered(template_store, tmp_path_factory):
    """A store with one registered policy, made once: its URI, the run's id, the model's files and a copy of them."""
    folder = tmp_path_factory.mktemp("registered")
    (folder / "mlflow.db").write_bytes(template_store.read_bytes())
    uri = f"sqlite:///{folder}/mlflow.db"
    open_store(uri)
    experiment = mlflow.create_experiment("ToyLine-v0", artifact_location=artifact_location())
    run_id = mlflow.MlflowClient().create_run(experiment).info.run_id
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[16, 8]), torch.Generator().manual_seed(0))
    registry.register_policy(policy, CARD, run_id)
    files = next(folder.rglob("MLmodel")).parent
    shutil.copytree(files, folder / "whole")
    return uri, run_id, files, folder / "whole"


@pytest.fixture
def run_id(registered):
    return registered[1]


@pytest.fixture
def files(registered, tmp_path, monkeypatch):
    """The stored files of the registered policy, as they were registered."""
    uri, _, files, whole = registered
    monkeypatch.chdir(tmp_path)
    open_store(uri)
    shutil.rmtree(files)
    shutil.copytree(whole, files)
    return files


def command(uri):
    cli.main(["verify", uri, "--tracking_uri", tracking_uri()])


@pytest.mark.parametrize("uri", registry.shipped_models("*"))
def test_shipped_models_are_those_that_were_trained(uri):
    """A new model needs the digests of its files in its provenance.json."""
    found = verify(uri)
    assert found.is_sound
    assert set(found.verdicts) == {"policy.json", "policy.safetensors"}


def test_a_registered_model_is_verified_by_every_name(files, run_id, capsys):
    for uri in (f"models:/{NAME}/1", f"models:/{NAME}@update-50", f"runs:/{run_id}/update-50"):
        command(uri)
        printed = capsys.readouterr().out
        assert "equal    data/policy/policy.safetensors" in printed
        assert printed.endswith(f"Verified: {uri}\n")
    mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert verify(f"models:/{NAME}/1").is_sound  # MLflow leaves nothing behind


def another_policy(files, policy):
    """Both files of another policy, which belong together."""
    other = ActorCritic(policy.config, torch.Generator().manual_seed(1))
    save_policy(files / "data" / "policy", other, CARD)


def resealed_weights(files, policy):
    path = files / "data" / "policy" / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    seal(path.parent)


def foreign_loader(files, policy):
    path = files / "MLmodel"
    path.write_text(path.read_text().replace("lightning_unlearn.registry", "antigravity"))


def code_beside(files, policy):
    (files / "code").mkdir()
    (files / "code" / "lightning_unlearn.py").write_text("raise SystemExit('foreign code ran')")
    path = files / "MLmodel"
    path.write_text(path.read_text().replace("code: null", "code: code"))


CHANGES = {
    "another policy": (another_policy, "CHANGED", "data/policy/policy.json"),
    "weights": (resealed_weights, "CHANGED", "data/policy/policy.safetensors"),
    "requirements": (lambda f, _: (f / "requirements.txt").write_text("evil"), "CHANGED", "requirements.txt"),
    "a file taken away": (lambda f, _: (f / "conda.yaml").unlink(), "MISSING", "conda.yaml"),
    "another loader": (foreign_loader, "CHANGED", "MLmodel"),
    "code beside it": (code_beside, "UNKNOWN", "code/lightning_unlearn.py"),
}


@pytest.mark.parametrize(("change", "verdict", "file"), CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_found_out(files, policy, capsys, change, verdict, file):
    change(files, policy)
    with pytest.raises(SystemExit) as stopped:
        command(f"models:/{NAME}@update-50")
    printed = capsys.readouterr().out
    assert stopped.value.code == 1
    assert f"{verdict:<8} {file}" in printed
    assert printed.endswith(f"NOT verified: models:/{NAME}@update-50\n")
    registry.load_policy(f"models:/{NAME}@update-50")  # whatever it is, no code of it is run


@pytest.mark.parametrize("change", [foreign_loader, code_beside])
def test_foreign_code_is_found_out_even_if_its_digest_was_recorded(files, policy, change):
    change(files, policy)
    tag = registered_version(f"models:/{NAME}/1").tags["sha256"]
    for key, value in digest_tag(f"models:/{NAME}/1").items():
        mlflow.MlflowClient().set_model_version_tag(NAME, "1", key, value)
    found = verify(f"models:/{NAME}/1")
    mlflow.MlflowClient().set_model_version_tag(NAME, "1", "sha256", tag)
    assert set(found.verdicts.values()) == {"equal"}
    assert not found.is_sound
    assert "names other code" in found.faults[0]


def test_mlmodel_names_no_code_of_the_models_own(files):
    flavor = mlflow.models.Model.load(files / "MLmodel").flavors["python_function"]
    assert (flavor["loader_module"], flavor["code"]) == ("lightning_unlearn.registry", None)


def link_outside(files):
    (files / "data" / "policy" / "policy.json").unlink()
    (files / "data" / "policy" / "policy.json").symlink_to("/etc/hostname")


def link_to_zeros(files):
    (files / "data" / "policy" / "policy.safetensors").unlink()
    (files / "data" / "policy" / "policy.safetensors").symlink_to("/dev/zero")


def folder_inside(files):
    (files / "data" / "policy" / "more").mkdir()


def many_files(files):
    for number in range(100):
        (files / "data" / "policy" / str(number)).touch()


def huge_file(files):
    with (files / "data" / "policy" / "policy.safetensors").open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk


@pytest.mark.parametrize("spoil", [link_outside, link_to_zeros, folder_inside, many_files, huge_file])
def test_a_hostile_store_is_refused(files, spoil):
    spoil(files)
    with pytest.raises(ValueError, match="model models:/concept"):
        registry.load_policy(f"models:/{NAME}/1")


@pytest.mark.parametrize("path", ["data/policy/../../../../x", "..%2f..%2fx", "nothing"])
def test_paths_that_lead_out_of_a_run_are_refused(files, run_id, path):
    with pytest.raises(ValueError, match="was not found"):
        registry.load_policy(f"runs:/{run_id}/{path}")
    with pytest.raises(ValueError, match="was not found"), runs.local_file(f"runs:/{run_id}/{path}"):
        pass


def test_versions_with_tags_of_no_save_point_are_passed_over(files, run_id):
    client = mlflow.MlflowClient()
    for tags in ({"method": "../../x"}, {"update": "ten"}):
        version = client.create_model_version(NAME, str(files), run_id, tags={"env": "ToyLine-v0", "seed": "3", **tags})
        assert int(version.version) > 1
    assert [model.uri for model in registry.registered_models("ToyLine-v0", 3)] == [f"models:/{NAME}/1"]


def test_a_folder_is_verified_by_its_description(policy, tmp_path, capsys):
    save_policy(tmp_path / "p", policy, CARD)
    command(str(tmp_path / "p"))
    assert "who changes both files is not found out" in capsys.readouterr().out
    other = ActorCritic(policy.config, torch.Generator().manual_seed(1))
    save_policy(tmp_path / "q", other, CARD)
    (tmp_path / "p" / "policy.safetensors").write_bytes((tmp_path / "q" / "policy.safetensors").read_bytes())
    assert verify(str(tmp_path / "p")).verdicts == {"policy.safetensors": "CHANGED"}


def test_what_has_no_record_is_not_called_verified(policy, files, tmp_path, capsys):
    save_published(tmp_path / "p.pt", policy)
    save_policy(tmp_path / "p", policy, CARD)
    description = json.loads((tmp_path / "p" / "policy.json").read_text())
    del description["weights_sha256"]
    (tmp_path / "p" / "policy.json").write_text(json.dumps(description))
    client, tag = mlflow.MlflowClient(), registered_version(f"models:/{NAME}/1").tags["sha256"]
    client.delete_model_version_tag(NAME, "1", "sha256")
    for uri in (str(tmp_path / "p.pt"), str(tmp_path / "p"), str(tmp_path / "nothing"), f"models:/{NAME}/1"):
        with pytest.raises(SystemExit) as stopped:
            command(uri)
        assert stopped.value.code == 2
        assert "no recorded digests" in capsys.readouterr().err
    client.set_model_version_tag(NAME, "1", "sha256", tag)


def test_an_unknown_model_is_said_to_be_unknown(store):
    for uri in ("models:/no.Such-v0/1", "runs:/0123/update-1", "models:/x", "models:/a@b", "zoo:nothing"):
        with pytest.raises(ValueError, match="was not found"):
            verify(uri)
    with pytest.raises(ValueError, match="was not found"):
        registered_version("models:/no.Such-v0/latest")
