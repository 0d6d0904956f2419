"""Checkpoint files: written atomically, named by their digest, and read without unpickling any object."""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_unlearn.old_names import with_current_keys
from lightning_unlearn.safe_files.pt import read_state

MAX_BYTES = 1 << 30
"""A larger checkpoint is not read."""
KEPT = 2
"""Number of checkpoints of a run that are kept, the newest ones."""
_OWN = re.compile(r"update-\d+")
"""Name under which a run's own checkpoints are saved; a `ModelCheckpoint` gives names that end in `.ckpt`."""
_NAME = re.compile(r"update-(\d+)\.([0-9a-f]{64})\.ckpt")


class AtomicCheckpoints(CheckpointIO):
    """Writes checkpoints atomically: whole or not at all.

    A run's own `update-<n>` becomes `update-<n>.<sha256>.ckpt`, and the newest two of a folder are kept. Under any
    other name, such as one of Lightning's `ModelCheckpoint`, a checkpoint is written to the path that was asked for.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; the file appears once all of it is on the disk.

        Raises:
            ValueError: It would be too large to be read again.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        data, path = content.getvalue(), Path(path)
        if len(data) > MAX_BYTES:
            raise ValueError(
                f"a checkpoint of this run has {len(data)} bytes, and more than {MAX_BYTES} are not read again: use "
                "smaller networks, fewer environments (data.num_envs), or a smaller model.capacity if there is one."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _OWN.fullmatch(path.name):
            _write_atomically(path, data)
            return
        _write_atomically(path.with_name(f"{path.name}.{hashlib.sha256(data).hexdigest()}.ckpt"), data)
        for old in list(_newest_first(path.parent))[KEPT:]:
            old.unlink()

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values, nothing else, to the CPU; keys of earlier versions get their present names.

        Raises:
            ValueError: The file is damaged, or holds something else.
        """
        return with_current_keys(read_state(Path(path), MAX_BYTES))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder whose content matches its digest; None if there is none."""
    for path in _newest_first(folder):
        if path.name.split(".")[1] == hashlib.sha256(path.read_bytes()).hexdigest():
            return path
    return None


def update_of(path: Path) -> int:
    """Return the number of the update after which a checkpoint was written."""
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise ValueError(f"{path} is not the name of a checkpoint.")
    return int(name[1])


def _newest_first(folder: Path) -> Iterator[Path]:
    return reversed(sorted((path for path in folder.glob("*.ckpt") if _NAME.fullmatch(path.name)), key=update_of))


def _write_atomically(path: Path, data: bytes) -> None:
    unfinished = path.parent / "unfinished"
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        unfinished.unlink(missing_ok=True)  # a full disk
        raise
    os.replace(unfinished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
