"""Bounded readers for files from strangers: here bytes, JSON, YAML and archives; npz, pt and pickle files beside it.

No reader executes what it reads or allocates more than a small multiple of the file's size, and all faults are
ValueErrors.
"""

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import yaml

_MAX_DIRECTORY = 1 << 20
_MAX_HEADER = 1 << 16
_END, _LOCATOR, _END64 = 22, 20, 56
"""Sizes of the records that end a zip archive."""
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, struct.error)


def require_file(path: Path, max_bytes: int) -> int:
    """Return the size of a regular file of at most `max_bytes`.

    Raises:
        FileNotFoundError: It does not exist, or is a folder, device or pipe.
        ValueError: It is too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is not a file.")
    size = path.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes, which no file of its kind is.")
    return size


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a whole file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, or cannot be read.
    """
    size = require_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path, max_bytes: int) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, or is not strict JSON.
    """
    try:
        return parse_json(read_bytes(path, max_bytes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse strict JSON.

    Raises:
        ValueError: It is no JSON, holds NaN or an infinite number, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not JSON that can be read: {error}") from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of strict JSON")


class _InertLoader(yaml.SafeLoader):
    """Loader of YAML that reads Python's own tags, which name classes, as plain lists, dicts and texts."""


def _construct_plain(loader: _InertLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return node.value


_InertLoader.add_multi_constructor("tag:yaml.org,2002:python/", _construct_plain)


def read_yaml(path: Path, max_bytes: int) -> Any:
    """Read a YAML file; what a tag names is not imported or built.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, or is no YAML.
    """
    try:
        return yaml.load(read_bytes(path, max_bytes), Loader=_InertLoader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError(f"not YAML that can be read: {error}") from error


def require_small_header(path: Path) -> None:
    """Raise a ValueError if a safetensors file's header is larger than any file of this project needs."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MAX_HEADER:
        raise ValueError(f"{path} is damaged, or is no safetensors file: its header claims {size} bytes.")


@contextmanager
def open_zip(path: Path, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose members are not compressed and have different names, so that they are no larger than it.

    Faults found only while members are read become ValueErrors, too.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, damaged, compressed, or has members of equal names.
    """
    require_file(path, max_bytes)
    try:
        with path.open("rb") as file, zip_of(file) as archive:
            yield archive
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def zip_of(file: IO[bytes], max_directory: int = _MAX_DIRECTORY) -> Iterator[zipfile.ZipFile]:
    """Open an archive in an open file, whose size the caller has bounded."""
    try:
        size = _require_small_directory(file, max_directory)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("it has several members of one name")
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
                raise ValueError("it has compressed members, which may unpack to any size")
            if sum(member.file_size for member in members) > size:
                raise ValueError("its members claim to be larger than the file")
            yield archive
    except _BROKEN_ZIP as error:
        raise ValueError(f"it is no archive, or is damaged: {error}") from error


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_small_directory(file: IO[bytes], max_directory: int) -> int:
    """Return the file's size. Refuse a large directory, since Python makes an object for each of its entries."""
    size_of_file = file.seek(0, 2)
    file.seek(max(0, size_of_file - _END - _LOCATOR - _END64))
    tail = file.read()
    end, locator, end64 = tail[-_END:], tail[-_END - _LOCATOR : -_END], tail[: -_END - _LOCATOR]
    if end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise ValueError("it is no archive, or is damaged: it does not end as one")
    wide = locator[:4] == b"PK\6\7" and end64[:4] == b"PK\6\6"
    size = int.from_bytes(end64[40:48] if wide else end[12:16], "little")
    if size > max_directory:
        raise ValueError(f"its directory claims {size} bytes, more than such a file needs")
    return size_of_file
