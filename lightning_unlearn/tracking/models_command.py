"""The `models` command: list registered models, compare two of them, delete versions with their files."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lightning_unlearn.options import CommandParser, choose
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import ModelCard, weights_digest
from lightning_unlearn.safe_files import parse_json
from lightning_unlearn.tracking import inventory, registry, runs
from lightning_unlearn.tracking.inventory import Files, derived_from, megabytes, size
from lightning_unlearn.tracking.runs import StoredRun, utc
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address

_CARD = ("method", "env", "seed", "update", "env_steps", "concept", "note")
_SHOWN = [
    "Reward",
    "RewardStd",
    "Cost_Sum",
    "CostStd",
    "Cost_Free_Share",
    "C_forget_Rate",
    "KL_vs_Unsafe",
    "Layouts",
]
"""Columns of an evaluation's summary that `models compare` shows."""


def main(args: Sequence[str]) -> None:
    """Run a subcommand of `models`."""
    subcommands = {"list": _list_models, "compare": _compare, "delete": _delete}
    name, options = choose("models", list(subcommands), args)
    subcommands[name](options)


def _parser(command: str, description: str) -> CommandParser:
    return CommandParser(prog=f"lightning-unlearn models {command}", description=description)


def _add_store(parser: CommandParser) -> CommandParser:
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser


def _list_models(args: Sequence[str]) -> None:
    parser = _parser(
        "list",
        "List every version of every registered model, with its size on the disk and the number of runs that started "
        "from it.",
    )
    parser.add_argument("--env", type=str | None, default=None, help="only models of this task")
    parser.add_argument("--method", type=str | None, default=None, help="only models of this method")
    parser.add_argument("--seed", type=int | None, default=None, help="only models of this training seed")
    options = _add_store(parser).parse_args(args)
    open_store(options.tracking_uri)
    asked = {key: str(options[key]) for key in ("env", "method", "seed") if options[key] is not None}
    every = inventory.all_versions()
    versions = [version for version in every if asked.items() <= version.tags.items()]
    if not versions:
        given = " ".join(f"--{key} {value}" for key, value in asked.items())
        known = ", ".join(sorted({version.name for version in every})) or "none"
        raise ValueError(f"{given}: no such model in {store_address()}. Registered: {known}.".removeprefix(": "))
    files, all_runs = Files.of_store(), inventory.all_runs()
    folders = [files.of_model(inventory.model_id(version) or "") for version in versions]
    sizes = [size(folder) if folder is not None and folder.is_dir() else None for folder in folders]
    derived = [len(derived_from(version, all_runs, every)) for version in versions]
    rows = [_model_row(*about) for about in zip(versions, sizes, derived, strict=True)]
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"\n{len(rows)} versions, {megabytes(sum(taken or 0 for taken in sizes))} MB of files here.")
    if None in sizes:
        print("MB -: the files are not in this store's folder on this machine.")


def _model_row(version: ModelVersion, taken: int | None, derived: int) -> dict[str, Any]:
    own = registry.save_point_aliases(version.tags.get("seed"), version.tags.get("update"))
    return {
        "Model": f"models:/{version.name}/{version.version}",
        "Seed": version.tags.get("seed", "-"),
        "Update": version.tags.get("update", "-"),
        "Created": utc(version.creation_timestamp).strftime("%Y-%m-%d %H:%M"),
        "MB": megabytes(taken),
        "Run": version.run_id or "-",
        "Source_Of_Runs": derived,
        "Other_Aliases": ", ".join(sorted({*version.aliases} - {*own})) or "-",
    }


