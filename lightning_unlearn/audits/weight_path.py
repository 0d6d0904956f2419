"""The `weight-path` command: how far a repair is from its expert in weight space, and what lies between the two.

The line from expert to repair is θ_E + α·(θ_R − θ_E). A repair in the expert's own basin has a flat line: return and
cost change evenly from one end to the other. A barrier is a point on the line that is worse than the straight line
between the ends. Sources: Frankle et al. 2020 (linear mode connectivity); Wortsman et al. 2022.

Shapes: P points of the line.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch

from lightning_unlearn.audits import outputs, repair_pairs
from lightning_unlearn.audits.repair_pairs import LayoutBank, PairAudit, RepairPair
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.actor_critic import ActorCritic, extrapolate
from lightning_unlearn.safe_files import parse_json
from lightning_unlearn.tracking import runs

KIND, NAME = "weight_path_eval", "weight-path"
"""Folder of the files, and name of the run."""
TABLE, POINTS, RESULT, FIGURE = "weight_path.csv", "weight_path_points.csv", "weight_path.json", "weight_path.png"
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points of the line: 0 is the expert, 1 the repair."""
_RELEARNING = ("relearn_steps", "relearn_censored_at")


def main(args: Sequence[str]) -> None:
    """Walk from the experts to the models that the options name; write, record and print the results."""
    parser = CommandParser(prog="lightning-unlearn weight-path", description=__doc__)
    options, concept = repair_pairs.read_options(parser, args)
    pairs = repair_pairs.gather(options)
    for pair in pairs:
        _require_line(pair)
    with repair_pairs.open_audit(options, concept, pairs, KIND, RESULT) as audit:
        if audit is None:
            return
        results = audit.examine(lambda _: len(ALPHAS), walk)
    relearned = relearning_steps(options.env)
    models = [
        repair_pairs.identity(pair)
        | {"mean_scale": result["mean_scale"]}
        | result["summary"]
        | relearned.get(pair.model.uri, dict.fromkeys(_RELEARNING))
        for pair, result in zip(pairs, results, strict=True)
    ]
    points = [
        {"model": pair.model.label, **point}
        for pair, result in zip(pairs, results, strict=True)
        for point in result["points"]
    ]
    origin = repair_pairs.provenance(pairs, results)
    _finish(audit, {"settings": audit.settings, "models": origin, "rows": models, "points": points})


def weight_path(
    expert: ActorCritic,
    repaired: ActorCritic,
    env: str,
    episodes: int = 50,
    concept: str | Concept = AUTO,
    workers: int = 2,
    mean_scale: float | None = 1.0,
) -> pd.DataFrame:
    """Run the policies on the line from an expert to a repaired policy, at α = 0, 0.25, 0.5, 0.75 and 1.

    Args:
        expert: The expert that the repair started from.
        repaired: The repaired policy.
        env: The task.
        episodes: Number of layouts; every policy gets the same ones.
        concept: The behaviour counted as C_forget: auto, an info key or a concept.
        workers: Processes that step the environments; results do not depend on it.
        mean_scale: Factor on the expert's means before tanh when the repair began; None: measured by the rule of
            `off_policy_concept`.

    Returns:
        One row a point, with the columns of `weight_path_points.csv`. Its `attrs` hold the distances and barriers of
        `weight_path.csv`.

    Raises:
        ValueError: The policies differ in more than trained weights, or do not fit the environment.
    """
    extrapolate(expert, repaired, 1.0)
    layouts = {"episodes": episodes, "concept": concept, "workers": workers}
    found = repair_pairs.examine_policies(expert, repaired, env, layouts, mean_scale, walk)
    table = pd.DataFrame(found["points"])
    table.attrs.update(found["summary"])
    return table


def walk(bank: LayoutBank, expert: ActorCritic, repaired: ActorCritic) -> dict[str, Any]:
    """Compute the distances of two policies, and run those on the line between them.

    Returns:
        `points`: α, and mean and standard error of return, cost and C_forget of an episode, one entry a point.
        `summary`: the distances of `weight_distances`, and the barriers of return, cost and C_forget.
    """
    points = []
    for alpha in ALPHAS:
        episodes = bank.run(extrapolate(expert, repaired, alpha)).episodes
        point: dict[str, float | None] = {"alpha": alpha}
        for name, column in repair_pairs.COLUMNS.items():
            count = len(episodes)
            error = float(episodes[column].std() / count**0.5) if count > 1 else None
            point |= {name: float(episodes[column].mean()), f"{name}_standard_error": error}
        points.append(point)
    signs = {"return": -1.0, "cost": 1.0, "c_forget": 1.0}
    barriers = {
        f"{name}_barrier": barrier(sign * np.array([point[name] for point in points], float))
        for name, sign in signs.items()
    }
    return {"points": points, "summary": weight_distances(expert, repaired) | barriers}


