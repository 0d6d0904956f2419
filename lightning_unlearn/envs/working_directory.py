"""Modules of the working directory: the environments and concepts that a user writes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Inside the block, modules of the working directory can be imported, where no installed one has their name."""
    here = str(Path.cwd())  # the parser goes to the folder of a config file while it reads it
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(here)  # the last one
        sys.path.reverse()
