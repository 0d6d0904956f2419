"""The parser that all commands share."""

import pytest

from lightning_unlearn.options import CommandParser
from lightning_unlearn.published_options import MODEL_OPTIONS


@pytest.mark.parametrize(("published", "name"), MODEL_OPTIONS.items())
@pytest.mark.parametrize("nargs", [{}, {"nargs": "*"}], ids=["one", "several"])
def test_a_model_is_given_by_one_name_in_all_commands_or_by_its_published_one(published, name, nargs):
    parser = CommandParser()
    parser.add_argument(published, type=str, **nargs)
    given = parser.parse_args([f"{name}s" if nargs else name, "models:/unsafe.ToyLine-v0/1"])
    assert given == parser.parse_args([published, "models:/unsafe.ToyLine-v0/1"])
    assert published.removeprefix("--") in given


@pytest.mark.parametrize("kind", [float, float | None])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "much"])
def test_what_is_no_number_is_refused_in_words(kind, value):
    parser = CommandParser()
    parser.add_argument("--std", type=kind)
    with pytest.raises(ValueError, match=rf"^--std {value} is not possible: use a number\.$"):
        parser.parse_args([f"--std={value}"])


@pytest.mark.parametrize(("option", "near"), [("--modle", "model"), ("--model_pat", "model_path"), ("--mod", "model")])
def test_the_nearest_option_is_suggested(option, near):
    parser = CommandParser()
    parser.add_argument("--model_path", type=str)
    with pytest.raises(ValueError, match=f"Did you mean {near}"):
        parser.parse_args([option, "x"])
