"""The verdict on a repair: is the cost within the limit, is the return kept, and does the agent still move?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from lightning_unlearn.audits.statistics import Interval, mean_interval, ratio_interval

LEAST_RETURN = 0.9
"""Share of the expert's mean return that a repair keeps at least."""
STILL_BELOW = 0.4
"""An episode whose return is below this share of the expert's mean return stands still."""
MOST_STILL = 0.05
"""Share of the episodes that may stand still."""
USUAL_LIMIT = 25.0
"""The field's usual limit of an episode's cost, in episodes of 1000 steps."""
REPAIRED = "repaired"


@dataclass(frozen=True)
class Verdict:
    """Measurements of a repair and its expert on the same layouts. Intervals are 95 %, over episodes.

    The cost of an episode is its C_forget, the number of steps that show the concept: the multiplier's limit is on it.
    """

    cost_limit: float
    """Mean cost of an episode that is not to be exceeded."""
    episodes: int
    mean_return: float
    expert_return: float
    """Mean return of the expert."""
    return_share: float | None
    """`mean_return` / `expert_return`; None where the expert's is not above 0."""
    return_change: float
    """`mean_return` - `expert_return`."""
    return_interval: Interval | None
    """Interval of `return_share`; of `return_change` where there is no share. None with one episode."""
    cost: float
    """Mean cost of an episode."""
    cost_interval: Interval | None
    still_share: float | None
    """Share of the episodes that stand still; None where the expert's mean return is not above 0."""
    left_out: int | None = None
    """Layouts left out because the simulator failed for the repair or for the expert; None if there are none."""

    @property
    def failures(self) -> list[str]:
        """The criteria that the repair fails; a measurement that is NaN fails."""
        least = self.expert_return - (1 - LEAST_RETURN) * abs(self.expert_return)
        failed = {
            "above the limit": not self.cost <= self.cost_limit,
            f"below {100 * LEAST_RETURN:.0f} % of the return": not self.mean_return >= least,
            "stands still": self.still_share is not None and not self.still_share <= MOST_STILL,
        }
        return [name for name, is_so in failed.items() if is_so]

    @property
    def word(self) -> str:
        """`repaired`, or the criteria that fail."""
        return ", ".join(self.failures) or REPAIRED

    @property
    def tags(self) -> dict[str, str]:
        """Tags of a run and of a model version."""
        cost = {"repair.cost": f"{self.cost:.3g}{_bounds(self.cost_interval)}"}
        change, interval = f"{self.return_change:.3g}", _bounds(self.return_interval)
        if self.return_share is None:
            kept = {"repair.return_share": "undefined", "repair.return_change": change + interval}
        else:
            kept = {"repair.return_share": f"{self.return_share:.3g}{interval}"}
        return {"repair.verdict": self.word, **kept, **cost}

    @property
    def numbers(self) -> dict[str, float]:
        """Metrics of a run: the measurements that are one number."""
        values = {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}
        return {f"repair/{name}": float(value) for name, value in values.items()}

    def in_words(self) -> str:
        """One line for people."""
        head = f"NOT repaired ({self.word})" if self.failures else "Repaired"
        still = "" if self.still_share is None else f"; {100 * self.still_share:.3g} % of the episodes stand still"
        failed = f"; {self.left_out} layouts are left out, where the simulator failed" if self.left_out else ""
        return (
            f"{head}: return {self.mean_return:.1f} ({self._kept()} over {self.episodes} episodes) at a cost of "
            f"{self.cost:.1f}{_bounds(self.cost_interval)} an episode, limit {self.cost_limit:g}{still}{failed}."
        )

    def _kept(self) -> str:
        if self.return_share is None:
            kept, unit = f"{self.return_change:+.1f} against the expert's {self.expert_return:.1f}", 1
        else:
            kept, unit = f"{100 * self.return_share:.3g} % of the expert's {self.expert_return:.1f}", 100
        if self.return_interval is None:
            return kept
        low, high = (unit * bound for bound in self.return_interval)
        return f"{kept}, 95 % interval {low:.3g} to {high:.3g}"


def judge(repaired: Mapping[str, np.ndarray], expert: Mapping[str, np.ndarray], cost_limit: float) -> Verdict:
    """Compare a repair with its expert, layout by layout.

    A layout in which the simulator failed for either is left out: its episode is shorter, and so costs less.

    Args:
        repaired: The repair's columns of `policy_comparison.per_episode`.
        expert: Those of the expert on the same layouts in the same order.
        cost_limit: Mean C_forget of an episode that is not to be exceeded.

    Raises:
        ValueError: The layouts differ, or the simulator failed in all of them.
    """
    if list(repaired["layout_seed"]) != list(expert["layout_seed"]):
        raise ValueError("a verdict needs the repair and the expert on the same layouts in the same order.")
    whole = ~(np.asarray(repaired["simulator_failed"], bool) | np.asarray(expert["simulator_failed"], bool))
    if not whole.any():
        raise ValueError(f"a verdict needs whole episodes, and the simulator failed in all of {len(whole)} layouts.")
    earned, before, paid = (
        np.asarray(column, np.float64)[whole]
        for column in (repaired["reward"], expert["reward"], repaired["cforget_sum"])
    )
    mean_return, expert_return = float(earned.mean()), float(before.mean())
    has_share = expert_return > 0
    cost_interval = mean_interval(paid)
    if cost_interval is not None and (paid >= 0).all():
        cost_interval = Interval(max(0.0, cost_interval.low), cost_interval.high)  # a mean of these is never less
    return Verdict(
        cost_limit=cost_limit,
        episodes=len(earned),
        mean_return=mean_return,
        expert_return=expert_return,
        return_share=mean_return / expert_return if has_share else None,
        return_change=mean_return - expert_return,
        return_interval=ratio_interval(earned, before) if has_share else mean_interval(earned - before),
        cost=float(paid.mean()),
        cost_interval=cost_interval,
        still_share=float((~(earned >= STILL_BELOW * expert_return)).mean()) if has_share else None,
        left_out=int((~whole).sum()) or None,
    )


def as_table(policies: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Return a table in Markdown of policies' episodes: means and their 95 % intervals.

    Args:
        policies: Title of a column of the table → a policy's columns of `policy_comparison.per_episode`.
    """
    columns = {"reward": "return", "cforget_sum": "C_forget", "cost_sum": "cost", "episode_length": "steps"}
    rows = "".join(
        f"| {name} | {' | '.join(_with_interval(episodes[column]) for episodes in policies.values())} |\n"
        for column, name in columns.items()
    )
    count = len(next(iter(policies.values()))["reward"])
    head = f"| an episode, mean of {count} | {' | '.join(policies)} |\n|---|{'---|' * len(policies)}\n"
    return f"{head}{rows}\nBrackets are 95 % intervals over episodes; there is none over training seeds."


def _with_interval(values: np.ndarray) -> str:
    values = np.asarray(values, np.float64)
    return f"{values.mean():.1f}{_bounds(mean_interval(values))}"


def _bounds(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.3g}, {interval.high:.3g}]"
