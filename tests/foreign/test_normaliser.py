"""Observation statistics from the files people have."""

import os
import pickle

import numpy as np
import pytest
import torch
from fixture_agent import SB3

from lightning_unlearn.foreign.normaliser import read_normaliser


def test_statistics_of_vecnormalize(monkeypatch):
    monkeypatch.setattr(pickle, "load", None)  # whoever unpickles, fails
    monkeypatch.setattr(pickle, "loads", None)
    found = read_normaliser(SB3 / "vecnormalize.pkl")
    assert (found.mean.shape, found.clip, found.epsilon) == ((60,), 5.0, 1e-8)
    assert found.mean.dtype == torch.float64
    assert (found.variance > 0).any()


def test_an_npz_has_the_defaults_of_cleanrl(tmp_path):
    np.savez(tmp_path / "s.npz", mean=[1.0, 2.0], var=[4.0, 0.0])
    found = read_normaliser(tmp_path / "s.npz")
    assert (found.mean.tolist(), found.variance.tolist()) == ([1.0, 2.0], [4.0, 0.0])
    assert (found.epsilon, found.clip) == (1e-8, 10.0)


BAD = {
    "no var": ({"mean": [1.0]}, "mean and var"),
    "another array": ({"mean": [1.0], "var": [1.0], "code": [1.0]}, "mean and var"),
    "other lengths": ({"mean": [1.0], "var": [1.0, 2.0]}, "pair up"),
    "negative": ({"mean": [1.0], "var": [-1.0]}, "not negative"),
    "not a number": ({"mean": [np.nan], "var": [1.0]}, "finite"),
    "no clip": ({"mean": [1.0], "var": [1.0], "clip": 0.0}, "clip=0.0"),
    "objects": ({"mean": np.array([object()]), "var": [1.0]}, "damaged|cannot be loaded"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_bad_statistics_are_refused_with_a_way_out(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=message) as refused:
        read_normaliser(tmp_path / "s.npz")
    assert "np.savez" in str(refused.value)


def test_a_foreign_pickle_is_refused(tmp_path):
    (tmp_path / "s.pkl").write_bytes(pickle.dumps({"mean": os.getcwd}))
    with pytest.raises(ValueError, match="no pickle of a VecNormalize"):
        read_normaliser(tmp_path / "s.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--normalizer .*nowhere.pkl was not found"):
        read_normaliser(tmp_path / "nowhere.pkl")
