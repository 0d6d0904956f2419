"""A probe dataset of the toy environment, that audits can look at."""

import numpy as np
import pytest

from lightning_unlearn.audits.probe_data import ProbeData, save_data

TOY = "ToyLine-v0"


@pytest.fixture
def data():
    """A probe dataset made by hand: 40 episodes of 20 states, hazard where x > 0.3."""
    x = np.random.default_rng(0).uniform(-1, 1, 800)
    states = np.stack([x, np.tile(np.arange(20) / 32, 40)], axis=-1).astype(np.float32)
    labels = (states[:, 0] > 0.3).astype(np.int64)
    about = {"env": TOY, "hazard_distance": "distance of x from 0.3"}
    return ProbeData(states, labels, np.repeat(np.arange(40), 20), np.abs(states[:, 0] - 0.3), about)


@pytest.fixture
def dataset(data, tmp_path):
    """Its file."""
    save_data(tmp_path / "states.npz", data)
    return str(tmp_path / "states.npz")
