"""The policy suite's files: each model's result as soon as it is there, and the four files at the end."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_unlearn.audits.records import write_json
from lightning_unlearn.audits.suite import Result
from lightning_unlearn.safe_files import read_json

SUMMARY, PER_EPISODE, SUMMARY_JSON, METADATA = "summary.csv", "per_episode.csv", "summary.json", "metadata.json"
FILES = (SUMMARY, PER_EPISODE, SUMMARY_JSON, METADATA)
VIDEOS = "videos"
PARTIAL = "partial"
MAX_BYTES = 1 << 26
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


class Partial:
    """The results of an evaluation that is under way, one file a model.

    Args:
        folder: Of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PARTIAL

    def read(self, label: str, settings: Mapping[str, Any]) -> Result | None:
        """A model's result; None if it is not there, is damaged or was found with other settings or weights."""
        try:
            stored = read_json(self.folder / f"{label}.json", MAX_BYTES)
            if stored["settings"] != settings or "cut_at_max_steps" not in stored["episodes"]:  # of an older release
                return None
            odd = {place.removeprefix("change/"): float(kind) for place, kind in stored.get("not_finite", {}).items()}
            return Result(pd.DataFrame(stored["episodes"]), {k: odd.get(k, v) for k, v in stored["change"].items()})
        except _DAMAGED:
            return None

    def write(self, label: str, settings: Mapping[str, Any], result: Result) -> None:
        """Keep a model's result; the file appears whole or not at all."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{label}.json"
        beginning = path.with_suffix(".beginning")
        episodes = result.episodes.to_dict("list")
        write_json(beginning, {"settings": settings, "episodes": episodes, "change": result.change})
        os.replace(beginning, path)

    def remove(self) -> None:
        """All models are done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def finished(folder: Path) -> Mapping[str, Any] | None:
    """The metadata of a finished evaluation; None where there is none."""
    if not all((folder / name).is_file() for name in FILES):
        return None
    try:
        found = read_json(folder / METADATA, MAX_BYTES)
        return found if isinstance(found, dict) else None
    except _DAMAGED:
        return None


def write_files(
    folder: Path,
    summary: pd.DataFrame,
    per_episode: pd.DataFrame,
    findings: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """The four files.

    Args:
        folder: Where to.
        summary: One row a model.
        per_episode: One row a model and episode.
        findings: What `summary.json` says beside the rows.
        metadata: What was asked for and how it was computed.
    """
    summary.to_csv(folder / SUMMARY, index=False)
    per_episode.to_csv(folder / PER_EPISODE, index=False)
    write_json(folder / SUMMARY_JSON, {**findings, "models": records(summary)})
    write_json(folder / METADATA, metadata)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, None where a cell is empty."""
    rows = table.astype(object).to_dict("records")
    return [{str(name): None if pd.isna(cell) else cell for name, cell in row.items()} for row in rows]
