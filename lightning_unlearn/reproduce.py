"""The `reproduce` command: train a run again from its stored config, in a scratch store, and compare bit by bit."""

import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lightning_unlearn import fit, resume
from lightning_unlearn.envs.concept_config import custom_classes
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.files import save_policy, weights_digest
from lightning_unlearn.seeding import ARITHMETIC
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.addresses import sqlite_uri
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, store_address, tracking_uri


def main(args: Sequence[str]) -> None:
    """The `reproduce` command; ends with code 1 if a bit differs."""
    options = _parser().parse_args(args)
    open_store(options.tracking_uri)
    store = tracking_uri()
    run = runs.find_run(options.run)
    if run is None:
        raise ValueError(f"run={options.run}: there is no such run in {store_address()}.")
    if run.status != "FINISHED" or resume.CONFIG_DIGEST not in run.tags:
        raise ValueError(f"run={options.run} is no finished training: it is {run.status}. Name another run.")
    _require_known(run, options.concept, options.module)
    weights, metrics = _digests(registry.models_of_run(run.run_id)), _metrics(run)
    with tempfile.TemporaryDirectory() as scratch:
        again = fit.train(_arguments(run, Path(scratch)))
        found = _digests(again.saved), _metrics(runs.find_run(again.run_id))
    open_store(store)
    differing = _compare("weights after update", weights, found[0])
    differing += _compare("metric", metrics, found[1], only_differing=True)
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
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser


def _require_known(run: StoredRun, classes: Sequence[str], module: str | None) -> None:
    """Refuse to import a class or a module that only the stored config names: it may be anybody's."""
    options = runs.stored_options(run.run_id)
    env_id = str(options.get("data.env", ""))
    if (needed := env_id.rpartition(":")[0]) not in ("", module):
        raise ValueError(
            f"run={run.run_id} was trained in {env_id}, which importing {needed} registers: if you know the "
            f"module and have it here, name it by --module {needed}."
        )
    named = custom_classes([value for key, value in options.items() if key.startswith("data.concept")])
    if unknown := sorted(named - set(classes)):
        raise ValueError(
            f"run={run.run_id} forgot {', '.join(unknown)}, which is none of this package's concepts: if you know "
            f"the class and have it here, name it by --concept {' '.join(unknown)}."
        )


def _digests(saved: Mapping[int, str]) -> dict[str, str]:
    return {str(update): weights_digest(registry.load_policy(uri).policy) for update, uri in sorted(saved.items())}


def _metrics(run: StoredRun | None) -> dict[str, float]:
    """The last value of each metric, those of the clock left out."""
    metrics = {} if run is None else run.metrics
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def _arguments(run: StoredRun, scratch: Path) -> list[str]:
    """Options of `fit`: the stored config, with copies of the files that it reads from the run's own store."""
    text = runs.stored_config(run.run_id)
    (scratch / "config.yaml").write_text(text, encoding="utf-8")
    arguments = ["-c", str(scratch / "config.yaml"), "--tracking_uri", sqlite_uri(scratch / "mlflow.db")]
    if threads := resume.threads_of(run):
        arguments += ["--torch_threads", str(threads)]
    source = run.tags["source"]
    if source != "random":
        stored = registry.load_policy(source)
        save_policy(scratch / "source", stored.policy, stored.card)
        arguments += ["--model.source", source if registry.is_shipped(source) else str(scratch / "source")]
    artifact = yaml.safe_load(text)["model"]["init_args"].get("repedit_artifact")
    if artifact is not None:
        with runs.local_file(artifact) as path:
            copy = scratch / path.name
            copy.write_bytes(path.read_bytes())
        arguments += ["--model.repedit_artifact", str(copy)]
    return arguments


def _compare(what: str, expected: dict[str, Any], found: dict[str, Any], only_differing: bool = False) -> list[str]:
    """Print every pair of values, or only those that differ; return the names of those that differ."""
    differing = []
    for name in sorted({*expected, *found}, key=lambda name: (len(name), name)):
        there, here = expected.get(name), found.get(name)
        same = there == here or (there != there and here != here)  # not a number, both times
        if not (only_differing and same):
            print(f"{what} {name}: {there}, again {here}: {'equal' if same else 'DIFFERENT'}")
        differing += [] if same else [f"{what} {name}"]
    return differing


def _changes(run: StoredRun) -> str:
    """A sentence on the releases, and the arithmetic, that changed since the run."""
    own = {"python": platform.python_version(), "arithmetic": str(ARITHMETIC)}
    then = {key.removeprefix("version."): v for key, v in run.tags.items() if key.startswith("version.")}
    then.setdefault("arithmetic", "1")  # of runs from before it was recorded
    now = {name: own[name] if name in own else version(name) for name in sorted(then)}
    changed = [f"{name} {then[name]} → {now[name]}" for name in now if then[name] != now[name]]
    return f" Changed since: {', '.join(changed)}." if changed else " All releases are those of the run."
