"""The contract of a reader, and what the readers of different libraries share.

To import agents of a further library, write a `FileReader` (for files) or a `Reader` (for objects in memory), and name
it in `import_command.READERS`. Shapes: N observations, O observation size, A action size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Weights, as_policy
from lightning_unlearn.importers.normaliser import read_normaliser
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.safe_files.pt import read_pt, read_pt_stream

Reference = Callable[[torch.Tensor], torch.Tensor]
"""Observations as the environment computes them, (N, O) float64 → deterministic actions inside the bounds, (N, A)."""
LARGEST_DIFFERENCE = 1e-3
"""Largest difference of an action that rounding explains; above it, policy and agent differ."""
NONE = "none"
"""Value of `--normalizer` for an agent that was trained on observations as they are."""
EXPLORATION_STD = 0.5
"""Stated for agents without a state-independent Gaussian: near that of trained PPO experts."""
MAX_BYTES = 1 << 28
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
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
"""Activations of reference networks, by PyTorch's names in lower case."""


class Reader(ABC):
    """An agent that was trained elsewhere, as an import needs it. Nothing that comes with the agent is executed."""

    @property
    @abstractmethod
    def library(self) -> str:
        """Name of the library, and its version if the agent's files tell it. It is recorded with the model."""

    @abstractmethod
    def policy(self, simulator: Simulator, generator: torch.Generator) -> ActorCritic:
        """Build a policy that acts as the agent does.

        Args:
            simulator: The environment that the agent acts in.
            generator: Random stream of weights that the agent lacks, those of critics.

        Raises:
            ValueError: The agent has a part that an `ActorCritic` cannot represent, or does not fit the environment.
        """

    @abstractmethod
    def reference(self, simulator: Simulator) -> Reference | None:
        """Return the agent's deterministic action, computed by the rules of its own library in float64.

        It shares nothing with `policy` but the inert readers of files, so that a setting which `policy` overlooks shows
        as a difference of actions. None: there are no other rules than those of the network that `policy` wraps.
        """


class FileReader(Reader):
    """An agent in files of another library.

    Args:
        path: A path that the user named.
        normalizer: File of the agent's observation statistics; `none` if it has none; None to look beside the agent.
        exploration_std: Standard deviation that an agent without a state-independent Gaussian is to explore with,
            before its tanh, or in halves of the action range if it has none; None: `EXPLORATION_STD`.

    Raises:
        ValueError: The path names no agent or several, or the statistics cannot be read.
    """

    supported: ClassVar[str]
    """Supported agents, named at the end of error messages."""

    def __init__(self, path: Path, normalizer: str | None = None, exploration_std: float | None = None) -> None:
        if exploration_std is not None and not 0 < exploration_std < math.inf:
            raise ValueError(f"--exploration_std {exploration_std} is not possible: use a number above 0.")
        self.exploration_std = exploration_std
        self.path, self.statistics = self.find(path)
        if normalizer is not None:
            self.statistics = None if normalizer == NONE else Path(normalizer)
        self.normaliser = None if self.statistics is None else read_normaliser(self.statistics)
        self.acts_on_raw = normalizer == NONE or (self.statistics is not None and self.normaliser is None)
        """The user, or the file of statistics, says that observations are not normalised."""

    @staticmethod
    def find(path: Path) -> tuple[Path, Path | None]:
        """Return the agent's file, and the file of its observation statistics if the library keeps one beside it."""
        return path, None

    @abstractmethod
    def _agent(self, simulator: Simulator) -> ForeignAgent:
        """Read settings and weights, and refuse those that a `ForeignAgent` cannot represent."""

    def agent(self, simulator: Simulator) -> ForeignAgent:
        """Read the agent; the exploration std is stated here if it has no state-independent Gaussian.

        Raises:
            ValueError: It is not a supported agent, or it has a Gaussian of its own and another one is stated.
        """
        try:
            agent = self._agent(simulator)
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be imported: {error}; {self.supported}.") from error
        if agent.log_std is None:
            return agent.with_stated_std(self.exploration_std or EXPLORATION_STD, simulator)
        if self.exploration_std is not None:
            raise ValueError(
                f"--exploration_std {self.exploration_std} is not possible: {self.path} has a Gaussian of its own, the "
                "same in every state; leave the option out."
            )
        return agent

    def policy(self, simulator: Simulator, generator: torch.Generator) -> ActorCritic:
        """See `Reader.policy`."""
        return as_policy(self.agent(simulator), simulator, generator)

    @abstractmethod
    def reference(self, simulator: Simulator) -> Reference:
        """See `Reader.reference`."""


