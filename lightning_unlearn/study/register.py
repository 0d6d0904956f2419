"""The `register` command: stored weights become save points of a method in the store, as if they were trained here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.files import StoredPolicy
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment


def main(args: Sequence[str]) -> None:
    """Read every file, then register them all, with one run."""
    parser = CommandParser(prog="lightning-unlearn register", description=__doc__)
    add = parser.add_argument
    add("--env", type=str, required=True, help="the task")
    add("--method", type=str, required=True, help="the method that they pass for")
    add("--seed", type=int, default=0, help="seed that they were trained with")
    add("--updates", type=int, nargs="+", required=True, help="updates that they were trained for, one a model")
    add("--model_path", type=str, nargs="+", required=True, help="URIs or files of the models")
    add("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    options = parser.parse_args(args)
    if len(options.updates) != len(options.model_path):
        raise ValueError("--updates and --models must name equally many.")
    found = [_load(uri, update, options) for update, uri in zip(options.updates, options.model_path, strict=True)]
    open_store(options.tracking_uri)
    require_active_experiment(options.env)
    name, sources = f"{options.method}-seed{options.seed}", " ".join(options.model_path)
    about = {"method": options.method, "seed": str(options.seed), "env": options.env, "source": sources}
    run_id = runs.record_training(options.env, name, about)
    for stored in found:
        version = registry.register_policy(stored.policy, stored.card, run_id)
        print(f"models:/{registry.model_name(options.method, options.env)}/{version}")
    print(f"MLflow run: {run_id}")


def _load(uri: str, update: int, options: Any) -> StoredPolicy:
    """Load a model, with the card of the save point that it becomes."""
    stored = registry.load_policy(uri)
    if stored.card.env not in ("", options.env):
        raise ValueError(f"--models {uri} is a model of {stored.card.env}, not of --env {options.env}.")
    known = {"method": options.method, "env": options.env, "seed": options.seed, "update": update}
    return replace(stored, card=replace(stored.card, **known))
