"""How files are made that a stranger might send: used by the tests of every loader."""

import hashlib
import io
import json
import pickle
import resource
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

MEMORY = 200 << 20
"""Bytes that reading a file of a few kilobytes may allocate at most."""


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@contextmanager
def bounded_memory(extra=MEMORY):
    """A process limit: what allocates more fails with a MemoryError, which no loader turns into a ValueError."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def seal(folder):
    """Write the digest of a policy's weights into its description, as who spoilt them on purpose would."""
    path = folder / "policy.json"
    description = json.loads(path.read_text())
    if not isinstance(description.get("weights_sha256", ""), str):
        return
    description["weights_sha256"] = hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest()
    path.write_text(json.dumps(description))


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repack(path, parts, compression=zipfile.ZIP_STORED):
    """Write an archive; `parts` is a dict, or pairs where a name comes twice."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items() if isinstance(parts, dict) else parts:
            archive.writestr(name, content)


def npy(descr, shape, content=b""):
    """An array's file whose header says anything."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def pickled_npy(path):
    """An array's file that holds a bomb."""
    array = np.empty(1, object)
    array[0] = Bomb(path)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def program(path):
    """The pickled program of a `.pt` file."""
    return next(content for name, content in members(path).items() if name.endswith("/data.pkl"))


def with_program(path, content):
    """The same `.pt` file with another program."""
    repack(path, {name: content if name.endswith("/data.pkl") else part for name, part in members(path).items()})


def call(function, *arguments):
    """A program that calls a function by name, such as `builtins bytearray`."""
    stack = b"".join(pickle.dumps(argument, 2)[2:-1] for argument in arguments)
    return b"\x80\x02c" + function.replace(" ", "\n").encode() + b"\n(" + stack + b"tR."


def expanded(path):
    """A `.pt` file whose first tensor claims a million million entries, all of them one number."""
    torch.save({"state_dict": {"shared.0.weight": torch.ones(1).expand(10**6, 10**6)}}, path)


def claiming_directory(content, size):
    """An archive whose end claims a directory of this size."""
    return content[:-10] + struct.pack("<L", size) + content[-6:]


def safetensors(header, content=b""):
    """A safetensors file with this header, text or anything that JSON can say."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + content
