"""PyTorch's `.pt` files that hold tensors and numbers, and nothing else: checked before PyTorch's own reader sees them.

`torch.load(weights_only=True)` runs no foreign code, but knows calls that allocate any amount of memory. Here the
pickled program inside the file is read first, without being run, and only what tensors are made of may be in it.
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
class _Kind:
    """A kind of file, and the most it may ask for."""

    known: frozenset[str]
    """What its pickled program may name."""
    max_program: int
    """Bytes of that program."""
    max_directory: int
    """Bytes of the archive's directory."""


_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id)"
)
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch FloatStorage",
    "torch DoubleStorage",
    "torch LongStorage",
}
_STATE_GLOBALS = {f"torch {kind}Storage" for kind in ("Byte", "Bool", "Int", "Half", "BFloat16")}
"""What a checkpoint holds besides: random streams, flags, counts."""
_WEIGHTS = _Kind(frozenset(_GLOBALS), 1 << 20, 1 << 20)
_STATE = _Kind(frozenset(_GLOBALS | _STATE_GLOBALS), 1 << 24, 1 << 23)
"""A checkpoint has some 50 tensors an environment, each of them 63 bytes of the directory."""
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE"),
}


def read_pt(path: Path, max_bytes: int) -> dict[str, Any]:
    """The dict that a `.pt` file holds.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is too large or damaged, or holds anything else than tensors, numbers and texts in dicts.
    """
    require_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return read_pt_stream(file)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a weights file that can be read safely: {error}") from error


def read_pt_stream(file: IO[bytes]) -> dict[str, Any]:
    """The same of an open file, whose size the caller has bounded.

    Raises:
        ValueError: As `read_pt`.
    """
    content, size = _read(file, _WEIGHTS)
    _require_tensors(content, size)
    return content


def read_state(path: Path, max_bytes: int) -> dict[str, Any]:
    """The state that a checkpoint holds: tensors, numbers and texts, in dicts and lists as deep as it likes.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is too large or damaged, or holds anything else.
    """
    require_file(path, max_bytes)
    try:
        with path.open("rb") as file:
            return dict(_read(file, _STATE)[0])
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from error


def _read(file: IO[bytes], kind: _Kind) -> tuple[Any, int]:
    """What a file holds, and how many bytes of it were looked at."""
    with warnings.catch_warnings(action="error"):  # what Python or PyTorch warns of, no file of tensors holds
        try:
            with zip_of(file, kind.max_directory) as archive:
                checked = _checked_copy(archive, kind)
            return _load(checked), checked.getbuffer().nbytes
        except Warning as warning:
            raise ValueError(f"it is written as no file of tensors is: {warning}") from warning


def _checked_copy(archive: zipfile.ZipFile, kind: _Kind) -> io.BytesIO:
    """The same archive, written anew: what was checked here is then what another reader of archives finds."""
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as written:
        for name in archive.namelist():
            if not _MEMBER.fullmatch(name):
                raise ValueError(f"it has a member {name!r}, which is no part of a file of tensors")
            written.writestr(name, archive.read(name))
            if name.endswith("/data.pkl"):
                _require_plain(archive.read(name), kind)
    copy.seek(0)
    return copy


def _require_plain(program: bytes, kind: _Kind) -> None:
    if len(program) > kind.max_program:
        raise ValueError(f"its description of the tensors is larger than {kind.max_program} bytes")
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL" and argument not in kind.known:
            raise ValueError(f"it asks for {argument!r}, which may run code or allocate memory and is never called")
        if opcode.name not in _OPCODES:
            raise ValueError(f"it holds a pickle's {opcode.name}, which no file of tensors needs")


def _load(file: io.BytesIO) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file, PyTorch's reader raises whatever comes to pass
        raise ValueError(f"{type(error).__name__} while PyTorch read it") from error


def _require_tensors(content: object, max_bytes: int) -> None:
    """A tensor may be a view that repeats a few bytes any number of times; here none is larger than the file."""
    if not isinstance(content, Mapping):
        raise ValueError("it holds no dict")
    inner = [entry for entry in content.values() if isinstance(entry, Mapping)]
    if not all(isinstance(key, str) for entries in (content, *inner) for key in entries):
        raise ValueError("it holds names that are no text")
    for tensor in (value for entries in (content, *inner) for value in entries.values()):
        if isinstance(tensor, torch.Tensor) and not _is_plain(tensor, max_bytes):
            raise ValueError("it holds a tensor that is no plain array of its own")


def _is_plain(tensor: torch.Tensor, max_bytes: int) -> bool:
    ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_neg()
    return ordinary and tensor.is_contiguous() and tensor.numel() * tensor.element_size() <= max_bytes
