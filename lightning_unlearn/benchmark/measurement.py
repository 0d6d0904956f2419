"""Size of a benchmark run, and its measurements."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Unit = Literal["steps/s", "ms", "s", "MB"]
PEER_ENVS = 8
"""Environments in comparisons with the peers."""


@dataclass(frozen=True)
class Plan:
    """Sizes of one benchmark run."""

    env: str
    repeats: int
    seed: int
    sizes: tuple[int, ...]
    """Numbers of environments in the measurements of stepping."""
    steps: int
    """Environment steps in one repeat of our stepping, over all environments."""
    peer_steps: int
    """Steps of each environment in one repeat of a peer; 1000 or more include the end of an episode."""
    fewer_repeats: int
    """Repeats of the peers, which are slow, and of measurements outside the summary."""
    updates: int
    """Updates in the measurement of training."""
    evaluation_steps: int
    """Maximum steps of an evaluated episode."""
    thorough: bool
    """Also measure TorchRL's own environment, off-policy updates on all cores, evaluation and memory."""
    horizon: int = 1024
    """T in the measurements of collecting, updating and training."""

    @classmethod
    def full(cls, env: str, repeats: int, seed: int) -> "Plan":
        """Return the plan of the full benchmark, which takes minutes."""
        return cls(env, repeats, seed, (8, 32, 128), 16384, 1024, min(repeats, 3), 8, 2000, True)

    @classmethod
    def quick(cls, env: str, repeats: int, seed: int) -> "Plan":
        """Return a plan that takes under a minute on two cores: 8 environments, fewer repeats, shorter training."""
        return cls(env, repeats, seed, (8,), 8192, 256, 1, 2, 200, False)


@dataclass(frozen=True)
class Measurement:
    """One quantity, repeated."""

    name: str
    """Unique: `<group>.<what>`."""
    what: str
    """Description in words."""
    unit: Unit
    values: list[float]
    """One value a repeat; empty if it could not be measured."""
    note: str = ""
    """Reason for a missing value, or a remark."""

    @property
    def median(self) -> float | None:
        """Median over the repeats; None if there are none."""
        return statistics.median(self.values) if self.values else None

    def as_json(self) -> dict[str, Any]:
        """Return the measurement as it is written to JSON."""
        return asdict(self) | {"median": self.median}


def seconds(function: Callable[[], object]) -> float:
    """Return the duration of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Item:
    """A step of the benchmark, which may measure several quantities."""

    label: str
    """Text shown while it runs."""
    measure: Callable[[Plan], list[Measurement]]
    missing: tuple[Measurement, ...] = ()
    """Rows in the results if it fails; empty: a failure ends the benchmark."""

    def run(self, plan: Plan) -> list[Measurement]:
        """Measure; if that fails, return the missing rows with the reason in one line."""
        try:
            return self.measure(plan)
        except Exception as error:
            if not self.missing:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return [Measurement(m.name, m.what, m.unit, [], reason) for m in self.missing]
