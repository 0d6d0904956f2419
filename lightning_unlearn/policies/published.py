"""The published layout: its files' names, and policies written as it has them.

A `.pt` file holds a dict `state_dict` with shared.0, shared.2, mu, vr, vc (weight and bias) and logstd, and for an
edited policy a dict `editor` with direction, alpha, tau and beta. `storage.load_policy` reads it back.
"""

import re
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.editor import GatedEditor

_HEADS = {"trunk": "shared", "action_mean": "mu", "reward_value": "vr", "cost_value": "vc", "log_std": "logstd"}
_NAME = re.compile(r"(?:(unsafe)_expert|(oracle)|safe_([a-z_]+))_([A-Z][A-Za-z0-9]*-v\d+)(?:_(\d+))?\.pt")
_EDITOR_PARTS = ("direction", "alpha", "tau", "beta")


def file_name(method: str, env: str, update: int) -> str:
    """Name of a model's file, such as `safe_concept_SafetyPointGoal1-v0_50.pt`."""
    if method == "unsafe":
        return f"unsafe_expert_{env}.pt"
    return f"{'' if method == 'oracle' else 'safe_'}{method}_{env}_{update}.pt"


def origin(name: str) -> tuple[str, str, int] | None:
    """Method, environment and update (−1: the name has none) that a file's name tells; None if it is no such name."""
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
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("editor.")}
    content: dict[str, Any] = {"state_dict": {_renamed(name): tensor for name, tensor in own.items()}}
    if isinstance(policy.editor, GatedEditor):
        content["editor"] = {part: weights[f"editor.{part}"] for part in _EDITOR_PARTS}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def require_publishable(policy: ActorCritic) -> None:
    """Refuse what the published scripts could not represent.

    Raises:
        ValueError: It has another shape than two tanh layers, shared critics and actions in [−1, 1].
    """
    config = policy.config
    odd = {
        "hidden_sizes": len(config.hidden_sizes) != 2,
        "activation": config.activation != "tanh",
        "squash": config.squash != "tanh",
        "critics": config.critics != "shared",
        "normalise_observation": config.normalise_observation,
        "editor": config.editor not in ("none", "gated"),
        "action_low": {*config.action_low} != {-1.0},
        "action_high": {*config.action_high} != {1.0},
    }
    named = [f"{name}={getattr(config, name)}" for name, is_odd in odd.items() if is_odd]
    if named:
        raise ValueError(f"the published layout has no place for {', '.join(named)}")


def _renamed(name: str) -> str:
    head, dot, rest = name.partition(".")
    return _HEADS[head] + dot + rest
