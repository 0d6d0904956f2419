"""Bounds that hold for ever, whatever is added; counts of modules and lines are printed by `house.py` only."""

import house
import pytest


@pytest.fixture(scope="module")
def measured():
    return house.measure()


SINGLE_CALLER_SHARE = 0.15
MEDIAN_LINES, MOST_LINES, LONGEST = 6, 25, 60
REPEATED_NAMES = {"registry"}
"""`lightning_unlearn.registry` is the loader that stored models name."""
ODD_DOCSTRINGS = 0
README_BYTES = 14_000


def test_few_helpers_have_a_single_caller(measured):
    assert measured.single_caller_share <= SINGLE_CALLER_SHARE


def test_functions_are_short(measured):
    middle, most, longest = measured.function_lines
    assert middle <= MEDIAN_LINES
    assert most <= MOST_LINES
    assert longest <= LONGEST


def test_names_of_modules_differ(measured):
    assert measured.repeated_names.keys() <= REPEATED_NAMES


def test_docstrings_say_what_a_thing_does_or_is(measured):
    assert len(measured.odd_docstrings) <= ODD_DOCSTRINGS, measured.odd_docstrings


def test_the_readme_is_short(measured):
    assert measured.readme_bytes <= README_BYTES
