"""The files of a model in MLflow: fetched within bounds, their recorded digests, and MLflow's generic model."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException

from lightning_unlearn.global_state import ordinary_modes
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import MAX_WEIGHTS_BYTES, load_policy
from lightning_unlearn.safe_files import parse_json, sha256

LOADER = "lightning_unlearn.registry"
"""Module that stored MLmodel files name as their loader; models of every version name this one."""
POLICY = "data/policy"
"""Folder of the policy among a model's files."""
_TAG = "sha256"
_MAX_FILES = 64
_MAX_DEPTH = 4


@contextmanager
def fetched_policy(uri: str) -> Iterator[Path]:
    """Yield a copy of the folder with a model's policy; the model's other files are not read.

    Raises:
        ValueError: There is no such folder, or it holds more than a policy has.
    """
    files = _entries(uri, POLICY)
    if any(file.is_dir for file in files):
        raise ValueError(f"model {uri} has folders where a stored policy has none.")
    with tempfile.TemporaryDirectory() as scratch:
        yield _copied(uri, files, POLICY, scratch)


@contextmanager
def fetched_model(uri: str) -> Iterator[Path]:
    """Yield a copy of all files of a model: `models:/<name>/<version>`, or the location of its files.

    Raises:
        ValueError: There is no such model, or it has more or larger files than a policy's model has.
    """
    files = _walked(uri, "", _MAX_DEPTH)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _copied(uri, files, "", scratch)
        (folder / "registered_model_meta").unlink(missing_ok=True)  # MLflow's own note in the copy
        yield folder


def digest_tag(uri: str) -> dict[str, str]:
    """Return the tag that records the SHA-256 of every file of a logged model."""
    with fetched_model(uri) as folder:
        return {_TAG: json.dumps(file_digests(folder), sort_keys=True)}


def recorded_digests(version: Any) -> dict[str, str]:
    """Return file → SHA-256, as recorded with a version; empty if nothing was recorded.

    Raises:
        ValueError: The record is damaged.
    """
    recorded = parse_json(version.tags.get(_TAG, "{}"))
    if not isinstance(recorded, dict) or not all(isinstance(digest, str) for digest in recorded.values()):
        raise ValueError(f"the tag {_TAG} of models:/{version.name}/{version.version} is no record of digests")
    return recorded


def file_digests(folder: Path) -> dict[str, str]:
    """Return path under the folder → SHA-256, of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _copied(uri: str, files: list[Any], folder: str, scratch: str) -> Path:
    if len(files) > _MAX_FILES or any((file.file_size or 0) > MAX_WEIGHTS_BYTES for file in files):
        raise ValueError(f"model {uri} has more or larger files than a stored policy has.")
    try:
        return Path(mlflow.artifacts.download_artifacts(f"{uri}/{folder}".rstrip("/"), dst_path=scratch))
    except (MlflowException, OSError) as error:
        raise ValueError(f"model {uri} was not found: {error}") from error


def _walked(uri: str, folder: str, depth: int) -> list[Any]:
    """All files, those in folders included."""
    entries = _entries(uri, folder)
    if depth == 0 or len(entries) > _MAX_FILES:
        raise ValueError(f"model {uri} has more folders or files than a stored policy has.")
    inner = [file for entry in entries if entry.is_dir for file in _walked(uri, entry.path, depth - 1)]
    return [entry for entry in entries if not entry.is_dir] + inner


def _entries(uri: str, folder: str) -> list[Any]:
    try:
        return list(mlflow.artifacts.list_artifacts(artifact_uri=f"{uri}/{folder}".rstrip("/")))
    except (MlflowException, OSError) as error:
        raise ValueError(f"model {uri} was not found: {error}") from error


class PyfuncPolicy:
    """The deterministic policy as MLflow's generic model: observations (N, O) in, actions (N, A) out."""

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy
        self._wide = policy.observation_dtype == torch.float64

    @ordinary_modes()
    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return deterministic actions, inside the environment's bounds. Shape: (N, O) → (N, A).

        Args:
            model_input: Observations: an array, a pandas table or a list of lists.
            params: Of MLflow's interface; without effect.

        Raises:
            ValueError: The observations have another shape, or are no numbers.
        """
        size = self._policy.config.observation_size
        try:
            observations = np.array(model_input, np.float64 if self._wide else np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"model_input is no table of numbers: pass N observations of {size} numbers.") from error
        if observations.ndim != 2 or observations.shape[1] != size:
            raise ValueError(
                f"model_input has the shape {observations.shape}: pass N observations of {size} numbers, (N, {size})."
            )
        with torch.inference_mode():
            return self._policy.act(torch.from_numpy(observations)).numpy()


@ordinary_modes()
def _load_pyfunc(path: str) -> PyfuncPolicy:
    """Called by `mlflow.pyfunc.load_model`, with the folder that `register_policy` stored."""
    return PyfuncPolicy(load_policy(Path(path)).policy)
