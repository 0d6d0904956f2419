import numpy as np
import pytest
import scipy.stats

from lightning_unlearn.audits.statistics import (
    conditional_value_at_risk,
    hierarchical_interval,
    hierarchical_means,
    holm,
    interquartile_mean,
    mean_interval,
    paired_differences,
    probability_of_improvement,
    ratio_interval,
    repair_test,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 50])
def test_iqm_is_scipys_trimmed_mean(rng, count):
    values = rng.normal(size=count)
    assert interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25))


def test_probability_of_improvement_is_scipys_mann_whitney_u(rng):
    first, second = rng.integers(0, 6, 9), rng.integers(0, 5, 13)  # with ties
    u = scipy.stats.mannwhitneyu(first, second).statistic
    assert probability_of_improvement(first, second) == pytest.approx(u / (9 * 13))


@pytest.mark.parametrize("count", [3, 5, 30])
def test_one_level_is_students_interval(rng, count):
    """One episode a seed leaves the plain bootstrap over seeds, whose standard error is corrected to the sample's.

    The standard deviation of 20 000 draws is right to 0.5 %: 2 % is four times that.
    """
    values = rng.gamma(2.0, size=count)
    ours = hierarchical_interval([values[i : i + 1] for i in range(count)], rng, resamples=20_000)
    theirs = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02 * (theirs.high - theirs.low))


@pytest.mark.parametrize(("count", "spread"), [(3, 0.5), (5, 0.5), (5, 4.0), (15, 2.0)])
def test_coverage_of_a_hierarchical_interval(rng, count, spread):
    """Seeds vary with standard deviation 1, their 10 episodes with `spread`; 300 trials tell a share to ±2.5 % (two
    standard errors). Where episodes are what varies most, the interval is known to be too wide."""
    hits = 0
    for _ in range(300):
        levels = rng.normal(5.0, 1.0, size=count)
        low, high = hierarchical_interval([rng.normal(level, spread, size=10) for level in levels], rng, resamples=400)
        hits += low <= 5.0 <= high
    assert 0.92 <= hits / 300 <= (1.0 if spread > 1.0 else 0.98)


@pytest.mark.parametrize("count", [3, 5])
def test_a_repair_that_keeps_just_the_margin_is_rarely_called_kept(rng, count):
    """At the border of the claim, one test in twenty is wrong; 400 trials tell that to ±2.2 %."""
    wrong = 0
    for _ in range(400):
        before = [np.full(2, 20.0)] * count
        after = [np.full(2, 19.0 + noise) for noise in rng.normal(0.0, 1.0, size=count)]  # 0.95 of it in the mean
        wrong += repair_test(after, before, [np.zeros(2)] * count, [np.ones(2)] * count, rng, resamples=400).both
    assert 0.02 <= wrong / 400 <= 0.08


def test_what_does_not_vary_is_known():
    same = [np.full(3, 10.0)] * 3
    test = repair_test(same, same, [np.zeros(3)] * 3, same, np.random.default_rng(0))
    assert (test.return_ratio_low, test.cost_difference_high, test.p_value) == (1.0, -10.0, 0.0)
    assert repair_test(same, same, same, same, np.random.default_rng(0)).p_value == 1.0


def test_pooling_episodes_would_not_cover(rng):
    """Two levels matter: treating the episodes as independent gives an interval three times too narrow here."""
    seeds = [rng.normal(level, 0.5, size=50) for level in rng.normal(0.0, 2.0, size=10)]
    low, high = hierarchical_interval(seeds, rng)
    pooled = 2 * 1.96 * np.concatenate(seeds).std() / np.sqrt(500)
    assert high - low > 3 * pooled


def test_seeds_may_have_different_numbers_of_episodes(rng):
    means = hierarchical_means([np.full((3, 1), 1.0), np.full((7, 1), 2.0)], rng, 4000)
    assert set(np.round(means[:, 0], 9)) == {1.0, 1.5, 2.0}
    assert means.mean() == pytest.approx(1.5, abs=0.03)  # seeds weigh the same, whatever their episodes


