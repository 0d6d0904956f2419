"""Observation statistics of an agent, from a VecNormalize pickle (which is not run) or an npz file."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightning_unlearn.safe_files import open_zip
from lightning_unlearn.safe_files.npz import load_array
from lightning_unlearn.safe_files.pickles import float_array, read_pickle

_EXPORT = (
    "np.savez(FILE.npz, mean=rms.mean, var=rms.var, epsilon=…, clip=…), where rms is the RunningMeanStd of the agent"
)
_MAX_BYTES = 1 << 24
_VECNORMALIZE = "stable_baselines3.common.vec_env.vec_normalize.VecNormalize"
"""Classes derived from it may normalise otherwise, and are refused."""
_ARRAYS = {"mean", "var", "epsilon", "clip", "count"}
_EPSILON, _CLIP = 1e-8, 10.0
"""Defaults of CleanRL and of VecNormalize, for an npz file without them."""


@dataclass(frozen=True)
class Normaliser:
    """(observation − mean) / √(variance + epsilon), clipped to ±clip, which may be infinite."""

    mean: torch.Tensor
    """Shape: (O,), float64."""
    variance: torch.Tensor
    """Shape: (O,), float64."""
    epsilon: float
    clip: float
    dtype: Literal["float32", "float64"] = "float64"
    """Type in which the library normalises."""
    observation_dtype: Literal["float32", "float64"] = "float64"
    """Type of the observations that the library normalises."""

    def __post_init__(self) -> None:
        """Refuse numbers that are no statistics."""
        if self.mean.ndim != 1 or self.mean.shape != self.variance.shape:
            raise ValueError(f"mean {tuple(self.mean.shape)} and variance {tuple(self.variance.shape)} do not pair up")
        if not (self.mean.isfinite().all() and self.variance.isfinite().all() and (self.variance >= 0).all()):
            raise ValueError("its mean and variance must be finite, and the variance not negative")
        if not (0 <= self.epsilon < 1 and self.clip > 0):
            raise ValueError(f"epsilon={self.epsilon} or clip={self.clip} is out of range")
        scale = self.variance.to(getattr(torch, self.dtype)) + self.epsilon
        if (zero := (scale == 0).nonzero().flatten()).numel():
            raise ValueError(
                f"variance + epsilon is 0 in component {int(zero[0])}, by which observations would be divided: use "
                "an epsilon above 0, such as 1e-8"
            )


def read_normaliser(path: Path) -> Normaliser | None:
    """Read statistics from a `.pkl` of Stable-Baselines3's VecNormalize, or from an `.npz` with mean and var.

    An npz may also hold epsilon (default 1e-8) and clip (default 10).

    Returns:
        The statistics; None if the VecNormalize leaves observations as they are.

    Raises:
        ValueError: The file is neither, or is damaged.
    """
    if not path.is_file():
        raise ValueError(f"--normalizer {path} was not found")
    try:
        if not zipfile.is_zipfile(path):
            return _from_vecnormalize(path)
        with open_zip(path, _MAX_BYTES) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if not {"mean", "var"} <= names <= _ARRAYS:
                raise ValueError(f"it holds {sorted(names)}, not mean and var (and epsilon, clip, count if you like)")
            found = {name: load_array(archive, name).astype(np.float64) for name in names}
        return _normaliser(found["mean"], found["var"], found.get("epsilon", _EPSILON), found.get("clip", _CLIP))
    except ValueError as error:
        raise ValueError(f"--normalizer {path} cannot be used: {error}. Or export it with {_EXPORT}.") from error


def reference_normalisation(path: Path | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what VecNormalize or NormalizeObservation computes in float64; networks are given float32.

    This reads the statistics a second time, independently of `read_normaliser`, so that a setting overlooked there
    shows as a difference of actions.
    """
    if path is None:
        return lambda observation: observation.float().double()
    found: dict[str, Any]
    if zipfile.is_zipfile(path):
        with np.load(path, allow_pickle=False) as file:
            found = {"epsilon": _EPSILON, "clip": _CLIP, **file}
    elif (state := read_pickle(path).state).get("norm_obs", True):
        found = {name: float_array(state["obs_rms"].state[name]) for name in ("mean", "var")}
        found |= {"epsilon": state["epsilon"], "clip": state["clip_obs"]}
    else:
        found = {"mean": 0.0, "var": 1.0, "epsilon": 0.0, "clip": np.inf}
    scale = np.sqrt(found["var"] + found["epsilon"])

    def normalise(observation: torch.Tensor) -> torch.Tensor:
        x = np.clip((observation.numpy() - found["mean"]) / scale, -found["clip"], found["clip"])
        return torch.from_numpy(x.astype(np.float32).astype(np.float64))

    return normalise


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
