"""Latent shift: how far two models' latents and action means are apart on the same states, near the concept and far.

Shapes: N states, H latent size, A action size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_unlearn.audits import outputs
from lightning_unlearn.audits.audited_models import action_means, latents
from lightning_unlearn.audits.figures import save_png, shift_figure
from lightning_unlearn.audits.probe_data import CLASSES, ProbeData, load_data, read_probed_model, record_on_data
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.policies.actor_critic import ActorCritic

KIND = "latent_shift_eval"
METRICS = "latent_shift_metrics.json"
_TINY = 1e-12


@dataclass(frozen=True)
class Shift:
    """Distances between two models on each state. Shape of each: (N,)."""

    latent_shift_l2: np.ndarray
    """Length of z_cmp minus z_ref."""
    latent_cosine: np.ndarray
    action_mean_shift_l2: np.ndarray
    """Length of the difference of means before tanh, of the whole policies with their editors."""
    latent_norm_ref: np.ndarray
    latent_norm_cmp: np.ndarray


def main(args: Sequence[str]) -> None:
    """The `latent-shift` command."""
    options = read_options(args)
    data = load_data(options.dataset, options.env)
    outputs.open_audit_store(options.tracking_uri, options.env)
    names = ("ref_model_path", "cmp_model_path")
    models = [
        read_probed_model(option, options[name], data)
        for option, name in zip(("reference", "model"), names, strict=True)
    ]
    folder, (reference, compared) = outputs.new_folder(options.out, KIND), (model.policy for model in models)
    shift = measure(reference, compared, data.states, edited=not options.raw_features, batch_size=options.batch_size)
    content = {
        "eval_id": folder.name,
        **{name: options[name] for name in ("env", "dataset", *names)},
        "features": "raw" if options.raw_features else "operative",
        **summarise(shift, data.labels),
    }
    files = _write(folder, content, shift, data)
    numbers = {name: content[name] for name in ("groups", "contrasts")}
    places = dict.fromkeys(files, f"eval/{KIND}/{folder.name}")
    run = record_on_data("latent-shift", options, numbers, data, Path(options.dataset), places, models)
    _print(content)
    outputs.print_outputs(files, run)


def read_options(args: Sequence[str]) -> Any:
    """The command's options.

    Raises:
        ValueError: One is unknown or impossible.
    """
    parser = CommandParser(prog="lightning-unlearn latent-shift", description=__doc__)
    parser.add_argument("--env", type=str, required=True, help="the task that the dataset is of")
    parser.add_argument("--dataset", type=str, required=True, help="from `probe collect`")
    parser.add_argument("--ref_model_path", type=str, required=True, help="the model compared with")
    parser.add_argument("--cmp_model_path", type=str, required=True, help="the model compared")
    parser.add_argument("--raw_features", action="store_true", help="the trunks' latents, without any editor")
    parser.add_argument("--batch_size", type=int, default=4096, help="states a forward pass")
    parser.add_argument("--out", type=str, default="artifacts", help="folder of the artifacts tree")
    outputs.add_store_option(parser)
    options = parser.parse_args(args)
    require_at_least(1, batch_size=options.batch_size)
    return options


def measure(
    reference: ActorCritic, compared: ActorCritic, states: np.ndarray, *, edited: bool = True, batch_size: int = 4096
) -> Shift:
    """Compare two policies on states (N, O), by the latents that their heads read, or by the trunks' own.

    Raises:
        ValueError: Their latents or actions are of different sizes.
    """
    for what in ("latent_size", "action_size"):
        sizes = [getattr(policy.config, what) for policy in (reference, compared)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{what} is {sizes[0]} in --reference and {sizes[1]} in --model: no match.")
    ref, cmp = (latents(p, states, edited=edited, batch_size=batch_size) for p in (reference, compared))
    actions = [action_means(p, states, batch_size=batch_size) for p in (reference, compared)]
    norm_ref, norm_cmp = np.linalg.norm(ref, axis=1), np.linalg.norm(cmp, axis=1)
    return Shift(
        latent_shift_l2=np.linalg.norm(cmp - ref, axis=1),
        latent_cosine=(ref * cmp).sum(1) / np.maximum(norm_ref * norm_cmp, _TINY),
        action_mean_shift_l2=np.linalg.norm(actions[1] - actions[0], axis=1),
        latent_norm_ref=norm_ref,
        latent_norm_cmp=norm_cmp,
    )


def summarise(shift: Shift, labels: np.ndarray) -> dict[str, Any]:
    """Statistics of all, safe and hazard states, and contrasts between safe and hazard. Shape of labels: (N,).

    Standard deviations are those of the population; a number that cannot be computed is None.
    """
    masks = {"overall": np.ones(len(labels), dtype=bool)} | {n: labels == i for i, n in enumerate(CLASSES)}
    groups = {name: _statistics(shift, mask) for name, mask in masks.items()}
    return {"groups": groups, "contrasts": _contrasts(groups)}


def _statistics(shift: Shift, mask: np.ndarray) -> dict[str, Any]:
    latent, action, cosine = (s[mask] for s in (shift.latent_shift_l2, shift.action_mean_shift_l2, shift.latent_cosine))
    if not mask.any():
        names = _statistics(shift, np.ones_like(mask))
        return dict.fromkeys(names) | {"n": 0}
    return {
        "n": int(mask.sum()),
        "latent_shift_l2_mean": float(latent.mean()),
        "latent_shift_l2_std": float(latent.std()),
        "latent_shift_l2_median": float(np.median(latent)),
        "latent_cosine_mean": float(cosine.mean()),
        "latent_cosine_std": float(cosine.std()),
        "action_mean_shift_l2_mean": float(action.mean()),
        "action_mean_shift_l2_std": float(action.std()),
        "action_mean_shift_l2_median": float(np.median(action)),
        "latent_norm_ref_mean": float(shift.latent_norm_ref[mask].mean()),
        "latent_norm_cmp_mean": float(shift.latent_norm_cmp[mask].mean()),
    }


def _contrasts(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    latent, action = (
        {name: group[f"{kind}_l2_mean"] for name, group in groups.items()}
        for kind in ("latent_shift", "action_mean_shift")
    )
    return {
        "hazard_minus_safe_latent_shift": _difference(latent["hazard"], latent["safe"]),
        "hazard_minus_safe_action_shift": _difference(action["hazard"], action["safe"]),
        "safe_over_overall_latent_shift": _ratio(latent["safe"], latent["overall"]),
        "hazard_over_overall_latent_shift": _ratio(latent["hazard"], latent["overall"]),
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _write(folder: Path, content: Mapping[str, Any], shift: Shift, data: ProbeData) -> list[Path]:
    metrics = folder / METRICS
    outputs.write_json(metrics, content)
    if data.hazard_distance is None:
        return [metrics]
    shifts = {
        f"latent shift, L2 ({content['features']})": shift.latent_shift_l2,
        "action mean shift before tanh, L2": shift.action_mean_shift_l2,
    }
    figure = folder / "latent_shift.png"
    name = f"hazard distance\n{data.metadata.get('hazard_distance', '')}"
    save_png(shift_figure(data.hazard_distance, shifts, name), figure)
    return [metrics, figure]


def _print(content: Mapping[str, Any]) -> None:
    columns = ("n", "latent_shift_l2_mean", "latent_cosine_mean", "action_mean_shift_l2_mean")
    print(f"{'':<10}" + "".join(f"{column:>27}" for column in columns))
    for name, group in content["groups"].items():
        cells = ("-" if group[c] is None else f"{group[c]:.4f}" if c != "n" else str(group[c]) for c in columns)
        print(f"{name:<10}" + "".join(f"{cell:>27}" for cell in cells))
    for name, value in content["contrasts"].items():
        print(f"{name}: {'-' if value is None else f'{value:.4f}'}")