@dataclass(frozen=True)
class _Compared:
    """A model that is compared."""

    uri: str
    policy: ActorCritic
    card: ModelCard
    run_id: str | None
    """None if it is no version of a registered model."""
    source: str = "unknown"
    config: dict[str, Any] = field(default_factory=dict)
    """Config of its run, flat; empty if there is none."""

    @classmethod
    def read(cls, uri: str) -> "_Compared":
        """Read a model and what the store knows of its run."""
        stored = registry.load_policy(uri)
        run_id = registry.registered_version(uri).run_id if uri.startswith(("models:", "runs:")) else None
        run = None if run_id is None else runs.find_run(run_id)
        if run is None:
            return cls(uri, stored.policy, stored.card, run_id)
        source = run.tags.get("source", "unknown")
        return cls(uri, stored.policy, stored.card, run_id, source, runs.stored_options(run.run_id))

    @property
    def about(self) -> dict[str, Any]:
        """Rows that `models compare` shows first."""
        weights = sum(tensor.numel() for tensor in self.policy.state_dict().values())
        card = {name: getattr(self.card, name) for name in _CARD}
        return {"model": self.uri, **card, "run": self.run_id, "source": self.source, "weights": weights}


def _compare(args: Sequence[str]) -> None:
    parser = _parser("compare", "Show two models side by side: origin, config, weights and stored evaluations.")
    parser.add_argument("a", type=str, help="URI or file of a model")
    parser.add_argument("b", type=str, help="URI or file of another model")
    options = _add_store(parser).parse_args(args)
    open_store(options.tracking_uri)
    a, b = (_Compared.read(uri) for uri in (options.a, options.b))
    _print("Models", _side_by_side(a.about, b.about))
    if a.config and b.config:
        rows = _side_by_side(a.config, b.config)
        _print("Config differences", [row for row in rows if row[0] not in runs.EXECUTION_OPTIONS and row[1] != row[2]])
    else:
        _print("Config differences", [("no stored config", *("" if model.config else "yes" for model in (a, b)))])
    digests = [weights_digest(model.policy) for model in (a, b)]
    print(f"\nWeights: {'EQUAL, every bit' if digests[0] == digests[1] else 'DIFFERENT'}")
    if digests[0] != digests[1]:
        print(layer_differences(a.policy, b.policy).to_string(index=False, float_format="{:.6g}".format))
    evaluations = (newest_evaluation(m.card.env, digest) for m, digest in zip((a, b), digests, strict=True))
    _print("Stored evaluations", _side_by_side(*evaluations))


