"""The published layout: the names of its files, and policies in it.

A `.pt` file holds a dict `state_dict` with shared.0, shared.2, mu, vr, vc (weight and bias) and logstd, and for an
edited policy a dict `editor` with direction, alpha, tau and beta.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.latent_editor import GatedEditor
from lightning_unlearn.safe_files.pt import read_pt

_PUBLISHED = {"trunk": "shared", "action_mean": "mu", "reward_value": "vr", "cost_value": "vc", "log_std": "logstd"}
"""Name of a layer here → its published name."""
_OWN = {published: own for own, published in _PUBLISHED.items()}
_NAME = re.compile(r"(?:(unsafe)_expert|(oracle)|safe_([a-z]\w*?))_([A-Z][A-Za-z0-9]*-v\d+)(?:_(\d+))?\.pt")
_MAX_ACTIONS = 1 << 12
_EDITOR_PARTS = ("direction", "alpha", "tau", "beta")


def as_file_name(env_id: str) -> str:
    """Replace slashes and colons in an environment's id, for names of files and of registered models."""
    return env_id.replace("/", "+").replace(":", "~")


def file_name(method: str, env: str, update: int) -> str:
    """Return the published name of a model's file, such as `safe_concept_SafetyPointGoal1-v0_50.pt`."""
    env = as_file_name(env)
    if method == "unsafe":
        return f"unsafe_expert_{env}.pt"
    return f"{'' if method == 'oracle' else 'safe_'}{method}_{env}_{update}.pt"


def origin(name: str) -> tuple[str, str, int] | None:
    """Read method, environment and update from a file's name (update −1 if it has none); None if it is no such name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    unsafe, oracle, other, env, update = match.groups()
    return unsafe or oracle or other, env, int(update or -1)


def save_published(path: Path, policy: ActorCritic) -> None:
    """Write a policy in the published layout.

    Raises:
        ValueError: The layout cannot hold such a policy; nothing is written.
    """
    require_publishable(policy)
    weights = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}
    content: dict[str, Any] = {
        "state_dict": {_renamed(n, _PUBLISHED): w for n, w in weights.items() if not n.startswith("editor.")}
    }
    if isinstance(policy.editor, GatedEditor):
        content["editor"] = {part: weights[f"editor.{part}"] for part in _EDITOR_PARTS}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def require_publishable(policy: ActorCritic) -> None:
    """Refuse a policy that the published scripts could not represent.

    Raises:
        ValueError: It is no policy of two tanh layers, shared critics and actions in [−1, 1], with at most a gated
            editor.
    """
    config = policy.config
    unsupported = {
        "hidden_sizes": len(config.hidden_sizes) != 2,
        "activation": config.activation != "tanh",
        "squash": config.squash != "tanh",
        "critics": config.critics != "shared",
        "normalise_observation": config.normalise_observation,
        "editor": config.editor not in ("none", "gated"),
        "action_low": {*config.action_low} != {-1.0},
        "action_high": {*config.action_high} != {1.0},
    }
    named = [f"{name}={getattr(config, name)}" for name, is_unsupported in unsupported.items() if is_unsupported]
    if named:
        raise ValueError(f"the published layout has no place for {', '.join(named)}")


def read_published(path: Path, max_bytes: int) -> tuple[PolicyConfig, dict[str, Any]]:
    """Read a policy's shape and its weights, under the names they have here; the caller checks that none is missing.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not of the published layout, or cannot be read safely.
    """
    content = read_pt(path, max_bytes)
    if not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{path} holds no `state_dict` of the published layout.")
    weights = {_renamed(name, _OWN): tensor for name, tensor in content["state_dict"].items()}
    editor = _editor(content.get("editor"), path)
    layers, log_std = [weights.get(f"trunk.{i}.weight") for i in (0, 2)], weights.get("log_std")
    if any(not isinstance(w, torch.Tensor) or w.ndim != 2 for w in layers) or not isinstance(log_std, torch.Tensor):
        raise ValueError(f"{path} has no shared.0, shared.2 and logstd: not of the published layout.")
    actions = log_std.numel()
    if actions > _MAX_ACTIONS:
        raise ValueError(f"{path} has {actions} actions, more than {_MAX_ACTIONS}.")
    config = PolicyConfig(
        observation_size=int(layers[0].shape[1]),  # type: ignore[union-attr]
        action_low=[-1.0] * actions,  # the bounds of all published policies
        action_high=[1.0] * actions,
        hidden_sizes=[int(w.shape[0]) for w in layers],  # type: ignore[union-attr]
        editor="gated" if editor else "none",
    )
    return config, weights | editor


def _renamed(name: str, names: Mapping[str, str]) -> str:
    head, dot, rest = name.partition(".")
    return names.get(head, head) + dot + rest


def _editor(editor: object, path: Path) -> dict[str, torch.Tensor]:
    """Return the editor's buffers under the names they have here; empty if the file has no editor.

    The published editor compares τ with the score along the normalised direction, whatever its length in the file.
    """
    if editor is None:
        return {}
    if not isinstance(editor, dict) or not {*_EDITOR_PARTS} <= set(editor):
        raise ValueError(f"{path}: its `editor` must hold {', '.join(_EDITOR_PARTS)}.")
    try:
        parts = {name: torch.as_tensor(editor[name], dtype=torch.float32).squeeze() for name in _EDITOR_PARTS}
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: its `editor` holds something that is no number: {error}") from error
    parts["direction"] = parts["direction"].flatten() / parts["direction"].norm()  # all zeros: refused as not finite
    return {f"editor.{name}": tensor for name, tensor in parts.items()}
