"""`models compare A B`: what two models are, how they were trained, their weights and evaluations, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from lightning_unlearn.audits.subjects import weights_digest
from lightning_unlearn.housekeeping.evaluations import newest_evaluation
from lightning_unlearn.housekeeping.inventory import find_run
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.registry import registered_version
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store

_CARD = ("method", "env", "seed", "update", "env_steps", "concept", "note")


@dataclass(frozen=True)
class Compared:
    """A model that is compared."""

    uri: str
    policy: ActorCritic
    card: ModelCard
    run_id: str | None
    """None where it is no version of a registered model."""
    source: str = "unknown"
    config: dict[str, Any] = field(default_factory=dict)
    """Of its run, flat; empty where there is none."""


def main(args: Sequence[str]) -> None:
    """Print the comparison of two models."""
    options = _parser().parse_args(args)
    open_store(options.tracking_uri)
    a, b = (_read(uri) for uri in (options.a, options.b))
    _print("Models", _side_by_side(_about(a), _about(b)))
    _print("Config differences", _config_differences(a, b))
    same = weights_digest(a.policy) == weights_digest(b.policy)
    print(f"\nWeights: {'EQUAL, every bit' if same else 'DIFFERENT'}")
    if not same:
        print(layer_differences(a.policy, b.policy).to_string(index=False, float_format="{:.6g}".format))
    _print("Stored evaluations", _side_by_side(*(newest_evaluation(m.card.env, m.policy) for m in (a, b))))


def layer_differences(a: ActorCritic, b: ActorCritic) -> pd.DataFrame:
    """Of every layer's weights: both shapes, the L2 norm of the difference, and its largest entry.

    Numbers are missing where a layer is in one of them only, or of another shape.
    """
    ours, theirs = dict(a.state_dict()), dict(b.state_dict())
    return pd.DataFrame([_layer(name, ours.get(name), theirs.get(name)) for name in {**ours, **theirs}])


def _layer(name: str, a: torch.Tensor | None, b: torch.Tensor | None) -> dict[str, Any]:
    row: dict[str, Any] = {"Layer": name, "A": _shape(a), "B": _shape(b), "L2": float("nan"), "Max": float("nan")}
    if a is not None and b is not None and a.shape == b.shape:
        difference = (a.double() - b.double()).flatten()
        row |= {"L2": float(difference.norm()), "Max": float(difference.abs().max())}
    return row


def _shape(tensor: torch.Tensor | None) -> str:
    return "-" if tensor is None else "x".join(map(str, tensor.shape)) or "scalar"


def _read(uri: str) -> Compared:
    stored = registry.load_policy(uri)
    run_id = registered_version(uri).run_id if uri.startswith(("models:", "runs:")) else None
    run = None if run_id is None else find_run(run_id)
    if run is None:
        return Compared(uri, stored.policy, stored.card, run_id)
    source = run.data.tags.get("source", "unknown")
    return Compared(uri, stored.policy, stored.card, run_id, source, runs.stored_options(run.info.run_id))


def _about(model: Compared) -> dict[str, Any]:
    parameters = sum(tensor.numel() for tensor in model.policy.state_dict().values())
    card = {name: getattr(model.card, name) for name in _CARD}
    return {"model": model.uri, **card, "run": model.run_id, "source": model.source, "weights": parameters}


def _config_differences(a: Compared, b: Compared) -> list[tuple[str, str, str]]:
    """Nothing where one of them has no stored config."""
    if not (a.config and b.config):
        missing = [model.uri for model in (a, b) if not model.config]
        return [("no stored config", "yes" if a.uri in missing else "", "yes" if b.uri in missing else "")]
    rows = _side_by_side(a.config, b.config)
    return [row for row in rows if row[0] not in runs.FREE and row[1] != row[2]]


def _side_by_side(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, _text(a.get(key)), _text(b.get(key))) for key in {**a, **b}]


def _text(value: Any) -> str:
    return "-" if value is None or value == "" else f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    print(f"\n{title}" if rows else f"\n{title}: none")
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for name, a, b in rows:
        print(f"  {name:<{widths[0]}}  {a:<{widths[1]}}  {'=' if a == b else '|'}  {b}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn models compare", description=__doc__)
    parser.add_argument("a", type=str, help="URI or file of a model")
    parser.add_argument("b", type=str, help="of another")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
