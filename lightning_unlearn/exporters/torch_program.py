"""A policy's deterministic action as a program of `torch.export`, which runs without this package.

Shapes: B observations, O observation size, A action size.
"""

from pathlib import Path

import torch
from torch import nn

from lightning_unlearn.policies.actor_critic import ActorCritic


class DeterministicAction(nn.Module):
    """The policy's `act` as a network: normaliser, trunk, editor, action head and squashing to the bounds."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute the action. Shape: (B, O) → (B, A)."""
        return self.policy.act(observation)


def as_program(policy: ActorCritic) -> torch.export.ExportedProgram:
    """Trace the action for any number of observations, passed in the policy's `observation_dtype`."""
    example = torch.zeros(3, policy.config.observation_size, dtype=policy.observation_dtype)
    rows = {"observation": {0: torch.export.Dim("rows", min=1)}}
    with torch.no_grad():
        return torch.export.export(DeterministicAction(policy).eval(), (example,), dynamic_shapes=rows)


def save_program(path: Path, policy: ActorCritic) -> None:
    """Write the traced action, which `torch.export.load` reads."""
    torch.export.save(as_program(policy), path)


def drawn_observations(policy: ActorCritic, count: int) -> torch.Tensor:
    """Draw observations as wide as the policy's statistics, the same in every call. Shape: (B, O), float64."""
    size, generator = policy.config.observation_size, torch.Generator().manual_seed(0)
    states = torch.randn(count, size, generator=generator, dtype=torch.float64)
    normaliser = policy.normaliser
    return states if normaliser is None else normaliser.mean + normaliser.variance.sqrt() * states
