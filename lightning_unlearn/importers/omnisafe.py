"""Agents of OmniSafe's PPO family: a run's folder, or one `torch_save/epoch-<n>.pt` of it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Normaliser, layers
from lightning_unlearn.importers.weights import read_torch, tensors
from lightning_unlearn.safe_files import read_json

SUPPORTED = "supported are OmniSafe's on-policy agents (the PPO family) with the actor gaussian_learning"
ACTIVATIONS = ("tanh", "relu", "sigmoid", "softplus")


def read(path: Path, simulator: Simulator, normaliser: Normaliser | None, *, bare: bool) -> ForeignAgent:
    """An agent from its run's folder (the newest epoch), or from one of its `.pt` files.

    Args:
        path: The folder or the file; `config.json` lies in the folder, or one above the file.
        simulator: The environment it is for.
        normaliser: None; OmniSafe keeps it beside the weights.
        bare: False; likewise.

    Raises:
        ValueError: It is not a supported agent.
    """
    try:
        if normaliser is not None or bare:
            raise ValueError("OmniSafe keeps the observation normaliser beside the weights: leave --normalizer out")
        file = find(path)
        config = _config(file.parent.parent / "config.json")
        content = read_torch(file, str(file))
        return _agent(config, content)
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}; {SUPPORTED}.") from error


def find(path: Path) -> Path:
    """Return the file of weights of a run's newest epoch; a file stands for itself.

    Raises:
        ValueError: The folder has none.
    """
    if not path.is_dir():
        return path
    folder = path.parent if path.name == "torch_save" else path
    epochs = {
        int(m[1]): file for file in folder.glob("torch_save/*.pt") if (m := re.fullmatch(r"epoch-(\d+)", file.stem))
    }
    if not epochs:
        raise ValueError(f"there is no torch_save/epoch-<n>.pt in {folder}")
    return epochs[max(epochs)]


def _config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path, 1 << 20)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} was not found: it says which activation the agent has; name the run's whole folder"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_cfgs"), dict):
        raise ValueError(f"{path} is no configuration of OmniSafe")
    return config


def _agent(config: Mapping[str, Any], content: Mapping[str, Any]) -> ForeignAgent:
    weights = _actor_weights(config, content)
    critic = config["model_cfgs"].get("critic")
    return ForeignAgent(
        library=f"OmniSafe ({str(config.get('algo', 'unknown algorithm'))[:20]})",
        actor=layers(weights, "mean"),
        critic=None,
        log_std=weights["log_std"],
        activation=_activation(config),
        normaliser=_normaliser(config, content),
        unit_actions=True,
        critic_sizes=critic.get("hidden_sizes") if isinstance(critic, dict) else None,
    )


def _actor_weights(config: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    kind = config["model_cfgs"].get("actor_type")
    if kind != "gaussian_learning":
        raise ValueError(f"its actor is {kind!r}")
    if not isinstance(content.get("pi"), Mapping):
        raise ValueError("its file has no weights of a policy (`pi`)")
    weights = tensors(content["pi"], "pi")
    if "log_std" not in weights or "mean.0.weight" not in weights:
        raise ValueError("its actor has no mean network and log_std: it is of another algorithm or version")
    return weights


def _activation(config: Mapping[str, Any]) -> str:
    actor = config["model_cfgs"].get("actor")
    activation = actor.get("activation") if isinstance(actor, dict) else None
    if activation not in ACTIVATIONS:
        raise ValueError(f"its activation is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    return str(activation)


def _normaliser(config: Mapping[str, Any], content: Mapping[str, Any]) -> Normaliser | None:
    """OmniSafe divides by the standard deviation, which it keeps at 0.01 or above, and adds nothing."""
    algorithm = config.get("algo_cfgs")
    wanted = algorithm.get("obs_normalize") if isinstance(algorithm, dict) else None
    if not wanted:
        return None
    stored = content.get("obs_normalizer")
    if stored is None:
        raise ValueError("it was trained with obs_normalize, but its file has no obs_normalizer")
    if not isinstance(stored, Mapping) or not {"_mean", "_std", "_clip"} <= set(stored):
        raise ValueError("its obs_normalizer is of another version")
    mean, std, clip = (tensors(stored, "obs_normalizer")[name].double() for name in ("_mean", "_std", "_clip"))
    return Normaliser(mean, std.square(), 0.0, float(clip.flatten()[0]), "float32", "float32")
