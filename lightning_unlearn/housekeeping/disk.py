"""The files of a store: where they are, how large they are, and how they are deleted without ever leaving its folders.

What a database says of places is not believed: a folder is found by the id of its run or model, in the store's own
folders. No link is followed.
"""

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lightning_unlearn.tracking.store import ARTIFACTS, checkpoints_root, store_folder

_RUN_ID, _MODEL_ID = re.compile(r"[0-9a-f]{32}"), re.compile(r"m-[0-9a-f]{32}")
SETTLED_S = 3600.0
"""What nobody knows of is left alone until nothing in it has changed for so many seconds: it may be in the making."""


@dataclass(frozen=True)
class Files:
    """The present store's own folders on this machine."""

    root: Path
    """All of them lie in it. Where a server keeps the store's files, only checkpoints are here."""
    checkpoints: Path
    artifacts: Path | None
    """Of runs; None where a server keeps them, as the next."""
    models: Path | None

    @classmethod
    def of_store(cls) -> "Files":
        """Those of the present store."""
        root, checkpoints = store_folder(), checkpoints_root()
        if root is None:
            return cls(checkpoints.parent, checkpoints, None, None)
        return cls(root, checkpoints, root / ARTIFACTS, root / ARTIFACTS / "models")

    def of_run(self, run_id: str) -> Path | None:
        """A run's artifacts."""
        return _child(self.artifacts, run_id, _RUN_ID)

    def of_model(self, model_id: str) -> Path | None:
        """A model's files."""
        return _child(self.models, model_id, _MODEL_ID)

    def checkpoints_of(self, run_id: str) -> Path | None:
        """What a run resumes from."""
        return _child(self.checkpoints, run_id, _RUN_ID)

    def run_folders(self) -> Iterator[Path]:
        """Folders of runs' artifacts, whether or not there are such runs."""
        return _children(self.artifacts, _RUN_ID)

    def model_folders(self) -> Iterator[Path]:
        """Folders of models, whether or not there are such models."""
        return _children(self.models, _MODEL_ID)

    def checkpoint_folders(self) -> Iterator[Path]:
        """Folders of checkpoints, whether or not there are such runs."""
        return _children(self.checkpoints, _RUN_ID)

    def owns(self, path: Path) -> bool:
        """Whether something is there, in the store's own folders and behind no link."""
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else Path()
        return (
            bool(inside.parts) and ".." not in inside.parts and os.path.lexists(path) and self._is_direct(path, inside)
        )

    def delete(self, path: Path) -> None:
        """Delete a file, or a folder with all that is in it; links inside are deleted, not what they point to.

        Raises:
            ValueError: It is gone, lies elsewhere than in the store's folders, or behind a link.
        """
        if not self.owns(path):
            raise ValueError(f"{path} is not deleted: it is gone, not in the store's own folders, or behind a link.")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _is_direct(self, path: Path, inside: Path) -> bool:
        return path.resolve() == self.root.resolve() / inside


def size(path: Path | None) -> int:
    """Bytes of all files in a folder, or of a file; nothing is counted twice, and no link is followed."""
    if path is None:
        return 0
    found = {(s.st_dev, s.st_ino): s.st_size for s in _stats(path) if stat.S_ISREG(s.st_mode)}
    return sum(found.values())


def is_settled(path: Path) -> bool:
    """Whether nothing in it has changed for a while."""
    return time.time() - max((s.st_mtime for s in _stats(path)), default=0.0) > SETTLED_S


def megabytes(size_in_bytes: int | None) -> str:
    """A size as tables show it, in MB of 10⁶ bytes; a dash for what is not on this machine."""
    return "-" if size_in_bytes is None else f"{size_in_bytes / 1e6:.2f}"


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of a file or folder and of all that is in it; what vanishes meanwhile is left out."""
    places = [str(path)]
    for folder, folders, files in () if path.is_symlink() else os.walk(path):
        places += [os.path.join(folder, name) for name in (*folders, *files)]
    for place in places:
        try:
            yield os.lstat(place)
        except FileNotFoundError:
            continue


def _child(folder: Path | None, name: str, kind: re.Pattern[str]) -> Path | None:
    return folder / name if folder is not None and kind.fullmatch(name) else None


def _children(folder: Path | None, kind: re.Pattern[str]) -> Iterator[Path]:
    if folder is None or folder.is_symlink() or folder.parent.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if kind.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path
