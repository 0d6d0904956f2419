"""Observation statistics from the files people have."""

import os
import pickle

import numpy as np
import pytest
import torch
from fixture_agent import SB3

from lightning_unlearn.importers.normaliser import read_normaliser


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


@pytest.mark.parametrize("clip", [np.inf, 3.0])
def test_observations_need_not_be_clipped(tmp_path, clip):
    np.savez(tmp_path / "s.npz", mean=[0.0], var=[1.0], clip=clip)
    assert read_normaliser(tmp_path / "s.npz").clip == clip
    assert read_normaliser(SB3.parent / "sb3_settings" / "offset.pkl").clip == np.inf


def test_statistics_of_dict_observations_are_called_that():
    with pytest.raises(ValueError, match=r"dict observations \(place, speed\).*obs_rms\[KEY\].*np.savez"):
        read_normaliser(SB3.parent / "sb3_settings" / "dict.pkl")


def test_a_class_of_ones_own_is_no_vecnormalize(tmp_path):
    content = (SB3 / "vecnormalize.pkl").read_bytes()
    (tmp_path / "s.pkl").write_bytes(
        content.replace(b"stable_baselines3.common.vec_env", b"my_own_baselines3.common.vec_env")
    )
    with pytest.raises(ValueError, match="no pickle of a VecNormalize"):
        read_normaliser(tmp_path / "s.pkl")


BAD = {
    "no var": ({"mean": [1.0]}, "mean and var"),
    "another array": ({"mean": [1.0], "var": [1.0], "code": [1.0]}, "mean and var"),
    "other lengths": ({"mean": [1.0], "var": [1.0, 2.0]}, "pair up"),
    "negative": ({"mean": [1.0], "var": [-1.0]}, "not negative"),
    "not a number": ({"mean": [np.nan], "var": [1.0]}, "finite"),
    "a clip that is none": ({"mean": [1.0], "var": [1.0], "clip": np.nan}, "clip=nan"),
    "no clip": ({"mean": [1.0], "var": [1.0], "clip": 0.0}, "clip=0.0"),
    "no spread": ({"mean": [1.0, 1.0], "var": [1.0, 0.0], "epsilon": 0.0}, r"variance \+ epsilon is 0 in component 1"),
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
