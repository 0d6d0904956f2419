"""The package gives the outputs that were recorded before it was rebuilt."""

import pytest
import record

FAST = ("concept_tuned", "localized_concept", "off_policy_concept", "trajectory_decremental")
CASES = {
    "toy": pytest.param("toy", FAST),
    "other methods": pytest.param("toy", [name for name in record.METHODS if name not in FAST], marks=pytest.mark.slow),
    "goal": pytest.param("goal", None, marks=pytest.mark.slow),
    "audits": pytest.param("audits", None),
    "published": pytest.param("published", None, marks=pytest.mark.slow),
    "study": pytest.param("study", None, marks=pytest.mark.slow),
    "refusals": pytest.param("refusals", None),
}


@pytest.mark.parametrize(("part", "methods"), CASES.values(), ids=CASES)
def test_outputs_are_those_that_were_recorded(store, part, methods):
    expected, exact = record.recorded(part)
    found = record.make(part, ".", *([methods] if methods else []))
    if methods:
        expected = {name: expected[name] for name in methods}
    differing = record.differences(expected, found, exact)
    assert not differing, "\n".join(differing)