def barrier(badness: np.ndarray, alphas: Sequence[float] = ALPHAS) -> float:
    """Return the most by which a point is worse than the straight line between the ends; 0 if none is. Shape: (P,)."""
    along = np.asarray(alphas)
    straight = (1.0 - along) * badness[0] + along * badness[-1]
    return float((badness - straight).max().clip(0.0))


@torch.no_grad()
def weight_distances(expert: ActorCritic, repaired: ActorCritic) -> dict[str, float | None]:
    """Return the Euclidean distance of the weights that a deterministic action depends on.

    Returns:
        `l2_distance` over all of them; `l2_relative`, the same divided by the length of the expert's weights (None if
        that is 0); and `l2_trunk_1`, …, `l2_mean`, one of each layer.
    """
    squares: dict[str, float] = {}
    size = 0.0
    weights = dict(repaired.named_parameters())
    for name, weight in expert.named_parameters():
        if name.startswith(("trunk.", "action_mean.")):
            squares[_layer(name)] = squares.get(_layer(name), 0.0) + float((weights[name] - weight).square().sum())
            size += float(weight.square().sum())
    total = sum(squares.values()) ** 0.5
    layers = {f"l2_{layer}": square**0.5 for layer, square in squares.items()}
    return {"l2_distance": total, "l2_relative": total / size**0.5 if size else None, **layers}


def relearning_steps(env_id: str) -> dict[str, dict[str, int | None]]:
    """Return the newest time of each model in the store, by its URI, to relearn by the published attack."""
    found: dict[str, dict[str, int | None]] = {}
    for run in runs.stored_runs(env_id, {"audit": "relearn"}):
        for path in runs.artifact_paths(run.run_id, "eval"):
            if path.endswith("/relearn_result.json"):
                with suppress(*outputs.DAMAGED):
                    test = parse_json(runs.read_artifact(run.run_id, path))
                    for model in test["models"] if "attack" not in test["settings"] else ():
                        steps = model["steps_to_threshold"], model["censored_at_steps"]
                        if "line" not in model:
                            found[model["model_path"]] = dict(zip(_RELEARNING, steps, strict=True))
    return found


def _layer(name: str) -> str:
    """Name of the layer of a weight: every second module of a trunk is a linear layer."""
    first, place, *_ = name.split(".")
    return f"trunk_{int(place) // 2 + 1}" if first == "trunk" and place.isdecimal() else first.removeprefix("action_")


def _require_line(pair: RepairPair) -> None:
    try:
        extrapolate(pair.expert.policy, pair.model.policy, 1.0)
    except ValueError as error:
        raise ValueError(
            f"--models {pair.model.uri} and its expert {pair.expert.uri}: {error} Leave it out, or name its own expert "
            "with --expert."
        ) from error


def _finish(audit: PairAudit, content: Mapping[str, Any]) -> None:
    """Write the files, record them as an MLflow run, and print the tables."""
    from lightning_unlearn.audits.figures import path_figure, save_png  # matplotlib waits until something is drawn

    table, points = pd.DataFrame(content["rows"]), pd.DataFrame(content["points"])
    table.to_csv(audit.folder / TABLE, index=False)
    points.to_csv(audit.folder / POINTS, index=False)
    save_png(path_figure(points), audit.folder / FIGURE)
    outputs.write_json(audit.folder / RESULT, content)
    shown = ["model", "l2_distance", "l2_relative", "return_barrier", "cost_barrier", *_RELEARNING]
    for part in (table[shown], points[["model", "alpha", "return", "cost", "c_forget"]]):
        print(f"\n{part.to_string(index=False, float_format='{:.3g}'.format, na_rep='-')}")
    numbers = {row["model"]: row for row in content["rows"]}
    numbers |= {f"{point['model']}/alpha {point['alpha']:g}": point for point in content["points"]}
    audit.record(KIND, NAME, numbers, (TABLE, POINTS, RESULT, FIGURE))
