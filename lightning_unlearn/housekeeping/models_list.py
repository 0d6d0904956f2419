"""`models list`: every version of every registered model, with its size on the disk and what started from it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from lightning_unlearn.housekeeping import inventory
from lightning_unlearn.housekeeping.disk import Files, megabytes, size
from lightning_unlearn.housekeeping.lineage import derived_from
from lightning_unlearn.options import CommandParser
from lightning_unlearn.tracking.registry import save_point_aliases
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address


def main(args: Sequence[str]) -> None:
    """Print the table of what the options name."""
    options = _parser().parse_args(args)
    open_store(options.tracking_uri)
    every = inventory.all_versions()
    versions = [version for version in every if _is_wanted(version, options)]
    if not versions:
        raise ValueError(_none(options, every))
    files, runs = Files.of_store(), inventory.all_runs()
    sizes = [_size(version, files) for version in versions]
    rows = [
        _row(version, megabytes(taken), derived_from(version, runs, every))
        for version, taken in zip(versions, sizes, strict=True)
    ]
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"\n{len(rows)} versions, {megabytes(sum(taken or 0 for taken in sizes))} MB of files here.")
    if None in sizes:
        print("MB -: the files are not in this store's folder on this machine.")


def _is_wanted(version: ModelVersion, options: Any) -> bool:
    wanted = {"env": options.env, "method": options.method, "seed": options.seed}
    return all(value is None or version.tags.get(key) == str(value) for key, value in wanted.items())


def _row(version: ModelVersion, taken: str, derived: Sequence[Run]) -> dict[str, Any]:
    own = save_point_aliases(version.tags.get("seed"), version.tags.get("update"))
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return {
        "Model": f"models:/{version.name}/{version.version}",
        "Seed": version.tags.get("seed", "-"),
        "Update": version.tags.get("update", "-"),
        "Created": created.strftime("%Y-%m-%d %H:%M"),
        "MB": taken,
        "Run": version.run_id or "-",
        "Source_Of_Runs": len(derived),
        "Other_Aliases": ", ".join(sorted({*version.aliases} - {*own})) or "-",
    }


def _size(version: ModelVersion, files: Files) -> int | None:
    """Bytes; None where the files are not here."""
    folder = files.of_model(inventory.model_id(version) or "")
    return size(folder) if folder is not None and folder.is_dir() else None


def _none(options: Any, versions: Sequence[ModelVersion]) -> str:
    given = [f"--{key} {options[key]}" for key in ("env", "method", "seed") if options[key] is not None]
    known = ", ".join(sorted({version.name for version in versions})) or "none"
    return f"{' '.join(given)}: no such model in {store_address()}. Registered: {known}.".removeprefix(": ")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn models list", description=__doc__)
    parser.add_argument("--env", type=str | None, default=None, help="only models of this task")
    parser.add_argument("--method", type=str | None, default=None, help="only models of this method")
    parser.add_argument("--seed", type=int | None, default=None, help="only models of this training seed")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
