import pickle

import numpy as np
import torch

from lightning_unlearn import cli
from lightning_unlearn.audits.probes import LinearProbe
from lightning_unlearn.exporters.published_tree import as_pipeline
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor
from lightning_unlearn.tracking import registry

TOY = "ToyLine-v0"


def export(*args):
    cli.main(["export-artifacts", "--env", TOY, "--out", "tree", *args])


def test_the_tree_has_the_published_names_and_models_read_back(register, tmp_path, capsys):
    uris = {
        f"unsafe/unsafe_expert_{TOY}.pt": register("unsafe", 10, 2.0),
        f"oracle/oracle_{TOY}_450.pt": register("oracle", 450, -1.0),
        f"concept/safe_concept_{TOY}_50.pt": register("concept", 50, 0.3),
        f"trajectory_decremental/safe_trajectory_decremental_{TOY}_150.pt": register("trajectory_decremental", 150, 1),
    }
    register("concept", 50, 0.9, seed=1)
    export()
    models = tmp_path / "tree/models"
    assert {str(p.relative_to(models)) for p in models.rglob("*.pt")} == set(uris)
    observation = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    for name, uri in uris.items():
        read, own = (registry.load_policy(u) for u in (str(models / name), uri))
        assert torch.equal(read.policy.act(observation), own.policy.act(observation))
        assert (read.card.method, read.card.env) == (own.card.method, TOY)
    assert {p.name for p in (tmp_path / "tree/logs").iterdir()} == {"train", "eval", "debug"}


def test_an_edited_model_keeps_its_editor_and_what_does_not_fit_is_said(register, pushed, tmp_path, capsys):
    register("unsafe", 10, 2.0)
    run_id = registry.registered_models(TOY, 0)[0].run_id
    direction = torch.nn.functional.one_hot(torch.tensor(3), 64).float()
    edited = pushed(1.0).with_editor(GatedEditor(direction, 1.5, -0.5, 10.0))
    erased = pushed(1.0).with_editor(AffineEditor(torch.eye(64), torch.zeros(64)))
    for update, policy in ((50, edited), (100, erased)):
        registry.register_policy(policy, ModelCard("repedit", TOY, "", 0, update, 1), run_id)
    export()
    observation = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    read = registry.load_policy(str(tmp_path / f"tree/models/repedit/safe_repedit_{TOY}_50.pt")).policy
    assert read.editor is not None
    torch.testing.assert_close(read.act(observation), edited.act(observation), rtol=0, atol=1e-6)
    assert not (tmp_path / f"tree/models/repedit/safe_repedit_{TOY}_100.pt").exists()
    assert "editor=affine" in (tmp_path / "tree/logs/debug/not_exported.txt").read_text()
    assert "Left out: models:/repedit" in capsys.readouterr().out


def test_logs_and_evaluations_come_along(register, tmp_path):
    register("unsafe", 10, 2.0)
    cli.main(["evaluate", "--env", TOY, "--episodes", "2", "--kl_states", "9", "--eval_id", "e1", "--out", "elsewhere"])
    export()
    assert (tmp_path / "tree/eval/policy_suite_eval/e1/summary.csv").read_bytes() == (
        tmp_path / "elsewhere/summary.csv"
    ).read_bytes()
    (train,) = (tmp_path / "tree/logs/train").iterdir()
    text = train.read_text()
    assert train.name.startswith("unsafe-seed0_")
    assert text.startswith("# Written from the MLflow run")
    assert "rollout/cost_rate: 64: 0.25" in text
    (audit,) = (tmp_path / "tree/logs/eval").iterdir()
    assert "episodes: 2" in audit.read_text()


def test_the_shipped_expert_stands_in_where_the_seed_has_none(register, tmp_path, capsys):
    register("concept", 50, 0.3)
    export()
    assert f"zoo:unsafe.{TOY} -> models/unsafe/unsafe_expert_{TOY}.pt" in capsys.readouterr().out


def test_a_probe_unpickles_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    probe = LinearProbe(rng.normal(size=5), np.array(0.3), rng.normal(size=5), rng.uniform(0.5, 2.0, size=5))
    features = rng.normal(size=(20, 5))
    pipeline = pickle.loads(pickle.dumps(as_pipeline(probe)))
    np.testing.assert_allclose(pipeline.decision_function(features), probe.decision(features))
    np.testing.assert_array_equal(pipeline.predict(features), probe.decision(features) > 0)


def test_an_empty_store_is_refused(store, refused, tmp_path):
    assert "no model of --env ToyLine-v0 with --seed 0" in refused("export-artifacts", "--env", TOY)
    assert "--seed -1" in refused("export-artifacts", "--env", TOY, "--seed=-1")
    assert not (tmp_path / "artifacts").exists()


def test_audits_of_another_seeds_models_stay_out(register, tmp_path):
    for seed in (0, 1):
        register("unsafe", 10, 2.0, seed)
        short = ["--episodes", "2", "--kl_states", "9", "--eval_id", f"of_{seed}"]
        cli.main(["evaluate", "--env", TOY, "--seed", str(seed), *short])
    cli.main(["evaluate", "--env", TOY, "--models", "zoo", *short[:4], "--eval_id", "shipped"])
    export("--seed", "1")
    assert {p.name for p in (tmp_path / "tree/eval/policy_suite_eval").iterdir()} == {"of_1", "shipped"}
