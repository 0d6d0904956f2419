"""Observation statistics from the files that people have: a VecNormalize pickle (read, never run) or an npz."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_unlearn.importers.agent import Normaliser
from lightning_unlearn.safe_files import open_zip
from lightning_unlearn.safe_files.npz import load_array
from lightning_unlearn.safe_files.pickles import float_array, read_pickle

_EXPORT = (
    "np.savez(FILE.npz, mean=rms.mean, var=rms.var, epsilon=…, clip=…), where rms is the RunningMeanStd of the agent"
)
_MAX_BYTES = 1 << 24
_VECNORMALIZE = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
"""A class derived from it may normalise otherwise."""
_ARRAYS = {"mean", "var", "epsilon", "clip", "count"}


def read_normaliser(path: Path) -> Normaliser | None:
    """Statistics from a `.pkl` of Stable-Baselines3's VecNormalize, or from an `.npz` with mean and var.

    An npz may also hold epsilon (1e-8 if not) and clip (10 if not), the defaults of CleanRL and of VecNormalize.

    Returns:
        The statistics; None where the VecNormalize leaves observations as they are.

    Raises:
        ValueError: The file is neither, or is damaged.
    """
    if not path.is_file():
        raise ValueError(f"--normalizer {path} was not found")
    try:
        return _from_npz(path) if zipfile.is_zipfile(path) else _from_vecnormalize(path)
    except ValueError as error:
        raise ValueError(f"--normalizer {path} cannot be used: {error}. Or export it with {_EXPORT}.") from error


def _from_npz(path: Path) -> Normaliser:
    with open_zip(path, _MAX_BYTES) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if not {"mean", "var"} <= names <= _ARRAYS:
            raise ValueError(f"it holds {sorted(names)}, not mean and var (and epsilon, clip, count if you like)")
        found = {name: load_array(archive, name).astype(np.float64) for name in names}
    return _normaliser(found["mean"], found["var"], found.get("epsilon", 1e-8), found.get("clip", 10.0))


def _from_vecnormalize(path: Path) -> Normaliser | None:
    record = read_pickle(path)
    state = getattr(record, "state", None)
    if getattr(record, "name", "") != _VECNORMALIZE or not isinstance(state, dict):
        raise ValueError("it is no pickle of a VecNormalize")
    if state.get("norm_obs") is False:
        return None
    kept = state.get("obs_rms")
    if isinstance(kept, dict):
        raise ValueError(
            f"it holds statistics of dict observations ({', '.join(map(str, kept))[:200]}), and only those of one "
            "observation vector are supported: export one part with rms = vec_normalize.obs_rms[KEY]"
        )
    statistics = getattr(kept, "state", None)
    if not isinstance(statistics, dict):
        raise ValueError("it has no statistics of observations")
    mean, variance = (float_array(statistics.get(name)) for name in ("mean", "var"))
    return _normaliser(mean, variance, state.get("epsilon"), state.get("clip_obs"))


def _normaliser(mean: np.ndarray, variance: np.ndarray, epsilon: Any, clip: Any) -> Normaliser:
    try:
        numbers = float(epsilon), float(clip)
    except (TypeError, ValueError) as error:
        raise ValueError("its epsilon and its clip must be numbers") from error
    return Normaliser(torch.from_numpy(mean), torch.from_numpy(variance), *numbers)
