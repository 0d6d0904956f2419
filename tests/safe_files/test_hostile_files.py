"""Files that a stranger made to harm: each is refused with a ValueError, runs nothing, and allocates little."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import (
    Bomb,
    bounded_memory,
    call,
    claiming_directory,
    expanded,
    members,
    npy,
    pickled_npy,
    program,
    repack,
    safetensors,
    seal,
    with_program,
)

from lightning_unlearn.audits.probe_data import ProbeData, load_data, save_data
from lightning_unlearn.policies.files import ModelCard, load_policy, save_policy
from lightning_unlearn.policies.latent_editor import Direction, load_direction, save_direction
from lightning_unlearn.policies.published_format import save_published


def data():
    return ProbeData(np.ones((4, 2), np.float32), np.arange(4) % 2, np.arange(4), None, {"env": "ToyLine-v0"})


def changed(**parts):
    """The archive with other members; None takes one away."""
    return lambda path: repack(
        path, {n: c for n, c in (members(path) | {f"{k}.npy": v for k, v in parts.items()}).items() if c is not None}
    )


def metadata(text):
    return npy(f"<U{len(text)}", (), text.encode("utf-32-le"))


def compressed(path):
    parts = members(path) | {"states.npy": npy("<f4", (1 << 24, 2), bytes(1 << 27))}
    repack(path, parts, zipfile.ZIP_DEFLATED)


def twice(path):
    with pytest.warns(UserWarning, match="Duplicate"):
        repack(path, [*members(path).items(), ("states.npy", members(path)["states.npy"])])


def over(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def large_directory(path):
    repack(path, members(path))  # without the records for archives of more than 4 GB, which PyTorch writes always
    path.write_bytes(claiming_directory(path.read_bytes(), 0xFFFFFFF0))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def link_to_zeros(path):
    path.unlink()
    path.symlink_to("/dev/zero")


ANY_ARCHIVE = {
    "nothing": (lambda path: path.write_bytes(b""), "it is no npz file|it is no archive"),
    "a directory of 4 GB": (large_directory, "directory claims"),
    "the end cut off": (over(lambda c: c[:-1]), "archive"),
    "compressed members": (lambda path: repack(path, members(path), zipfile.ZIP_DEFLATED), "compressed"),
    "a pipe": (fifo, "not found|does not exist"),
    "a link to /dev/zero": (link_to_zeros, "not found|does not exist"),
}
NPZ = ANY_ARCHIVE | {
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "ran"))), "is a pickle"),
    "a pickle under an archive's name": (
        lambda path: changed(labels=pickled_npy(path.parent / "ran"))(path),
        "objects",
    ),
    "10^12 elements": (changed(states=npy("<f4", (10**6, 10**6))), "damaged"),
    "10^12 elements of no size": (changed(states=npy("<V0", (10**6, 10**6))), "states"),
    "a negative shape": (changed(states=npy("<f4", (-2, -4), bytes(32))), "cannot be used"),
    "a header of 64 kB": (changed(states=npy([("x" * 60_000, "<f4")], (1, 1))), "cannot be used"),
    "a zip bomb of 128 MB": (compressed, "compressed"),
    "a member twice": (twice, "several members of one name"),
    "a member outside": (lambda path: repack(path, members(path) | {"../../escaped.npy": b""}), "it holds"),
    "another dtype": (changed(states=npy("<f8", (4, 2), bytes(64))), "float64"),
    "another shape": (changed(states=npy("<f4", (8,), bytes(32))), "not float32 with 2"),
    "fewer labels": (changed(labels=npy("<i8", (3,), bytes(24))), "cannot be used"),
    "NaN": (changed(states=npy("<f4", (4, 2), np.full(8, np.nan, "<f4").tobytes())), "not finite"),
    "no metadata": (changed(metadata=None), "it holds"),
    "deep metadata": (changed(metadata=metadata("[" * 100_000)), "nested too deeply"),
    "NaN in its metadata": (changed(metadata=metadata('{"env": NaN}')), "NaN"),
    "metadata of 8 MB": (changed(metadata=metadata(" " * (1 << 21))), "no text"),
}


@pytest.mark.parametrize(("spoil", "message"), NPZ.values(), ids=NPZ)
def test_a_hostile_dataset_is_refused(tmp_path, spoil, message):
    path = tmp_path / "states.npz"
    save_data(path, data())
    spoil(path)
    with bounded_memory(), pytest.raises(ValueError, match=message):
        load_data(str(path))
    assert not (tmp_path / "ran").exists()


def bomb(path):
    with_program(path, pickle.dumps({"state_dict": Bomb(path.parent / "ran")}, 2))


def skops(path):
    """A skops file is an archive whose `schema.json` names any class, which its loader would import."""
    schema = {"__class__": "system", "__module__": "os", "__loader__": "FunctionNode", "content": "touch ran"}
    repack(path, {"schema.json": json.dumps(schema)})


PT = ANY_ARCHIVE | {
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "ran"))), "safely"),
    "a pickle inside": (bomb, "safely"),
    "an os.system inside": (lambda path: with_program(path, call("os system", "touch ran")), "os system"),
    "a bytearray of 10^12": (lambda path: with_program(path, call("builtins bytearray", 10**12)), "bytearray"),
    "a sparse tensor": (
        lambda path: torch.save({"state_dict": {"a": torch.eye(3).to_sparse()}}, path),
        "_rebuild_sparse",
    ),
    "a tensor without memory": (lambda path: torch.save({"a": torch.ones(3, device="meta")}, path), "_rebuild_meta"),
    "10^12 repeated elements": (expanded, "no plain array"),
    "PyTorch's old format": (
        lambda path: torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False),
        "archive",
    ),
    "TorchScript": (lambda path: repack(path, members(path) | {"archive/code/__torch__.py": b""}), "no part of"),
    "a member outside": (lambda path: repack(path, members(path) | {"../escaped": b""}), "no part of"),
    "a storage that is not there": (
        lambda path: repack(path, {n: c for n, c in members(path).items() if "/data/" not in n}),
        "safely",
    ),
    "a storage cut short": (
        lambda path: repack(path, {n: c[:4] if "/data/" in n else c for n, c in members(path).items()}),
        "safely",
    ),
    "a program of 2 MB": (lambda path: with_program(path, program(path) + bytes(1 << 21)), "larger than"),
    "half a program": (lambda path: with_program(path, program(path)[:40]), "safely"),
    "a skops file": (skops, "no part of"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "holds no dict"),
    "numbers for names": (lambda path: torch.save({1: torch.ones(2)}, path), "no text"),
}
PUBLISHED = PT | {
    "no state_dict": (lambda path: torch.save({"model": torch.ones(2)}, path), "state_dict"),
    "texts for weights": (lambda path: torch.save({"state_dict": {"shared.0.weight": "x"}}, path), "layout"),
    "ten thousand actions": (
        lambda path: torch.save(
            {"state_dict": {f"shared.{i}.weight": torch.ones(2, 2) for i in (0, 2)} | {"logstd": torch.ones(10**4)}},
            path,
        ),
        "actions",
    ),
}
DIRECTION = PT | {
    "no direction": (lambda path: torch.save({"tau": torch.ones(())}, path), "size none"),
    "NaN": (lambda path: torch.save({"direction": torch.full((8,), float("nan"))}, path), "not finite"),
    "a tau beyond every float": (
        lambda path: torch.save({"direction": torch.ones(8), "tau": 10**400}, path),
        "no finite",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_hostile_policy_of_the_published_layout_is_refused(policy, tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "policy.pt"
    save_published(path, policy)
    spoil(path)
    with bounded_memory(), pytest.raises((ValueError, FileNotFoundError), match=message):
        load_policy(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("spoil", "message"), DIRECTION.values(), ids=DIRECTION)
def test_a_hostile_direction_is_refused(tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "direction.pt"
    save_direction(path, Direction(torch.nn.functional.normalize(torch.ones(8), dim=0), 0.5))
    spoil(path)
    with bounded_memory(), pytest.raises(ValueError, match=message):
        load_direction(path, 8)
    assert not (tmp_path / "ran").exists()


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


WEIGHTS = {
    "a header of 10^18 bytes": ((10**18).to_bytes(8, "little") + b"{}", "header"),
    "a header of 8 MB": (safetensors(" " * (1 << 23)), "header"),
    "10^12 elements": (safetensors({"a": entry(shape=(10**6, 10**6))}, bytes(4)), "damaged"),
    "a product that wraps": (safetensors({"a": entry(shape=(2**33, 2**31))}, bytes(4)), "damaged"),
    "offsets beyond the file": (safetensors({"a": entry(offsets=(0, 400))}, bytes(4)), "damaged"),
    "offsets that overlap": (safetensors({"a": entry(), "b": entry()}, bytes(4)), "damaged"),
    "a hole": (safetensors({"a": entry(offsets=(4, 8))}, bytes(8)), "damaged"),
    "an unknown dtype": (safetensors({"a": entry("OBJECT")}, bytes(4)), "damaged"),
    "deep json": (safetensors("[" * 60_000), "damaged"),
    "a pickle": (pickle.dumps(Bomb("ran")), "header|damaged"),
}


@pytest.mark.parametrize(("content", "message"), WEIGHTS.values(), ids=WEIGHTS)
def test_hostile_weights_are_refused(policy, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    save_policy(tmp_path, policy, ModelCard())
    (tmp_path / "policy.safetensors").write_bytes(content)
    seal(tmp_path)
    with bounded_memory(), pytest.raises(ValueError, match=message):
        load_policy(tmp_path)
    assert not (tmp_path / "ran").exists()
