"""PyTorch's `.pt` files that hold nothing but tensors, numbers and texts, checked before PyTorch reads them.

`torch.load(weights_only=True)` runs no foreign code, but knows calls that allocate any amount of memory. Here the
pickled program inside the file is read first, without being run, and refused unless it only makes tensors.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from lightning_unlearn.safe_files import require_file, zip_of


@dataclass(frozen=True)
class _Limits:
    """Limits of a kind of file."""

    names: frozenset[str]
    """Classes and functions that its pickled program may name."""
    program_bytes: int
    """Largest pickled program."""
    directory_bytes: int
    """Largest directory of the archive."""


_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id)"
)
_NAMES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch DoubleStorage",
    "torch LongStorage",
}
_STATE_NAMES = {f"torch {kind}Storage" for kind in ("Byte", "Bool", "Int", "Half", "BFloat16")}
"""Further tensors of a checkpoint: random streams, flags, counts."""
_WEIGHTS = _Limits(frozenset(_NAMES), 1 << 20, 1 << 20)
_STATE = _Limits(frozenset(_NAMES | _STATE_NAMES), 1 << 24, 1 << 23)
"""A checkpoint has some 50 tensors an environment, and each takes 63 bytes of the directory."""
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE"),
}


def read_pt(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read the dict of a `.pt` file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large or damaged, or holds anything but tensors, numbers and texts in dicts.
    """
    require_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return read_pt_stream(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a weights file that can be read safely: {error}") from error


def read_pt_stream(file: IO[bytes]) -> dict[str, Any]:
    """Read the dict of an open `.pt` file, whose size the caller has bounded; entries of a tuple are called 0, 1, ….

    Raises:
        ValueError: It is damaged, or holds anything but tensors, numbers and texts in dicts.
    """
    content, file_bytes = _read(file, _WEIGHTS)
    if isinstance(content, tuple):
        content = {str(index): entry for index, entry in enumerate(content)}
    if not isinstance(content, Mapping):
        raise ValueError("it holds no dict")
    dicts = [content, *(entry for entry in content.values() if isinstance(entry, Mapping))]
    if not all(isinstance(key, str) for entries in dicts for key in entries):
        raise ValueError("it holds names that are no text")
    for tensor in (value for entries in dicts for value in entries.values()):
        if not isinstance(tensor, torch.Tensor):
            continue
        is_ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_neg()
        # a view may repeat a few bytes any number of times
        if not (is_ordinary and tensor.is_contiguous() and tensor.numel() * tensor.element_size() <= file_bytes):
            raise ValueError("it holds a tensor that is no plain array of its own")
    return content  # type: ignore[return-value]


def read_state(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read the state in a checkpoint: tensors, numbers and texts in nested dicts and lists.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large or damaged, or holds anything else.
    """
    require_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return dict(_read(file, _STATE)[0])
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from error


def _read(file: IO[bytes], limits: _Limits) -> tuple[Any, int]:
    """Return a file's content and its size."""
    with warnings.catch_warnings(action="error"):  # Python and PyTorch warn of nothing in a file of tensors
        try:
            with zip_of(file, limits.directory_bytes) as archive:
                checked = _checked_copy(archive, limits)
            try:
                content = torch.load(checked, map_location="cpu", weights_only=True)
            except Exception as error:  # for a damaged file, PyTorch's reader raises all kinds of exceptions
                raise ValueError(f"{type(error).__name__} while PyTorch read it") from error
            return content, checked.getbuffer().nbytes
        except Warning as warning:
            raise ValueError(f"it is written as no file of tensors is: {warning}") from warning


def _checked_copy(archive: zipfile.ZipFile, limits: _Limits) -> io.BytesIO:
    """Check an archive and write it anew, so that PyTorch's reader of archives finds what was checked here."""
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as written:
        for name in archive.namelist():
            if not _MEMBER.fullmatch(name):
                raise ValueError(f"it has a member {name!r}, which is no part of a file of tensors")
            written.writestr(name, archive.read(name))
            if name.endswith("/data.pkl"):
                _require_plain(archive.read(name), limits)
    copy.seek(0)
    return copy


def _require_plain(program: bytes, limits: _Limits) -> None:
    if len(program) > limits.program_bytes:
        raise ValueError(f"its description of the tensors is larger than {limits.program_bytes} bytes")
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL" and argument not in limits.names:
            raise ValueError(f"it asks for {argument!r}, which may run code or allocate memory and is never called")
        if opcode.name not in _OPCODES:
            raise ValueError(f"it holds a pickle's {opcode.name}, which no file of tensors needs")
