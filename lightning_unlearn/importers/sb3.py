"""Agents of Stable-Baselines3: the zip that `PPO.save` writes. Its pickled fields are never decoded."""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Normaliser, Weights, layer, layers
from lightning_unlearn.importers.weights import MAX_BYTES, read_torch, tensors
from lightning_unlearn.safe_files import open_zip

SUPPORTED = "supported are Stable-Baselines3 PPO agents with MlpPolicy, continuous actions and no gSDE"
ACTIVATIONS = {
    "Tanh": "tanh",
    "ReLU": "relu",
    "ELU": "elu",
    "LeakyReLU": "leaky_relu",
    "SELU": "selu",
    "SiLU": "silu",
    "GELU": "gelu",
    "Mish": "mish",
    "Softplus": "softplus",
    "Sigmoid": "sigmoid",
}
"""PyTorch's class → the name here."""
FLATTEN = "<class 'stable_baselines3.common.torch_layers.FlattenExtractor'>"
_WITHOUT_EFFECT = {
    "ortho_init",
    "log_std_init",
    "full_std",
    "use_expln",
    "normalize_images",
    "share_features_extractor",
}
"""Options of a policy that weights hold, or that only gSDE or pictures have."""
OPTIONS = {
    *("activation_fn", "net_arch", "squash_output", "features_extractor_class", "features_extractor_kwargs"),
    *("optimizer_class", "optimizer_kwargs", "sde_net_arch", "device", *_WITHOUT_EFFECT),
}
"""All options of ActorCriticPolicy."""


def read(path: Path, simulator: Simulator, normaliser: Normaliser | None, *, bare: bool) -> ForeignAgent:
    """An agent from its zip.

    Args:
        path: The zip.
        simulator: The environment it is for.
        normaliser: Of its VecNormalize.
        bare: Whether it is meant to act on observations as they are.

    Raises:
        ValueError: It is not a supported agent, or its VecNormalize is missing.
    """
    try:
        data, weights, version = _content(path)
        _require_supported(data, weights)
        _require_bounds(data, simulator)
        if normaliser is None and not bare and data.get("_last_original_obs") is not None:
            raise ValueError(
                "it was trained behind a VecNormalize: give the file that VecNormalize.save wrote with --normalizer "
                "(or --normalizer none, if that left observations as they are)"
            )
        return _agent(data, weights, version, normaliser)
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}; {SUPPORTED}.") from error


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    try:
        with open_zip(path, MAX_BYTES) as archive:
            data, version = json.loads(archive.read("data")), archive.read("_stable_baselines3_version")[:20]
            weights = io.BytesIO(archive.read("policy.pth"))
    except FileNotFoundError as error:
        raise ValueError("it was not found") from error
    except (KeyError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"it has no data, policy.pth and _stable_baselines3_version ({error})") from error
    if not isinstance(data, dict):
        raise ValueError("its data is no description of an agent")
    return data, tensors(read_torch(weights, "policy.pth"), "policy.pth"), version.decode(errors="replace").strip()


def _agent(data: Mapping[str, Any], weights: Weights, version: str, normaliser: Normaliser | None) -> ForeignAgent:
    shared, pi, vf = (layers(weights, f"mlp_extractor.{net}_net") for net in ("shared", "policy", "value"))
    return ForeignAgent(
        library=f"Stable-Baselines3 {version}",
        actor=[*shared, *pi, layer(weights, "action_net")],
        critic=[*shared, *vf, layer(weights, "value_net")],
        log_std=weights["log_std"],
        activation=_activation(data),
        normaliser=normaliser and replace(normaliser, observation_dtype=_observation_dtype(data)),
        shared=not pi and not vf,
        unit_actions=str(_kwargs(data).get("squash_output")) == "True",
    )


def _kwargs(data: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's options; where one of them is no plain value, all of them are texts."""
    kwargs = data.get("policy_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"its policy_kwargs are {str(kwargs)[:80]}")
    return {name: value for name, value in kwargs.items() if name not in (":type:", ":serialized:")}


def _observation_dtype(data: Mapping[str, Any]) -> Literal["float32", "float64"]:
    """What Stable-Baselines3 rounds observations to before its VecNormalize sees them."""
    space = data.get("observation_space")
    return "float32" if isinstance(space, dict) and space.get("dtype") == "float32" else "float64"


def _activation(data: Mapping[str, Any]) -> str:
    """From the text that stands beside the pickled class."""
    text = str(_kwargs(data).get("activation_fn", "Tanh"))
    name = re.sub(r"^<class '(?:torch\.nn\.modules\.activation\.)|'>$", "", text)
    if name not in ACTIVATIONS:
        raise ValueError(f"its activation is {text}, not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _require_supported(data: Mapping[str, Any], weights: Weights) -> None:
    kwargs = _kwargs(data)
    unknown = sorted(set(kwargs) - OPTIONS)
    refused = {
        "it is recurrent": any("lstm" in name for name in weights),
        "it sees pictures or several observations": any(".cnn." in n or ".extractors." in n for n in weights)
        or ".dict.Dict" in _kind(data, "observation_space"),
        "its actions are discrete": "action_space" in data and ".box.Box" not in _kind(data, "action_space"),
        "it is of another algorithm than PPO": not {"clip_range", "n_epochs"} <= set(data)
        or not any(name.startswith("action_net.") for name in weights),
        "it uses gSDE": data.get("use_sde") is not False,
        "it has a feature extractor of its own": str(kwargs.get("features_extractor_class", FLATTEN)) != FLATTEN
        or any("features_extractor" in name for name in weights),
        f"its policy_kwargs hold {', '.join(unknown)}, which this package does not know": bool(unknown),
        f"its squash_output is {kwargs.get('squash_output')}": str(kwargs.get("squash_output", False))
        not in ("True", "False"),
        "its observations are no vector of numbers": ".box.Box" not in _kind(data, "observation_space"),
        "its policy is a class of its own": _module(data) != "stable_baselines3.common.policies",
        "it has no log_std": "log_std" not in weights,
    }
    for why, is_so in refused.items():
        if is_so:
            raise ValueError(why)


def _kind(data: Mapping[str, Any], field: str) -> str:
    described = data.get(field)
    return str(described.get(":type:", "")) if isinstance(described, dict) else ""


def _module(data: Mapping[str, Any]) -> str:
    policy_class = data.get("policy_class")
    return str(policy_class.get("__module__", "")) if isinstance(policy_class, dict) else ""


def _require_bounds(data: Mapping[str, Any], simulator: Simulator) -> None:
    """Its actions are clipped to its own bounds, which must be the environment's."""
    space = data.get("action_space")
    described = space if isinstance(space, dict) else {}
    for name, bound in (("low", simulator.action_low), ("high", simulator.action_high)):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", str(described.get(name, "")))]
        if len(numbers) != len(bound):
            raise ValueError(
                f"it gives {len(numbers)} actions, but {simulator.env_id} takes {len(bound)}: name the environment it "
                "was trained in with --env"
            )
        if any(abs(number - edge) > 1e-4 * max(1.0, abs(edge)) for number, edge in zip(numbers, bound, strict=True)):
            raise ValueError(f"its actions have the {name} bounds {numbers}, those of {simulator.env_id} {[*bound]}")
