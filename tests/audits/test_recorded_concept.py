"""Audits by the concept that models record, and what strangers may write into a card."""

import json

import pytest

from lightning_unlearn import cli
from lightning_unlearn.audits.recorded_concept import asked_for, built
from lightning_unlearn.envs.concepts import ActionBox, AnyOf, Disc, InfoKey, ObservationRange, Rectangle, recorded_as
from lightning_unlearn.policies.files import ModelCard, save_policy

TOY = "ToyLine-v0"
RIGHT = ObservationRange("position", above=0.25)
EVERY = AnyOf([InfoKey("cost_a"), AnyOf([Disc([0.0, 1.0], 2.0), Rectangle([None, 1.0], [0.0, None])]), RIGHT])


def test_what_was_recorded_is_built_again():
    for concept in (EVERY, ActionBox([0.0, None], [None, 1.0])):
        assert built(recorded_as(concept)) == concept
    assert built("cost_hazards") == "cost_hazards"


def test_only_recorded_asks_the_cards_and_they_must_agree():
    assert asked_for("auto", ["cost_a", "cost_b"]) == "auto"
    assert asked_for(RIGHT, []) is RIGHT
    assert asked_for("recorded", ["", "cost_a", "cost_a"]) == "cost_a"
    assert asked_for("recorded", [""]) == "auto"
    with pytest.raises(ValueError, match=r"different concepts \(cost_a, cost_b\): name one of them"):
        asked_for("recorded", ["cost_a", "cost_b"])


ROOM = "lightning_unlearn.envs.concepts."
HOSTILE = {
    "a class of somebody": ({"class_path": "os.system", "init_args": {"command": "true"}}, "record os.system, none of"),
    "a class in a union": (
        {"class_path": ROOM + "AnyOf", "init_args": {"concepts": [{"class_path": "a.B", "init_args": {}}]}},
        "record a.B, none of",
    ),
    "a class by its path alone": (
        {"class_path": ROOM + "AnyOf", "init_args": {"concepts": ["a.B"]}},
        "record a.B, none of",
    ),
    "a word in a union": ({"class_path": ROOM + "AnyOf", "init_args": {"concepts": ["Disc"]}}, "which is no concept"),
    "no list": ({"class_path": ROOM + "AnyOf", "init_args": {"concepts": 3}}, "which is no concept"),
    "no arguments": ({"class_path": ROOM + "Disc"}, "which is no concept"),
    "other arguments": ({"class_path": ROOM + "Disc", "init_args": {"size": 1}}, "which is no concept"),
    "a word for a number": ({"class_path": ROOM + "SpeedAbove", "init_args": {"limit": "1"}}, "SpeedAbove.limit='1'"),
    "a huge number": ({"class_path": ROOM + "SpeedAbove", "init_args": {"limit": 10**400}}, "use a finite number"),
    "truth for a number": ({"class_path": ROOM + "SpeedAbove", "init_args": {"limit": True}}, "SpeedAbove.limit=True"),
    "a list for a key": ({"class_path": ROOM + "InfoKey", "init_args": {"key": []}}, "InfoKey.key=\\[\\]"),
    "nothing at all": ({}, "which is no concept"),
}


@pytest.mark.parametrize(("card", "message"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_stranger_wrote_is_refused(card, message):
    with pytest.raises(ValueError, match=message):
        built(json.dumps(card))


@pytest.mark.parametrize(
    "text",
    ["{", '{"class_path": NaN}', "{" * 70_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '{"a":' * 500 + "1" + "}" * 500],
)
def test_what_is_no_json_or_nested_too_deeply_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON|letters|no concept"):
        built(text)


@pytest.fixture
def right(store, pushed, tmp_path):
    """A model that was to forget the right side, beside the unsafe expert."""
    save_policy(tmp_path / "unsafe", pushed(2.0), ModelCard("unsafe", TOY, "cost_hazards", 0, 10))
    save_policy(tmp_path / "right", pushed(0.2), ModelCard("concept", TOY, recorded_as(RIGHT), 0, 50))
    return ["--env", TOY, "--unsafe_model", "unsafe"]


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


def test_audits_judge_by_the_models_own_concept(right, tmp_path, capsys):
    cli.main(["evaluate", *right, "--models", "right", "--episodes", "2", "--out", "e", "--concept", "recorded"])
    assert metadata(tmp_path / "e")["concept"] == recorded_as(RIGHT)
    assert "was to forget" not in capsys.readouterr().out
    collected = ["--env", TOY, "--model_path", "right", "--out", "p.npz", "--n_per_class", "20"]
    cli.main(["probe", "collect", *collected, "--concept", "recorded"])
    assert json.loads((tmp_path / "p.meta.json").read_text())["concept"] == recorded_as(RIGHT)
    short = ["--max_updates", "1", "--eval_every", "1", "--horizon", "32"]
    cli.main(["relearn", *right, "--model_path", "right", *short, "--out", "r", "--concept", "recorded"])
    assert json.loads((tmp_path / "r/relearn_result.json").read_text())["settings"]["concept"] == recorded_as(RIGHT)


def test_an_evaluation_by_another_concept_says_so(right, tmp_path, capsys):
    cli.main(["evaluate", *right, "--models", "right", "--episodes", "2", "--out", "e"])
    said = capsys.readouterr().out
    assert f"concept_50 was to forget {recorded_as(RIGHT)}; C_forget, near and far are about cost_hazards." in said
