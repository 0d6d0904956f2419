"""Actors of TorchRL: a state dict, and beside it, with the ending `.json`, what a state dict does not tell.

The description holds `distribution`, `activation`, the bounds `low` and `high` if actions go through tanh,
`scale_mapping` if the std is a parameter, and observations with the actor's own deterministic actions in them, which
show that the rest is described right.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tensordict.nn.utils import mappings
from torch.nn import functional as F

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Layer, Squash, Weights, layer
from lightning_unlearn.importers.normaliser import reference_normalisation
from lightning_unlearn.importers.reader import (
    FUNCTIONS,
    LARGEST_DIFFERENCE,
    FileReader,
    Reference,
    finite_tensors,
    read_torch,
    require_bounds,
)
from lightning_unlearn.importers.sb3 import ACTIVATIONS
from lightning_unlearn.safe_files import read_json

SQUASHED, CLIPPED = ("TanhNormal", "TanhDelta", "TanhModule"), ("Normal", "IndependentNormal", "Delta")
"""Distributions, and modules in their place, whose actions go through tanh, and those whose actions are clipped."""
_NEEDED = {"distribution", "activation", "observations", "actions"}
_KNOWN = {*_NEEDED, "low", "high", "scale_mapping", "torchrl"}
_SCALE, _LEAST_SCALE = "state_independent_scale", 1e-4
"""Parameter of `AddStateIndependentNormalScale`, and its default bound on the std."""
_MAX_BYTES = 1 << 22


class TorchRL(FileReader):
    """An actor of TorchRL: `ProbabilisticActor` or `TanhModule` after a plain network."""

    supported = (
        "supported are plain networks that end in the action's mean, with NormalParamExtractor, "
        f"AddStateIndependentNormalScale or neither, and with {', '.join((*SQUASHED, *CLIPPED))}"
    )

    @staticmethod
    def find(path: Path) -> tuple[Path, None]:
        """Return `actor.pt` of a folder; a file stands for itself."""
        return path / "actor.pt" if path.is_dir() else path, None

    @property
    def library(self) -> str:
        """The name, the version if it is described, and the distribution."""
        version = str(self._description.get("torchrl", ""))[:20]
        return f"TorchRL{version and f' {version}'} ({self._description['distribution']})"

    @cached_property
    def _description(self) -> dict[str, Any]:
        path = self.path.with_suffix(".json")
        try:
            described = read_json(path, _MAX_BYTES)
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} was not found: it should describe the actor, see the page on importing"
            ) from error
        if not isinstance(described, dict) or not _NEEDED <= set(described) <= _KNOWN:
            found = sorted(described) if isinstance(described, dict) else type(described).__name__
            raise ValueError(f"{path} should hold {', '.join(sorted(_NEEDED))}, not {str(found)[:200]}")
        for name, allowed in (("distribution", (*SQUASHED, *CLIPPED)), ("activation", ACTIVATIONS)):
            if described[name] not in [*allowed]:
                raise ValueError(f"its {name} is {str(described[name])[:40]!r}, not one of {', '.join(allowed)}")
        return described

    @cached_property
    def _weights(self) -> Weights:
        return finite_tensors(read_torch(self.path, str(self.path)), "it")

    def _agent(self, simulator: Simulator) -> ForeignAgent:
        described, weights = self._description, self._weights
        is_squashed, size = described["distribution"] in SQUASHED, len(simulator.action_low)
        if is_squashed:
            bounds = {name: self._numbers(name) for name in ("low", "high")}
            require_bounds(
                {n: (b if b.ndim else b.expand(size)).flatten().tolist() for n, b in bounds.items()}, simulator
            )
        names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
        scale = next((weight for name, weight in weights.items() if name.endswith(_SCALE)), None)
        used = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
        others = [name for name in weights if name not in used and not re.search(rf"({_SCALE}|_low|_high)$", name)]
        if others or not names:
            raise ValueError(f"it holds {', '.join(others[:4]) or 'no layers'}: it is no plain network")
        actor = [layer(weights, name) for name in names]
        if len(actor[-1].bias) == 2 * size:  # NormalParamExtractor: means, and after them stds
            actor[-1] = Layer(actor[-1].weight[:size], actor[-1].bias[:size])
        if described["distribution"] == "TanhDelta":  # it moves its mean by the middle of the bounds before tanh
            middle = torch.from_numpy(0.5 * (simulator.action_low + simulator.action_high)).float()
            actor[-1] = Layer(actor[-1].weight, actor[-1].bias + middle)
        self._require_own_actions(simulator)
        squash: Squash = "tanh" if is_squashed else "none"
        log_std = None if scale is None else self._log_std(scale.flatten().expand(size if scale.numel() == 1 else -1))
        return ForeignAgent(actor, None, log_std, ACTIVATIONS[described["activation"]], self.normaliser, squash=squash)

    def _numbers(self, name: str) -> torch.Tensor:
        """Return a list of the description, or a list of lists, as numbers."""
        try:
            return torch.tensor(self._description.get(name), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{name} of its description should be numbers") from error

    def _log_std(self, scale: torch.Tensor) -> torch.Tensor:
        mapping = str(self._description.get("scale_mapping"))
        if not re.fullmatch(r"exp|softplus|biased_softplus(_\d+(\.\d+)?){0,2}", mapping):
            raise ValueError(
                f"its std is a parameter, and scale_mapping={mapping[:40]!r} is not exp or (biased_)softplus"
            )
        return mappings(mapping)(scale).clamp_min(_LEAST_SCALE).log()

    def _require_own_actions(self, simulator: Simulator) -> None:
        """Compare the described actions with those that the rest of the description leads to."""
        observations, actions = self._numbers("observations"), self._numbers("actions")
        sizes = simulator.observation_size, len(simulator.action_low)
        rows = observations.numel() // sizes[0]
        if not rows or (observations.shape, actions.shape) != ((rows, sizes[0]), (rows, sizes[1])):
            raise ValueError(
                f"its observations {tuple(observations.shape)} and actions {tuple(actions.shape)} do not fit "
                f"{simulator.env_id}, of {sizes[0]} and {sizes[1]} numbers: name its own environment with --env"
            )
        low, high = (torch.from_numpy(bound) for bound in (simulator.action_low, simulator.action_high))
        try:
            difference = float((self._action(observations, low, high) - actions.clamp(low, high)).abs().max())
        except RuntimeError as error:
            raise ValueError(f"its layers do not follow each other, or take other observations: {error}") from error
        if not difference < LARGEST_DIFFERENCE:
            raise ValueError(
                f"the described network's actions are up to {difference:.3g} off those in the description: its "
                "distribution, activation or order of layers is another, or tanh_loc is set"
            )

    def _action(self, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Compute the deterministic sample of the distribution by TorchRL's rules, in float64."""
        weights, kind = self._weights, self._description["distribution"]
        names = [name.removesuffix("weight") for name in weights if name.endswith(".weight")]
        for position, name in enumerate(names):
            x = FUNCTIONS[self._description["activation"].lower()](x) if position else x
            x = F.linear(x, *(weights[name + part].double() for part in ("weight", "bias")))
        loc, middle = x[:, : len(low)], (high + low) / 2.0
        if kind not in SQUASHED:
            return torch.minimum(torch.maximum(loc, low), high)
        return ((loc + middle if kind == "TanhDelta" else loc).tanh()) * (high - low) / 2.0 + middle

    def reference(self, simulator: Simulator) -> Reference:
        """See `_action`; with `--normalizer`, behind VecNormalize's normalisation."""
        normalise = reference_normalisation(self.statistics)
        low, high = (torch.from_numpy(bound) for bound in (simulator.action_low, simulator.action_high))
        return lambda observation: self._action(normalise(observation), low, high)
