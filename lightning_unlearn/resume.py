"""`fit --resume`: find the run to go on with, and refuse one that was started with another config."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.old_names import REMOVED_CHOICES, drop_removed_choices
from lightning_unlearn.tracking import checkpoints, runs
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import checkpoint_folder, store_address

LAST = "last"
CONFIG_DIGEST = "config.sha256"
"""Tag of a training: the digest of its config."""
THREADS = "torch_threads"
"""Option, and tag of a run that holds the number of threads chosen where the option was `auto`."""


@dataclass(frozen=True)
class Resumption:
    """A run to go on with."""

    run_id: str
    source: str | None
    """URI of the model that it started from; None if it started from random weights, or was killed before that."""
    checkpoint: Path | None
    """None: it was killed before its first checkpoint, and starts again at the first update."""
    threads: int | None = None
    """PyTorch threads that it was trained with; None if unknown."""

    @property
    def updates(self) -> int:
        """Number of updates that are made already."""
        return 0 if self.checkpoint is None else checkpoints.update_of(self.checkpoint)


def config_digest(options: Mapping[str, Any]) -> str:
    """Return a digest that is equal for two trainings of the same config. `options` are flat."""
    fixed = {key: value for key, value in options.items() if key not in runs.EXECUTION_OPTIONS}
    fixed |= {key: choice.left for key, choice in REMOVED_CHOICES.items()}  # keeps the digests of older runs
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()


def find(wanted: str, env_id: str, tags: Mapping[str, str], options: Mapping[str, Any]) -> Resumption | None:
    """Find the run to resume; None if `last` finds no unfinished run, so that a new one is due.

    Args:
        wanted: `last` or the id of a run.
        env_id: Environment of the training.
        tags: Its method and seed.
        options: All of its options, flat.

    Raises:
        ValueError: There is no such run, it is finished or still running, or its options differ.
    """
    run = next(_unfinished(env_id, tags, options), None) if wanted == LAST else _named(wanted)
    if run is None:
        return None
    _require_same(run, options)
    folder, source = checkpoint_folder(run.run_id), run.tags.get("source", "random")
    checkpoint = checkpoints.newest(folder)
    if checkpoint is None and run.metrics:
        raise ValueError(
            f"--resume {wanted}: run {run.run_id} has made updates, but {folder} holds no checkpoint that is "
            "whole: resume on the machine that it ran on, or start anew without --resume."
        )
    return Resumption(run.run_id, None if source == "random" else source, checkpoint, threads_of(run))


def threads_of(run: StoredRun) -> int | None:
    """Return the PyTorch threads that a run was trained with: its tag, or else its option (runs of before the tag)."""
    threads = str(run.tags.get(THREADS) or runs.stored_options(run.run_id).get(THREADS))
    return int(threads) if threads.isdigit() and int(threads) else None


def _unfinished(env_id: str, tags: Mapping[str, str], options: Mapping[str, Any]) -> Iterator[StoredRun]:
    """Unfinished runs of a method and seed, newest first; those of the same config before all others."""
    own = runs.stored_runs(env_id, {key: tags[key] for key in ("method", "seed")})
    found = [run for run in reversed(own) if run.status in ("KILLED", "FAILED") and CONFIG_DIGEST in run.tags]
    digest = config_digest(options)
    yield from (run for run in found if run.tags[CONFIG_DIGEST] == digest)
    yield from (run for run in found if _differing(runs.stored_options(run.run_id), options) == [])
    yield from found


def _named(run_id: str) -> StoredRun:
    run = runs.find_run(run_id)
    if run is None:
        raise ValueError(f"--resume {run_id}: there is no such run in {store_address()}.")
    if run.status in ("FINISHED", "RUNNING"):
        state = "finished already" if run.status == "FINISHED" else "still running"
        raise ValueError(f"--resume {run_id}: the run is {state}. Leave --resume out to start another.")
    return run


def _require_same(run: StoredRun, options: Mapping[str, Any]) -> None:
    if run.tags.get(CONFIG_DIGEST) == config_digest(options):
        return
    theirs = runs.stored_options(run.run_id)
    try:
        drop_removed_choices(theirs)
    except ValueError as error:
        raise ValueError(f"--resume: run {run.run_id} was started with an option of before. {error}") from error
    differing = _differing(theirs, options)
    if differing == []:
        return
    named = ", ".join(f"{key}={options.get(key)} (the run: {theirs.get(key)})" for key in differing or [])
    raise ValueError(
        f"--resume: run {run.run_id} was started with another config. What differs: {named or 'unknown'}. "
        "Give the same options, or leave --resume out to start another run."
    )


def _differing(theirs: Mapping[str, Any], options: Mapping[str, Any]) -> list[str] | None:
    """Names of the options that differ from a run's; None if the run stored none, being killed before.

    An option that did not exist when the run was started counts as null, as does one that no longer exists.
    """
    differing = sorted(
        key
        for key in {*theirs, *options} - {*runs.EXECUTION_OPTIONS, *REMOVED_CHOICES}
        if theirs.get(key) != options.get(key)
    )
    return differing if theirs else None
