"""The dataset of a probe: states of a policy's rollout, labelled by whether the step from them shows the concept.

Shapes: N states, O observation size.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.audits.records import write_json
from lightning_unlearn.safe_files.npz import Field, read_npz, write_npz

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


@dataclass(frozen=True)
class ProbeData:
    """Labelled states, in the order in which they were met."""

    states: np.ndarray
    """Shape: (N, O), float32."""
    labels: np.ndarray
    """C_forget of the transition that starts in each state, 0 or 1. Shape: (N,), int64."""
    episode_ids: np.ndarray
    """Which episode each state is from. Shape: (N,), int64."""
    hazard_distance: np.ndarray | None
    """How near each state is to the concept; infinite where it never came. Shape: (N,), float32."""
    metadata: dict[str, Any]
    """Where the states come from: env, model_path, seed, concept, hazard_distance, options, counts."""

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
        """The environment that the states are from."""
        return str(self.metadata["env"])

    @property
    def digest(self) -> str:
        """Tells datasets apart: the first 32 hexadecimal digits of a SHA-256 over states, labels and episodes."""
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
        env_id: The environment it should be of, if that is known.

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
        signal: Whether a transition shows the concept. Shape: (T, E), bool.
        done: Whether it ended its episode. Shape: (T, E), bool.

    Returns:
        Infinite where none came before the episode, or the record, ended. Shape: (T, E), float32.
    """
    distance = np.full(signal.shape, np.inf, dtype=np.float32)
    following = np.full(signal.shape[1], np.inf, dtype=np.float32)
    for t in reversed(range(len(signal))):
        following = np.where(signal[t], 0.0, np.where(done[t], np.inf, following + 1.0))
        distance[t] = following
    return distance
