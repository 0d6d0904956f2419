"""What every audit writes: strict JSON, folders that exist, and numbers for MLflow."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np


def strict(value: Any) -> Any:
    """The same content as strict JSON knows it: no NaN or infinity (None instead), no arrays, no numpy numbers."""
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
    """Where in nested content a number is `nan`, `inf` or `-inf`, by names joined with slashes."""
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
    """Write strict JSON: null for a number that is not finite, and a last entry `not_finite` that says which are."""
    found = not_finite(content)
    said = {**content, **({"not_finite": found} if found else {})}
    path.write_text(json.dumps(strict(said), indent=2, allow_nan=False) + "\n", encoding="utf-8")


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
    """A file that an option names; its folder is made, so that nothing is computed that could not be written.

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


def evaluation_folder(out: str, kind: str) -> Path:
    """A new folder `<out>/eval/<kind>/<eval_id>`; the id is the time in UTC, with a number if that is taken.

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


def require_at_least(smallest: int, **values: int) -> None:
    """Refuse numbers that are too small.

    Raises:
        ValueError: One of them is.
    """
    for name, value in values.items():
        if value < smallest:
            raise ValueError(f"{name}={value} is not possible: use at least {smallest}.")
