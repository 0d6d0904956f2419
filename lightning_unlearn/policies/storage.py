"""Policies in files: safetensors for the weights, JSON for their description. Reading executes nothing.

A stored policy is a folder with `policy.safetensors` and `policy.json`. Single files of the published layout (`.pt`)
are read too, with PyTorch's weights-only loader.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lightning_unlearn.policies.actor_critic import ACTIVATIONS, ActorCritic, PolicyConfig
from lightning_unlearn.policies.editor import EDITORS, require_unit

WEIGHTS_FILE = "policy.safetensors"
DESCRIPTION_FILE = "policy.json"
FORMAT = "lightning-unlearn/policy/1"
_MAX_WEIGHTS_BYTES = 1 << 30
_MAX_DESCRIPTION_BYTES = 1 << 20
_PUBLISHED_NAMES = {
    "shared": "trunk",
    "mu": "action_mean",
    "vr": "reward_value",
    "vc": "cost_value",
    "logstd": "log_std",
}
_EDITOR_PARTS = ("direction", "alpha", "tau", "beta")


@dataclass(frozen=True)
class ModelCard:
    """Where a policy comes from; empty fields are unknown (a policy of the published layout)."""

    method: str = ""
    env: str = ""
    concept: str = ""
    """The info key whose positive values mark the behaviour to forget."""
    seed: int = -1
    update: int = -1
    env_steps: int = -1
    note: str = ""
    """What else has to be known of it, such as how its editor was made."""


@dataclass(frozen=True)
class StoredPolicy:
    """A policy as it was stored."""

    policy: ActorCritic
    card: ModelCard


def save_policy(folder: Path, policy: ActorCritic, card: ModelCard) -> None:
    """Write a policy into a folder, which is made if need be.

    Raises:
        ValueError: A weight is not finite; nothing is written then.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    _require_finite(weights, folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS_FILE)
    description = {"format": FORMAT, "policy": asdict(policy.config), "card": asdict(card)}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load_policy(path: Path) -> StoredPolicy:
    """Read a policy from its folder, from a weights file beside its description, or from a published `.pt` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a policy, or its parts do not belong together.
    """
    if path.suffix == ".pt":
        return _load_published(path)
    folder = path if path.is_dir() else path.parent
    description = _read_description(folder / DESCRIPTION_FILE)
    policy = ActorCritic(_config(description, folder))
    _fill(policy, _read_safetensors(path if path.is_file() else folder / WEIGHTS_FILE), folder)
    return StoredPolicy(policy.eval(), _card(description, folder))


def _read_description(path: Path) -> dict[str, Any]:
    _require_file(path, _MAX_DESCRIPTION_BYTES)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a policy description: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path} is not a policy description of the format {FORMAT!r}.")
    return description


def _config(description: Mapping[str, Any], folder: Path) -> PolicyConfig:
    try:
        config = PolicyConfig(**description["policy"])
        _require_field_types(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / DESCRIPTION_FILE} does not describe a policy: {error}") from error
    return config


def _require_field_types(config: PolicyConfig) -> None:
    sizes = [config.observation_size, *config.hidden_sizes]
    critic_sizes = [config.observation_size, *config.critic_sizes]
    if not all(type(size) is int and 0 < size <= 1 << 16 for size in sizes + critic_sizes):
        raise ValueError(f"sizes must be whole numbers up to 65536, got {sizes} and {critic_sizes}")
    bounds = [*config.action_low, *config.action_high]
    if len(bounds) > 1 << 12 or not all(isinstance(bound, float | int) and math.isfinite(bound) for bound in bounds):
        raise ValueError("action bounds must be finite numbers")
    if not all(low < high for low, high in zip(config.action_low, config.action_high, strict=True)):
        raise ValueError("every lower action bound must be below its upper one")
    if (
        sum(wide * narrow for chain in (sizes, critic_sizes) for wide, narrow in pairwise(chain))
        > _MAX_WEIGHTS_BYTES // 4
    ):
        raise ValueError("sizes ask for more weights than a file may hold")
    choices = {
        "activation": tuple(ACTIVATIONS),
        "squash": ("tanh", "none"),
        "critics": ("shared", "separate"),
        "editor": ("none", *EDITORS),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r} is not one of {allowed}")
    if not isinstance(config.normalise_observation, bool):
        raise ValueError("normalise_observation must be true or false")
    _require_numbers(config)


