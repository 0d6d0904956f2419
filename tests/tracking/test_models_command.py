"""`models list|compare|delete`, on a real store and real files."""

import json

import mlflow
import pandas as pd
import pytest
import torch

from lightning_unlearn.policies.files import ModelCard, save_policy, weights_digest
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.inventory import all_runs, all_versions, derived_from, model_id, size
from lightning_unlearn.tracking.models_command import layer_differences

TOY = "ToyLine-v0"


def client():
    return mlflow.MlflowClient()


def derived(uri):
    name, _, number = uri.removeprefix("models:/").rpartition("/")
    every = all_versions()
    (version,) = [v for v in every if (v.name, str(v.version)) == (name, number)]
    return {run.name for run in derived_from(version, all_runs(), every)}


def aliases(name):
    return {alias: str(number) for alias, number in client().get_registered_model(name).aliases.items()}


def test_every_version_is_listed_with_its_size_and_what_started_from_it(register, files, shown):
    unsafe = register("unsafe", 300)
    register("concept", 50, source=unsafe)
    register("concept", 100, seed=1, source="zoo:unsafe.ToyLine-v0")
    client().set_registered_model_alias(f"concept.{TOY}", "selected", "1")
    lines = shown("models", "list").splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [
        f"models:/concept.{TOY}/1", f"models:/concept.{TOY}/2", f"models:/unsafe.{TOY}/1"
    ]  # fmt: skip
    assert lines[1].endswith(" 0      selected")
    assert lines[3].split()[-2:] == ["1", "-"]  # one run started from it
    total = sum(size(folder) for folder in files.model_folders()) / 1e6
    assert lines[-1] == f"3 versions, {total:.2f} MB of files here."
    only = shown("models", "list", "--method", "concept", "--seed", "1", "--env", TOY)
    assert f"concept.{TOY}/2" in only
    assert "1 versions" in only


def test_models_that_are_not_there_are_said_not_to_be(register, refused):
    assert "no such model in sqlite:///" in refused("models", "list")
    register("concept", 50)
    message = refused("models", "list", "--method", "concpt", "--seed", "3")
    assert "--method concpt --seed 3: no such model" in message
    assert f"Registered: concept.{TOY}." in message
    assert "Did you mean list" in refused("models", "lst")
    for verb in ("delete", "compare"):
        message = refused("models", verb, f"models:/nothing.{TOY}/1", f"models:/concept.{TOY}/1")
        assert f"models:/nothing.{TOY}/1 was not found" in message


def test_origins_are_found_by_every_name_that_a_run_may_have_used(register):
    first = register("unsafe", 300)
    run = client().get_model_version(f"unsafe.{TOY}", "1").run_id
    logged = model_id(client().get_model_version(f"unsafe.{TOY}", "1"))
    sources = [first, f"models:/unsafe.{TOY}/latest", f"models:/unsafe.{TOY}@update-300", f"runs:/{run}/update-300"]
    sources += [f"models:/unsafe.{TOY}@seed-0-update-300", f"models:/{logged}", f"zoo:x models:/unsafe.{TOY}/1"]
    for seed, source in enumerate(sources):
        register("concept", 50, seed=seed, source=source)
    register("concept", 50, seed=90, source=f"zoo:unsafe.{TOY}")
    register("concept", 50, seed=91, source="/somewhere/unsafe-300")
    everyone = {f"concept-seed{seed}" for seed in range(len(sources))}
    assert derived(first) == everyone
    newer = register("unsafe", 300)  # aliases move; what started before does not
    register("concept", 50, seed=92, source=f"models:/unsafe.{TOY}/latest")
    assert derived(first) == everyone
    assert derived(newer) == {"concept-seed92"}
    client().set_registered_model_alias(f"unsafe.{TOY}", "selected", "2")
    register("concept", 50, seed=93, source=f"models:/unsafe.{TOY}@selected")
    assert derived(newer) == {"concept-seed92", "concept-seed93"}


