"""A long collection, to see whether speed or memory drift."""

import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from lightning_unlearn.benchmark.ours import random_policy
from lightning_unlearn.benchmark.peers import memory_megabytes
from lightning_unlearn.benchmark.plan import PEER_ENVS, Plan
from lightning_unlearn.collectors.data import AnyCollector, RolloutData
from lightning_unlearn.processes import cores

POINTS = 20
SPEED_DRIFT, MEMORY_DRIFT = 0.05, 0.05
"""Shares of the first points' median by which the last points' may fall or rise and still be called flat."""
_ENDS = 5
"""Points at each end that are compared, after the first one, which warms up."""


@dataclass(frozen=True)
class Soak:
    """Speed and memory along a long collection, one entry a point."""

    env_steps: list[int]
    steps_per_s: list[float]
    memory_mb: list[float]

    @property
    def speed_change(self) -> float:
        """Share by which the last points are faster than the first."""
        return _change(self.steps_per_s)

    @property
    def memory_change(self) -> float:
        """Share by which the last points are larger than the first."""
        return _change(self.memory_mb)

    @property
    def flat(self) -> bool:
        """Whether neither drifts for the worse."""
        return self.speed_change >= -SPEED_DRIFT and self.memory_change <= MEMORY_DRIFT

    def record(self) -> dict[str, Any]:
        """As it is written to JSON."""
        drift = {"speed_change": self.speed_change, "memory_change": self.memory_change, "flat": self.flat}
        return asdict(self) | drift


def soak(plan: Plan, steps: int) -> Soak:
    """Collect at least `steps` environment steps at 8 × T; a line to stderr at every point."""
    data = RolloutData(plan.env, PEER_ENVS, plan.horizon, workers=min(cores(), PEER_ENVS), seed=plan.seed)
    rollouts = max(1, round(steps / POINTS / data.steps_per_update))
    outcome = Soak([], [], [])
    try:
        gatherer = data.collector(random_policy(data.env, plan.seed))
        for point in range(1, POINTS + 1):
            rate = _rate(gatherer, rollouts) * data.steps_per_update
            outcome.env_steps.append(point * rollouts * data.steps_per_update)
            outcome.steps_per_s.append(rate)
            outcome.memory_mb.append(memory_megabytes())
            print(
                f"soak {outcome.env_steps[-1]:>9} steps, {rate:.0f} steps/s, {outcome.memory_mb[-1]:.0f} MB",
                file=sys.stderr,
            )
    finally:
        data.teardown("fit")
    return outcome


def _rate(gatherer: AnyCollector, rollouts: int) -> float:
    started = time.perf_counter()
    for _ in range(rollouts):
        gatherer.rollout()
    return rollouts / (time.perf_counter() - started)


def _change(values: list[float]) -> float:
    first, last = statistics.median(values[1 : 1 + _ENDS]), statistics.median(values[-_ENDS:])
    return last / first - 1.0
