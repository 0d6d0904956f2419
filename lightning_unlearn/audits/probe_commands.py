"""The `probe` command: collect labelled states, fit a probe on a model's latents, export it, evaluate it on another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_unlearn.audits import outputs
from lightning_unlearn.audits.audited_models import AuditedModel, latents, latents_with_controls
from lightning_unlearn.audits.figures import probe_figure, save_png
from lightning_unlearn.audits.probe_data import (
    ProbeData,
    SplitOptions,
    Splits,
    add_split_options,
    load_data,
    make_splits,
    print_reports,
    read_probed_model,
    read_split_options,
    record_on_data,
    require_apart,
)
from lightning_unlearn.audits.probes import (
    Outcome,
    StoredProbe,
    fit_probe,
    fit_with_controls,
    load_probe,
    probe_file,
    save_probe,
)
from lightning_unlearn.options import CommandParser, choose, require_at_least
from lightning_unlearn.policies.latent_editor import save_direction
from lightning_unlearn.tracking import runs

FOLDER = "probes"
"""Folder of the files among a run's artifacts."""


def main(args: Sequence[str]) -> None:
    """Run one subcommand."""
    name, options = choose("probe", ["collect", "fit", "export", "eval"], args)
    if name == "collect":
        from lightning_unlearn.audits import probe_collection  # the simulator waits until it is needed

        probe_collection.main(options)
    else:
        {"fit": fit, "export": export, "eval": evaluate}[name](options)


def fit(args: Sequence[str]) -> None:
    """The `probe fit` command."""
    options, split_options = read_fit_options(args)
    out, _ = (
        outputs.output_file("out", str(probe_file(options.out))),
        outputs.output_file("metrics_out", options.metrics_out),
    )
    data = load_data(options.dataset, options.env)
    splits = make_splits(data.labels, data.episode_ids, split_options)
    outputs.open_audit_store(options.tracking_uri, data.env)
    model = read_probed_model("model", options.model_path, data)
    features = latents_with_controls(model.policy, data.states, options.seed, options.batch_size)
    probe, outcomes = fit_with_controls(features, data.labels, splits, split_options.seed)
    stored = StoredProbe(probe, splits, _provenance(options, data))
    files = [out, save_probe(out, stored)]
    _finish("probe-fit", options, data, model, splits, outcomes, stored.metadata, files)
    if out != Path(options.out):
        print(f"{options.out} was asked for; a pickle can run code when it is read, so the probe is {out.name}.")


def read_fit_options(args: Sequence[str]) -> tuple[Any, SplitOptions]:
    """The options of `probe fit`, and the split options among them.

    Raises:
        ValueError: One is unknown or impossible.
    """
    parser = CommandParser(prog="lightning-unlearn probe fit", description="Fit a linear probe on a model's latents.")
    parser.add_argument("--env", type=str, required=True, help="the task that the dataset is of")
    parser.add_argument("--out", type=str, required=True, help="the probe's file (.npz; .pkl becomes .npz)")
    add_split_options(parser)
    options = _parse_with_model(parser, args)
    return options, read_split_options(options)


def evaluate(args: Sequence[str]) -> None:
    """The `probe eval` command."""
    parser = CommandParser(prog="lightning-unlearn probe eval", description="Score a fitted probe on another model.")
    parser.add_argument("--probe_path", type=str, required=True, help="a fitted probe (.npz)")
    parser.add_argument("--use_editor_features", action="store_true", help="latents after the model's editor")
    options = _parse_with_model(parser, args)
    _, stored = outputs.output_file("metrics_out", options.metrics_out), load_probe(options.probe_path)
    data = load_data(options.dataset, stored.metadata["env"])
    _require_same_data(options, stored, data)
    outputs.open_audit_store(options.tracking_uri, data.env)
    model = read_probed_model("model", options.model_path, data)
    edited, train = options.use_editor_features, stored.splits.train
    if edited and model.policy.editor is None:
        print(f"{options.model_path} has no editor: its edited latents are the raw ones.")
    features = latents(model.policy, data.states, edited=edited, batch_size=options.batch_size)
    outcomes = {"stored probe": Outcome(stored.probe.decision(features), data.labels)}
    refitted = fit_probe(features[train], data.labels[train])
    outcomes["refitted"] = Outcome(refitted.decision(features), data.labels)
    about = {
        **_provenance(options, data),
        "probe_path": options.probe_path,
        "probe_model_path": stored.metadata["model_path"],
        "features": "edited" if edited else "raw",
    }
    _finish("probe-eval", options, data, model, stored.splits, outcomes, about, [])


