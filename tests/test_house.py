"""Bounds that hold for ever, whatever is added; counts of modules and lines are printed by `house.py` only."""

import house
import pytest


@pytest.fixture(scope="module")
def measured():
    return house.measure()


SINGLE_CALLER_SHARE = 0.23
MEDIAN_LINES, MOST_LINES, LONGEST = 6, 25, 60
REPEATED_NAMES = 3
ODD_DOCSTRINGS = 130
README_BYTES = 14_000


def test_few_helpers_have_a_single_caller(measured):
    assert measured.single_caller_share <= SINGLE_CALLER_SHARE


def test_functions_are_short(measured):
    middle, most, longest = measured.function_lines
    assert middle <= MEDIAN_LINES
    assert most <= MOST_LINES
    assert longest <= LONGEST


def test_names_of_modules_differ(measured):
    assert len(measured.repeated_names) <= REPEATED_NAMES, measured.repeated_names


def test_docstrings_say_what_a_thing_does_or_is(measured):
    assert len(measured.odd_docstrings) <= ODD_DOCSTRINGS


def test_the_readme_is_short(measured):
    assert measured.readme_bytes <= README_BYTES