def test_deleting_shows_first_and_then_deletes_the_version_its_model_and_its_files(register, files, shown):
    uri, other = register("concept", 50), register("concept", 100)
    gone = files.of_model(model_id(client().get_model_version(f"concept.{TOY}", "1")))
    printed = shown("models", "delete", uri)
    assert "aliases seed-0-update-50, update-50" in printed
    assert "Nothing was deleted. Add --yes" in printed
    assert gone.is_dir()
    assert f"Deleted {uri}." in shown("models", "delete", uri, "--yes")
    assert not gone.exists()
    assert [f"models:/{v.name}/{v.version}" for v in all_versions()] == [other]
    assert aliases(f"concept.{TOY}") == {"update-100": "2", "seed-0-update-100": "2"}
    assert len(client().search_logged_models(["1"])) == 1
    registry.load_policy(other)
    shown("models", "delete", other, "--yes")
    assert client().search_registered_models() == []


def test_aliases_go_back_to_the_newest_version_that_has_a_claim(register, shown):
    register("concept", 50), register("concept", 50), register("concept", 50, seed=1)
    client().set_registered_model_alias(f"concept.{TOY}", "selected", "2")
    assert aliases(f"concept.{TOY}")["update-50"] == "3"
    shown("models", "delete", f"models:/concept.{TOY}@seed-1-update-50", f"models:/concept.{TOY}/2", "--yes")
    assert aliases(f"concept.{TOY}") == {"update-50": "1", "seed-0-update-50": "1"}


def test_what_others_started_from_is_deleted_only_by_force(register, refused, shown):
    unsafe, other = register("unsafe", 300), register("oracle", 300)
    register("concept", 50, source=unsafe)
    message = refused("models", "delete", other, unsafe, "--yes")
    assert f"{unsafe} is what other runs started from: concept-seed0" in message
    assert "add --force" in message
    assert len(all_versions()) == 3  # all of it or nothing
    assert f"Deleted {unsafe}" in shown("models", "delete", unsafe, "--force", "--yes")
    assert len(all_versions()) == 2


def test_what_others_started_from_as_the_selected_one_is_refused_by_every_name(register, refused):
    unsafe = register("unsafe", 300)
    client().set_registered_model_alias(f"unsafe.{TOY}", "selected", "1")
    register("concept", 50, source=f"models:/unsafe.{TOY}@selected")
    run_id = client().get_model_version(f"unsafe.{TOY}", "1").run_id
    for uri in (unsafe, f"models:/unsafe.{TOY}@update-300", f"runs:/{run_id}/update-300"):
        assert "is what other runs started from" in refused("models", "delete", uri, "--yes")


def test_a_source_is_free_again_when_what_started_from_it_is_deleted(register, shown):
    unsafe = register("unsafe", 300)
    concept = register("concept", 50, source=unsafe)
    client().delete_run(client().get_model_version(f"concept.{TOY}", concept.rpartition("/")[2]).run_id)
    assert f"Deleted {unsafe}" in shown("models", "delete", unsafe, "--yes")


def test_a_version_of_a_run_that_still_runs_is_not_deleted(register, refused):
    uri = register("concept", 50, status="RUNNING")
    assert "which still runs: wait, or stop it first" in refused("models", "delete", uri, "--force", "--yes")
    assert len(all_versions()) == 1


def test_what_is_no_version_is_not_deleted(store, refused, policy, tmp_path):
    save_policy(tmp_path / "mine", policy, ModelCard("concept", TOY))
    shipped = f"zoo:unsafe.{TOY}"
    assert "a model that the package ships" in refused("models", "delete", shipped, "--yes", "--force")
    assert "no version of a registered model" in refused("models", "delete", "mine", "--yes", "--force")
    assert (tmp_path / "mine" / "policy.json").is_file()
    registry.load_policy(shipped)


def test_files_elsewhere_behind_links_or_shared_stay(register, files, put, tmp_path, shown):
    linked, shared = register("concept", 50), register("concept", 100)
    first, second = (model_id(client().get_model_version(f"concept.{TOY}", number)) for number in "12")
    files.of_model(first).rename(tmp_path / "moved")
    files.of_model(first).symlink_to(tmp_path / "moved")
    client().create_model_version(f"concept.{TOY}", f"models:/{second}", model_id=second)
    outside = put(tmp_path / "outside")
    client().create_model_version(f"concept.{TOY}", outside.as_uri())
    client().create_model_version(f"concept.{TOY}", (files.models / ".." / ".." / "mlflow.db").as_uri())
    printed = shown("models", "delete", linked, shared, f"models:/concept.{TOY}/4", f"models:/concept.{TOY}/5", "--yes")
    assert printed.count("no files of its own in the store's folder here") == 4
    assert (tmp_path / "moved" / "artifacts" / "MLmodel").is_file()
    assert (outside / "file").is_file()
    assert files.of_model(second).is_dir()
    assert [str(v.version) for v in all_versions()] == ["3"]
    registry.load_policy(f"models:/concept.{TOY}/3")


