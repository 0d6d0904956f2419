"""Linear probes: logistic regression that tells hazard states from safe ones by some features.

Shapes: N states, F features of each.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from sklearn.preprocessing import StandardScaler

from lightning_unlearn.audits.outputs import write_json
from lightning_unlearn.audits.probe_data import SPLITS, Splits
from lightning_unlearn.policies.latent_editor import Direction
from lightning_unlearn.safe_files.npz import Field, read_npz, write_npz

FORMAT = "lightning-unlearn/probe/1"
SHUFFLED = "shuffled labels"
PICKLES = (".pkl", ".pickle", ".joblib")
_REMEDY = "fit a probe with `lightning-unlearn probe fit`."
_WEIGHTS = {"coefficients": 1, "intercept": 0, "scaler_mean": 1, "scaler_scale": 1}
_FIELDS = {name: Field(np.float64, ndim) for name, ndim in _WEIGHTS.items()} | {
    f"{name}_indices": Field(np.int64, 1) for name in SPLITS
}


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on standardised features."""

    coefficients: np.ndarray
    """One a standardised feature. Shape: (F,), float64."""
    intercept: np.ndarray
    """Shape: (), float64."""
    scaler_mean: np.ndarray
    """Shape: (F,), float64."""
    scaler_scale: np.ndarray
    """Shape: (F,), float64."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = {len(self.coefficients), len(self.scaler_mean), len(self.scaler_scale)}
        if len(sizes) != 1 or not (self.scaler_scale > 0).all():
            raise ValueError(f"its coefficients and scaler are of sizes {sorted(sizes)}, or a scale is not positive")

    @property
    def size(self) -> int:
        """F."""
        return len(self.coefficients)

    def decision(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of hazard; a state counts as hazard where it is positive. Shape: (N, F) → (N,).

        Raises:
            ValueError: The features are of another size.
        """
        if features.shape[1:] != (self.size,):
            raise ValueError(
                f"the probe reads {self.size} features, but the model's latent has {features.shape[-1]}: "
                "fit a probe on this model (`lightning-unlearn probe fit`)."
            )
        return ((features - self.scaler_mean) / self.scaler_scale) @ self.coefficients + float(self.intercept)

    def direction(self) -> Direction:
        """The decision as a unit direction d of raw features and a threshold: z·d > τ where it is positive.

        With c = coefficients/scale, the decision is c·z + (intercept − c·mean), so d = c/‖c‖ and
        τ = −(intercept − c·mean)/‖c‖.

        Raises:
            ValueError: All coefficients are zero.
        """
        raw = self.coefficients / self.scaler_scale
        length = float(np.linalg.norm(raw))
        if length == 0.0:
            raise ValueError("all coefficients of the probe are zero, so it has no direction: fit it on other data.")
        tau = -(float(self.intercept) - float(raw @ self.scaler_mean)) / length
        return Direction(torch.from_numpy(raw / length).float(), tau)


@dataclass(frozen=True)
class StoredProbe:
    """A probe with the splits it was fitted on, and the origin of both."""

    probe: LinearProbe
    splits: Splits
    metadata: dict[str, Any]
    """env, model_path, dataset, dataset_digest, dataset_states, seed, options."""


def fit_probe(features: np.ndarray, labels: np.ndarray) -> LinearProbe:
    """Fit StandardScaler and LogisticRegression(max_iter 2000, class_weight balanced). Shapes: (N, F), (N,).

    The solver goes to the same optimum as scikit-learn's default, and reaches it, where lbfgs stops up to 2 % short;
    it takes 5 steps instead of 78, and does not slow down twentyfold when other work keeps the cores busy.

    Raises:
        ValueError: It does not converge.
    """
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=2000, class_weight="balanced", solver="newton-cholesky", tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(scaler.transform(features), labels)
        except ConvergenceWarning as error:
            raise ValueError("a probe did not converge in 2000 iterations: its features are degenerate.") from error
    return LinearProbe(model.coef_[0], np.array(model.intercept_[0]), scaler.mean_, scaler.scale_)


