"""Content of pickle files, without executing any of it: no class is imported and no function called.

Every class or function that a pickle names becomes a `Record` of its name, arguments and state; arrays are decoded
from the records of numpy's own classes. This reader is ours because the standard library's always imports.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.safe_files import read_bytes

MAX_BYTES = 1 << 24
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")


class Record:
    """Name, arguments and state of an object in a pickle, which is never made."""

    name: str
    args: tuple[Any, ...]
    state: Any
    items: list[Any]
    """Elements that were appended, or keys that were set."""

    def __new__(cls, *args: Any, **_: Any) -> "Record":
        """Record the arguments."""
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, []
        return record

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setitem__(self, key: Any, _: Any) -> None:
        """Record a key, for example of an OrderedDict."""
        self.items.append(key)

    def append(self, item: Any) -> None:
        """Record an element, for example of a deque."""
        self.items.append(item)

    def __setstate__(self, state: Any) -> None:
        """Record the state."""
        self.state = state


class _Reader(pickle.Unpickler):
    """An unpickler that makes a new class of records for each name in place of importing it."""

    def find_class(self, module: str, name: str) -> type[Record]:
        return type("Record", (Record,), {"name": f"{module}.{name}"})


def read_pickle(path: Path) -> Any:
    """Read a pickle file as records, dicts, lists, tuples, texts and numbers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no pickle, is damaged, or is larger than 16 MiB.
    """
    return parse_pickle(read_bytes(path, MAX_BYTES), str(path))


def parse_pickle(content: bytes, name: str) -> Any:
    """Do the same for the content of a file, which messages call `name`."""
    try:
        for opcode, argument, _ in pickletools.genops(content):  # Python allocates as many objects as a pickle claims
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
                raise ValueError(f"it claims {argument} objects")
        return _Reader(io.BytesIO(content)).load()
    except Exception as error:
        raise ValueError(f"{name} is no pickle, or is damaged ({type(error).__name__})") from error


def float_array(record: Any) -> np.ndarray:
    """Decode the floating-point array that a record stands for, as float64.

    Raises:
        ValueError: It stands for something else.
    """
    shape, dtype, content = _array_parts(record)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("an array of it is damaged")
    return np.frombuffer(content, dtype).reshape(shape).astype(np.float64)


def _array_parts(record: Any) -> tuple[tuple[int, ...], np.dtype[Any], bytes]:
    """Return shape, type and bytes, from either of the two ways in which numpy pickles an array."""
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
        kind, order = dtype.args[0], dtype.state[1]  # of `numpy.dtype('f8', …)`, with the byte order in its state
        if dtype.name != "numpy.dtype" or kind not in ("f4", "f8") or order not in ("<", ">", "="):
            raise ValueError(f"an array of it is of type {kind!r}, not float")
        return shape, np.dtype(f"{order}{kind}"), bytes(content)
    except (AttributeError, TypeError, LookupError, OverflowError) as error:
        raise ValueError("something else stands where an array should be") from error
