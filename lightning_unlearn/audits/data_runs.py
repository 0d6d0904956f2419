"""What the audits of a probe's dataset share: their MLflow run, and what they print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_unlearn.audits.probe_data import ProbeData
from lightning_unlearn.audits.records import flat_numbers
from lightning_unlearn.tracking import registry, runs

MODEL_OPTIONS = ("model_path", "ref_model_path", "cmp_model_path")


def record_on_data(
    name: str,
    options: Any,
    metrics: Mapping[str, Any],
    data: ProbeData,
    dataset: Path,
    files: Mapping[Path, str],
) -> str:
    """Store an audit of a dataset as an MLflow run; returns the run's id.

    Args:
        name: Of the run.
        options: Of the command, stored as parameters.
        metrics: Nested numbers.
        data: The dataset, logged as the run's input.
        dataset: Its file.
        files: File → folder among the run's artifacts.
    """
    numbers = {key.replace(" ", "_"): value for key, value in flat_numbers(metrics).items()}
    about = runs.AuditData(dataset.stem, dataset, data.digest, data.states, data.labels)
    return runs.record_audit(data.env, name, vars(options), numbers, files, about, _seeds(options))


def _seeds(options: Any) -> set[int]:
    """Training seeds of the models that the options name."""
    named = [options[name] for name in MODEL_OPTIONS if name in options]
    return {registry.load_policy(uri).card.seed for uri in named if not registry.is_shipped(uri)}


def print_reports(reports: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Sequence[str]) -> None:
    """One row a set of features, one column a metric and split."""
    splits = list(next(iter(reports.values())))
    print(f"{'':<16}" + "".join(f"{metric:>{10 * len(splits)}}" for metric in metrics))
    print(f"{'':<16}" + "".join(f"{split:>10}" for _ in metrics for split in splits))
    for row, report in reports.items():
        print(f"{row:<16}" + "".join(f"{report[split][metric]:>10.3f}" for metric in metrics for split in splits))


def tell(run: str, files: Sequence[Path]) -> None:
    """Say where the results are."""
    print("\n".join(f"  {file.resolve()}" for file in files))
    print(f"MLflow run: {run}")
