"""The `export-artifacts` command: the published tree of models, probes, evaluations and logs, from the store."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.outputs import ARTIFACTS, add_store_option
from lightning_unlearn.audits.probes import LinearProbe, load_probe
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.published_format import file_name, save_published
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import open_store

FOLDERS = ("models", "probes", "eval", "logs/train", "logs/eval", "logs/debug")
NOT_EXPORTED = "logs/debug/not_exported.txt"


def main(args: Sequence[str]) -> None:
    """Write the tree, and list its files."""
    parser = CommandParser(prog="lightning-unlearn export-artifacts", description=__doc__)
    parser.add_argument("--out", type=str, default=ARTIFACTS, help="folder of the tree")
    parser.add_argument("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the models")
    add_store_option(parser)
    options = parser.parse_args(args)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed} is not possible: use 0 or more.")
    open_store(options.tracking_uri)
    models, past = _models(options.env, options.seed), runs.stored_runs(options.env)
    past = [run for run in past if options.seed in run.seeds or (run.audit and not run.seeds)]  # or of no seed
    out = Path(options.out)
    try:
        for folder in FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {options.out} cannot be written ({error.strerror}): name another folder.") from error
    left_out = _write_models(out, options.env, models)
    _write_audits(out, [run for run in past if run.audit])
    for run in past:
        kind, name = "eval" if run.audit else "train", run.name.replace("/", "-")  # anybody may rename a run
        (out / "logs" / kind / f"{name}_{run.run_id[:8]}.log").write_text(runs.as_text(run), encoding="utf-8")
    if left_out:
        (out / NOT_EXPORTED).write_text("\n".join(left_out) + "\n", encoding="utf-8")
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    print("\n".join([f"{out.resolve()}:", *(f"  {path}" for path in files), *(f"Left out: {why}" for why in left_out)]))


def as_pipeline(probe: LinearProbe) -> Pipeline:
    """The probe as scikit-learn's StandardScaler and LogisticRegression, which the published scripts unpickle."""
    scaler, model = StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")
    scaler.mean_, scaler.scale_, scaler.var_ = probe.scaler_mean, probe.scaler_scale, probe.scaler_scale**2
    scaler.n_features_in_ = model.n_features_in_ = probe.size
    model.coef_, model.intercept_ = probe.coefficients[None], np.atleast_1d(probe.intercept)
    model.classes_ = np.array([0, 1])
    return make_pipeline(scaler, model)


def _models(env_id: str, seed: int) -> list[tuple[str, str, int]]:
    """URI, method and update of each model; the shipped expert stands in where the seed has none.

    Raises:
        ValueError: There are none.
    """
    found = registry.registered_models(env_id, seed)
    if not found:
        raise ValueError(
            f"no model of --env {env_id} with --seed {seed} was found in the store: train one with "
            "`lightning-unlearn fit`, or name another seed or environment."
        )
    models = [(model.uri, model.method, model.update) for model in found if model.method != UNSAFE]
    try:
        return [(registry.expert_uri(env_id, seed), UNSAFE, -1), *models]
    except ValueError:
        return models


def _write_models(out: Path, env_id: str, models: Sequence[tuple[str, str, int]]) -> list[str]:
    """Write the models' files; returns which were left out, and why."""
    left_out = []
    for uri, method, update in models:
        file = Path("models", method, file_name(method, env_id, update))
        try:
            save_published(out / file, registry.load_policy(uri).policy)
        except ValueError as error:
            left_out.append(f"{uri}: {error}")
        else:
            print(f"{uri} -> {file.as_posix()}")
    return left_out


def _write_audits(out: Path, audits: Sequence[runs.StoredRun]) -> None:
    """Copy the files of the audits' runs, newer over older ones, and pickle each safe probe beside itself."""
    for run in audits:
        for place in ("probes", "eval"):
            runs.copy_artifacts(run.run_id, place, out)
    for path in sorted((out / "probes").glob("*.npz")):
        try:
            stored = load_probe(str(path))
        except ValueError:
            continue  # a dataset of states is no probe
        path.with_suffix(".pkl").write_bytes(pickle.dumps(as_pipeline(stored.probe)))
