"""What a pickle says, without doing any of it: no class is imported, no function called.

Every class and function that the file names becomes a `Record` of its name, its arguments and its state; arrays are
then decoded from the records of numpy's own.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any

import numpy as np

MAX_BYTES = 1 << 24
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")


class Record:
    """Something that the pickle would have made; it only remembers what it was to be made of."""

    name: str
    args: tuple[Any, ...]
    state: Any
    items: list[Any]
    """What was appended or set: of a list its elements, of a dict its keys."""

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        """Remember the arguments."""
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, []
        return record

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setitem__(self, key: Any, _: Any) -> None:
        """Remember the key, as of an OrderedDict."""
        self.items.append(key)

    def append(self, item: Any) -> None:
        """Remember an element, as of a deque."""
        self.items.append(item)

    def __setstate__(self, state: Any) -> None:
        """Remember the state."""
        self.state = state


class _Reader(pickle.Unpickler):
    """Never imports: a name becomes a fresh class of records, which only this one pickle can reach."""

    def find_class(self, module: str, name: str) -> type[Record]:
        return type("Record", (Record,), {"name": f"{module}.{name}"})


def read(path: Path) -> Any:
    """What a pickle file holds, as records, dicts, lists, tuples, texts and numbers.

    Raises:
        ValueError: It is no pickle, damaged, or larger than 16 MiB.
    """
    with path.open("rb") as file:
        return read_stream(file, str(path))


def read_stream(file: IO[bytes], name: str) -> Any:
    """The same of an open file."""
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES} bytes")
    try:
        _require_small(content)
        return _Reader(io.BytesIO(content)).load()
    except Exception as error:
        raise ValueError(f"{name} is no pickle, or is damaged ({type(error).__name__})") from error


def _require_small(content: bytes) -> None:
    """Python's reader makes room for as many remembered objects, and as long texts, as a pickle says that it has."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise ValueError(f"it claims {argument} objects")


def array(record: Any) -> np.ndarray:
    """The floating-point array that a record stands for, as float64.

    Raises:
        ValueError: It stands for something else.
    """
    shape, dtype, content = _parts(record)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array of it is damaged")
    return np.frombuffer(content, dtype).reshape(shape).astype(np.float64)


def _parts(record: Any) -> tuple[tuple[int, ...], np.dtype[Any], bytes]:
    """Shape, type and bytes, from either of the two ways in which numpy pickles an array."""
    try:
        if record.name in _RECONSTRUCT:
            _, shape, dtype, fortran, content = record.state
        elif record.name in _FROM_BUFFER:
            content, dtype, shape, order = record.args
            fortran = order == "F"
        else:
            raise ValueError(f"{record.name} stands where an array should be")
        if not isinstance(content, bytes | bytearray):
            raise ValueError("an array of it has no content")
        shape = tuple(int(n) for n in shape)
        if len(shape) > 1 and fortran:
            raise ValueError("an array of it is stored column by column")
        return shape, _dtype(dtype), bytes(content)
    except (AttributeError, TypeError, LookupError, OverflowError) as error:
        raise ValueError("something else stands where an array should be") from error


def _dtype(record: Any) -> np.dtype[Any]:
    """float32 or float64, from `numpy.dtype('f8', …)` with its byte order in the state."""
    kind, order = record.args[0], record.state[1]
    if record.name != "numpy.dtype" or kind not in ("f4", "f8") or order not in ("<", ">", "="):
        raise ValueError(f"an array of it is of type {kind!r}, not float")
    return np.dtype(f"{order}{kind}")
