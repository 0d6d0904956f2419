"""The `export-artifacts` command: the published tree of models, probes, evaluations and logs, from the store."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_unlearn.audits.places import ARTIFACTS
from lightning_unlearn.audits.probes import LinearProbe, load_probe
from lightning_unlearn.audits.subjects import UNSAFE
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.published_format import file_name, save_published
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store

FOLDERS = ("models", "probes", "eval", "logs/train", "logs/eval", "logs/debug")
NOT_EXPORTED = "logs/debug/not_exported.txt"


def main(args: Sequence[str]) -> None:
    """Write the tree and say what is in it."""
    options = _parser().parse_args(args)
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed} is not possible: use 0 or more.")
    open_store(options.tracking_uri)
    models, past = _models(options.env, options.seed), _runs_of_seed(options.env, options.seed)
    out = _tree(options.out)
    left_out = _write_models(out, options.env, models)
    _write_audits(out, [run for run in past if run.audit])
    _write_logs(out, past)
    if left_out:
        (out / NOT_EXPORTED).write_text("\n".join(left_out) + "\n", encoding="utf-8")
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    print("\n".join([f"{out.resolve()}:", *(f"  {path}" for path in files), *(f"Left out: {why}" for why in left_out)]))


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
    return [(registry.expert_uri(env_id, seed), UNSAFE, -1), *models] if _has_expert(env_id, seed) else models


def _runs_of_seed(env_id: str, seed: int) -> list[runs.StoredRun]:
    """The trainings of a seed and the audits of its models; so are audits of models that belong to no seed."""
    past = runs.stored_runs(env_id)
    return [run for run in past if seed in run.seeds or (run.audit and not run.seeds)]


def _has_expert(env_id: str, seed: int) -> bool:
    try:
        registry.expert_uri(env_id, seed)
    except ValueError:
        return False
    return True


def _tree(out: str) -> Path:
    try:
        for folder in FOLDERS:
            (Path(out) / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}): name another folder.") from error
    return Path(out)


def _write_models(out: Path, env_id: str, models: Sequence[tuple[str, str, int]]) -> list[str]:
    """Returns which were left out, and why."""
    left_out = []
    for uri, method, update in models:
        try:
            save_published(
                out / "models" / method / file_name(method, env_id, update), registry.load_policy(uri).policy
            )
        except ValueError as error:
            left_out.append(f"{uri}: {error}")
        else:
            print(f"{uri} -> models/{method}/{file_name(method, env_id, update)}")
    return left_out


def _write_audits(out: Path, audits: Sequence[runs.StoredRun]) -> None:
    """Files of the audits' runs, newer ones over older ones, and each safe probe as a pickle beside it."""
    for run in audits:
        for place in ("probes", "eval"):
            runs.copy_artifacts(run.run_id, place, out)
    for path in sorted((out / "probes").glob("*.npz")):
        try:
            stored = load_probe(str(path))
        except ValueError:
            continue  # a dataset of states is no probe
        path.with_suffix(".pkl").write_bytes(pickle.dumps(as_pipeline(stored.probe)))


def as_pipeline(probe: LinearProbe) -> Pipeline:
    """The probe as scikit-learn's StandardScaler and LogisticRegression, which the published scripts unpickle."""
    scaler, model = StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")
    scaler.mean_, scaler.scale_, scaler.var_ = probe.scaler_mean, probe.scaler_scale, probe.scaler_scale**2
    scaler.n_features_in_ = model.n_features_in_ = probe.size
    model.coef_, model.intercept_ = probe.coefficients[None], np.atleast_1d(probe.intercept)
    model.classes_ = np.array([0, 1])
    return make_pipeline(scaler, model)


def _write_logs(out: Path, past: Sequence[runs.StoredRun]) -> None:
    for run in past:
        kind = "eval" if run.audit else "train"
        name = run.name.replace("/", "-")  # anybody may rename a run
        (out / "logs" / kind / f"{name}_{run.run_id[:8]}.log").write_text(runs.as_text(run), encoding="utf-8")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn export-artifacts", description=__doc__)
    parser.add_argument("--out", type=str, default=ARTIFACTS, help="folder of the tree")
    parser.add_argument("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the models")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