def export(args: Sequence[str], command: str = "probe export") -> None:
    """Write a probe's direction in latent space, for the gated edit (also known as `export-hazard-direction`)."""
    parser = CommandParser(prog=f"lightning-unlearn {command}", description=export.__doc__)
    parser.add_argument("--probe_path", type=str, required=True, help="a fitted probe (.npz)")
    parser.add_argument("--out", type=str, required=True, help="the direction's file (.pt)")
    parser.add_argument("--include_tau", action="store_true", help="store the probe's threshold too")
    outputs.add_store_option(parser)
    options = parser.parse_args(args)
    stored = load_probe(options.probe_path)
    env_id, direction, out = stored.metadata["env"], stored.probe.direction(), outputs.output_file("out", options.out)
    outputs.open_audit_store(options.tracking_uri, env_id)
    save_direction(out, direction if options.include_tau else replace(direction, tau=None))
    params = {"probe_path": options.probe_path, "include_tau": options.include_tau}
    run = runs.record_audit(env_id, "probe-export", params, {"tau": direction.tau}, {out: FOLDER})  # type: ignore[dict-item]
    kept = "stored with it" if options.include_tau else "left out; --include_tau stores it"
    print(f"Unit direction of {stored.probe.size} latent components, tau {direction.tau:.4f} ({kept}).")
    print(f"Direction: {out.resolve()}\nMLflow run: {run}")


def export_hazard_direction(args: Sequence[str]) -> None:
    """The published name of `probe export`."""
    export(args, "export-hazard-direction")


def _parse_with_model(parser: CommandParser, args: Sequence[str]) -> Any:
    """Add the options that `probe fit` and `probe eval` share, and parse."""
    parser.add_argument("--dataset", type=str, required=True, help="from `probe collect`")
    parser.add_argument("--model_path", type=str, required=True, help="the model whose latents are read")
    parser.add_argument("--metrics_out", type=str, required=True, help="the metrics' file (.json)")
    parser.add_argument("--batch_size", type=int, default=4096, help="states a forward pass")
    outputs.add_store_option(parser)
    options = parser.parse_args(args)
    require_at_least(1, batch_size=options.batch_size)
    return options


def _require_same_data(options: Any, stored: StoredProbe, data: ProbeData) -> None:
    """Refuse a dataset that the probe was not fitted on, and splits that share episodes."""
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


def _finish(
    name: str,
    options: Any,
    data: ProbeData,
    model: AuditedModel,
    splits: Splits,
    outcomes: Mapping[str, Outcome],
    about: Mapping[str, Any],
    files: Sequence[Path],
) -> None:
    """Write metrics and figure, record the run, and print the results."""
    reports = {row: outcome.report(splits) for row, outcome in outcomes.items()}
    first, *others = reports
    named = {row.replace(" ", "_"): reports[row] for row in others}
    metrics_out = Path(options.metrics_out)
    # The first probe's splits are at the top, as the published file has them.
    outputs.write_json(metrics_out, {**about, "split_by": splits.by, **reports[first], **named})
    test = {row: (outcome.decision[splits.test], outcome.labels[splits.test]) for row, outcome in outcomes.items()}
    figure = metrics_out.with_suffix(".png")
    save_png(probe_figure(test, {row: reports[row]["test"]["auroc"] for row in test}), figure)
    files = [*files, metrics_out, figure]
    places = dict.fromkeys(files, FOLDER)
    run = record_on_data(name, options, reports, data, Path(options.dataset), places, [model])
    if splits.by == "stratified":
        print("Fewer than ten episodes: states of one episode are in several splits, so the test is too easy.")
    print_reports(reports, ("balanced_accuracy", "auroc"))
    outputs.print_outputs(files, run)
