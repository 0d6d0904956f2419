"""Policies in files: safetensors for the weights, JSON for their description. Reading executes nothing.

A stored policy is a folder with `policy.safetensors` and `policy.json`. Single files of the published layout (`.pt`)
are read too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.description import Description, ModelCard, read_description, require_possible
from lightning_unlearn.policies.editor import require_unit
from lightning_unlearn.policies.published import read_published
from lightning_unlearn.safe_files import read_bytes, require_small_header

WEIGHTS_FILE = "policy.safetensors"
DESCRIPTION_FILE = "policy.json"
MAX_WEIGHTS_BYTES = 1 << 28
"""As much as 67 million weights; the published policies have 8 thousand."""


@dataclass(frozen=True)
class StoredPolicy:
    """A policy as it was stored."""

    policy: ActorCritic
    card: ModelCard


def save_policy(folder: Path, policy: ActorCritic, card: ModelCard) -> None:
    """Write a policy into a folder, which is made if need be. Its description holds the digest of its weights file.

    Raises:
        ValueError: A weight or a bound is not finite, or the policy is wrapped around a network; nothing is written.
    """
    require_storable(policy)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    _require_finite(weights, folder)
    content = save(weights)
    description = Description(policy.config, card, hashlib.sha256(content).hexdigest())
    text = json.dumps(description.as_json(), indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / DESCRIPTION_FILE).write_text(f"{text}\n", encoding="utf-8")


def require_storable(policy: ActorCritic) -> None:
    """Refuse a policy that cannot be stored.

    Raises:
        ValueError: It is wrapped around a network.
    """
    if not isinstance(policy.action_mean, nn.Linear):
        raise ValueError("a wrapped network cannot be stored as a policy: keep the state_dict of its trunk instead.")


def load_policy(path: Path) -> StoredPolicy:
    """Read a policy from its folder, from a weights file beside its description, or from a published `.pt` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a policy, or its parts do not belong together.
    """
    if path.suffix == ".pt":
        config, weights = read_published(path, MAX_WEIGHTS_BYTES)
        return StoredPolicy(_filled(config, weights, path), ModelCard())
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    folder = path if path.is_dir() else path.parent
    description = read_description(folder / DESCRIPTION_FILE)
    weights = _read_safetensors(folder / WEIGHTS_FILE if path.is_dir() else path, description.weights_sha256)
    return StoredPolicy(_filled(description.config, weights, folder), description.card)


def _read_safetensors(path: Path, digest: str | None) -> dict[str, torch.Tensor]:
    content = read_bytes(path, MAX_WEIGHTS_BYTES)
    require_small_header(path)
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} is damaged, or is not the file that its description was written with.")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def _filled(config: PolicyConfig, weights: Mapping[str, Any], path: Path) -> ActorCritic:
    """A policy of this shape with these weights, ready to act."""
    _require_floats(weights, path)
    try:
        require_possible(config, sum(tensor.nbytes for tensor in weights.values()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    policy = ActorCritic(config)
    _require_fit(policy.state_dict(), weights, path)
    policy.load_state_dict(dict(weights))
    return policy.eval()


def _require_floats(weights: Mapping[str, Any], path: Path) -> None:
    for name, tensor in weights.items():
        allowed = (torch.float32, torch.float64) if name.startswith("normaliser.") else (torch.float32,)
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in allowed:
            raise ValueError(
                f"{path}: {name} should be float32, not {getattr(tensor, 'dtype', type(tensor).__name__)}."
            )
    _require_finite(weights, path)


def _require_fit(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], path: Path) -> None:
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))
        raise ValueError(f"{path}: the weights do not fit their description; missing or unknown: {odd[:6]}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{path}: {name} should be of shape {tuple(expected[name].shape)}.")
        if tensor.dtype != expected[name].dtype:
            raise ValueError(f"{path}: {name} should be {expected[name].dtype}, not {tensor.dtype}.")
    if "normaliser.variance" in weights and (weights["normaliser.variance"] < 0).any():
        raise ValueError(f"{path}: normaliser.variance has negative entries.")
    try:
        if "editor.direction" in weights:
            require_unit(weights["editor.direction"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _require_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{path}: not a number or infinite: {', '.join(bad)}")