def test_differences_of_layers_are_norms_of_differences(policy_of):
    a, b = policy_of(0), policy_of(0)
    b.action_mean.bias.data += torch.tensor([3.0])
    b.trunk[0].weight.data[0, :] += torch.tensor([3.0, -4.0])
    table = layer_differences(a, b).set_index("Layer")
    assert table.loc["action_mean.bias", ["L2", "Max"]].tolist() == pytest.approx([3.0, 3.0])
    assert table.loc["trunk.0.weight", ["L2", "Max"]].tolist() == pytest.approx([5.0, 4.0], rel=1e-6)
    assert table.loc["trunk.0.weight", "A"] == "4x2"
    assert (table.drop(index=["action_mean.bias", "trunk.0.weight"])["L2"] == 0).all()


def test_layers_that_only_one_has_or_of_other_shapes_have_no_numbers(policy_of, policy):
    table = layer_differences(policy_of(0), policy).set_index("Layer")
    assert table.loc["trunk.0.weight", ["A", "B"]].tolist() == ["4x2", "16x2"]
    assert pd.isna(table.loc["trunk.0.weight", "L2"])


def test_two_models_are_shown_side_by_side(register, policy_of, shown):
    unsafe = register("unsafe", 300)
    concept = register("concept", 50, seed=1, source=unsafe)
    for uri, kp in ((unsafe, "null"), (concept, "0.5")):
        name, _, number = uri.removeprefix("models:/").rpartition("/")
        run_id = client().get_model_version(name, number).run_id
        client().log_text(
            run_id, f"pid:\n  kp: {kp}\nmodel:\n  lr: 0.001\ndata: {{workers: {number}}}\n", "config.yaml"
        )
    printed = " ".join(shown("models", "compare", unsafe, concept).split())
    for part in ("method unsafe | concept", "env ToyLine-v0 = ToyLine-v0", "seed 0 | 1", "update 300 | 50"):
        assert part in printed
    assert f"source random | {unsafe}" in printed
    assert "Config differences pid.kp - | 0.5 Weights: DIFFERENT" in printed
    assert "trunk.0.weight 4x2 4x2" in printed
    assert printed.endswith("Stored evaluations: none")


def test_equal_weights_are_said_to_be_equal(register, policy_of, shown, tmp_path):
    uri = register("concept", 50)
    save_policy(tmp_path / "copy", policy_of(0), ModelCard("concept", TOY))
    printed = shown("models", "compare", uri, "copy")
    assert "Weights: EQUAL, every bit" in printed
    assert "trunk.0.weight" not in printed
    assert "no stored config  yes  =  yes" in printed  # neither the made-up run nor a file has one


def test_evaluations_are_found_by_the_weights(register, policy_of, shown, tmp_path):
    uri, other = register("concept", 50), register("oracle", 300, seed=1)
    digest = weights_digest(policy_of(0))
    for number, cost in enumerate((40.0, 12.5)):
        folder = tmp_path / str(number)
        folder.mkdir()
        row = {"Model": "concept_50", "Reward": 3.5, "Cost_Sum": cost, "Layouts": "10000 to 10049"}
        (folder / "metadata.json").write_text(json.dumps({"models": {"concept_50": {"weights_sha256": digest}}}))
        (folder / "summary.json").write_text(json.dumps({"models": [row]}))
        places = {folder / name: f"eval/policy_suite_eval/{number}" for name in ("metadata.json", "summary.json")}
        newest = runs.record_audit(TOY, "policy-suite", {}, {}, places)
    printed = " ".join(shown("models", "compare", uri, other).split())
    assert f"Stored evaluations run {newest} | - Reward 3.5 | -" in printed
    assert "Cost_Sum 12.5 | -" in printed
