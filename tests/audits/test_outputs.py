import json

import numpy as np

from lightning_unlearn.audits.outputs import not_finite, write_json


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    content = {"a": float("nan"), "b": {"c": [1.0, float("-inf")]}, "d": np.array([np.inf, 2.0]), "e": None, "f": "nan"}
    write_json(tmp_path / "x.json", {**content, "g": np.float32("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": None,
        "b": {"c": [1.0, None]},
        "d": [None, 2.0],
        "e": None,
        "f": "nan",
        "g": None,
        "not_finite": {"a": "nan", "b/c/1": "-inf", "d/0": "inf", "g": "nan"},
    }


def test_nothing_is_said_of_finite_numbers(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1.5, "b": np.arange(2)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1.5, "b": [0, 1]}
    assert not_finite({"a": [True, "inf", None, 10**400]}) == {}
