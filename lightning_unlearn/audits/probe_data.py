"""Dataset of a probe: states labelled by C_forget of the step from them, and their splits into train, val and test.

States of one episode are nearly copies of each other: shared between splits, they would let a probe pass its test by
recognising episodes.
Shapes: N states, O observation size, G episodes, T steps, E environments.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_unlearn.audits.audited_models import AuditedModel, read_model, seeds_in_store
from lightning_unlearn.audits.outputs import flat_numbers, write_json
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.safe_files.npz import Field, read_npz, write_npz
from lightning_unlearn.tracking import runs

FORMAT = "lightning-unlearn/probe-data/1"
CLASSES = ("safe", "hazard")
"""Names of the labels 0 and 1."""
LIDAR_DISTANCE = "1 - max(hazards_lidar)"
STEPS_DISTANCE = "steps until the next C_forget of the episode"
_REMEDY = "make it with `lightning-unlearn probe collect`."
_FIELDS = {
    "states": Field(np.float32, 2),
    "labels": Field(np.int64, 1),
    "episode_ids": Field(np.int64, 1),
    "hazard_distance": Field(np.float32, 1, infinite=True, required=False),
}
SPLITS = ("train", "val", "test")
SMALLEST = 25
"""States of each class that every split must have."""
FEWEST_EPISODES = 10
"""With fewer, states are split regardless of their episode."""


@dataclass(frozen=True)
class ProbeData:
    """Labelled states, in the order in which they were met."""

    states: np.ndarray
    """Shape: (N, O), float32."""
    labels: np.ndarray
    """C_forget of the transition that starts in each state, 0 or 1. Shape: (N,), int64."""
    episode_ids: np.ndarray
    """Episode of each state. Shape: (N,), int64."""
    hazard_distance: np.ndarray | None
    """Distance of each state to the concept; infinite where it never came. Shape: (N,), float32."""
    metadata: dict[str, Any]
    """Origin of the states: env, model_path, seed, concept, hazard_distance, options, counts."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        columns = (self.labels, self.episode_ids, *(() if self.hazard_distance is None else (self.hazard_distance,)))
        if any(column.shape != self.states.shape[:1] for column in columns) or not self.states.size:
            raise ValueError(f"{len(self.states)} states, but columns of {[len(c) for c in columns]}")
        if not np.isin(self.labels, (0, 1)).all():
            raise ValueError("labels must be 0 or 1")
        if not isinstance(self.metadata.get("env"), str):
            raise ValueError("the metadata names no env")

    @property
    def env(self) -> str:
        """Environment of the states."""
        return str(self.metadata["env"])

    @property
    def digest(self) -> str:
        """The first 32 hexadecimal digits of a SHA-256 over states, labels and episodes."""
        parts = (self.states, self.labels, self.episode_ids)
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:32]

    @property
    def counts(self) -> dict[str, int]:
        """States of each class."""
        return {name: int((self.labels == label).sum()) for label, name in enumerate(CLASSES)}


def save_data(path: Path, data: ProbeData) -> Path:
    """Write a dataset; returns the JSON file beside it that repeats its metadata for people."""
    arrays = {name: getattr(data, name) for name in _FIELDS if getattr(data, name) is not None}
    write_npz(path, arrays, {"format": FORMAT, **data.metadata})
    beside = path.with_suffix(".meta.json")
    write_json(beside, {"format": FORMAT, **data.metadata})
    return beside


def load_data(path: str, env_id: str | None = None) -> ProbeData:
    """Read a dataset.

    Args:
        path: The file.
        env_id: The environment that it must be of, if that is known.

    Raises:
        ValueError: There is no such file, it is damaged, or it is of another environment.
    """
    arrays, metadata = read_npz(Path(path), _FIELDS, FORMAT, _REMEDY)
    try:
        states, labels, episode_ids = (arrays[name] for name in ("states", "labels", "episode_ids"))
        data = ProbeData(states, labels, episode_ids, arrays.get("hazard_distance"), metadata)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}; {_REMEDY}") from error
    if env_id is not None and data.env != env_id:
        raise ValueError(f"--dataset {path} was collected in {data.env}, not in {env_id}: collect one there.")
    return data


