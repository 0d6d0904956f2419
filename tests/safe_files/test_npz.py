import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest

from lightning_unlearn.safe_files.npz import Field, read_npz, write_npz

FIELDS = {"a": Field(np.float32, 2), "b": Field(np.int64, 1, required=False)}
ARRAYS = {"a": np.ones((3, 2), np.float32), "b": np.arange(3)}


def read(path):
    return read_npz(path, FIELDS, "test/1", "make one.")


@pytest.fixture
def path(tmp_path):
    write_npz(tmp_path / "x.npz", ARRAYS, {"format": "test/1", "n": 3})
    return tmp_path / "x.npz"


def test_what_is_written_is_read(path):
    arrays, metadata = read(path)
    np.testing.assert_array_equal(arrays["a"], ARRAYS["a"])
    assert metadata == {"format": "test/1", "n": 3}
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]


def test_equal_content_gives_equal_files(path):
    write_npz(path.with_name("y.npz"), ARRAYS, {"format": "test/1", "n": 3})
    assert path.read_bytes() == path.with_name("y.npz").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones((3, 2))}, "float64 of shape"),
        ({"a": np.ones(3, np.float32)}, "not float32 with 2"),
        ({"b": np.arange(3)}, "it holds"),
        ({**ARRAYS, "c": np.arange(3)}, "it holds"),
        ({"a": np.full((3, 2), np.nan, np.float32)}, "not finite"),
        ({"a": np.full((3, 2), np.inf, np.float32)}, "not finite"),
    ],
)
def test_foreign_content_is_refused(tmp_path, arrays, message):
    write_npz(tmp_path / "x.npz", arrays, {"format": "test/1"})
    with pytest.raises(ValueError, match=rf"(?s){message}.*make one\."):
        read(tmp_path / "x.npz")


def test_another_format_is_refused(tmp_path):
    write_npz(tmp_path / "x.npz", ARRAYS, {"format": "test/2"})
    with pytest.raises(ValueError, match="not of the format"):
        read(tmp_path / "x.npz")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_are_never_executed(tmp_path):
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is a pickle"):
        read(tmp_path / "x.npz")
    inside = np.empty((1, 1), object)
    inside[0, 0] = Bomb()
    np.savez(tmp_path / "y.npz", a=inside, metadata=np.array("{}"), allow_pickle=True)
    with pytest.raises(ValueError, match="damaged or holds objects"):
        read(tmp_path / "y.npz")


@pytest.mark.parametrize("keep", [0, 3, 100, 400])
def test_damaged_files_are_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cannot be used.*make one\."):
        read(path)


def test_any_changed_byte_is_refused_or_harmless(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(ValueError):  # any other error fails
            read(path)


def test_a_foreign_header_under_a_right_checksum_is_refused(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for place in range(128):
        for byte in b"\x00\xff([{'\\,9O":
            array = bytearray(parts["a.npy"])
            array[place] = byte
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in (parts | {"a.npy": bytes(array)}).items():
                    archive.writestr(name, content)
            with contextlib.suppress(ValueError):  # any other error fails
                read(path)


def test_a_header_that_claims_memory_is_refused(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)})
    with zipfile.ZipFile(path) as archive:
        rest = archive.read("metadata.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
        archive.writestr("metadata.npy", rest)
    with pytest.raises(ValueError, match="damaged"):
        read(path)


def test_a_missing_file_is_said_to_be(tmp_path):
    with pytest.raises(ValueError, match=r"was not found; make one\."):
        read(tmp_path / "none.npz")
