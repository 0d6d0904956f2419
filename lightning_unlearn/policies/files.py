"""Policies in files: safetensors for the weights, JSON for the description. Reading executes nothing.

A stored policy is a folder with `policy.safetensors` and `policy.json`. Single files of the published layout (`.pt`)
can be read, too.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from lightning_unlearn.old_names import with_current_paths
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.latent_editor import require_unit
from lightning_unlearn.policies.published_format import read_published
from lightning_unlearn.safe_files import read_bytes, read_json, require_small_header

WEIGHTS_FILE, DESCRIPTION_FILE = "policy.safetensors", "policy.json"
FORMAT = "lightning-unlearn/policy/1"
MAX_WEIGHTS_BYTES = 1 << 28
"""Room for 67 million weights; the published policies have 8 thousand."""
MAX_NUMBER = 1e30
"""Largest number in a description: it and the range between two bounds fit into a float32."""
_MAX_DESCRIPTION_BYTES = 1 << 20
_MAX_LAYERS, _MAX_SIZE, _MAX_BOUNDS = 32, 1 << 16, 1 << 12
_NAMES = {"method": r"\w*", "env": r"((\w[\w.]*:)?(\w[\w-]*/)?\w[\w.-]*)?"}
"""An environment's id may name a module that registers it, and a namespace: `module:namespace/Id-v0`."""


@dataclass(frozen=True)
class ModelCard:
    """Origin of a policy. Empty fields are unknown, as all are for a policy of the published layout."""

    method: str = ""
    env: str = ""
    concept: str = ""
    """The behaviour to forget: the info key of a cost, or a class and its arguments as JSON. Reading builds nothing."""
    seed: int = -1
    update: int = -1
    env_steps: int = -1
    note: str = ""
    """Free text, such as how the policy's editor was made."""
    stated_std: float = 0.0
    """Exploration std that was stated at import, since the agent has no state-independent Gaussian; 0: its own."""

    def __post_init__(self) -> None:
        """Refuse names that cannot be part of a file's name; audits name files after them (see `as_file_name`)."""
        for name, pattern in _NAMES.items():
            if not re.fullmatch(pattern, getattr(self, name), re.ASCII):
                raise ValueError(f"{name}={getattr(self, name)!r} is no name: use letters, digits and underscores.")


@dataclass(frozen=True)
class StoredPolicy:
    """A policy and its card, as they were stored."""

    policy: ActorCritic
    card: ModelCard


@dataclass(frozen=True)
class Description:
    """Content of a description file."""

    config: PolicyConfig
    card: ModelCard
    weights_sha256: str | None = None
    """SHA-256 of the weights file beside it; None in files of older versions."""