def scores(decision: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Metrics of a probe on one split. Shapes: (N,), (N,); both classes are in `labels`."""
    predicted, hazards = (decision > 0).astype(np.int64), int(labels.sum())
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, predicted)),
        "auroc": float(roc_auc_score(labels, decision)),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=[0, 1]).tolist(),
        "n": len(labels),
        "hazard_ratio": hazards / len(labels),
        "safe_count": len(labels) - hazards,
        "hazard_count": hazards,
    }


class Outcome(NamedTuple):
    """Log-odds that a probe gives to every state, and the labels that it is scored on. Shape of each: (N,)."""

    decision: np.ndarray
    labels: np.ndarray

    def report(self, splits: Splits) -> dict[str, dict[str, Any]]:
        """`scores` of each split."""
        return {name: scores(self.decision[indices], self.labels[indices]) for name, indices in splits.items()}


def fit_with_controls(
    features: Mapping[str, np.ndarray], labels: np.ndarray, splits: Splits, seed: int
) -> tuple[LinearProbe, dict[str, Outcome]]:
    """Fit a probe on each of several features, and one on the first with shuffled labels, all on the same splits.

    The shuffled one is a control: it is scored on the shuffled labels, and should not beat chance.

    Args:
        features: Name → features. Shape of each: (N, F).
        labels: Shape: (N,).
        splits: Of the N states.
        seed: Seed of the shuffling.

    Returns:
        The probe of the first features, and the outcome of each one.
    """
    probes = {name: fit_probe(x[splits.train], labels[splits.train]) for name, x in features.items()}
    outcomes = {name: Outcome(probe.decision(features[name]), labels) for name, probe in probes.items()}
    first, rng = next(iter(features)), np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1])
    shuffled = rng.permutation(labels)
    control = fit_probe(features[first][splits.train], shuffled[splits.train])
    return probes[first], outcomes | {SHUFFLED: Outcome(control.decision(features[first]), shuffled)}


def probe_file(path: str) -> Path:
    """The `.npz` file of a probe asked for by this name, which may be that of a pickle."""
    given = Path(path)
    if given.suffix == ".npz":
        return given
    return given.with_suffix(".npz") if given.suffix in PICKLES else given.with_name(f"{given.name}.npz")


def save_probe(path: Path, stored: StoredProbe) -> Path:
    """Write a probe, and its metadata as JSON beside it; returns the JSON file."""
    indices = {f"{name}_indices": indices for name, indices in stored.splits.items()}
    metadata = {"format": FORMAT, "split_by": stored.splits.by, **stored.metadata}
    write_npz(path, {**asdict(stored.probe), **indices}, metadata)
    beside = path.with_suffix(".meta.json")
    write_json(beside, metadata)
    return beside


def load_probe(path: str) -> StoredProbe:
    """Read a probe; for the name of a pickle, the `.npz` of the same stem. A pickle itself is never read.

    Raises:
        ValueError: There is no such file, or it is a pickle or damaged.
    """
    file = probe_file(path)
    if Path(path).is_file() and not file.is_file():
        raise ValueError(f"{path} may be a pickle, which can run code and is never read; {_REMEDY}")
    arrays, metadata = read_npz(file, _FIELDS, FORMAT, _REMEDY)
    try:
        return StoredProbe(LinearProbe(**{n: arrays[n] for n in _WEIGHTS}), _splits(arrays, metadata), metadata)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error}; {_REMEDY}") from error


def _splits(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Splits:
    train, val, test = (arrays[f"{name}_indices"] for name in SPLITS)
    splits = Splits(train, val, test, by=metadata["split_by"])
    total = int(metadata["dataset_states"])
    if splits.by not in ("episode", "stratified"):
        raise ValueError(f"split_by is {splits.by!r}")
    if any(not len(i) or i.min() < 0 or i.max() >= total for _, i in splits.items()):
        raise ValueError(f"its splits do not belong to {total} states")
    if not all(isinstance(metadata[name], str) for name in ("env", "model_path", "dataset", "dataset_digest")):
        raise ValueError("its metadata does not say where it comes from")
    return splits
