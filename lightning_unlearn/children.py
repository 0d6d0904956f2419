"""Child processes that import exactly what this process imports.

`python -m` and `python -c` look into the working directory first, and Ray's workers into the driver's. The console
script never looks there: a module or a folder there would replace a library in some of the processes only.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

_FLAGS = {"isolated": "-I", "ignore_environment": "-E", "no_user_site": "-s", "no_site": "-S"}
"""Attribute of `sys.flags` → the option; those that change which modules Python finds."""

_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable of programs that `ray job submit` has started."""


def python_command(module: str, *args: str) -> list[str]:
    """The command line that runs a module, as `python -m` does, with the import path of this process.

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
    """A runtime environment for `ray.init` inside the block: workers import as this process does.

    The modules of the working directory come last, so that a concept class of the user's own is found. Ray puts the
    driver's working directory first unless the runtime environment names another folder: it gets an empty one. A
    program that was started by `ray job submit` keeps the runtime environment that it was given there.
    """
    if _RAY_JOB in os.environ:
        yield {}
        return
    path = os.pathsep.join([*map(os.path.abspath, _import_path()), os.getcwd()])
    with TemporaryDirectory(prefix="lightning-unlearn-") as empty:
        yield {"working_dir": empty, "env_vars": {"PYTHONPATH": path}}


def _import_path() -> list[str]:
    return [os.fspath(entry) for entry in sys.path]
