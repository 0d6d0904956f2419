"""Agents of OmniSafe's PPO and off-policy families: a run's folder, or one `torch_save/epoch-<n>.pt` of it."""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Layer, layers
from lightning_unlearn.importers.normaliser import Normaliser
from lightning_unlearn.importers.reader import (
    FUNCTIONS,
    FileReader,
    Reference,
    finite_tensors,
    read_torch,
    reference_network,
)
from lightning_unlearn.safe_files import read_json

ACTIVATIONS = ("tanh", "relu", "sigmoid", "softplus")
OFF_POLICY = {"mlp": ("DDPG", "TD3"), "gaussian_sac": ("SAC",)}
"""Actor of the off-policy family → its algorithms; each has variants that end with Lag and PID."""


class OmniSafe(FileReader):
    """An agent of OmniSafe. Its observation normaliser is in the file of its weights, its settings in `config.json`."""

    supported = (
        "supported are OmniSafe's on-policy agents (the PPO family) with the actor gaussian_learning, and SAC, TD3 and "
        "DDPG with their variants Lag and PID"
    )

    @staticmethod
    def find(path: Path) -> tuple[Path, None]:
        """Return the weights of the newest epoch of a run's folder; a file stands for itself.

        Raises:
            ValueError: The folder has none.
        """
        if not path.is_dir():
            return path, None
        folder = path.parent if path.name == "torch_save" else path
        epochs = {
            int(m[1]): file for file in folder.glob("torch_save/*.pt") if (m := re.fullmatch(r"epoch-(\d+)", file.stem))
        }
        if not epochs:
            raise ValueError(f"there is no torch_save/epoch-<n>.pt in {folder}")
        return epochs[max(epochs)], None

    @property
    def library(self) -> str:
        """The name, and the algorithm."""
        return f"OmniSafe ({str(self._config.get('algo', 'unknown algorithm'))[:20]})"

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.path.parent.parent / "config.json"
        try:
            config = read_json(path, 1 << 20)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} was not found: it says which activation the agent has; name the run's whole folder"
            ) from error
        if not isinstance(config, dict) or not isinstance(config.get("model_cfgs"), dict):
            raise ValueError(f"{path} is no configuration of OmniSafe")
        return config

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_torch(self.path, str(self.path))

    def _agent(self, simulator: Simulator) -> ForeignAgent:
        if self.normaliser is not None or self.acts_on_raw:
            raise ValueError("OmniSafe keeps the observation normaliser beside the weights: leave --normalizer out")
        settings, content = self._config["model_cfgs"], self._content
        kind, algorithm = str(settings.get("actor_type")), str(self._config.get("algo"))
        if kind != "gaussian_learning" and re.sub("(Lag|PID)$", "", algorithm) not in OFF_POLICY.get(kind, ()):
            raise ValueError(f"its actor is {kind[:40]!r}, of the algorithm {algorithm[:20]}")
        if not isinstance(content.get("pi"), Mapping):
            raise ValueError("its file has no weights of a policy (`pi`)")
        weights = finite_tensors(content["pi"], "pi")
        first = {"mean.0.weight", "log_std"} if kind == "gaussian_learning" else {"net.0.weight"}
        if not first <= set(weights):
            raise ValueError(f"its actor has no {' and '.join(sorted(first))}: it is of another algorithm or version")
        actor, critic = (settings.get(name) for name in ("actor", "critic"))
        activation = actor.get("activation") if isinstance(actor, dict) else None
        if activation not in ACTIVATIONS:
            raise ValueError(f"its activation is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
        net = layers(weights, "mean" if kind == "gaussian_learning" else "net")
        if kind == "gaussian_sac":  # its last layer gives means and, after them, log-stds
            net[-1] = Layer(*(part[: len(part) // 2] for part in net[-1]))
        return ForeignAgent(
            actor=net,
            critic=None,
            log_std=weights["log_std"] if kind == "gaussian_learning" else None,
            activation=str(activation),
            normaliser=self._normaliser(),
            squash="scale" if kind == "gaussian_learning" else "tanh",
            critic_sizes=critic.get("hidden_sizes") if isinstance(critic, dict) else None,
        )

    def _normaliser(self) -> Normaliser | None:
        """OmniSafe divides by the standard deviation, which it keeps at 0.01 or above, and adds no epsilon."""
        algorithm = self._config.get("algo_cfgs")
        if not (algorithm.get("obs_normalize") if isinstance(algorithm, dict) else None):
            return None
        stored = self._content.get("obs_normalizer")
        if stored is None:
            raise ValueError("it was trained with obs_normalize, but its file has no obs_normalizer")
        if not isinstance(stored, Mapping) or not {"_mean", "_std", "_clip"} <= set(stored):
            raise ValueError("its obs_normalizer is of another version")
        statistics = finite_tensors(stored, "obs_normalizer")
        mean, std, clip = (statistics[name].double() for name in ("_mean", "_std", "_clip"))
        return Normaliser(mean, std.square(), 0.0, float(clip.flatten()[0]), "float32", "float32")

    def reference(self, simulator: Simulator) -> Reference:
        """Return the actor's `predict` between OmniSafe's wrappers ObsNormalize and ActionScale."""
        config, content = self._config, self._content
        activation = FUNCTIONS[config["model_cfgs"]["actor"]["activation"]]
        settings = config.get("algo_cfgs")
        normalises = isinstance(settings, dict) and settings.get("obs_normalize")
        known = content.get("obs_normalizer") if normalises else None
        low, high = torch.from_numpy(simulator.action_low), torch.from_numpy(simulator.action_high)

        def action(observation: torch.Tensor) -> torch.Tensor:
            x = observation.float().double()  # OmniSafe's environments give float32
            if known is not None:
                clip = known["_clip"].double()
                x = torch.minimum(torch.maximum((x - known["_mean"].double()) / known["_std"].double(), -clip), clip)
            net = "net" if "net.0.weight" in content["pi"] else "mean"
            mean = reference_network(content["pi"], net, activation, x.float().double(), last_is_linear=True)
            if net == "net":  # MLPActor, or GaussianSACActor, which gives twice as many numbers
                mean = mean[:, : len(low)].tanh()
            return torch.minimum(torch.maximum(low + (high - low) * (mean + 1.0) / 2.0, low), high)

        return action
