"""Output of an audit: its folder, strict JSON, numbers for MLflow, and results kept while it is under way."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lightning_unlearn.options import CommandParser
from lightning_unlearn.safe_files import read_json
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment

ARTIFACTS = "artifacts"
"""Folder of the published artifacts tree."""
PARTIAL = "partial"
MAX_BYTES = 1 << 26
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of reading a result that somebody cut short or edited."""
_T = TypeVar("_T")


def add_store_option(parser: CommandParser) -> None:
    """Add `--tracking_uri` to a command."""
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)


def open_audit_store(tracking_uri: str | None, env_id: str) -> None:
    """Open the store, and refuse an environment whose experiment cannot take the audit's run.

    Raises:
        ValueError: The store cannot be opened, or the experiment was deleted.
    """
    open_store(tracking_uri)
    require_active_experiment(env_id)


class PartialResults:
    """Results of an audit under way, one JSON file a model, so that an interrupted audit continues.

    Args:
        folder: Folder of the audit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PARTIAL

    def read(self, label: str, settings: Mapping[str, Any], parse: Callable[[Any], _T | None]) -> _T | None:
        """A model's result; None if it is missing, damaged, or belongs to other settings or weights."""
        try:
            content = read_json(self.folder / f"{label}.json", MAX_BYTES)
            return parse(content) if content["settings"] == settings else None
        except DAMAGED:
            return None

    def write(self, label: str, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        """Keep a model's result; the file appears whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{label}.json"
        beginning = path.with_suffix(".beginning")
        write_json(beginning, {"settings": settings, **content})
        os.replace(beginning, path)

    def remove(self) -> None:
        """Delete the results once the audit's own files are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def strict(value: Any) -> Any:
    """The same content as strict JSON: None for NaN and infinity, lists for arrays, Python's numbers for numpy's."""
    if isinstance(value, Mapping):
        return {str(key): strict(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return strict(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [strict(entry) for entry in value]
    return value


def not_finite(value: Any, name: str = "") -> dict[str, str]:
    """Names (joined with slashes) of the numbers in nested content that are `nan`, `inf` or `-inf`, and which."""
    if isinstance(value, Mapping):
        inner = [(f"{name}/{key}", entry) for key, entry in value.items()]
    elif isinstance(value, np.ndarray | np.generic):
        return not_finite(value.tolist(), name)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = [(f"{name}/{index}", entry) for index, entry in enumerate(value)]
    else:
        return {name.strip("/"): str(value)} if isinstance(value, float) and not math.isfinite(value) else {}
    return {place: kind for name, entry in inner for place, kind in not_finite(entry, name).items()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON; numbers that are not finite become null and are listed in a last entry `not_finite`."""
    found = not_finite(content)
    complete = {**content, **({"not_finite": found} if found else {})}
    path.write_text(json.dumps(strict(complete), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def flat_numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested metrics, by names joined with slashes."""
    flat: dict[str, float] = {}
    for key, value in strict(content).items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def output_file(option: str, value: str) -> Path:
    """The file that an option names; its folder is made now, so that no work is done that cannot be written.

    Raises:
        ValueError: The file cannot be written.
    """
    path = Path(value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with path.open("ab"):
            pass
        if path.stat().st_size == 0:
            path.unlink()
    except OSError as error:
        raise ValueError(f"--{option} {value} cannot be written ({error.strerror}): name another file.") from error
    return path


def results_folder(out: str | None, kind: str, eval_id: str | None) -> Path:
    """The folder of an audit's files, which exists: `out` itself if given, else `artifacts/eval/<kind>/<eval_id>`.

    Without `out` and `eval_id` it is a new one, from `new_folder`.

    Raises:
        ValueError: It cannot be written, or the id is no name of a folder.
    """
    if eval_id is not None and not re.fullmatch(r"[\w][\w.-]*", eval_id):
        raise ValueError(f"--eval_id {eval_id} is not possible: use letters, digits, dots, dashes and underscores.")
    if out is None and eval_id is None:
        return new_folder(ARTIFACTS, kind)
    folder = Path(ARTIFACTS, "eval", kind, str(eval_id)) if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written ({error.strerror}): name another folder.") from error
    return folder


def new_folder(out: str, kind: str) -> Path:
    """Make a new folder `<out>/eval/<kind>/<eval_id>`; the id is the time in UTC, with a number if that is taken.

    Raises:
        ValueError: It cannot be made.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    parent = Path(out) / "eval" / kind
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = parent / (stamp if number == 1 else f"{stamp}_{number}")
            if not folder.exists():
                folder.mkdir()
                return folder
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}): name another folder.") from error
    raise ValueError(f"--out {out} already holds a thousand evaluations of {stamp}: name another folder.")


def print_outputs(files: Sequence[Path], run_id: str) -> None:
    """Print where an audit's files are, and its MLflow run."""
    print("\n".join(f"  {file.resolve()}" for file in files) + f"\nMLflow run: {run_id}")
