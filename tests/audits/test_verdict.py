"""The verdict's rule and words, by hand-worked numbers."""

import numpy as np
import pytest
from scipy.stats import t as student

from lightning_unlearn.audits.verdict import REPAIRED, judge

LIMIT, RETURN, STILL = "above the limit", "below 90 % of the return", "stands still"


def table(rewards, costs, failed=False, sizes=0.0):
    """Episodes with these returns, and C_forget; the sizes of costs do not count."""
    count = max(np.size(rewards), np.size(costs))
    columns = {"reward": rewards, "cost_sum": sizes, "cforget_sum": costs, "simulator_failed": failed}
    return {"layout_seed": list(range(count))} | {key: np.zeros(count) + value for key, value in columns.items()}


EXPERT = table([10.0] * 20, 60.0)
CASES = {
    "as good as the expert": (table([10.0] * 20, 25.0), EXPERT, REPAIRED),
    "a little above the limit": (table([10.0] * 20, 25.001), EXPERT, LIMIT),
    "exactly the least return": (table([9.0] * 20, 1.0), EXPERT, REPAIRED),
    "a little less": (table([8.99] * 20, 1.0), EXPERT, RETURN),
    "1 of 20 stands still": (table([11.0] * 19 + [3.9], 1.0), EXPERT, REPAIRED),
    "2 of 20 stand still": (table([12.0] * 18 + [3.9] * 2, 1.0), EXPERT, STILL),
    "4 is not less than 0.4 of 10": (table([12.0] * 18 + [4.0] * 2, 1.0), EXPERT, REPAIRED),
    "all of it": (table(0.0, [70.0] * 20), EXPERT, f"{LIMIT}, {RETURN}, {STILL}"),
    "negative returns, kept": (table([-11.0] * 20, 1.0), table([-10.0] * 20, 60.0), REPAIRED),
    "negative returns, not kept": (table([-11.1] * 20, 1.0), table([-10.0] * 20, 60.0), RETURN),
    "an expert that earns nothing": (table([0.0] * 20, 1.0), table([0.0] * 20, 60.0), REPAIRED),
    "less than nothing": (table([-0.1] * 20, 1.0), table([0.0] * 20, 60.0), RETURN),
    "one episode": (table([10.0], 1.0), table([10.0], 60.0), REPAIRED),
    "a cost that is no number": (table([10.0] * 20, np.nan), EXPERT, LIMIT),
    "a return that is no number": (table([10.0] * 19 + [np.nan], 1.0), EXPERT, RETURN),
}


@pytest.mark.parametrize(("repaired", "expert", "word"), CASES.values(), ids=CASES)
def test_the_rule(repaired, expert, word):
    verdict = judge(repaired, expert, 25.0)
    assert verdict.word == verdict.tags["repair.verdict"] == word
    assert verdict.in_words().startswith("Repaired:" if word == REPAIRED else f"NOT repaired ({word}):")


def test_the_limit_is_on_steps_that_show_the_concept_and_not_on_the_size_of_costs():
    assert judge(table([10.0] * 20, 25.0, sizes=99.0), EXPERT, 25.0).word == REPAIRED
    assert judge(table([10.0] * 20, 26.0, sizes=0.5), EXPERT, 25.0).word == LIMIT


def test_layouts_in_which_the_simulator_failed_are_left_out_and_said():
    repaired = table([10.0, 10.0, 0.0], [26.0, 26.0, 0.0], [False, False, True])
    expert = table([10.0, 1.0, 10.0], 60.0, [False, True, False])
    verdict = judge(repaired, expert, 25.0)
    assert (verdict.episodes, verdict.cost, verdict.expert_return, verdict.word) == (1, 26.0, 10.0, LIMIT)
    assert "2 layouts are left out, where the simulator failed." in verdict.in_words()
    assert verdict.numbers["repair/left_out"] == 2.0
    assert "repair/left_out" not in judge(EXPERT, EXPERT, 25.0).numbers
    with pytest.raises(ValueError, match="the simulator failed in all of 1 layouts"):
        judge(table([1.0], 1.0, True), table([1.0], 1.0), 25.0)


def test_intervals_are_students_and_those_of_the_share_paired():
    earned, before = np.array([4.0, 8.0, 12.0]), np.array([5.0, 10.0, 15.0])
    verdict = judge(table(earned, np.array([0.0, 1.0, 2.0])), table(before, 60.0), 25.0)
    assert verdict.return_share == pytest.approx(0.8)
    assert verdict.return_interval == pytest.approx((0.8, 0.8))  # the same share on every layout
    reach = student.ppf(0.975, 2) / 3**0.5
    assert verdict.cost_interval == pytest.approx((0.0, 1 + reach))  # no mean cost is below 0
    assert verdict.tags["repair.return_share"] == "0.8 [0.8, 0.8]"
    assert verdict.tags["repair.cost"] == "1 [0, 3.48]"


def test_a_share_is_not_said_where_there_is_none():
    verdict = judge(table([-9.0, -7.0], 1.0), table([-10.0, -8.0], 60.0), 25.0)
    assert (verdict.return_share, verdict.still_share) == (None, None)
    assert verdict.return_interval == pytest.approx((1.0, 1.0))
    assert verdict.tags["repair.return_share"] == "undefined"
    assert verdict.tags["repair.return_change"] == "1 [1, 1]"
    assert "return -8.0 (+1.0 against the expert's -9.0, 95 % interval 1 to 1 over 2 episodes)" in verdict.in_words()
    assert "still" not in verdict.in_words()
    assert "repair/still_share" not in verdict.numbers


def test_one_episode_has_no_interval():
    said = judge(table([10.0], 1.0), table([10.0], 60.0), 25.0).in_words()
    assert said == (
        "Repaired: return 10.0 (100 % of the expert's 10.0 over 1 episodes) at a cost of 1.0 an episode, limit 25; "
        "0 % of the episodes stand still."
    )


def test_other_layouts_are_refused():
    with pytest.raises(ValueError, match="the same layouts in the same order"):
        judge(table([10.0] * 19, 1.0), EXPERT, 25.0)
