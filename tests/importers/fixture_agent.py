"""The Stable-Baselines3 agent that lies among the fixtures, and what that library did with it."""

from pathlib import Path

import numpy as np
import torch

from lightning_unlearn.importers.normaliser import read_normaliser

SB3 = Path(__file__).parent.parent / "fixtures" / "sb3"


def sb3_actions():
    """States (64, 60), and the actions (64, 2) that Stable-Baselines3 itself took in them; see `train.py` there."""
    statistics = read_normaliser(SB3 / "vecnormalize.pkl")
    noise = np.random.default_rng(0).normal(size=(64, 60))
    states = statistics.mean.numpy() + np.sqrt(statistics.variance.numpy()) * noise
    return torch.from_numpy(states.astype(np.float32)), torch.from_numpy(np.load(SB3 / "actions.npy"))
