"""The `runs` command: `runs list` shows every run with its size on the disk."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from lightning_unlearn.options import CommandParser, choose
from lightning_unlearn.tracking import inventory
from lightning_unlearn.tracking.inventory import Files, megabytes, size
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address


def main(args: Sequence[str]) -> None:
    """Run `runs list`, the only subcommand."""
    _, args = choose("runs", ["list"], args)
    parser = CommandParser(
        prog="lightning-unlearn runs list", description="List every run of the store, with its size on the disk."
    )
    parser.add_argument("--env", type=str | None, default=None, help="only runs of this task")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    options = parser.parse_args(args)
    open_store(options.tracking_uri)
    found = inventory.all_runs(options.env)
    if not found:
        known = ", ".join(sorted(e.name for e in inventory.all_experiments() if e.name != "Default")) or "none"
        where = "" if options.env is None else f"--env {options.env}: "
        raise ValueError(f"{where}there is no run in {store_address()}. Environments in it: {known}.")
    files, versions = Files.of_store(), inventory.all_versions()
    rows = [_row(run, [v for v in versions if v.run_id == run.run_id], files) for run in found]
    columns = ("Artifacts_MB", "Checkpoints_MB", "Models_MB")
    shown = [row | {column: megabytes(row[column]) for column in columns} for row in rows]
    print(pd.DataFrame(shown).to_string(index=False))
    total = {column: None if rows[0][column] is None else sum(row[column] for row in rows) for column in columns}
    sums = ", ".join(f"{name.removesuffix('_MB')} {megabytes(number)} MB" for name, number in total.items())
    print(f"\n{len(rows)} runs: {sums}")
    if files.artifacts is None:
        print(f"Artifacts and models are kept by the server {store_address()}: their sizes are not known here.")


def _row(run: StoredRun, versions: Sequence[ModelVersion], files: Files) -> dict[str, Any]:
    on_server = files.artifacts is None
    models = [files.of_model(inventory.model_id(version) or "") for version in versions]
    return {
        "Run": run.run_id,
        "Name": run.name,
        "Env": run.tags.get("env", "-"),
        "Status": "deleted" if run.is_deleted else run.status,
        "Started": run.started.strftime("%Y-%m-%d %H:%M"),
        "Artifacts_MB": None if on_server else size(files.of_run(run.run_id)),
        "Checkpoints_MB": size(files.checkpoints_of(run.run_id)),
        "Models": len(versions),
        "Models_MB": None if on_server else sum(map(size, models)),
    }
