"""Files of earlier versions are read although classes and keys have other names today."""

import importlib
import json

import pytest
import torch

from lightning_unlearn import old_names
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept
from lightning_unlearn.envs.concepts import Disc
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.files import ModelCard, load_policy, save_policy
from lightning_unlearn.tracking.checkpoints import AtomicCheckpoints, newest

DISC = f"{Disc.__module__}.{Disc.__qualname__}"
OLD_MODULE, OLD_CLASS = "lightning_unlearn.elsewhere", "lightning_unlearn.somewhere.Circle"


@pytest.fixture
def moved(monkeypatch):
    """A class and a module that once had other names."""
    monkeypatch.setitem(old_names.PATHS, OLD_MODULE, Disc.__module__)
    monkeypatch.setitem(old_names.PATHS, OLD_CLASS, DISC)


def test_every_new_path_exists():
    for path in old_names.PATHS.values():
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name) or importlib.import_module(path), path
        assert old_names.with_current_paths(path) == path, f"{path} is an old name itself"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OLD_CLASS, DISC),
        (f"{OLD_MODULE}.Disc", DISC),
        (f"class_path: {OLD_CLASS}\nn: 1", f"class_path: {DISC}\nn: 1"),
        (f"{OLD_CLASS}s {OLD_MODULE}s.Disc my{OLD_CLASS}", f"{OLD_CLASS}s {OLD_MODULE}s.Disc my{OLD_CLASS}"),
        (f"other.{OLD_CLASS.partition('.')[2]}", f"other.{OLD_CLASS.partition('.')[2]}"),
    ],
)
def test_old_paths_become_todays(moved, old, new):
    assert old_names.with_current_paths(old) == new


@pytest.mark.parametrize("as_file", [False, True])
def test_options_and_config_files_may_have_old_paths(moved, tmp_path, as_file):
    parser = CommandParser()
    parser.add_argument("--config", action="config")
    add_concept_option(parser)
    arguments = {"centre": [1.0, 2.0], "radius": 0.5}
    (tmp_path / "own.yaml").write_text(json.dumps({"concept": {"class_path": OLD_CLASS, "init_args": arguments}}))
    given = [f"--concept={OLD_CLASS}", *(f"--concept.{name}={value}" for name, value in arguments.items())]
    _, concept = parse_with_concept(parser, ["--config", str(tmp_path / "own.yaml")] if as_file else given)
    assert concept == Disc(**arguments)


def test_a_models_card_may_have_an_old_path(moved, policy, tmp_path):
    concept = '{"class_path": "%s", "init_args": {}}'
    save_policy(tmp_path, policy, ModelCard("unsafe", "ToyLine-v0", concept % OLD_CLASS))
    assert load_policy(tmp_path).card.concept == concept % DISC


def test_a_checkpoint_may_have_old_keys(monkeypatch, tmp_path):
    monkeypatch.setitem(old_names.CHECKPOINT_KEYS, "state_dict/old.weight", "state_dict/new.weight")
    monkeypatch.setitem(old_names.CHECKPOINT_KEYS, "Data/learner", "Rollouts/inner/learner")
    state = {"state_dict": {"old.weight": torch.ones(1)}, "callbacks": {"Durability": {"pending": []}}, "Data": {}}
    files = AtomicCheckpoints()
    files.save_checkpoint(state | {"Data": {"learner": 1, "noise": 2}}, tmp_path / "update-1")
    assert files.load_checkpoint(newest(tmp_path)) == {
        "state_dict": {"new.weight": torch.ones(1)},
        "callbacks": {"UpdateCheckpoint": {"pending": []}},
        "Data": {"noise": 2},
        "Rollouts": {"inner": {"learner": 1}},
    }
