"""Processes: the one that a run belongs to, whether it still lives, and what this one and its children can import.

`python -m` and `python -c` look into the working directory first, and Ray's workers into the driver's. The console
script never looks there: a module or a folder there would replace a library in some of the processes only.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_FLAGS = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}
"""Attribute of `sys.flags` → the option; those that change which modules Python finds."""
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable of programs that `ray job submit` has started."""
HOST, PROCESS, STARTED = "process.host", "process.id", "process.started"


def host() -> str:
    """Return the name of this machine and, on Linux, of the container's process namespace."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def owner() -> dict[str, str]:
    """Return tags that name this process."""
    return {HOST: host(), PROCESS: str(os.getpid()), STARTED: started(os.getpid())}


def is_gone(tags: Mapping[str, str]) -> bool:
    """Return whether the process that `owner` named has ended; False if that cannot be seen from here."""
    if tags.get(HOST) != host() or not tags.get(PROCESS, "").isdigit():
        return False
    process = int(tags[PROCESS])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, perhaps with a number that was used before
    return started(process) != tags.get(STARTED)


def lives_here(tags: Mapping[str, str]) -> bool:
    """Return whether the process that `owner` named runs on this machine, and still lives."""
    return tags.get(HOST) == host() and not is_gone(tags)


def started(process: int) -> str:
    """Return the start time of a process in the kernel's ticks; empty if it is unknown, or the process has ended."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *_ = fields = line.rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[19]


def python_command(module: str, *args: str) -> list[str]:
    """Return the command line that runs a module, as `python -m` does, with the import path of this process.

    Args:
        module: Its name.
        args: The command's arguments.
    """
    start = (
        f"import sys; sys.path[:] = {_import_path()!a}; import runpy; "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    flags = [option for name, option in _FLAGS.items() if getattr(sys.flags, name)]
    return [sys.executable, *flags, "-c", start, *args]


@contextmanager
def ray_runtime() -> Iterator[dict[str, Any]]:
    """Yield a runtime environment for `ray.init` with which workers import the same modules as this process.

    The working directory comes last on the import path, so that a concept class of the user's own is found. Ray would
    put it first unless the runtime environment names another folder: it gets an empty one. A program that was started
    by `ray job submit` keeps the runtime environment that it was given there.
    """
    if _RAY_JOB in os.environ:
        yield {}
        return
    path = os.pathsep.join([*map(os.path.abspath, _import_path()), os.getcwd()])
    with TemporaryDirectory(prefix="lightning-unlearn-") as empty:
        yield {"working_dir": empty, "env_vars": {"PYTHONPATH": path}}


def _import_path() -> list[str]:
    return [os.fspath(entry) for entry in sys.path]


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Context manager: modules of the working directory, such as a user's environments and concepts, can be imported.

    An installed module of the same name comes first.
    """
    here = str(Path.cwd())  # the parser changes to the folder of a config file while it reads it
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(here)  # the last one
        sys.path.reverse()
