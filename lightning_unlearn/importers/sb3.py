"""Agents of Stable-Baselines3 and sb3-contrib: the zip that `save` writes, whose pickled fields are never decoded.

They are found where rl-zoo3 puts them, too: `<run>/<env>.zip` is the final agent, `<run>/best_model.zip` the best one,
and `<run>/<env>/` holds `vecnormalize.pkl`, `config.yml` and `args.yml`. On the Hugging Face Hub, rl-zoo3 puts these
files beside the agent, the statistics as `vec_normalize.pkl`.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Weights, layer, layers
from lightning_unlearn.importers.normaliser import reference_normalisation
from lightning_unlearn.importers.reader import (
    FUNCTIONS,
    MAX_BYTES,
    FileReader,
    Reference,
    finite_tensors,
    read_torch,
    reference_network,
    require_bounds,
)
from lightning_unlearn.safe_files import open_zip, read_yaml

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
OPTIONS = {
    *("activation_fn", "net_arch", "squash_output", "features_extractor_class", "features_extractor_kwargs"),
    *("optimizer_class", "optimizer_kwargs", "sde_net_arch", "device"),
    # without effect here: the weights hold the result, or only gSDE, critics and pictures have them
    *("ortho_init", "log_std_init", "full_std", "use_expln", "normalize_images", "share_features_extractor"),
    *("use_sde", "clip_mean", "n_critics", "n_quantiles"),
}
"""Options of the policies."""
_ON_POLICY = "stable_baselines3.common.policies"
ALGORITHMS: dict[str, tuple[str, set[str], set[str]]] = {
    "PPO": (_ON_POLICY, {"clip_range", "n_epochs"}, set()),
    "A2C": (_ON_POLICY, {"n_steps", "normalize_advantage", "vf_coef"}, {"clip_range", "n_epochs", "target_kl"}),
    "TQC": ("sb3_contrib.tqc.policies", {"top_quantiles_to_drop_per_net"}, set()),
    "SAC": ("stable_baselines3.sac.policies", {"target_entropy"}, {"top_quantiles_to_drop_per_net", "policy_delay"}),
    "TD3": ("stable_baselines3.td3.policies", {"target_policy_noise", "policy_delay"}, set()),
}
"""Algorithm → module of its policies, fields of a description that it has, and fields that it lacks. DDPG is a TD3."""
_MAX_CONFIG_BYTES = 1 << 16
_WRAPPERS = ("env_wrapper", "frame_stack", "vec_env_wrapper")
"""Options of rl-zoo3's config.yml that change what an agent sees or what its actions do."""
_SPACES = ("observation_space", "action_space")
_NO_WRAPPER: tuple[Any, ...] = (None, "", [], {}, 0, 1, "None")


