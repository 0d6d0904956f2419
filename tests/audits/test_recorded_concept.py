"""Audits by the concept that models record."""

import json

import pytest

from lightning_unlearn import cli
from lightning_unlearn.envs.concept_config import concept_to_json
from lightning_unlearn.envs.concepts import ObservationRange
from lightning_unlearn.policies.files import ModelCard, save_policy

TOY = "ToyLine-v0"
RIGHT = ObservationRange("position", above=0.25)


@pytest.fixture
def right(store, pushed, tmp_path):
    """A model that was to forget the right side, beside the unsafe expert."""
    save_policy(tmp_path / "unsafe", pushed(2.0), ModelCard("unsafe", TOY, "cost_hazards", 0, 10))
    save_policy(tmp_path / "right", pushed(0.2), ModelCard("concept", TOY, concept_to_json(RIGHT), 0, 50))
    return ["--env", TOY, "--unsafe_model", "unsafe"]


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def test_audits_judge_by_the_models_own_concept(right, tmp_path, capsys):
    cli.main(["evaluate", *right, "--models", "right", "--episodes", "2", "--out", "e", "--concept", "recorded"])
    assert metadata(tmp_path / "e")["concept"] == concept_to_json(RIGHT)
    assert "was to forget" not in capsys.readouterr().out
    collected = ["--env", TOY, "--model_path", "right", "--out", "p.npz", "--n_per_class", "20"]
    cli.main(["probe", "collect", *collected, "--concept", "recorded"])
    assert json.loads((tmp_path / "p.meta.json").read_text())["concept"] == concept_to_json(RIGHT)
    short = ["--max_updates", "1", "--eval_every", "1", "--horizon", "32"]
    cli.main(["relearn", *right, "--model_path", "right", *short, "--out", "r", "--concept", "recorded"])
    assert json.loads((tmp_path / "r/relearn_result.json").read_text())["settings"]["concept"] == concept_to_json(RIGHT)


def test_an_evaluation_by_another_concept_says_so(right, tmp_path, capsys):
    cli.main(["evaluate", *right, "--models", "right", "--episodes", "2", "--out", "e"])
    said = capsys.readouterr().out
    assert f"concept_50 was to forget {concept_to_json(RIGHT)}; C_forget, near and far are about cost_hazards." in said
