"""The `runs` command: `runs list`, every run with what it takes on the disk."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from lightning_unlearn.housekeeping import inventory
from lightning_unlearn.housekeeping.disk import Files, megabytes, size
from lightning_unlearn.options import CommandParser, choose
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address


def main(args: Sequence[str]) -> None:
    """Run a subcommand."""
    _, options = choose("runs", ["list"], args)
    _list(_parser().parse_args(options))


def _list(options: Any) -> None:
    open_store(options.tracking_uri)
    runs = inventory.all_runs(options.env)
    if not runs:
        raise ValueError(_none(options.env))
    files, versions = Files.of_store(), inventory.all_versions()
    rows = [_row(run, [v for v in versions if v.run_id == run.info.run_id], files) for run in runs]
    columns = ("Artifacts_MB", "Checkpoints_MB", "Models_MB")
    total = {column: _sum(row[column] for row in rows) for column in columns}
    shown = [row | {column: megabytes(row[column]) for column in columns} for row in rows]
    print(pd.DataFrame(shown).to_string(index=False))
    print(
        f"\n{len(rows)} runs: "
        + ", ".join(f"{name.removesuffix('_MB')} {megabytes(n)} MB" for name, n in total.items())
    )
    if files.artifacts is None:
        print(f"Artifacts and models are kept by the server {store_address()}: their sizes are not known here.")


def _row(run: Run, versions: Sequence[ModelVersion], files: Files) -> dict[str, Any]:
    remote = files.artifacts is None
    models = [files.of_model(inventory.model_id(version) or "") for version in versions]
    return {
        "Run": run.info.run_id,
        "Name": run.info.run_name,
        "Env": run.data.tags.get("env", "-"),
        "Status": "deleted" if inventory.is_deleted(run) else run.info.status,
        "Started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M"),
        "Artifacts_MB": None if remote else size(files.of_run(run.info.run_id)),
        "Checkpoints_MB": size(files.checkpoints_of(run.info.run_id)),
        "Models": len(versions),
        "Models_MB": None if remote else sum(map(size, models)),
    }


def _sum(sizes: Any) -> int | None:
    known = list(sizes)
    return None if None in known else sum(known)


def _none(env: str | None) -> str:
    known = ", ".join(sorted(e.name for e in inventory.all_experiments() if e.name != "Default")) or "none"
    where = "" if env is None else f"--env {env}: "
    return f"{where}there is no run in {store_address()}. Environments in it: {known}."


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn runs list", description=__doc__)
    parser.add_argument("--env", type=str | None, default=None, help="only runs of this task")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