class StableBaselines3(FileReader):
    """An agent of Stable-Baselines3 or sb3-contrib, and the VecNormalize that rl-zoo3 saved with it."""

    supported = (
        "supported are PPO, A2C, SAC, TD3 and DDPG agents of Stable-Baselines3 and TQC agents of sb3-contrib, with "
        "MlpPolicy, one observation vector, continuous actions and no gSDE"
    )

    @staticmethod
    def find(path: Path) -> tuple[Path, Path | None]:
        """Find an agent's zip, and the `vecnormalize.pkl` of its run if there is one.

        Args:
            path: The zip, with or without its ending, or a run's folder of rl-zoo3, whose final agent is preferred,
                then its best one.

        Raises:
            ValueError: The folder holds no agent or several, or the agent was trained behind a wrapper.
        """
        is_run = path.is_dir()
        if is_run:
            agents = sorted(file for file in path.glob("*.zip") if file.name != "train_eval_metrics.zip")
            final = [agent for agent in agents if (path / agent.stem).is_dir()]
            found = final or sorted(path.glob("best_model.zip")) or agents
            if len(found) != 1:
                raise ValueError(
                    f"{path} holds {len(found)} agents (*.zip), not one: name the file of the one you mean."
                )
            path = found[0]
        elif not path.exists() and Path(f"{path}.zip").exists():
            path = Path(f"{path}.zip")
        marks = ("args.yml", "config.yml", "vecnormalize.pkl") if is_run else ("args.yml",)
        patterns = [pattern for mark in marks for pattern in (mark, f"*/{mark}")]
        homes = {file.parent for pattern in patterns for file in path.parent.glob(pattern)}
        home = homes.pop() if len(homes) == 1 else path.parent if is_run else None
        if home is None:
            return path, None
        if (home / "config.yml").is_file():
            _require_no_wrapper(home / "config.yml")
        files = (home / "vecnormalize.pkl", home / "vec_normalize.pkl")
        return path, next((file for file in files if file.is_file()), None)

    @property
    def library(self) -> str:
        """The name, the version in the zip, and the algorithm."""
        data, _, version = self._content
        name = _algorithm(data)
        if name == "TD3" and data["policy_delay"] == 1 and data.get("target_noise_clip") == 0:
            name = "DDPG"
        return f"Stable-Baselines3 {version} ({name})"

    @cached_property
    def _content(self) -> tuple[dict[str, Any], Weights, str]:
        """Description, weights and version of the library."""
        try:
            with open_zip(self.path, MAX_BYTES) as archive:
                data, version = json.loads(archive.read("data")), archive.read("_stable_baselines3_version")[:20]
                weights = io.BytesIO(archive.read("policy.pth"))
        except FileNotFoundError as error:
            raise ValueError("it was not found") from error
        except (KeyError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(f"it has no data, policy.pth and _stable_baselines3_version ({error})") from error
        if not isinstance(data, dict):
            raise ValueError("its data is no description of an agent")
        tensors = finite_tensors(read_torch(weights, "policy.pth"), "policy.pth")
        return data, tensors, version.decode(errors="replace").strip()

    def _agent(self, simulator: Simulator) -> ForeignAgent:
        data, weights, version = self._content
        if not re.match(r"[012]\.", version):
            raise ValueError(
                f"it was written by Stable-Baselines3 {version!r}: load it with a release below 3 and save it again"
            )
        _require_supported(data, weights)
        texts = {name: _field(data, "action_space", name) for name in ("low", "high")}
        found = {name: re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", text) for name, text in texts.items()}
        require_bounds({name: [float(number) for number in numbers] for name, numbers in found.items()}, simulator)
        off_policy = _algorithm(data) not in ("PPO", "A2C")
        seen_before = data.get("_last_original_obs") is not None  # off-policy agents always keep it
        if self.normaliser is None and not self.acts_on_raw and (off_policy or seen_before):
            raise ValueError(
                ("its zip does not tell if it was" if off_policy else "it was") + " trained behind a VecNormalize: "
                "give the file that VecNormalize.save wrote with --normalizer, or --normalizer none if the agent sees "
                "observations as they are"
            )
        is_rounded = _field(data, "observation_space", "dtype") == "float32"  # before its VecNormalize
        seen: Literal["float32", "float64"] = "float32" if is_rounded else "float64"
        normaliser = self.normaliser and replace(self.normaliser, observation_dtype=seen)
        if off_policy:
            head = layers(weights, "actor.mu") or [layer(weights, "actor.mu")]
            actor = [*layers(weights, "actor.latent_pi"), *head]
            return ForeignAgent(actor, None, None, _activation(data, "ReLU"), normaliser, squash="tanh")
        shared, pi, vf = (layers(weights, f"mlp_extractor.{net}_net") for net in ("shared", "policy", "value"))
        return ForeignAgent(
            actor=[*shared, *pi, layer(weights, "action_net")],
            critic=[*shared, *vf, layer(weights, "value_net")],
            log_std=weights["log_std"],
            activation=_activation(data, "Tanh"),
            normaliser=normaliser,
            shared=not pi and not vf,
            squash="scale" if str(_policy_kwargs(data).get("squash_output")) == "True" else "none",
        )

    def reference(self, simulator: Simulator) -> Reference:
        """Return the agent's `predict`, behind `VecNormalize.normalize_obs` if it was trained so."""
        data, weights, _ = self._content
        kwargs, space = data.get("policy_kwargs") or {}, data["action_space"]
        off_policy = is_off_policy(weights)
        head = "actor.mu.weight" if off_policy else "action_net.weight"
        words = re.findall(r"\w+", str(kwargs.get("activation_fn", "ReLU" if off_policy else "Tanh")))
        activation = next(FUNCTIONS[word.lower()] for word in words if word.lower() in FUNCTIONS)
        dtype = torch.float32 if data["observation_space"].get("dtype") == "float32" else torch.float64
        low, high = (
            torch.tensor([float(word) for word in space[bound].strip("[] ").split()], dtype=torch.float64)
            for bound in ("low", "high")
        )
        normalise = reference_normalisation(self.statistics)

        def action(observation: torch.Tensor) -> torch.Tensor:
            x = normalise(observation.to(dtype).double())
            for net in ("mlp_extractor.shared_net", "mlp_extractor.policy_net", "actor.latent_pi"):
                x = reference_network(weights, net, activation, x)
            if head in weights:  # of PPO and A2C, of SAC and TQC
                mean = F.linear(x, weights[head].double(), weights[head.replace("weight", "bias")].double())
            else:
                mean = reference_network(weights, "actor.mu", activation, x, last_is_linear=True)
            mean = mean.tanh() if off_policy else mean
            if off_policy or str(kwargs.get("squash_output")) == "True":  # BasePolicy.unscale_action
                mean = low + 0.5 * (mean + 1.0) * (high - low)
            return torch.minimum(torch.maximum(mean, low), high)  # as the environment clips

        return action


def is_off_policy(weights: Weights) -> bool:
    """Return whether weights are those of SAC, TQC, TD3 or DDPG, whose actor ends with `actor.mu`."""
    return any(name.startswith("actor.mu.") for name in weights)


def _require_no_wrapper(config: Path) -> None:
    try:
        content = read_yaml(config, _MAX_CONFIG_BYTES)
        while isinstance(content, list) and len(content) == 1:
            content = content[0]
        options = dict(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config} is no configuration of rl-zoo3: {str(error)[:200]}") from error
    for name in _WRAPPERS:
        if options.get(name) not in _NO_WRAPPER:
            raise ValueError(
                f"the agent cannot be imported: {config} has {name}: {str(options[name])[:200]}, which changes what "
                "the agent sees or does. Register an environment that is wrapped so, and copy the agent's zip out of "
                "this folder to import it for that environment."
            )


def _policy_kwargs(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the policy's options. If one of them is no plain value, Stable-Baselines3 writes all of them as texts."""
    kwargs = data.get("policy_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"its policy_kwargs are {str(kwargs)[:80]}")
    return {name: value for name, value in kwargs.items() if name not in (":type:", ":serialized:")}


def _activation(data: Mapping[str, Any], default: str) -> str:
    """Read the activation from the text beside the pickled class."""
    text = str(_policy_kwargs(data).get("activation_fn", default))
    name = re.sub(r"^<class '(?:torch\.nn\.modules\.activation\.)|'>$", "", text)
    if name not in ACTIVATIONS:
        raise ValueError(f"its activation is {text}, not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _algorithm(data: Mapping[str, Any]) -> str:
    """Return the algorithm, a name in `ALGORITHMS`, whose fields a description has."""
    for name, (_, has, lacks) in ALGORITHMS.items():
        if has <= set(data) and not lacks & set(data):
            return name
    raise ValueError(f"it is of another algorithm than {', '.join(ALGORITHMS)} and DDPG")


def _require_supported(data: Mapping[str, Any], weights: Weights) -> None:
    kwargs, kind = _policy_kwargs(data), {field: _field(data, field, ":type:") for field in _SPACES}
    unknown = sorted(set(kwargs) - OPTIONS)
    refused = {
        "it is recurrent": any("lstm" in name for name in weights),
        "it sees pictures or several observations": any(".cnn." in n or ".extractors." in n for n in weights)
        or ".dict.Dict" in kind["observation_space"],
        "its actions are discrete": "action_space" in data and ".box.Box" not in kind["action_space"],
        "it uses gSDE": data.get("use_sde") is not False,
        "it has a feature extractor of its own": str(kwargs.get("features_extractor_class", FLATTEN)) != FLATTEN
        or any("features_extractor" in name for name in weights),
        f"its policy_kwargs hold {', '.join(unknown)}, which this package does not know": bool(unknown),
        f"its squash_output is {kwargs.get('squash_output')}": str(kwargs.get("squash_output", False))
        not in ("True", "False"),
        "its observations are no vector of numbers": ".box.Box" not in kind["observation_space"],
    }
    for reason, applies in refused.items():
        if applies:
            raise ValueError(reason)
    if _field(data, "policy_class", "__module__") != ALGORITHMS[_algorithm(data)][0]:
        raise ValueError("its policy is a class of its own")
    if _algorithm(data) in ("PPO", "A2C") and "log_std" not in weights:
        raise ValueError("it has no log_std")


def _field(data: Mapping[str, Any], name: str, part: str) -> str:
    """Return a part of the description of a pickled object; empty if it is missing."""
    described = data.get(name)
    return str(described.get(part, "")) if isinstance(described, dict) else ""
