"""`probe fit` and `probe eval`: a linear probe on a model's latents, and on another model's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_unlearn.audits.data_runs import print_reports, record_on_data, tell
from lightning_unlearn.audits.drawing import save_png
from lightning_unlearn.audits.features import latents, load_model, random_twin
from lightning_unlearn.audits.probe_data import ProbeData, load_data
from lightning_unlearn.audits.probe_figures import probe_figure
from lightning_unlearn.audits.probes import LinearProbe, StoredProbe, fit_probe, load_probe, probe_file, save_probe
from lightning_unlearn.audits.probes import report as report_splits
from lightning_unlearn.audits.records import output_file, require_at_least, write_json
from lightning_unlearn.audits.splits import (
    SplitOptions,
    Splits,
    add_split_options,
    make_splits,
    read_split_options,
    require_apart,
)
from lightning_unlearn.options import CommandParser
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment

FOLDER = "probes"
SHUFFLED = "shuffled labels"


class Outcome(NamedTuple):
    """What one probe says of every state, and the labels that it is scored on."""

    decision: np.ndarray
    """Shape: (N,)."""
    labels: np.ndarray
    """Shape: (N,)."""


def fit(args: Sequence[str]) -> None:
    """The `probe fit` command."""
    options, split_options = read_fit_options(args)
    out, metrics_out = output_file("out", str(probe_file(options.out))), output_file("metrics_out", options.metrics_out)
    data = load_data(options.dataset, options.env)
    splits = make_splits(data.labels, data.episode_ids, split_options)
    open_store(options.tracking_uri)
    require_active_experiment(data.env)
    probe, outcomes = fit_beside(_all_features(options, data), data.labels, splits, split_options.seed)
    stored = StoredProbe(probe, splits, _provenance(options, data))
    files = [out, save_probe(out, stored)]
    _finish("probe-fit", options, data, splits, outcomes, stored.metadata, files, metrics_out)
    if out != Path(options.out):
        print(f"{options.out} was asked for; a pickle can run code when it is read, so the probe is {out.name}.")


def read_fit_options(args: Sequence[str]) -> tuple[Any, SplitOptions]:
    """The options of `probe fit`, and how they ask the states to be split.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options = _fit_parser().parse_args(args)
    require_at_least(1, batch_size=options.batch_size)
    return options, read_split_options(options)


def evaluate(args: Sequence[str]) -> None:
    """The `probe eval` command."""
    options = _eval_parser().parse_args(args)
    require_at_least(1, batch_size=options.batch_size)
    metrics_out, stored = output_file("metrics_out", options.metrics_out), load_probe(options.probe_path)
    data = load_data(options.dataset, stored.metadata["env"])
    _require_same_data(options, stored, data)
    open_store(options.tracking_uri)
    require_active_experiment(data.env)
    features = _eval_features(options, data)
    refitted = refit(stored, features, data.labels)
    about = {
        **_provenance(options, data),
        "probe_path": options.probe_path,
        "probe_model_path": stored.metadata["model_path"],
        "features": "edited" if options.use_editor_features else "raw",
    }
    _finish("probe-eval", options, data, stored.splits, refitted, about, [], metrics_out)


def fit_beside(
    features: Mapping[str, np.ndarray], labels: np.ndarray, splits: Splits, seed: int
) -> tuple[LinearProbe, dict[str, Outcome]]:
    """A probe of each of several features, and one of the first with shuffled labels, all on the same splits.

    Args:
        features: Name → features. Shape of each: (N, F).
        labels: Shape: (N,).
        splits: Of the N states.
        seed: Of the shuffling.

    Returns:
        The probe of the first features, and what each one says.
    """
    probes = {name: fit_probe(x[splits.train], labels[splits.train]) for name, x in features.items()}
    outcomes = {name: Outcome(probe.decision(features[name]), labels) for name, probe in probes.items()}
    first, any_order = next(iter(features)), shuffled(labels, seed)
    control = fit_probe(features[first][splits.train], any_order[splits.train])
    return probes[first], outcomes | {SHUFFLED: Outcome(control.decision(features[first]), any_order)}


def refit(stored: StoredProbe, features: np.ndarray, labels: np.ndarray) -> dict[str, Outcome]:
    """What a stored probe says of another model's features (N, F), and what one fitted on those does.

    Raises:
        ValueError: The features are of another size than the probe's.
    """
    train = stored.splits.train
    outcomes = {"stored probe": Outcome(stored.probe.decision(features), labels)}
    return outcomes | {"refitted": Outcome(fit_probe(features[train], labels[train]).decision(features), labels)}


def shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """The labels in random order: a probe fitted on them and scored on them should not beat chance. Shape: (N,)."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[1]).permutation(labels)


def _finish(
    name: str,
    options: Any,
    data: ProbeData,
    splits: Splits,
    outcomes: Mapping[str, Outcome],
    about: Mapping[str, Any],
    files: Sequence[Path],
    metrics_out: Path,
) -> None:
    """Write metrics and figure, record the run, and say where everything is."""
    reports = {row: report_splits(outcome.decision, outcome.labels, splits) for row, outcome in outcomes.items()}
    first, *others = reports
    named = {row.replace(" ", "_"): reports[row] for row in others}
    # The first probe's splits are at the top, as the published file has them.
    write_json(metrics_out, {**about, "split_by": splits.by, **reports[first], **named})
    figure = metrics_out.with_suffix(".png")
    _draw(figure, outcomes, reports, splits)
    files = [*files, metrics_out, figure]
    run = record_on_data(name, options, reports, data, Path(options.dataset), dict.fromkeys(files, FOLDER))
    if splits.by == "stratified":
        print("Fewer than ten episodes: states of one episode are in several splits, so the test is too easy.")
    print_reports(reports, ("balanced_accuracy", "auroc"))
    tell(run, files)


def _draw(path: Path, outcomes: Mapping[str, Outcome], reports: Mapping[str, Any], splits: Splits) -> None:
    test = {name: (outcome.decision[splits.test], outcome.labels[splits.test]) for name, outcome in outcomes.items()}
    save_png(probe_figure(test, {name: reports[name]["test"]["auroc"] for name in test}), path)


def _all_features(options: Any, data: ProbeData) -> dict[str, np.ndarray]:
    """The model's latents; the floor, a random network's; the ceiling, what the model sees."""
    policy = load_model("model_path", options.model_path, data.states.shape[1], data.env)
    networks = {"model": policy, "floor": random_twin(policy, options.seed)}
    found = {name: latents(network, data.states, batch_size=options.batch_size) for name, network in networks.items()}
    return found | {"ceiling": data.states.astype(np.float64)}


def _eval_features(options: Any, data: ProbeData) -> np.ndarray:
    policy = load_model("model_path", options.model_path, data.states.shape[1], data.env)
    if options.use_editor_features and policy.editor is None:
        print(f"{options.model_path} has no editor: its edited latents are the raw ones.")
    return latents(policy, data.states, edited=options.use_editor_features, batch_size=options.batch_size)


def _require_same_data(options: Any, stored: StoredProbe, data: ProbeData) -> None:
    if data.digest != stored.metadata["dataset_digest"]:
        raise ValueError(
            f"--dataset {options.dataset} is not the one that {options.probe_path} was fitted on "
            f"({stored.metadata['dataset']}), so the stored splits do not apply: give that one, or fit a probe on this."
        )
    require_apart(stored.splits, data.episode_ids)


def _provenance(options: Any, data: ProbeData) -> dict[str, Any]:
    names = ("batch_size", *SplitOptions.__dataclass_fields__)
    return {
        "env": data.env,
        "model_path": options.model_path,
        "dataset": options.dataset,
        "dataset_digest": data.digest,
        "dataset_states": len(data.states),
        "options": {name: options[name] for name in names if name in options},
    }


def _fit_parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn probe fit", description="Fit a linear probe on a model's latents.")
    parser.add_argument("--env", type=str, required=True, help="the task that the dataset is of")
    parser.add_argument("--out", type=str, required=True, help="the probe's file (.npz; .pkl becomes .npz)")
    add_split_options(parser)
    return _with_subject(parser)


def _eval_parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn probe eval", description="Score a fitted probe on another model.")
    parser.add_argument("--probe_path", type=str, required=True, help="a fitted probe (.npz)")
    parser.add_argument("--use_editor_features", action="store_true", help="latents after the model's editor")
    return _with_subject(parser)


def _with_subject(parser: CommandParser) -> CommandParser:
    parser.add_argument("--dataset", type=str, required=True, help="from `probe collect`")
    parser.add_argument("--model_path", type=str, required=True, help="the model whose latents are read")
    parser.add_argument("--metrics_out", type=str, required=True, help="the metrics' file (.json)")
    parser.add_argument("--batch_size", type=int, default=4096, help="states a forward pass")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
