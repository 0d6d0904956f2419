"""Arrays and their description in one `.npz` file, read so that nothing in it is ever executed or believed."""

import json
import math
import tokenize
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.safe_files import open_zip, parse_json

METADATA = "metadata"
_MAX_BYTES = 1 << 31
_MAX_METADATA = 1 << 20
_BROKEN = (KeyError, tokenize.TokenError, SyntaxError, TypeError, ValueError, OverflowError, RecursionError)
"""What numpy raises for an array's header, besides what `open_zip` raises."""


@dataclass(frozen=True)
class Field:
    """What an array of a file has to be."""

    dtype: type[np.generic]
    ndim: int
    infinite: bool = False
    """Whether +inf is a value."""
    required: bool = True


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays, and their description as JSON in a unicode scalar; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **{METADATA: np.array(json.dumps(metadata, allow_nan=False))})
    partial.replace(path)


def read_npz(
    path: Path, fields: Mapping[str, Field], file_format: str, remedy: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file of `write_npz`.

    Args:
        path: The file.
        fields: What it has to hold, by name.
        file_format: What its metadata's `format` has to be.
        remedy: How such a file is made; ends every message.

    Returns:
        The arrays and the metadata.

    Raises:
        ValueError: The file is missing, foreign, damaged, or its parts are not as `fields` says.
    """
    if not path.is_file():
        raise ValueError(f"{path} was not found; {remedy}")
    try:
        _require_zip(path)
        with open_zip(path, _MAX_BYTES) as archive:
            _require_names(archive, fields)
            return _read_arrays(archive, fields), _metadata(archive, file_format)
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be used: {error}; {remedy}") from error


def _require_zip(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        raise ValueError("it is a pickle, which can run code and is never read")
    if start != b"PK\x03\x04":
        raise ValueError("it is no npz file")


def _read_arrays(archive: zipfile.ZipFile, fields: Mapping[str, Field]) -> dict[str, np.ndarray]:
    present = {name: field for name, field in fields.items() if f"{name}.npy" in archive.namelist()}
    return {name: _read_array(archive, name, field) for name, field in present.items()}


def _require_names(archive: zipfile.ZipFile, fields: Mapping[str, Field]) -> None:
    names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    missing = {name for name, field in fields.items() if field.required} - names
    foreign = len(archive.namelist()) > len(names) or names - set(fields) - {METADATA}
    if missing or foreign or METADATA not in names:
        raise ValueError(f"it holds {sorted(archive.namelist())[:20]}, not {sorted([*fields, METADATA])}")


def _read_array(archive: zipfile.ZipFile, name: str, field: Field) -> np.ndarray:
    shape, dtype = _header(archive, name)
    if dtype != np.dtype(field.dtype) or len(shape) != field.ndim:
        wanted = f"{np.dtype(field.dtype).name} with {field.ndim} dimensions"
        raise ValueError(f"{name} is {dtype.name} of shape {shape}, not {wanted}")
    array = _load(archive, name)
    if np.isnan(array).any() or not (field.infinite or np.isfinite(array).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return array


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, checked against what is there: a header may claim any amount of memory."""
    with archive.open(f"{name}.npy") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is of another version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        described = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or described != archive.getinfo(f"{name}.npy").file_size:
        raise ValueError(f"{name} is damaged or holds objects")
    return shape, dtype


def _load(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _metadata(archive: zipfile.ZipFile, file_format: str) -> dict[str, Any]:
    shape, dtype = _header(archive, METADATA)
    if shape != () or dtype.kind != "U" or dtype.itemsize > _MAX_METADATA:
        raise ValueError("its metadata is no text")
    metadata = parse_json(str(_load(archive, METADATA)))
    if not isinstance(metadata, dict) or metadata.get("format") != file_format:
        raise ValueError(f"its metadata is not of the format {file_format!r}")
    return metadata
