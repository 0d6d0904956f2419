"""Statistics of evaluations as pure functions, with the training seed as the unit.

One seed says nothing about the next: every interval over seeds resamples seeds first and then the episodes within
each, and with one seed there is no interval (None), whatever the number of episodes. Percentiles of resamples cover too
little with few seeds (75 % in place of 95 % with three, 85 % with five). So resamples only give the standard error,
corrected for the number of seeds; the interval is the mean ± this times Student's t with S - 1 degrees of freedom.

Shapes: S training seeds, N episodes of one of them, R resamples, K quantities measured together.
Sources: Davison and Hinkley 1997, section 3.8 (hierarchical bootstrap); Hesterberg 2015 (why few data need more than
percentiles; the factor √(S / (S − 1)); t with bootstrap standard errors); Agarwal et al. 2021 (IQM, probability of
improvement); Rockafellar and Uryasev 2002 (CVaR); Berger and Hsu 1996 (intersection-union tests); Holm 1979; Kaplan and
Meier 1958 (medians of censored times).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import CensoredData, ecdf
from scipy.stats import t as student

RESAMPLES = 2000
INTERVALS = "Student's t; its standard error resamples seeds, then episodes"
"""Method of the bounds over seeds, as files name it."""


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class RepairTest:
    """Non-inferiority of the return and superiority of the cost, each at level `alpha`; both need no correction."""

    return_ratio: float
    """Mean return over the reference's mean return."""
    return_ratio_low: float | None
    """One-sided lower bound of the ratio; None with one seed, or where the reference's return may be 0 or less."""
    margin: float
    """The ratio that must be exceeded, fixed in advance."""
    cost_difference: float
    """Mean episode cost less the reference's."""
    cost_difference_high: float | None
    """One-sided upper bound of the difference; None with one seed."""
    alpha: float
    """Level of each of the two tests, and of both together."""
    p_value: float | None
    """P-value of the claim that both hold; None where one cannot be told."""

    @property
    def non_inferior(self) -> bool | None:
        """True if the return is kept; None if that cannot be told."""
        return None if self.return_ratio_low is None else self.return_ratio_low > self.margin

    @property
    def superior(self) -> bool | None:
        """True if the cost is lower; None if that cannot be told."""
        return None if self.cost_difference_high is None else self.cost_difference_high < 0.0

    @property
    def both(self) -> bool | None:
        """True if both hold (intersection-union test)."""
        parts = (self.non_inferior, self.superior)
        return None if None in parts else all(parts)