def layer_differences(a: ActorCritic, b: ActorCritic) -> pd.DataFrame:
    """Compare each layer's weights: both shapes, the L2 norm of the difference, and its largest entry.

    Numbers are missing if a layer is in only one of them, or has another shape.
    """
    ours, theirs = dict(a.state_dict()), dict(b.state_dict())
    rows = []
    for name in {**ours, **theirs}:
        pair = ours.get(name), theirs.get(name)
        shapes = ["-" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar" for tensor in pair]
        row = {"Layer": name, "A": shapes[0], "B": shapes[1], "L2": float("nan"), "Max": float("nan")}
        if name in ours and name in theirs and shapes[0] == shapes[1]:
            difference = (ours[name].double() - theirs[name].double()).flatten()
            row |= {"L2": float(difference.norm()), "Max": float(difference.abs().max())}
        rows.append(row)
    return pd.DataFrame(rows)


def newest_evaluation(env_id: str, digest: str) -> dict[str, Any]:
    """Return numbers of the newest finished evaluation of these weights, with its run; empty if there is none."""
    if not env_id:  # a file of the published layout names none
        return {}
    finished = [run for run in runs.stored_runs(env_id) if run.audit == "policy-suite" and run.status == "FINISHED"]
    for run in reversed(finished):
        row: dict[str, Any] = {}
        with suppress(MlflowException, OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged or gone
            written = runs.artifact_paths(run.run_id, "eval/policy_suite_eval")
            paths = {path.rpartition("/")[2]: path for path in written}
            files = (paths[name] for name in ("metadata.json", "summary.json"))
            metadata, summary = (parse_json(runs.read_artifact(run.run_id, path)) for path in files)
            labels = [label for label, about in metadata["models"].items() if about["weights_sha256"] == digest]
            row = next((dict(entry) for entry in summary["models"] if entry["Model"] in labels), {})
        if row:
            return {"run": run.run_id} | {column: row.get(column) for column in _SHOWN}
    return {}


def _side_by_side(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, _text(a.get(key)), _text(b.get(key))) for key in {**a, **b}]


def _text(value: Any) -> str:
    return "-" if value is None or value == "" else f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    print(f"\n{title}" if rows else f"\n{title}: none")
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for name, a, b in rows:
        print(f"  {name:<{widths[0]}}  {a:<{widths[1]}}  {'=' if a == b else '|'}  {b}")


@dataclass(frozen=True)
class _Doomed:
    """A version that is asked to be deleted."""

    version: ModelVersion
    model_id: str | None
    """None if it has no model of its own: another version shares it, or it was registered by other means."""
    folder: Path | None
    """The model's files; None if they are not in the store's own folder here."""

    @property
    def uri(self) -> str:
        """URI by its number."""
        return f"models:/{self.version.name}/{self.version.version}"


def _delete(args: Sequence[str]) -> None:
    parser = _parser("delete", "Delete versions of registered models, with their files; without --yes, only show them.")
    parser.add_argument(
        "models", type=str, nargs="+", help="models:/NAME/VERSION, models:/NAME@ALIAS, runs:/RUN/update-N"
    )
    parser.add_argument("--yes", action="store_true", help="delete; without this it is only shown")
    parser.add_argument("--force", action="store_true", help="also what other runs started from")
    options = _add_store(parser).parse_args(args)
    open_store(options.tracking_uri)
    files = Files.of_store()
    all_runs, every = inventory.all_runs(), inventory.all_versions()
    doomed = list({one.uri: one for one in (_find_doomed(uri, files, every) for uri in options.models)}.values())
    _require_deletable(doomed, all_runs, every, options.force)
    for one in doomed:
        aliases = f", aliases {', '.join(sorted(one.version.aliases))}" if one.version.aliases else ""
        stays = "no files of its own in the store's folder here: what it has stays"
        print(f"  {one.uri}: {stays if one.folder is None else f'{megabytes(size(one.folder))} MB'}{aliases}")
    if not options.yes:
        print("Nothing was deleted. Add --yes to delete it.")
        return
    for one in doomed:  # the version first, so that nothing ever refers to files that are gone
        registry.delete_version(one.version.name, str(one.version.version))
        if one.model_id is not None:
            with suppress(MlflowException):  # it may be deleted already
                mlflow.MlflowClient().delete_logged_model(one.model_id)
        if one.folder is not None:
            files.delete(one.folder)
        print(f"Deleted {one.uri}.")
    if files.artifacts is None:
        print(f"Files are kept by the server {store_address()}, where `mlflow gc` clears them up.")


def _find_doomed(uri: str, files: Files, every: Sequence[ModelVersion]) -> _Doomed:
    if not uri.startswith(("models:", "runs:")):
        kind = "a model that the package ships" if registry.is_shipped(uri) else "no version of a registered model"
        raise ValueError(f"{uri} is {kind}: only models:/… and runs:/… can be deleted (see `models list`).")
    named = registry.registered_version(uri)
    version = next(v for v in every if (v.name, str(v.version)) == (named.name, str(named.version)))
    model = inventory.model_id(version)
    if model is None or sum(inventory.model_id(other) == model for other in every) > 1:
        return _Doomed(version, None, None)
    folder = files.of_model(model)
    return _Doomed(version, model, folder if folder is not None and files.owns(folder) else None)


def _require_deletable(
    doomed: Sequence[_Doomed], all_runs: Sequence[StoredRun], every: Sequence[ModelVersion], force: bool
) -> None:
    writing = {run.run_id for run in all_runs if run.may_write}
    for one in doomed:
        if one.version.run_id in writing:
            raise ValueError(f"{one.uri} is of run {one.version.run_id}, which still runs: wait, or stop it first.")
    for one in doomed:
        if not force and (derived := derived_from(one.version, all_runs, every)):
            named = ", ".join(f"{run.name} ({run.run_id}, {run.status})" for run in derived)
            raise ValueError(
                f"{one.uri} is what other runs started from: {named}. Without it they can be neither reproduced nor "
                "resumed. Nothing was deleted; to delete it nevertheless, add --force."
            )
