"""Valid files, mutated at random: a loader returns a valid object or raises a ValueError, in little time and memory.

`FUZZ_EXAMPLES=20000 pytest tests/safe_files/test_fuzzed_files.py` tries more than CI does, and new examples each time.
"""

import io
import json
import os
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import bounded_memory, program, seal, with_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_unlearn.audits.probe_data import ProbeData, Splits, load_data, save_data
from lightning_unlearn.audits.probes import LinearProbe, StoredProbe, load_probe, save_probe
from lightning_unlearn.collectors import trajectories
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, load_policy, save_policy
from lightning_unlearn.policies.latent_editor import Direction, GatedEditor, load_direction, save_direction
from lightning_unlearn.policies.published_format import save_published

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
SECONDS = 5.0
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
UNIT = torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)
SPLITS = Splits(np.array([0, 1]), np.array([2]), np.array([3]), by="episode")
ABOUT = {name: "x" for name in ("env", "model_path", "dataset", "dataset_digest")}


def policy(**changes):
    config = PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[8, 8], **changes)
    return ActorCritic(config, torch.Generator().manual_seed(0))


def acts(stored):
    assert stored.policy.act(torch.zeros(1, stored.policy.config.observation_size)).ndim == 2


def write_data(path):
    labels, nearness = np.arange(4) % 2, np.full(4, np.inf, np.float32)
    save_data(path, ProbeData(np.ones((4, 2), np.float32), labels, np.arange(4), nearness, {"env": "ToyLine-v0"}))


def write_probe(path):
    probe = LinearProbe(np.ones(3), np.array(0.5), np.zeros(3), np.ones(3))
    save_probe(path, StoredProbe(probe, SPLITS, ABOUT | {"dataset_states": 4}))


def write_trajectories(path):
    parts = [
        {key: torch.zeros(3, 1, dtype=dtype) for key, dtype in types.items()}
        for types in (trajectories.TRANSITIONS, trajectories.EPISODES)
    ]
    made = (trajectories.TensorDict(part, batch_size=[3]) for part in parts)
    trajectories.save(path, trajectories.Trajectories(*made), {"seed": 0})


FILES = {
    "dataset": ("d.npz", write_data, lambda path: load_data(str(path))),
    "probe": ("p.npz", write_probe, lambda path: load_probe(str(path)).probe.decision(np.zeros((1, 3)))),
    "policy": ("p.pt", lambda path: save_published(path, policy()), lambda path: acts(load_policy(path))),
    "edited policy": (
        "e.pt",
        lambda path: save_published(path, policy().with_editor(GatedEditor(UNIT, 1.5, 0.0, 10.0))),
        lambda path: acts(load_policy(path)),
    ),
    "direction": (
        "h.pt",
        lambda path: save_direction(path, Direction(UNIT, 0.5)),
        lambda path: load_direction(path, 8),
    ),
    "collection": ("c.safetensors", write_trajectories, lambda path: trajectories.load(path, {"seed": 0})),
}
NUMBERS = [struct.pack("<q", number) for number in (-1, 0, 1, 2**31, 2**32, 2**62)]
place = st.floats(0, 1, exclude_max=True)
change = st.one_of(
    st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=8) | st.sampled_from(NUMBERS)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=64)),
    st.tuples(st.just("delete"), place, st.integers(1, 200)),
    st.tuples(st.just("repeat"), place, st.integers(1, 200)),
    st.tuples(st.just("cut"), place, st.none()),
)
changes = st.lists(change, min_size=1, max_size=4)


def mutated(content, wanted):
    for kind, where, what in wanted:
        at = int(where * len(content))
        if kind == "set":
            content = content[:at] + what + content[at + len(what) :]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + what :]
        elif kind == "repeat":
            content = content[:at] + content[at : at + what] + content[at:]
        else:
            content = content[:at]
    return content


def survives(read, path):
    """A valid object or a ValueError; a MemoryError or anything else fails the test."""
    started = time.process_time()
    try:
        with bounded_memory():
            read(path)
    except (ValueError, FileNotFoundError):
        pass
    assert time.process_time() - started < SECONDS


@pytest.fixture
def valid(tmp_path, request):
    """A path, its valid content and its loader."""
    name, write, read = FILES[request.param]
    write(tmp_path / name)
    read(tmp_path / name)
    return tmp_path / name, (tmp_path / name).read_bytes(), read


@pytest.mark.parametrize("valid", FILES, indirect=True)
@fuzz
@given(wanted=changes)
def test_bytes_of_a_file(valid, wanted):
    path, whole, read = valid
    path.write_bytes(mutated(whole, wanted))
    survives(read, path)


@pytest.mark.parametrize("valid", [name for name in FILES if name != "collection"], indirect=True)
@fuzz
@given(wanted=changes, which=place)
def test_bytes_of_a_member_under_a_right_checksum(valid, wanted, which):
    path, whole, read = valid
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = list(parts)[int(which * len(parts))]
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in parts.items():
            archive.writestr(member, mutated(content, wanted) if member == name else content)
    survives(read, path)


@pytest.mark.parametrize("valid", ["policy", "edited policy", "direction"], indirect=True)
@fuzz
@given(wanted=changes)
def test_the_program_of_a_weights_file(valid, wanted):
    path, whole, read = valid
    path.write_bytes(whole)
    with_program(path, mutated(program(path), wanted))
    survives(read, path)


@fuzz
@given(wanted=changes, resealed=st.booleans())
def test_bytes_of_stored_weights(tmp_path, wanted, resealed):
    save_policy(tmp_path, policy(), ModelCard())
    weights = tmp_path / "policy.safetensors"
    weights.write_bytes(mutated(weights.read_bytes(), wanted))
    if resealed:
        seal(tmp_path)
    survives(lambda path: acts(load_policy(path)), tmp_path)


@fuzz
@given(wanted=changes)
def test_bytes_of_a_description(tmp_path, wanted):
    save_policy(tmp_path, policy(), ModelCard())
    description = tmp_path / "policy.json"
    description.write_bytes(mutated(description.read_bytes(), wanted))
    survives(lambda path: acts(load_policy(path)), tmp_path)


odd = st.recursive(
    st.sampled_from(
        [None, True, 0, -1, 10**9, 10**400, 1e308, -1e30, "", "os.system", "../..", "tanh", "gated", "affine"]
    )
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [("policy", name) for name in PolicyConfig.__dataclass_fields__]
FIELDS += [("card", name) for name in ModelCard.__dataclass_fields__]
FIELDS += [("policy",), ("card",), ("format",), ("weights_sha256",)]


@fuzz
@given(wanted=st.dictionaries(st.sampled_from(FIELDS), odd, min_size=1, max_size=3))
def test_fields_of_a_description(tmp_path, wanted):
    save_policy(tmp_path, policy(), ModelCard())
    description = json.loads((tmp_path / "policy.json").read_text())
    for field, value in wanted.items():
        *outer, last = field
        inner = description[outer[0]] if outer else description
        if isinstance(inner, dict):
            inner[last] = value
    (tmp_path / "policy.json").write_text(json.dumps(description))
    survives(lambda path: acts(load_policy(path)), tmp_path)
