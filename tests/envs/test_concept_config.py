"""Concepts in options and stored texts, and what a stranger may write into a model's card."""

import json

import pytest

from lightning_unlearn.envs.concept_config import concept_from_json, concept_to_json, custom_classes, resolve_concept
from lightning_unlearn.envs.concepts import ActionBox, AnyOf, Disc, InfoKey, ObservationRange, Rectangle

ROOM = "lightning_unlearn.envs.concepts."
LEFT = {"class_path": ROOM + "ObservationRange", "init_args": {"part": "position", "below": 0}}
RIGHT = ObservationRange("position", above=0.25)
EVERY = AnyOf([InfoKey("cost_a"), AnyOf([Disc([0.0, 1.0], 2.0), Rectangle([None, 1.0], [0.0, None])]), RIGHT])


def test_what_was_recorded_is_built_again():
    for concept in (EVERY, ActionBox([0.0, None], [None, 1.0])):
        assert concept_from_json(concept_to_json(concept)) == concept
    assert concept_from_json("cost_hazards") == "cost_hazards"


def test_only_recorded_asks_the_cards_and_they_must_agree():
    assert resolve_concept("auto", ["cost_a", "cost_b"]) == "auto"
    assert resolve_concept(RIGHT, []) is RIGHT
    assert resolve_concept("recorded", ["", "cost_a", "cost_a"]) == "cost_a"
    assert resolve_concept("recorded", [""]) == "auto"
    with pytest.raises(ValueError, match=r"different concepts \(cost_a, cost_b\): name one of them"):
        resolve_concept("recorded", ["cost_a", "cost_b"])


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
        concept_from_json(json.dumps(card))


@pytest.mark.parametrize(
    "text",
    ["{", '{"class_path": NaN}', "{" * 70_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '{"a":' * 500 + "1" + "}" * 500],
)
def test_what_is_no_json_or_nested_too_deeply_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON|letters|no concept"):
        concept_from_json(text)


def test_every_way_of_naming_a_class_in_a_stored_config_is_seen():
    ready = {"class_path": ROOM + "AnyOf", "init_args": {"concepts": [LEFT, "Disc"]}}
    assert custom_classes(ready) == custom_classes("cost_hazards") == custom_classes(None) == set()
    assert custom_classes("a.B") == {"a.B"}
    listed = {"class_path": "c.D", "init_args": {"concepts": [ready, "a.B", {"class_path": "e.F"}]}}
    assert custom_classes(listed) == {"a.B", "c.D", "e.F"}
