"""What a benchmark run measures, how long, and how a measurement is kept."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Unit = Literal["steps/s", "ms", "s", "MB"]
PEER_ENVS = 8
"""Environments of the peers, and of ours where the two are compared."""


@dataclass(frozen=True)
class Plan:
    """Sizes of one benchmark run."""

    env: str
    repeats: int
    seed: int
    sizes: tuple[int, ...]
    """Numbers of environments that stepping is measured with."""
    steps: int
    """Environment steps of one repeat of our stepping, over all environments."""
    peer_steps: int
    """Steps of each environment in one repeat of a peer; from 1000 on they include the end of an episode."""
    fewer_repeats: int
    """Repeats of the peers, which are slow, and of what no summary reads."""
    updates: int
    """Updates that training is timed over."""
    evaluation_steps: int
    """Most steps of an evaluated episode."""
    thorough: bool
    """Whether TorchRL's own environment, off-policy updates on all cores, evaluation and memory are measured."""
    horizon: int = 1024
    """T of collecting, updating and training."""

    @classmethod
    def full(cls, env: str, repeats: int, seed: int) -> "Plan":
        """Minutes."""
        return cls(env, repeats, seed, (8, 32, 128), 16384, 1024, min(repeats, 3), 8, 2000, True)

    @classmethod
    def quick(cls, env: str, repeats: int, seed: int) -> "Plan":
        """Under a minute on two cores: 8 environments, fewer repeats, shorter training, and not `thorough`."""
        return cls(env, repeats, seed, (8,), 8192, 256, 1, 2, 200, False)


@dataclass(frozen=True)
class Measurement:
    """One quantity, repeated."""

    name: str
    """Unique: `<group>.<what>`."""
    what: str
    """In words."""
    unit: Unit
    values: list[float]
    """One value a repeat; empty when it could not be measured."""
    note: str = ""
    """Why there is no value, or what to know about it."""

    @property
    def median(self) -> float | None:
        """Over the repeats; None when there are none."""
        return statistics.median(self.values) if self.values else None

    def record(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self) | {"median": self.median}


@dataclass(frozen=True)
class Item:
    """Something to measure, which may give several quantities."""

    label: str
    """Shown while it runs."""
    measure: Callable[[Plan], list[Measurement]]
    missing: tuple[Measurement, ...] = ()
    """What stands in the results if it cannot be measured; empty: the benchmark ends with the error then."""

    def run(self, plan: Plan) -> list[Measurement]:
        """Measure, or say in one line why not."""
        try:
            return self.measure(plan)
        except Exception as error:
            if not self.missing:
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return [Measurement(m.name, m.what, m.unit, [], reason) for m in self.missing]