def read_torch(file: Path | IO[bytes], name: str) -> dict[str, Any]:
    """Read a file of `torch.save` that holds a dict of tensors or of such dicts.

    Args:
        file: The file, or its content.
        name: Its name in messages.

    Raises:
        ValueError: It is missing or too large, or holds other objects than tensors.
    """
    if isinstance(file, Path):
        if not file.is_file():
            raise ValueError(f"{name} was not found: name the file of an agent")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"{name} is larger than {MAX_BYTES} bytes: too large for an agent of this kind")
    try:
        return read_pt(file, MAX_BYTES) if isinstance(file, Path) else read_pt_stream(file)
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be read safely ({error}): it must hold tensors only, as "
            "torch.save(agent.state_dict(), …) writes them"
        ) from error


def finite_tensors(content: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Return `content`, which messages call `name`, if it holds finite tensors only.

    Raises:
        ValueError: A value is something else, or there is none.
    """
    bad = [key for key, value in content.items() if not (isinstance(value, torch.Tensor) and value.isfinite().all())]
    if bad or not content:
        raise ValueError(f"{name} should hold finite tensors only, but {', '.join(map(str, bad[:4])) or 'it is empty'}")
    return {str(key): value for key, value in content.items()}


def require_bounds(bounds: Mapping[str, Sequence[float]], simulator: Simulator) -> None:
    """Check that an agent's own bounds of actions, `low` and `high`, are the environment's.

    Raises:
        ValueError: They are not.
    """
    for name, edges in (("low", simulator.action_low), ("high", simulator.action_high)):
        own = bounds[name]
        if len(own) != len(edges):
            raise ValueError(
                f"it gives {len(own)} actions, but {simulator.env_id} takes {len(edges)}: name the environment it was "
                "trained in with --env"
            )
        if any(not abs(number - edge) <= 1e-4 * max(1.0, abs(edge)) for number, edge in zip(own, edges, strict=True)):
            raise ValueError(
                f"its actions have the {name} bounds {[*own]}, those of {simulator.env_id} {edges.tolist()}: name the "
                "environment it was trained in with --env"
            )


def reference_network(
    weights: Weights,
    prefix: str,
    activation: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    last_is_linear: bool = False,
) -> torch.Tensor:
    """Compute the sequential network `prefix` in float64: linear layers at even positions, activations between them."""
    for position in range(0, sum(name.startswith(f"{prefix}.") for name in weights), 2):
        if position and last_is_linear:
            x = activation(x)
        x = F.linear(x, *(weights[f"{prefix}.{position}.{part}"].double() for part in ("weight", "bias")))
        x = x if last_is_linear else activation(x)
    return x


@torch.inference_mode()
def raw_states(
    policy: ActorCritic, simulator: Simulator, count: int, seeds: Sequence[int] | None = None
) -> torch.Tensor:
    """Collect states that the policy visits while it acts deterministically, as the environment computes them.

    Args:
        policy: The policy.
        simulator: The environment; it is reset first.
        count: N.
        seeds: One an environment; without them, their random streams continue.

    Returns:
        Observations, (N, O) float64.

    Raises:
        ValueError: An action is not finite.
    """
    states: list[np.ndarray] = []
    observation = simulator.reset(None, seeds)
    while len(states) * simulator.num_envs < count:
        states.append(observation)
        action = policy.act(torch.from_numpy(observation)).numpy().astype(np.float64)
        if (invalid := np.argwhere(~np.isfinite(action))).size:
            row, component = invalid[0]
            raise ValueError(
                f"component {component} of the policy's action is {action[row, component]} in the state "
                f"{observation[row].tolist()}: its network must give finite numbers"
            )
        step = simulator.step(action)
        done = step.terminated | step.truncated
        observation = simulator.reset(done) if done.any() else step.observation
    return torch.from_numpy(np.concatenate(states)[:count])


@torch.no_grad()
def largest_difference(reference: Reference, policy: ActorCritic, observation: torch.Tensor) -> float:
    """Compute the largest difference between actions of reference and policy. Shape: (N, O)."""
    return float((policy.act(observation).double() - reference(observation)).abs().max())