def _require_numbers(config: PolicyConfig) -> None:
    low, high = config.log_std_range
    numbers = [config.normaliser_epsilon, config.normaliser_clip, low, high]
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("normaliser_epsilon, normaliser_clip and log_std_range must be finite numbers")
    if config.normaliser_epsilon < 0 or config.normaliser_clip <= 0 or low > high:
        raise ValueError(
            f"normaliser_epsilon={config.normaliser_epsilon}, normaliser_clip={config.normaliser_clip} or "
            f"log_std_range={config.log_std_range} is out of range"
        )


def _card(description: Mapping[str, Any], folder: Path) -> ModelCard:
    card = description.get("card", {})
    known = {field.name: field.type for field in fields(ModelCard)}
    if not isinstance(card, dict) or not all(isinstance(card.get(k, t()), t) for k, t in known.items()):  # type: ignore[operator, arg-type]
        raise ValueError(f"{folder / DESCRIPTION_FILE}: the card must hold {', '.join(known)} of their types.")
    return ModelCard(**{name: card[name] for name in known if name in card})


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    _require_file(path, _MAX_WEIGHTS_BYTES)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error


def _load_published(path: Path) -> StoredPolicy:
    _require_file(path, _MAX_WEIGHTS_BYTES)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a weights file that can be read safely: {type(error).__name__}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} holds no `state_dict` of the published layout.")
    weights = {_published_name(str(name)): tensor for name, tensor in content["state_dict"].items()}
    editor = _published_editor(content.get("editor"), path)
    config = _published_config(weights, path)
    policy = ActorCritic(replace(config, editor="gated") if editor else config)
    weights |= editor
    _fill(policy, weights, path)
    return StoredPolicy(policy.eval(), ModelCard())


def _published_name(name: str) -> str:
    head, _, rest = name.partition(".")
    return ".".join(part for part in (_PUBLISHED_NAMES.get(head, head), rest) if part)


def _published_config(weights: Mapping[str, Any], path: Path) -> PolicyConfig:
    """Sizes are read off the weights; the published policies have actions in [−1, 1]."""
    layers = [weights.get(f"trunk.{i}.weight") for i in (0, 2)]
    log_std = weights.get("log_std")
    if any(not isinstance(w, torch.Tensor) or w.ndim != 2 for w in layers) or not isinstance(log_std, torch.Tensor):
        raise ValueError(f"{path} has no shared.0, shared.2 and logstd: not of the published layout.")
    actions = log_std.numel()
    return PolicyConfig(
        observation_size=int(layers[0].shape[1]),  # type: ignore[union-attr]
        action_low=[-1.0] * actions,
        action_high=[1.0] * actions,
        hidden_sizes=[int(w.shape[0]) for w in layers],  # type: ignore[union-attr]
    )


def _published_editor(editor: object, path: Path) -> dict[str, torch.Tensor]:
    """The editor's buffers under their names here; empty where the file has none.

    The published editor compares τ with the score along the normalised direction, whatever length the file's has.
    """
    if editor is None:
        return {}
    if not isinstance(editor, dict) or not {*_EDITOR_PARTS} <= set(editor):
        raise ValueError(f"{path}: its `editor` must hold {', '.join(_EDITOR_PARTS)}.")
    try:
        parts = {name: torch.as_tensor(editor[name], dtype=torch.float32).squeeze() for name in _EDITOR_PARTS}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its `editor` holds something that is no number: {error}") from error
    parts["direction"] = parts["direction"].flatten() / parts["direction"].norm()  # all zeros: refused as not finite
    return {f"editor.{name}": tensor for name, tensor in parts.items()}


def _fill(policy: ActorCritic, weights: Mapping[str, Any], path: Path) -> None:
    expected = policy.state_dict()
    if set(weights) != set(expected):
        odd = sorted(set(weights) ^ set(expected))
        raise ValueError(f"{path}: the weights do not fit their description; missing or unknown: {odd[:6]}")
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor) or tensor.shape != expected[name].shape:
            raise ValueError(f"{path}: {name} should be of shape {tuple(expected[name].shape)}.")
        if tensor.dtype != torch.float32:
            raise ValueError(f"{path}: {name} should be float32, not {tensor.dtype}.")
    _require_finite(weights, path)
    _require_unit_direction(weights, path)
    policy.load_state_dict(dict(weights))


def _require_unit_direction(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        if "editor.direction" in weights:
            require_unit(weights["editor.direction"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _require_finite(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{path}: not a number or infinite: {', '.join(bad)}")


def _require_file(path: Path, max_bytes: int) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes: not a policy of this project.")
