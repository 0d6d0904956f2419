"""Action control: how well a linear map predicts a policy's action from its latent.

Ridge regression (alpha 1) from the trunk's latent to the mean before tanh, on the splits of `probe fit`. The heads are
linear in what they read, so a policy without an editor scores 1; what an editor changes is what is missing.
Shapes: N states, A action size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error, r2_score

from lightning_unlearn.audits import outputs
from lightning_unlearn.audits.audited_models import action_means, latents_with_controls
from lightning_unlearn.audits.figures import prediction_figure, save_png
from lightning_unlearn.audits.probe_data import (
    Splits,
    add_split_options,
    load_data,
    make_splits,
    print_reports,
    read_probed_model,
    read_split_options,
    record_on_data,
)
from lightning_unlearn.options import CommandParser, require_at_least

ALPHA = 1.0
FOLDER = "probes"


def main(args: Sequence[str]) -> None:
    """The `action-control` command."""
    options = _parser().parse_args(args)
    require_at_least(1, batch_size=options.batch_size)
    split_options, out = read_split_options(options), outputs.output_file("metrics_out", options.metrics_out)
    data = load_data(options.dataset, options.env)
    splits = make_splits(data.labels, data.episode_ids, split_options)
    outputs.open_audit_store(options.tracking_uri, options.env)
    model = read_probed_model("model", options.model_path, data)
    features = latents_with_controls(model.policy, data.states, options.seed, options.batch_size)
    target = action_means(model.policy, data.states, batch_size=options.batch_size)
    predictions = {name: predict(x, target, splits) for name, x in features.items()}
    reports = {name: report(predicted, target, splits) for name, predicted in predictions.items()}
    first, *others = reports
    about = {name: getattr(options, name) for name in ("env", "model_path", "dataset")}
    outputs.write_json(
        out, {**about, "split_by": splits.by, **reports[first], **{name: reports[name] for name in others}}
    )
    test, figure = splits.test, out.with_suffix(".png")
    save_png(prediction_figure(target[test], predictions[first][test], reports[first]["test"]["r2"]), figure)
    places = dict.fromkeys((out, figure), FOLDER)
    run = record_on_data("action-control", options, reports, data, Path(options.dataset), places, [model])
    print_reports(reports, ("mse", "r2"))
    outputs.print_outputs((out, figure), run)


def predict(features: np.ndarray, target: np.ndarray, splits: Splits) -> np.ndarray:
    """Predict every state's target by ridge regression fitted on the training split. Shape: (N, F), (N, A) → (N, A)."""
    model = Ridge(alpha=ALPHA).fit(features[splits.train], target[splits.train])
    return np.asarray(model.predict(features)).reshape(target.shape)


def report(predicted: np.ndarray, target: np.ndarray, splits: Splits) -> dict[str, dict[str, Any]]:
    """The mse and r2, means over action components, and n of each split. Shapes: (N, A), (N, A)."""
    return {
        name: {
            "mse": float(mean_squared_error(target[indices], predicted[indices])),
            "r2": float(r2_score(target[indices], predicted[indices])),
            "n": len(indices),
        }
        for name, indices in splits.items()
    }


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn action-control", description=__doc__)
    parser.add_argument("--env", type=str, required=True, help="the task that the dataset is of")
    parser.add_argument("--dataset", type=str, required=True, help="from `probe collect`")
    parser.add_argument("--model_path", type=str, required=True, help="the model")
    metrics = "artifacts/probes/action_control_metrics.json"
    parser.add_argument("--metrics_out", type=str, default=metrics, help="the metrics' file (.json)")
    parser.add_argument("--batch_size", type=int, default=4096, help="states a forward pass")
    add_split_options(parser)
    outputs.add_store_option(parser)
    return parser
