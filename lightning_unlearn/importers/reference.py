"""The deterministic action of an agent, computed from its files by its library's rules.

Nothing here is shared with the importer but the inert readers: a setting that the importer overlooks shows as a
difference of actions. Networks are computed in float64 on what the library hands them.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.weights import MAX_BYTES, read_torch
from lightning_unlearn.safe_files import open_zip, read_json
from lightning_unlearn.safe_files.pickles import float_array, read_pickle

Reference = Callable[[torch.Tensor], torch.Tensor]
"""Raw observations as the environment computes them, (N, O) float64 → deterministic actions, (N, A) float64."""
_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "leakyrelu": F.leaky_relu,
    "selu": F.selu,
    "silu": F.silu,
    "gelu": F.gelu,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
}


def sb3(path: Path, statistics: Path | None, simulator: Simulator) -> Reference:
    """Return `PPO.predict` of Stable-Baselines3, behind `VecNormalize.normalize_obs` where there is one."""
    with open_zip(path, MAX_BYTES) as archive:
        data = json.loads(archive.read("data"))
        weights = read_torch(io.BytesIO(archive.read("policy.pth")), "policy.pth")
    kwargs, space = data.get("policy_kwargs") or {}, data["action_space"]
    words = re.findall(r"\w+", str(kwargs.get("activation_fn", "Tanh")))
    activation = next(_FUNCTIONS[word.lower()] for word in words if word.lower() in _FUNCTIONS)
    seen = torch.float32 if data["observation_space"].get("dtype") == "float32" else torch.float64
    low, high = (_numbers(space[bound]) for bound in ("low", "high"))
    normalise = _statistics(statistics)

    def action(observation: torch.Tensor) -> torch.Tensor:
        x = normalise(observation.to(seen).double())
        for net in ("mlp_extractor.shared_net", "mlp_extractor.policy_net"):
            x = _network(weights, net, activation, x)
        mean = F.linear(x, weights["action_net.weight"].double(), weights["action_net.bias"].double())
        if str(kwargs.get("squash_output")) == "True":  # BasePolicy.unscale_action, and the environment's clipping
            mean = low + 0.5 * (mean + 1.0) * (high - low)
        return torch.minimum(torch.maximum(mean, low), high)

    return action


def omnisafe(path: Path, statistics: Path | None, simulator: Simulator) -> Reference:
    """Return `GaussianLearningActor.predict` of OmniSafe, between its wrappers ObsNormalize and ActionScale.

    Args:
        path: One `.pt` file of a run's `torch_save`.
        statistics: None.
        simulator: Has the bounds that actions are scaled to.
    """
    del statistics
    config, content = read_json(path.parent.parent / "config.json", 1 << 20), read_torch(path, str(path))
    activation = _FUNCTIONS[config["model_cfgs"]["actor"]["activation"]]
    known = content.get("obs_normalizer") if config.get("algo_cfgs", {}).get("obs_normalize") else None
    low, high = torch.from_numpy(simulator.action_low), torch.from_numpy(simulator.action_high)

    def action(observation: torch.Tensor) -> torch.Tensor:
        x = observation.float().double()  # OmniSafe's environments give float32
        if known is not None:
            clip = known["_clip"].double()
            x = torch.minimum(torch.maximum((x - known["_mean"].double()) / known["_std"].double(), -clip), clip)
        mean = _network(content["pi"], "mean", activation, x.float().double(), last_is_linear=True)
        return torch.minimum(torch.maximum(low + (high - low) * (mean + 1.0) / 2.0, low), high)

    return action


def cleanrl(path: Path, statistics: Path | None, simulator: Simulator) -> Reference:
    """Return `Agent.actor_mean` of CleanRL behind NormalizeObservation and the clipping, and before ClipAction."""
    weights, normalise = read_torch(path, str(path)), _statistics(statistics)
    low, high = torch.from_numpy(simulator.action_low), torch.from_numpy(simulator.action_high)

    def action(observation: torch.Tensor) -> torch.Tensor:
        mean = _network(weights, "actor_mean", torch.tanh, normalise(observation), last_is_linear=True)
        return torch.minimum(torch.maximum(mean, low), high)

    return action


REFERENCES: dict[str, Callable[[Path, Path | None, Simulator], Reference]] = {
    "sb3": sb3,
    "omnisafe": omnisafe,
    "cleanrl": cleanrl,
}


def _network(
    weights: Mapping[str, torch.Tensor],
    prefix: str,
    activation: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    last_is_linear: bool = False,
) -> torch.Tensor:
    """The sequential network `prefix`: linear layers at even positions, the activation between them."""
    for position in range(0, sum(name.startswith(f"{prefix}.") for name in weights), 2):
        if position and last_is_linear:
            x = activation(x)
        x = F.linear(x, *(weights[f"{prefix}.{position}.{part}"].double() for part in ("weight", "bias")))
        x = x if last_is_linear else activation(x)
    return x


def _statistics(path: Path | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """What VecNormalize or NormalizeObservation does in float64; networks are handed float32."""
    if path is None:
        return lambda observation: observation.float().double()
    known = _known(path)
    scale = np.sqrt(known["var"] + known["epsilon"])

    def normalise(observation: torch.Tensor) -> torch.Tensor:
        x = np.clip((observation.numpy() - known["mean"]) / scale, -known["clip"], known["clip"])
        return torch.from_numpy(x.astype(np.float32).astype(np.float64))

    return normalise


def _known(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        with np.load(path, allow_pickle=False) as file:
            return {"epsilon": 1e-8, "clip": 10.0} | dict(file)
    state = read_pickle(path).state
    if not state.get("norm_obs", True):
        return {"mean": 0.0, "var": 1.0, "epsilon": 0.0, "clip": np.inf}
    moments = {name: float_array(state["obs_rms"].state[name]) for name in ("mean", "var")}
    return moments | {"epsilon": state["epsilon"], "clip": state["clip_obs"]}


def _numbers(text: str) -> torch.Tensor:
    return torch.tensor([float(word) for word in text.strip("[] ").split()], dtype=torch.float64)