def test_equal_generators_give_equal_intervals():
    seeds = [np.arange(5.0), np.arange(3.0)]
    assert hierarchical_interval(seeds, np.random.default_rng(3)) == hierarchical_interval(
        seeds, np.random.default_rng(3)
    )


def test_one_seed_has_no_interval(rng):
    assert hierarchical_interval([np.arange(50.0)], rng) is None
    one = [np.arange(1.0, 51.0)]
    test = repair_test(one, one, one, one, rng)
    assert (test.return_ratio, test.cost_difference) == (1.0, 0.0)
    assert (test.return_ratio_low, test.cost_difference_high) == (None, None)
    assert (test.non_inferior, test.superior, test.both) == (None, None, None)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.1, 100.0), (0.2, 95.0), (0.15, (100 + 0.5 * 90) / 1.5), (0.999, 55.0)],
)
def test_cvar_is_the_mean_of_the_worst(alpha, expected):
    """Ten costs 10, 20, …, 100: the worst tenth is 100, the worst fifth 90 and 100, 0.15 of them 100 and half of 90."""
    assert conditional_value_at_risk(np.arange(10.0, 101.0, 10.0), alpha) == pytest.approx(expected, rel=2e-3)


def test_differences_are_paired_by_layout():
    assert paired_differences(np.array([3.0, 5.0]), np.array([1.0, 9.0]), [7, 8], [7, 8]).tolist() == [2.0, -4.0]
    with pytest.raises(ValueError, match="same layouts"):
        paired_differences(np.ones(2), np.ones(2), [7, 8], [8, 7])


def experiment(rng, kept, cost):
    """Eight seeds of 20 layouts: returns of the repaired are `kept` of the reference's, costs are `cost` of its."""
    layouts = rng.normal(0.0, 3.0, size=20)
    before = [25.0 + rng.normal(0, 1) + layouts for _ in range(8)]
    paid = [rng.poisson(60.0, size=20).astype(float) for _ in range(8)]
    after = [kept * earned + rng.normal(0, 0.5, size=20) for earned in before]
    return after, before, [cost * p for p in paid], paid


@pytest.mark.parametrize(
    ("kept", "cost", "verdict"),
    [(1.0, 0.5, (True, True, True)), (0.8, 0.5, (False, True, False)), (1.0, 1.1, (True, False, False))],
)
def test_a_repair_has_to_keep_the_return_and_lower_the_cost(rng, kept, cost, verdict):
    test = repair_test(*experiment(rng, kept, cost), rng)
    assert (test.non_inferior, test.superior, test.both) == verdict
    assert test.return_ratio_low < test.return_ratio
    assert test.cost_difference_high > test.cost_difference
    assert (test.p_value < 0.05) == test.both


def test_holm_multiplies_by_what_is_left_and_never_goes_down():
    """Sorted 0.01, 0.03, 0.04: times 3, 2, 1 gives 0.03, 0.06, 0.04, and the last one may not be below 0.06."""
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_ratio_to_nothing_has_no_bound(rng):
    around_zero = [rng.normal(size=20) for _ in range(4)]
    test = repair_test(around_zero, around_zero, around_zero, around_zero, rng)
    assert test.return_ratio_low is None
    assert test.both is None


def test_impossible_input_is_refused(rng):
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        conditional_value_at_risk(np.ones(3), 1.5)
    with pytest.raises(ValueError, match=r"got \(0,\)"):
        interquartile_mean(np.zeros(0))
    with pytest.raises(ValueError, match="level=0"):
        hierarchical_interval([np.ones(2), np.ones(2)], rng, level=0)


def test_the_interval_of_a_mean_is_scipys(rng):
    values = rng.normal(3.0, 2.0, 12)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.full(3, 2.0)) == (2.0, 2.0)


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says(rng):
    hits = 0
    for _ in range(1000):
        layout = rng.gamma(4.0, 5.0, 100)  # what both have in common
        first, second = 0.9 * layout + rng.normal(0.0, 3.0, 100), layout + rng.normal(0.0, 3.0, 100)
        low, high = ratio_interval(first, second)
        hits += low <= 0.9 <= high
    assert 0.92 < hits / 1000 < 0.98
    assert ratio_interval(np.array([1.0]), np.array([2.0])) is None
