"""The `reproduce` command: a run is made again from its stored config, in a scratch store, and compared bit by bit."""

import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lightning_unlearn import resumption, training
from lightning_unlearn.arithmetic import ARITHMETIC
from lightning_unlearn.audits.subjects import weights_digest
from lightning_unlearn.envs.concept_option import classes_of_their_own
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.storage import save_policy
from lightning_unlearn.tracking import registry

_WALL_CLOCK = "time/"


def main(args: Sequence[str]) -> None:
    """The `reproduce` command; ends with code 1 where a bit differs."""
    options = _parser().parse_args(args)
    registry.open_store(options.tracking_uri)
    store = registry.tracking_uri()
    run = _finished(options.run)
    _require_known(run, options.concept, options.module)
    weights, metrics = _digests(_versions(run.info.run_id)), _metrics(run)
    with tempfile.TemporaryDirectory() as scratch:
        again = training.train(_arguments(run, Path(scratch)))
        found = _digests(again.saved), _metrics(mlflow.MlflowClient().get_run(again.run_id))
    registry.open_store(store)
    differing = _compared("weights after update", weights, found[0])
    differing += _compared("metric", metrics, found[1], quiet=True)
    if differing:
        print(f"NOT reproduced: {', '.join(differing)}.{_changes(run)}")
        raise SystemExit(1)
    print(f"Reproduced: {len(weights)} save points and the last of {len(metrics)} metrics agree to the bit.")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn reproduce", description=__doc__)
    parser.add_argument("run", type=str, help="id of a finished run")
    known = "classes of your own that the run's concept names: they are run, so read them first"
    parser.add_argument("--concept", type=str, nargs="*", default=[], help=known)
    module = "module that the run's environment is registered by, as in module:Id-v0: importing it runs its code"
    parser.add_argument("--module", type=str | None, default=None, help=module)
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=registry.TRACKING_URI_HELP)
    return parser


def _finished(run_id: str) -> Run:
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"run={run_id}: there is no such run in {registry.store_address()}.") from error
    if run.info.status != "FINISHED" or resumption.CONFIG_DIGEST not in run.data.tags:
        raise ValueError(f"run={run_id} is no finished training: it is {run.info.status}. Name another run.")
    return run


def _require_known(run: Run, classes: Sequence[str], module: str | None) -> None:
    """A stored config may be anybody's: no class and no module that only it names is imported."""
    options = resumption.stored_options(run.info.run_id)
    named = classes_of_their_own([value for key, value in options.items() if key.startswith("data.concept")])
    env_id = str(options.get("data.env", ""))
    if (needed := env_id.rpartition(":")[0]) not in ("", module):
        raise ValueError(
            f"run={run.info.run_id} was trained in {env_id}, which importing {needed} registers: if you know the "
            f"module and have it here, name it by --module {needed}."
        )
    unknown = sorted(named - set(classes))
    if unknown:
        raise ValueError(
            f"run={run.info.run_id} forgot {', '.join(unknown)}, which is none of this package's concepts: if you know "
            f"the class and have it here, name it by --concept {' '.join(unknown)}."
        )


def _versions(run_id: str) -> dict[int, str]:
    found = mlflow.MlflowClient().search_model_versions(f"run_id='{run_id}'")
    return {int(v.tags["update"]): f"models:/{v.name}/{v.version}" for v in found}


def _digests(saved: dict[int, str]) -> dict[str, str]:
    return {str(update): weights_digest(registry.load_policy(uri).policy) for update, uri in sorted(saved.items())}


def _metrics(run: Run) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if not name.startswith(_WALL_CLOCK)}


def _arguments(run: Run, scratch: Path) -> list[str]:
    """Options of `fit`: the stored config, with copies of what it reads from the run's own store."""
    text = resumption.stored_config(run.info.run_id)
    (scratch / "config.yaml").write_text(text, encoding="utf-8")
    arguments = ["-c", str(scratch / "config.yaml"), "--tracking_uri", registry.sqlite_uri(scratch / "mlflow.db")]
    if threads := resumption.threads_of(run):
        arguments += ["--torch_threads", str(threads)]
    source = run.data.tags["source"]
    if source != "random":
        stored = registry.load_policy(source)
        save_policy(scratch / "source", stored.policy, stored.card)
        arguments += ["--model.source", source if registry.is_shipped(source) else str(scratch / "source")]
    artifact = yaml.safe_load(text)["model"]["init_args"].get("repedit_artifact")
    if artifact is not None:
        with registry.local_file(artifact) as path:
            copy = scratch / path.name
            copy.write_bytes(path.read_bytes())
        arguments += ["--model.repedit_artifact", str(copy)]
    return arguments


def _compared(what: str, expected: dict[str, Any], found: dict[str, Any], quiet: bool = False) -> list[str]:
    """Names of what differs; prints every pair, or those that differ."""
    differing = []
    for name in sorted({*expected, *found}, key=lambda name: (len(name), name)):
        there, here = expected.get(name), found.get(name)
        same = there == here or (there != there and here != here)  # not a number, both times
        if not (quiet and same):
            print(f"{what} {name}: {there}, again {here}: {'equal' if same else 'DIFFERENT'}")
        differing += [] if same else [f"{what} {name}"]
    return differing


def _changes(run: Run) -> str:
    """What of the circumstances changed since."""
    then = {key.removeprefix("version."): v for key, v in run.data.tags.items() if key.startswith("version.")}
    then.setdefault("arithmetic", "1")  # of runs from before it was recorded
    changed = [f"{name} {old} → {_now(name)}" for name, old in sorted(then.items()) if old != _now(name)]
    return f" Changed since: {', '.join(changed)}." if changed else " All releases are those of the run."


def _now(name: str) -> str:
    own = {"python": platform.python_version(), "arithmetic": str(ARITHMETIC)}
    return own[name] if name in own else version(name)
