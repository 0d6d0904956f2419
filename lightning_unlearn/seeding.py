"""Random streams of a run, spawned from one `SeedSequence`: runs with seeds 0, 1, 2 share no stream.

Layout seeds below `TRAINING_SEED_FLOOR` are reserved for evaluation; no training environment is seeded with one.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

ARITHMETIC = 2
"""Version of the arithmetic of training, raised where the same config and seed give other bits.

1: before 2. 2: gradients written out, and workers that act.
"""
TRAINING_SEED_FLOOR = 2**31
EVALUATION_BANK = 10_000
"""First layout seed of the bank that results are reported on."""
VALIDATION_BANK = 20_000
"""First layout seed of the bank that choices (save points, settings) are made on."""
VERDICT_BANK, VERDICT_EPISODES = 21_000, 100
"""First layout seed and size of the bank that a repair's verdict is given on: no choice is made on it."""


@dataclass(frozen=True)
class SeedStreams:
    """The independent streams of one run."""

    weights: np.random.SeedSequence
    environments: np.random.SeedSequence
    policy_noise: np.random.SeedSequence
    minibatches: np.random.SeedSequence
    evaluation: np.random.SeedSequence
    calibration: np.random.SeedSequence
    """Stream of representation editing; the last one, so that the others do not depend on it."""

    @classmethod
    def of(cls, seed: int) -> "SeedStreams":
        """Spawn the streams from a run's seed."""
        if seed < 0:
            raise ValueError(f"seed={seed} is not possible: use 0 or more.")
        return cls(*np.random.SeedSequence(seed).spawn(len(fields(cls))))

    def described(self) -> dict[str, dict[str, Any]]:
        """Entropy and spawn key of each stream, by its name."""
        streams = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: {"entropy": s.entropy, "spawn_key": list(s.spawn_key)} for name, s in streams.items()}


def torch_generator(stream: np.random.SeedSequence) -> torch.Generator:
    """Make a CPU generator that draws from one stream."""
    return torch.Generator().manual_seed(int(stream.generate_state(1, np.uint64)[0] >> 1))


def child(stream: np.random.SeedSequence, index: int) -> np.random.SeedSequence:
    """Return the child that `spawn` gives at this index, whatever was spawned before."""
    return np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, index))


def training_seeds(stream: np.random.SeedSequence, num_envs: int) -> list[int]:
    """Return one seed per environment, in [2³¹, 2³²): never an evaluation layout's."""
    return [TRAINING_SEED_FLOOR + int(s) % 2**31 for s in stream.generate_state(num_envs)]


def evaluation_layouts(episodes: int, first: int = EVALUATION_BANK) -> list[int]:
    """Return the layouts that every compared model is evaluated on, one seed an episode."""
    if not 1 <= episodes <= VALIDATION_BANK - EVALUATION_BANK:
        raise ValueError(f"episodes={episodes} is not possible: use 1 to {VALIDATION_BANK - EVALUATION_BANK}.")
    return list(range(first, first + episodes))


def validation_layouts(episodes: int, first: int = VALIDATION_BANK) -> list[int]:
    """Return layouts for choices: none of evaluation, of verdicts or of training.

    Raises:
        ValueError: One of these banks would be reached.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} is not possible: use at least 1.")
    beyond = first + episodes
    if first < VALIDATION_BANK and beyond > EVALUATION_BANK:
        raise ValueError(
            f"first_layout={first} with {episodes} episodes reaches into {EVALUATION_BANK} to {VALIDATION_BANK - 1}, "
            f"the layouts that results are reported on: begin at {VALIDATION_BANK} or above."
        )
    if first < VERDICT_BANK + VERDICT_EPISODES and beyond > VERDICT_BANK:
        raise ValueError(
            f"first_layout={first} with {episodes} episodes reaches into {VERDICT_BANK} to "
            f"{VERDICT_BANK + VERDICT_EPISODES - 1}, the layouts that verdicts are given on: end before them, or begin "
            "after them."
        )
    if first < 0 or beyond > TRAINING_SEED_FLOOR:
        raise ValueError(
            f"first_layout={first} with {episodes} episodes is not possible: use layouts from 0 to "
            f"{TRAINING_SEED_FLOOR - 1}; those above are trained in."
        )
    return list(range(first, beyond))


def verdict_layouts() -> list[int]:
    """Return the layouts that a repair's verdict is given on."""
    return list(range(VERDICT_BANK, VERDICT_BANK + VERDICT_EPISODES))