def save_policy(folder: Path, policy: ActorCritic, card: ModelCard) -> None:
    """Write a policy into a folder, which is made if it is missing. The description holds the weights file's digest.

    Raises:
        ValueError: A weight or a bound is not finite, or the policy is wrapped around a network; nothing is written.
    """
    require_storable(policy)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    _require_finite(weights, folder)
    content = save(weights)
    stored = {name: value for name, value in asdict(card).items() if value or name != "stated_std"}
    described = {"format": FORMAT, "policy": asdict(policy.config), "card": stored}
    described["weights_sha256"] = hashlib.sha256(content).hexdigest()
    text = json.dumps(described, indent=2, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(content)
    (folder / DESCRIPTION_FILE).write_text(f"{text}\n", encoding="utf-8")


def require_storable(policy: ActorCritic) -> None:
    """Raise a ValueError if a policy is wrapped around a network, whose code cannot be stored."""
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
    file = folder / WEIGHTS_FILE if path.is_dir() else path
    content = read_bytes(file, MAX_WEIGHTS_BYTES)
    require_small_header(file)
    if description.weights_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise ValueError(f"{file} is damaged, or is not the file that its description was written with.")
    try:
        weights = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a safetensors file, or is damaged: {error}") from error
    return StoredPolicy(_filled(description.config, weights, folder), description.card)


def read_description(path: Path) -> Description:
    """Read a description file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no description, or describes an impossible policy.
    """
    content = read_json(path, _MAX_DESCRIPTION_BYTES)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a policy description of the format {FORMAT!r}.")
    try:
        config, stored = PolicyConfig(**content["policy"]), content.get("card", {})
        known = {field.name: field.type for field in fields(ModelCard)}
        if not isinstance(stored, dict) or not all(isinstance(stored.get(k, t()), t) for k, t in known.items()):  # type: ignore[operator, arg-type]
            raise ValueError(f"the card must hold {', '.join(known)} of their types")
        given = {name: stored[name] for name in known if name in stored}
        card = ModelCard(**given | {"concept": with_current_paths(given.get("concept", ""))})
        _require_possible(config)
        digest = content.get("weights_sha256")
        if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
            raise ValueError("weights_sha256 is no SHA-256")
        return Description(config, card, digest)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a policy: {str(error)[:400]}") from error


def _require_possible(config: PolicyConfig) -> None:
    """Check types and ranges, which `PolicyConfig` trusts its callers with."""
    sizes = [config.observation_size, *config.hidden_sizes, *config.critic_sizes]
    if not all(type(size) is int and 0 < size <= _MAX_SIZE for size in sizes):
        raise ValueError(f"sizes must be whole numbers up to {_MAX_SIZE}, got {str(sizes)[:80]}")
    bounds = [*config.action_low, *config.action_high]
    if len(bounds) > _MAX_BOUNDS or not all(map(_is_finite, bounds)):
        raise ValueError(f"action bounds must be finite numbers up to {MAX_NUMBER:g}")
    if not all(low < high for low, high in zip(config.action_low, config.action_high, strict=True)):
        raise ValueError("every lower action bound must be below its upper one")
    if not isinstance(config.normalise_observation, bool):
        raise ValueError("normalise_observation must be true or false")
    low, high = config.log_std_range
    if not all(map(_is_finite, (config.normaliser_epsilon, config.normaliser_clip, low, high))):
        raise ValueError("normaliser_epsilon, normaliser_clip and log_std_range must be finite numbers")
    if config.normaliser_epsilon < 0 or config.normaliser_clip <= 0 or low > high:
        raise ValueError(
            f"normaliser_epsilon={config.normaliser_epsilon}, normaliser_clip={config.normaliser_clip} or "
            f"log_std_range={config.log_std_range} is out of range"
        )


def _is_finite(number: object) -> bool:
    """Return whether a number is finite as float32, in which a policy computes."""
    return type(number) in (int, float) and abs(number) <= MAX_NUMBER  # type: ignore[arg-type]


def weights_digest(policy: ActorCritic) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over names and weights."""
    state = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        state.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def _filled(config: PolicyConfig, weights: Mapping[str, Any], path: Path) -> ActorCritic:
    """Build the policy of a shape, ready to act, with these weights; the network is made only if they may fill it."""
    for name, tensor in weights.items():
        allowed = (torch.float32, torch.float64) if name.startswith("normaliser.") else (torch.float32,)
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in allowed:
            raise ValueError(
                f"{path}: {name} should be float32, not {getattr(tensor, 'dtype', type(tensor).__name__)}."
            )
    _require_finite(weights, path)
    try:
        _require_enough(config, sum(tensor.nbytes for tensor in weights.values()))
        policy = ActorCritic(config)
        _require_same_tensors(policy.state_dict(), weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    policy.load_state_dict(dict(weights))
    return policy.eval()


def _require_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{path}: not a number or infinite: {', '.join(bad)}")


def _require_enough(config: PolicyConfig, weights_bytes: int) -> None:
    """Refuse a shape that needs more weights than a file of this size holds, and one of too many layers."""
    trunks = [config.hidden_sizes, *([config.critic_sizes] if config.critics == "separate" else [])]
    if any(len(sizes) > _MAX_LAYERS for sizes in trunks):
        raise ValueError(f"it has more than {_MAX_LAYERS} layers")
    pairs = [pair for sizes in trunks for pair in pairwise([config.observation_size, *sizes])]
    weights = sum(wide * narrow for wide, narrow in pairs)
    weights += config.latent_size * (config.action_size + (config.latent_size if config.editor == "affine" else 0))
    if 4 * weights > weights_bytes:
        raise ValueError(f"its sizes {trunks} ask for more weights than the {weights_bytes} bytes that it holds")


def _require_same_tensors(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    if set(weights) != set(expected):
        different = sorted(set(weights) ^ set(expected))
        raise ValueError(f"the weights do not fit their description; missing or unknown: {different[:6]}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{name} should be of shape {tuple(expected[name].shape)}.")
        if tensor.dtype != expected[name].dtype:
            raise ValueError(f"{name} should be {expected[name].dtype}, not {tensor.dtype}.")
    if "normaliser.variance" in weights and (weights["normaliser.variance"] < 0).any():
        raise ValueError("normaliser.variance has negative entries.")
    if "editor.direction" in weights:
        require_unit(weights["editor.direction"])