def steps_until(signal: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Steps until the next transition that shows the concept in the same episode, 0 where this one does.

    Args:
        signal: True where a transition shows the concept. Shape: (T, E), bool.
        done: True where it ended its episode. Shape: (T, E), bool.

    Returns:
        Infinite where none came before the episode, or the record, ended. Shape: (T, E), float32.
    """
    distance = np.full(signal.shape, np.inf, dtype=np.float32)
    following = np.full(signal.shape[1], np.inf, dtype=np.float32)
    for t in reversed(range(len(signal))):
        following = np.where(signal[t], 0.0, np.where(done[t], np.inf, following + 1.0))
        distance[t] = following
    return distance


def read_probed_model(option: str, uri: str, data: ProbeData) -> AuditedModel:
    """Read the model that an option names, to be looked at on a dataset's states.

    Raises:
        ValueError: There is none, it is of another environment, or it takes observations of another size.
    """
    model = read_model(uri, data.env, option)
    size, needed = model.policy.config.observation_size, data.states.shape[1]
    if size != needed:
        raise ValueError(
            f"--{option} {uri} takes {size} observations, but the dataset's states have {needed}: name a model of the "
            "dataset's environment, or collect a dataset in the model's."
        )
    return model


def record_on_data(
    name: str,
    options: Any,
    metrics: Mapping[str, Any],
    data: ProbeData,
    dataset: Path,
    files: Mapping[Path, str],
    models: Sequence[AuditedModel],
) -> str:
    """Store an audit of a dataset as an MLflow run, with the dataset as its input; returns the run's id.

    Args:
        name: Name of the run.
        options: The command's options, stored as parameters.
        metrics: Nested numbers.
        data: The dataset.
        dataset: Its file.
        files: File → folder among the run's artifacts.
        models: The models that were looked at.
    """
    numbers = {key.replace(" ", "_"): value for key, value in flat_numbers(metrics).items()}
    given = runs.AuditData(dataset.stem, dataset, data.digest, data.states, data.labels)
    return runs.record_audit(data.env, name, vars(options), numbers, files, given, seeds_in_store(models))


def print_reports(reports: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Sequence[str]) -> None:
    """Print one row a set of features, one column a metric and split."""
    splits = list(next(iter(reports.values())))
    print(f"{'':<16}" + "".join(f"{metric:>{10 * len(splits)}}" for metric in metrics))
    print(f"{'':<16}" + "".join(f"{split:>10}" for _ in metrics for split in splits))
    for row, report in reports.items():
        print(f"{row:<16}" + "".join(f"{report[split][metric]:>10.3f}" for metric in metrics for split in splits))


@dataclass(frozen=True)
class SplitOptions:
    """Fractions, seed and number of tries of a split."""

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
        return ((name, getattr(self, name)) for name in SPLITS)


def add_split_options(parser: CommandParser) -> None:
    """Add the options of `SplitOptions` to a command."""
    parser.add_argument("--val_frac", type=float, default=0.15, help="share of the episodes for validation")
    parser.add_argument("--test_frac", type=float, default=0.15, help="share of the episodes for the test")
    parser.add_argument("--seed", type=int, default=42, help="seed of the splits and of the random network")
    parser.add_argument("--split_tries", type=int, default=256, help="random splits, of which the best is taken")


def read_split_options(options: Any) -> SplitOptions:
    """The split options among a command's.

    Raises:
        ValueError: One is impossible.
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
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"all {len(labels)} states of the dataset are {CLASSES[int(labels[0])]}: a probe needs both classes. "
            "Collect with more --max_env_steps, or with a model that shows the concept."
        )
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


def _sizes(total: int, options: SplitOptions) -> tuple[int, int, int]:
    val, test = (math.ceil(fraction * total) for fraction in (options.val_frac, options.test_frac))
    return total - val - test, val, test


def _best_parts(counts: np.ndarray, options: SplitOptions, rng: np.random.Generator) -> np.ndarray:
    """Split of each episode, 0, 1 or 2. Shape: (G, 2) → (G,)."""
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
    """Split each class by the fractions, regardless of episodes."""
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
