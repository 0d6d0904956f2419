"""Splitting a probe's states into train, val and test so that no episode is in two of them.

States of one episode are nearly copies of each other: shared between splits, they would let a probe pass its test by
recognising episodes.
Shapes: N states, G episodes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lightning_unlearn.audits.records import require_at_least
from lightning_unlearn.options import CommandParser

NAMES = ("train", "val", "test")
SMALLEST = 25
"""States of each class that every split must have."""
FEWEST_EPISODES = 10
"""With fewer, states are split regardless of their episode."""


@dataclass(frozen=True)
class SplitOptions:
    """How to split."""

    val_frac: float = 0.15
    test_frac: float = 0.15
    seed: int = 42
    split_tries: int = 256

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        for name in ("val_frac", "test_frac"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not possible: use a fraction between 0 and 1.")
        if self.val_frac + self.test_frac >= 1.0:
            raise ValueError(
                f"val_frac={self.val_frac} and test_frac={self.test_frac} leave nothing to train on: lower one."
            )
        require_at_least(1, split_tries=self.split_tries)
        require_at_least(0, seed=self.seed)


@dataclass(frozen=True)
class Splits:
    """Indices of the states of each split, ascending. Shape of each: (n,), int64."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    by: Literal["episode", "stratified"]
    """`stratified`: with fewer than ten episodes, states of one episode may be in several splits."""

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and indices of each split."""
        return ((name, getattr(self, name)) for name in NAMES)


def add_split_options(parser: CommandParser) -> None:
    """Add the options of `SplitOptions` to a command."""
    parser.add_argument("--val_frac", type=float, default=0.15, help="share of the episodes for validation")
    parser.add_argument("--test_frac", type=float, default=0.15, help="share of the episodes for the test")
    parser.add_argument("--seed", type=int, default=42, help="seed of the splits and of the random network")
    parser.add_argument("--split_tries", type=int, default=256, help="random splits, of which the best is taken")


def read_split_options(options: Any) -> SplitOptions:
    """What a command was asked for.

    Raises:
        ValueError: It is impossible.
    """
    return SplitOptions(**{name: options[name] for name in SplitOptions.__dataclass_fields__})


def make_splits(labels: np.ndarray, episode_ids: np.ndarray, options: SplitOptions) -> Splits:
    """The best of `split_tries` random splits by episode: the one whose label ratios are nearest to the whole's.

    As scikit-learn's `GroupShuffleSplit`, the fractions are of the episodes, rounded up.

    Args:
        labels: 0 or 1. Shape: (N,).
        episode_ids: Shape: (N,).
        options: Fractions, tries and seed.

    Raises:
        ValueError: One class only, or no try leaves enough of each class in every split.
    """
    _require_both_classes(labels)
    rng = np.random.default_rng(np.random.SeedSequence(options.seed).spawn(1)[0])
    episodes, group = np.unique(episode_ids, return_inverse=True)
    if len(episodes) < FEWEST_EPISODES:
        return _stratified(labels, options, rng)
    counts = np.stack([np.bincount(group[labels == c], minlength=len(episodes)) for c in (0, 1)], axis=-1)  # (G, 2)
    part_of_group = _best_parts(counts, options, rng)
    train, val, test = (np.flatnonzero(part_of_group[group] == part) for part in range(3))
    splits = Splits(train, val, test, by="episode")
    require_apart(splits, episode_ids)
    return splits


def require_apart(splits: Splits, episode_ids: np.ndarray) -> None:
    """Refuse splits that share a state or, when they were made by episode, an episode.

    Raises:
        ValueError: They do.
    """
    keys = np.arange(len(episode_ids)) if splits.by == "stratified" else episode_ids
    inside = [np.unique(keys[indices]) for _, indices in splits.items()]
    together, times = np.unique(np.concatenate(inside), return_counts=True)
    if (times > 1).any():
        what = "state" if splits.by == "stratified" else "episode"
        raise ValueError(f"{what} {together[times > 1][0]} is in two splits: the test would be known in training.")


def _require_both_classes(labels: np.ndarray) -> None:
    if len(np.unique(labels)) < 2:
        name = "hazard" if labels[0] else "safe"
        raise ValueError(
            f"all {len(labels)} states of the dataset are {name}: a probe needs both classes. "
            "Collect with more --max_env_steps, or with a model that shows the concept."
        )


def _sizes(total: int, options: SplitOptions) -> tuple[int, int, int]:
    val, test = (math.ceil(fraction * total) for fraction in (options.val_frac, options.test_frac))
    return total - val - test, val, test


def _best_parts(counts: np.ndarray, options: SplitOptions, rng: np.random.Generator) -> np.ndarray:
    """Which split each episode goes to, 0, 1 or 2. Shape: (G, 2) → (G,)."""
    total, sizes = len(counts), _sizes(len(counts), options)
    if sizes[0] < 1:
        raise ValueError(
            f"val_frac={options.val_frac} and test_frac={options.test_frac} of {total} episodes leave none to train on."
        )
    whole = counts[:, 1].sum() / counts.sum()
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    best, best_gap, most = None, math.inf, 0
    for _ in range(options.split_tries):
        order = rng.permutation(total)
        parts = np.add.reduceat(counts[order], starts)  # (3, 2)
        most = max(most, int(parts.min()))
        gap = np.abs(parts[:, 1] / np.maximum(parts.sum(1), 1) - whole).sum()
        if parts.min() >= SMALLEST and gap < best_gap:
            best, best_gap = order, gap
    if best is None:
        raise _too_small(most, f"{options.split_tries} tries to split {total} episodes")
    part_of_group = np.empty(total, dtype=np.int64)
    part_of_group[best] = np.repeat(np.arange(3), sizes)
    return part_of_group


def _stratified(labels: np.ndarray, options: SplitOptions, rng: np.random.Generator) -> Splits:
    """Each class divided by the fractions."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in (0, 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        sizes = _sizes(len(members), options)
        if min(sizes) < SMALLEST:
            raise _too_small(max(min(sizes), 0), f"splitting the {len(members)} states of class {label}")
        for part, piece in zip(parts, np.split(members, np.cumsum(sizes)[:2]), strict=True):
            part.append(piece)
    train, val, test = (np.sort(np.concatenate(part)) for part in parts)
    return Splits(train, val, test, by="stratified")


def _too_small(most: int, what: str) -> ValueError:
    return ValueError(
        f"{what} left a split with {most} states of a class at best, and {SMALLEST} are needed. Collect more states "
        "(--n_per_class), from more episodes (--max_per_episode), or raise --val_frac and --test_frac."
    )