def hierarchical_interval(
    seeds: Sequence[np.ndarray], rng: np.random.Generator, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval | None:
    """The mean over seeds of their mean episode ± t · `standard_error`, t of S − 1 degrees of freedom.

    Args:
        seeds: The episodes of each training seed. Shape of each: (N,).
        rng: Generator of the resamples.
        level: Coverage aimed at.
        resamples: R.

    Returns:
        None with fewer than two seeds.
    """
    _require_share(level=level)
    if len(seeds) < 2:
        return None
    means = hierarchical_means([_as_vector(seed)[:, None] for seed in seeds], rng, resamples)[:, 0]
    mean = float(np.mean([np.mean(seed) for seed in seeds]))
    reach = float(student.ppf((1 + level) / 2, len(seeds) - 1)) * standard_error(means, len(seeds))
    return Interval(mean - reach, mean + reach)


def mean_interval(values: np.ndarray, level: float = 0.95) -> Interval | None:
    """Student's interval of a mean over the episodes of one model: it says nothing of another training seed.

    Args:
        values: One value an episode. Shape: (N,).
        level: Coverage aimed at.

    Returns:
        None with fewer than two episodes.
    """
    _require_share(level=level)
    values = _as_vector(values)
    if len(values) < 2:
        return None
    reach = float(student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return Interval(float(values.mean()) - reach, float(values.mean()) + reach)


def ratio_interval(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> Interval | None:
    """Interval of mean(first) / mean(second) over paired episodes of two models, by the delta method.

    With r the ratio, it is r + `mean_interval` of (first − r·second) / mean(second).

    Args:
        first: One value an episode. Shape: (N,).
        second: Those of the other model on the same layouts in the same order; their mean is above 0. Shape: (N,).
        level: Coverage aimed at.

    Returns:
        None with fewer than two episodes.
    """
    first, second = _as_vector(first), _as_vector(second)
    ratio = float(first.mean() / second.mean())
    around = mean_interval((first - ratio * second) / second.mean(), level)
    return None if around is None else Interval(ratio + around.low, ratio + around.high)


def standard_error(resampled: np.ndarray, seeds: int) -> float:
    """Standard error over S seeds: the resamples' standard deviation · √(S / (S − 1)). Shape: (R,)."""
    return float(np.std(resampled)) * (seeds / (seeds - 1)) ** 0.5


def hierarchical_means(seeds: Sequence[np.ndarray], rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Resampled means: S seeds with replacement, then as many episodes as it has of each, columns kept together.

    Args:
        seeds: The episodes of each seed. Shape of each: (N, K), N may differ.
        rng: Generator of the resamples.
        resamples: R.

    Returns:
        The mean over seeds of their means. Shape: (R, K).
    """
    sizes = np.array([len(seed) for seed in seeds])
    _require(bool(len(seeds)) and bool(sizes.min() > 0), "every seed needs at least one episode")
    padded = np.stack([np.pad(seed, ((0, sizes.max() - len(seed)), (0, 0))) for seed in seeds])  # (S, N, K)
    total = np.zeros((resamples, padded.shape[2]))
    for _ in range(len(seeds)):
        chosen = rng.integers(len(seeds), size=resamples)
        size = sizes[chosen][:, None]  # (R, 1)
        drawn = (rng.random((resamples, sizes.max())) * size).astype(np.intp)  # (R, N)
        counted = np.arange(sizes.max()) < size
        total += np.einsum("rnk,rn->rk", padded[chosen[:, None], drawn], counted / size)
    return total / len(seeds)


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half: the lowest and the highest ⌊N/4⌋ are left out. Shape: (N,)."""
    ordered = np.sort(_as_vector(values))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def conditional_value_at_risk(costs: np.ndarray, alpha: float = 0.1) -> float:
    """Mean of the worst (highest) share `alpha`; the last episode counts by the part that fits. Shape: (N,)."""
    _require_share(alpha=alpha)
    worst = np.sort(_as_vector(costs))[::-1]
    weight = np.clip(alpha * len(worst) - np.arange(len(worst)), 0.0, 1.0)
    return float((weight * worst).sum() / weight.sum())


def censored_median(times: Sequence[float], censored: Sequence[bool]) -> float | None:
    """Median of times of which some are censored, by Kaplan and Meier: the first time that at most half outlast.

    Args:
        times: When it happened, or until when it had not. Shape: (S,).
        censored: True where it had not happened. Shape: (S,).

    Returns:
        None if more than half outlast the last time at which it happened: the median is above that.
    """
    _require(len(times) == len(censored) > 0, "a median needs times, and for each of them whether it is censored")
    known, open_ended = ([t for t, c in zip(times, censored, strict=True) if c is kind] for kind in (False, True))
    if not known:
        return None
    survival = ecdf(CensoredData(known, right=open_ended)).sf
    at_most_half = survival.quantiles[survival.probabilities <= 0.5]
    return float(at_most_half[0]) if len(at_most_half) else None


def paired_differences(
    first: np.ndarray, second: np.ndarray, first_layouts: Sequence[int], second_layouts: Sequence[int]
) -> np.ndarray:
    """First less second, layout by layout. Shapes: (N,), (N,) → (N,).

    Raises:
        ValueError: The layouts are not the same in the same order.
    """
    first, second = _as_vector(first), _as_vector(second)
    _require(
        list(first_layouts) == list(second_layouts), "a paired comparison needs the same layouts in the same order"
    )
    _require(len(first) == len(second) == len(first_layouts), "a value is needed for every layout")
    return first - second


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> float:
    """Probability that one of `first` exceeds one of `second`, ties counted half. Shapes: (N,), (M,)."""
    above = _as_vector(first)[:, None] - _as_vector(second)
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def repair_test(
    returns: Sequence[np.ndarray],
    reference_returns: Sequence[np.ndarray],
    costs: Sequence[np.ndarray],
    reference_costs: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    margin: float = 0.95,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
) -> RepairTest:
    """Non-inferiority of the return and superiority of the cost, stated together.

    Each model is paired with its own reference (that of its seed), episode by episode on the same layouts; seeds and
    then layouts are resampled, all four quantities together.

    Args:
        returns: Returns of the repaired policies, one array a seed. Shape of each: (N,).
        reference_returns: Returns of their references, for the same seeds and layouts.
        costs: Episode costs of the repaired policies.
        reference_costs: Episode costs of their references.
        rng: Generator of the resamples.
        margin: The return ratio that must be exceeded.
        alpha: Level of each test.
        resamples: R.
    """
    _require_share(alpha=alpha)
    columns = (returns, reference_returns, costs, reference_costs)
    table = [np.stack([_as_vector(c) for c in seed], axis=-1) for seed in zip(*columns, strict=True)]  # (N, 4) each
    earned, earned_before, paid, paid_before = np.stack([seed.mean(0) for seed in table]).mean(0)
    ratio, difference = float(earned / earned_before) if earned_before else float("nan"), float(paid - paid_before)
    ratio_low = cost_high = p_value = None
    if (count := len(table)) > 1:
        means, reach = hierarchical_means(table, rng, resamples), float(student.ppf(1 - alpha, count - 1))  # (R, 4)
        cost_error = standard_error(means[:, 2] - means[:, 3], count)
        cost_high = difference + reach * cost_error
        if (means[:, 1] > 0).all():
            ratio_error = standard_error(means[:, 0] / means[:, 1], count)
            ratio_low = ratio - reach * ratio_error
            p_value = max(
                _p_value(ratio - margin, ratio_error, count - 1), _p_value(-difference, cost_error, count - 1)
            )
    return RepairTest(ratio, ratio_low, margin, difference, cost_high, alpha, p_value)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values of several claims by Holm's method; None stays None and is not counted."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def _p_value(above: float, error: float, freedom: int) -> float:
    """One-sided p-value of the claim that a quantity estimated as `above`, with a standard error, is above 0."""
    if not error:
        return 0.0 if above > 0 else 1.0
    return float(student.sf(above / error, freedom))


def _as_vector(values: np.ndarray) -> np.ndarray:
    vector = np.asarray(values, np.float64)
    _require(vector.ndim == 1 and len(vector) > 0, f"expected a shape (N,) with N at least 1, got {vector.shape}")
    return vector


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _require_share(**shares: float) -> None:
    for name, share in shares.items():
        _require(0.0 < share < 1.0, f"{name}={share} is not possible: use a number between 0 and 1.")
