"""Pickles are read, and nothing in them happens."""

import os
import pickle

import numpy as np
import pytest
from hostile_files import bounded_memory

from lightning_unlearn.safe_files import pickles


class Trap:
    """Runs a command when it is unpickled by anything that obeys."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def read(content):
    return pickles.parse_pickle(content, "it")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_executed(tmp_path, protocol):
    record = read(pickle.dumps({"a": Trap(tmp_path / "sprung"), "b": 1}, protocol))
    assert not (tmp_path / "sprung").exists()
    assert record["b"] == 1
    assert record["a"].name.endswith(".system")
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))  # the trap works where it is obeyed
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8"])
@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_decoded(protocol, dtype):
    values = np.array([[1.5, -2.0, 3.25], [0.0, 1e-3, 7.0]], dtype)
    decoded = pickles.float_array(read(pickle.dumps(values, protocol)))
    np.testing.assert_array_equal(decoded, values.astype(np.float64))


@pytest.mark.parametrize(
    "thing", [np.array([1, 2]), np.array([object()]), [1.0, 2.0], None, "text", np.dtype("f8"), np.float64(1.0)]
)
def test_other_things_are_no_arrays(thing):
    with pytest.raises(ValueError, match="array"):
        pickles.float_array(read(pickle.dumps(thing)))


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1] * 100)[:-30], b"cos\nsystem\n(S'x'\ntR"])
def test_damaged_pickles_are_refused(content):
    with pytest.raises(ValueError, match="no pickle, or is damaged"):
        read(content)


CLAIMS = {
    "a thousand million objects": b"N" + b"r" + (10**9).to_bytes(4, "little") + b".",
    "a text of 10^12 bytes": b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"x.",
    "an array of bytes of 10^12": b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"x.",
    "a number of 2 GB": b"\x8b" + (2**31 - 1).to_bytes(4, "little") + b"1.",
}


@pytest.mark.parametrize("content", CLAIMS.values(), ids=CLAIMS)
def test_what_a_pickle_claims_is_not_believed(content):
    with bounded_memory(), pytest.raises(ValueError, match=r"no pickle, or is damaged \(ValueError\)"):
        read(content)


def test_an_array_of_a_million_million_zeros_is_not_made():
    record = pickles.Record()
    record.name, record.state = "numpy.core.multiarray._reconstruct", (1, (10**12,), None, False, 10**12)
    with bounded_memory(), pytest.raises(ValueError, match="no content"):
        pickles.float_array(record)


def test_large_pickles_are_refused(tmp_path):
    (tmp_path / "large.pkl").write_bytes(bytes(pickles.MAX_BYTES + 1))
    with pytest.raises(ValueError, match="larger"):
        pickles.read_pickle(tmp_path / "large.pkl")
