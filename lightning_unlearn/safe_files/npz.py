"""Arrays and their description in `.npz` files, read without executing anything and without believing any header."""

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
"""Raised by numpy for a damaged header, besides the exceptions that `open_zip` converts."""


@dataclass(frozen=True)
class Field:
    """Expected type and shape of an array in a file."""

    dtype: type[np.generic]
    ndim: int
    infinite: bool = False
    """Allow +inf."""
    required: bool = True


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write arrays, and metadata as JSON in a unicode scalar. The file appears whole or not at all."""
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
        fields: Name → expected array.
        file_format: Expected `format` in the metadata.
        remedy: How to make such a file; ends every error message.

    Returns:
        The arrays and the metadata.

    Raises:
        ValueError: The file is missing, foreign or damaged, or its content is not as expected.
    """
    if not path.is_file():
        raise ValueError(f"{path} was not found; {remedy}")
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:1] == b"\x80":
            raise ValueError("it is a pickle, which can run code and is never read")
        if start != b"PK\x03\x04":
            raise ValueError("it is no npz file")
        with open_zip(path, _MAX_BYTES) as archive:
            present = _present(archive, fields)
            arrays = {name: _read_field(archive, name, field) for name, field in present.items()}
            return arrays, _read_metadata(archive, file_format)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}; {remedy}") from error


def load_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Load an array of an archive, once its header is found to claim no more memory than the array's own bytes.

    Raises:
        ValueError: It is missing or damaged, or holds Python objects.
    """
    member = f"{name}.npy"
    try:
        with archive.open(member) as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError(f"{name} is of another version of the format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            claimed = file.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject or not dtype.itemsize or claimed != archive.getinfo(member).file_size:
            raise ValueError(f"{name} is damaged or holds objects")
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except _BROKEN as error:
        raise ValueError(str(error)) from error


def _present(archive: zipfile.ZipFile, fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return the fields that an archive holds; refuse it if a required one is missing, or if it holds others."""
    names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
    missing = {name for name, field in fields.items() if field.required} - names
    foreign = len(archive.namelist()) > len(names) or names - set(fields) - {METADATA}
    if missing or foreign or METADATA not in names:
        raise ValueError(f"it holds {sorted(archive.namelist())[:20]}, not {sorted([*fields, METADATA])}")
    return {name: field for name, field in fields.items() if name in names}


def _read_field(archive: zipfile.ZipFile, name: str, field: Field) -> np.ndarray:
    array = load_array(archive, name)
    if array.dtype != np.dtype(field.dtype) or array.ndim != field.ndim:
        expected = f"{np.dtype(field.dtype).name} with {field.ndim} dimensions"
        raise ValueError(f"{name} is {array.dtype.name} of shape {array.shape}, not {expected}")
    if np.isnan(array).any() or not (field.infinite or np.isfinite(array).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return array


def _read_metadata(archive: zipfile.ZipFile, file_format: str) -> dict[str, Any]:
    text = load_array(archive, METADATA)
    if text.shape != () or text.dtype.kind != "U" or text.nbytes > _MAX_METADATA:
        raise ValueError("its metadata is no text")
    metadata = parse_json(str(text))
    if not isinstance(metadata, dict) or metadata.get("format") != file_format:
        raise ValueError(f"its metadata is not of the format {file_format!r}")
    return metadata
