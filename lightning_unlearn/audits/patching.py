"""The `patch` command: how deep a repair goes, by putting the expert's activations of one layer into the repair.

Activation patching (interchange intervention): in every step of an episode, one layer of a policy, the host, takes the
activation that another policy, the donor, computes from the same observation. A trunk has no skip connections, so that
the patched policy is the donor up to the layer and the host after it. Both directions are run on the same layouts.
Sources: Vig et al. 2020; Geiger et al. 2021; Heimersheim and Nanda 2024.

Shapes: N layouts, B states, O observation size.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from lightning_unlearn.audits import outputs, repair_pairs
from lightning_unlearn.audits.repair_pairs import LayoutBank, PairAudit, RepairPair, measured_signal
from lightning_unlearn.audits.statistics import ratio_interval
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.actor_critic import ACTIVATIONS, ActorCritic

KIND, NAME = "patching_eval", "patch"
"""Folder of the files, and name of the run."""
TABLE, RESULT, FIGURE = "patching.csv", "patching.json", "patching.png"
INTO_REPAIRED, INTO_EXPERT = "expert into repaired", "repaired into expert"
NOTHING, EDITED, MEAN = "nothing", "edited latent", "mean"
"""Layers besides `trunk 1`, `trunk 2`, …; with `nothing` patched, a host acts as itself, with `mean` as the donor."""


def main(args: Sequence[str]) -> None:
    """Patch the models that the options name; write, record and print the results."""
    parser = CommandParser(prog="lightning-unlearn patch", description=__doc__)
    options, concept = repair_pairs.read_options(parser, args)
    pairs = repair_pairs.gather(options)
    for pair in pairs:
        _require_shared(pair)
    with repair_pairs.open_audit(options, concept, pairs, KIND, RESULT) as audit:
        if audit is None:
            return
        signal = measured_signal(audit.concept)
        results = audit.examine(
            lambda pair: 4 + 2 * len(shared_layers(pair.expert.policy, pair.model.policy)),
            partial(patch_layers, signal=signal),
        )
    rows = [
        repair_pairs.identity(pair) | {"mean_scale": result["mean_scale"]} | row
        for pair, result in zip(pairs, results, strict=True)
        for row in result["rows"]
    ]
    origin = repair_pairs.provenance(pairs, results)
    _finish(audit, {"settings": audit.settings, "signal": signal, "models": origin, "rows": rows})


def patch(
    expert: ActorCritic,
    repaired: ActorCritic,
    env: str,
    episodes: int = 50,
    concept: str | Concept = AUTO,
    workers: int = 2,
    mean_scale: float | None = 1.0,
) -> pd.DataFrame:
    """Patch each layer that an expert and a repaired policy share, in both directions.

    Args:
        expert: The expert that the repair started from.
        repaired: The repaired policy.
        env: The task.
        episodes: Number of layouts; every policy gets the same ones.
        concept: The behaviour to forget: auto (the whole cost is measured), an info key or a concept.
        workers: Processes that step the environments; results do not depend on it.
        mean_scale: Factor on the expert's means before tanh when the repair began; None: measured by the rule of
            `off_policy_concept`.

    Returns:
        One row a direction and layer, with the columns of `patching.csv`.

    Raises:
        ValueError: The policies share no layer before the mean, or do not fit the environment.
    """
    shared_layers(expert, repaired)
    layouts = {"episodes": episodes, "concept": concept, "workers": workers}
    audit = partial(patch_layers, signal=measured_signal(concept))
    return pd.DataFrame(repair_pairs.examine_policies(expert, repaired, env, layouts, mean_scale, audit)["rows"])


def shared_layers(expert: ActorCritic, repaired: ActorCritic) -> list[str]:
    """Return the layers that both policies have, from the observation to the mean.

    A layer of a trunk is shared if it has the same width and non-linearity in both. The edited latent, which the heads
    read, is a layer of its own if one of the policies has an editor.

    Raises:
        ValueError: There is none before the mean, or the policies squash actions differently.
    """
    one, other = expert.config, repaired.config
    if one.squash != other.squash:
        raise ValueError(
            f"one policy squashes actions by {one.squash!r} and the other by {other.squash!r}, so that a mean of the "
            "one is another action of the other: patch policies of one architecture."
        )
    widths = zip(_widths(expert), _widths(repaired), strict=False)
    same = [a == b and one.activation == other.activation for a, b in widths]
    layers = [f"trunk {number}" for number, is_same in enumerate(same, start=1) if is_same]
    is_edited = expert.editor is not None or repaired.editor is not None
    if is_edited and one.latent_size == other.latent_size:
        layers.append(EDITED)
    if not layers:
        raise ValueError(f"they share no layer before the mean: {_difference(expert, repaired)}")
    return [*layers, MEAN]


def patched(host: ActorCritic, donor: ActorCritic, layer: str) -> ActorCritic:
    """Return the host with one layer's activation taken from the donor, which computes it from the same observation.

    Args:
        host: The policy that acts. It is not changed.
        donor: The policy whose activation is put in. It is not changed.
        layer: `nothing`, or one of `shared_layers`.
    """
    if layer in (NOTHING, MEAN):
        return deepcopy(host if layer == NOTHING else donor)
    policy, its, mine = deepcopy(host), donor.config, host.config
    policy.normaliser = deepcopy(donor.normaliser)
    given = {name: getattr(its, name) for name in (*_OF_THE_NORMALISER, *(["editor"] if layer == EDITED else []))}
    if layer == EDITED:
        policy.trunk, policy.editor = deepcopy(donor.trunk), deepcopy(donor.editor)
        policy.config = replace(mine, hidden_sizes=its.hidden_sizes, activation=its.activation, **given)
        return policy
    depth = int(layer.removeprefix("trunk "))  # each layer is a linear one and its non-linearity
    policy.trunk = deepcopy(nn.Sequential(*list(donor.trunk)[: 2 * depth], *list(host.trunk)[2 * depth :]))
    policy.config = replace(mine, hidden_sizes=[*its.hidden_sizes[:depth], *mine.hidden_sizes[depth:]], **given)
    return policy


def patch_layers(bank: LayoutBank, expert: ActorCritic, repaired: ActorCritic, signal: str) -> dict[str, Any]:
    """Run the patched policies of every shared layer in both directions, each in closed loop.

    Args:
        bank: The layouts.
        expert: The expert as the method started from it.
        repaired: The repaired policy.
        signal: `cost` or `c_forget`.

    Returns:
        `rows`, one a direction and layer: mean return, cost and C_forget of an episode; `returned`, the share of the
        expert's signal above the repaired policy's, with its 95 % interval over layouts (None if the expert's signal
        is not above it); and how far actions are from the host's on the expert's states (open loop), also as a share
        of the distance between host and donor (None if that is 0).
    """
    before, after = bank.run(expert), bank.run(repaired)
    states, ends = before.states, (before.measure(signal), after.measure(signal))
    apart, rows = action_distance(expert, repaired, states), []
    for direction, host, donor in ((INTO_REPAIRED, repaired, expert), (INTO_EXPERT, expert, repaired)):
        for layer in (NOTHING, *shared_layers(expert, repaired)):
            policy = patched(host, donor, layer)
            run, moved = bank.run(policy), action_distance(policy, host, states)
            share = moved / apart if apart else None
            rows.append(
                {"direction": direction, "layer": layer, **run.means(), **returned(run.measure(signal), *ends)}
                | {"action_change": moved, "action_change_share": share}
            )
    return {"rows": rows}


def returned(patched_costs: np.ndarray, expert: np.ndarray, repaired: np.ndarray) -> dict[str, float | None]:
    """Return (patched − repaired) / (expert − repaired) of the mean costs, with its 95 % interval over paired layouts.

    0 is the repaired policy and 1 the expert. All are None if the expert's mean cost is not above the repaired one's;
    the bounds are None with one layout. Shapes: (N,).
    """
    back, gap = patched_costs - repaired, expert - repaired
    share = low = high = None
    if gap.mean() > 0:
        share, bounds = float(back.mean() / gap.mean()), ratio_interval(back, gap)
        low, high = (None, None) if bounds is None else bounds
    return {"returned": share, "returned_low": low, "returned_high": high}


@torch.inference_mode()
def action_distance(first: ActorCritic, second: ActorCritic, states: torch.Tensor) -> float:
    """Return the mean Euclidean distance of deterministic actions, in halves of the action range. Shape: (B, O)."""
    half_range = 0.5 * (first.action_high - first.action_low)
    return float(((first.act(states) - second.act(states)) / half_range).norm(dim=-1).mean())


_OF_THE_NORMALISER = (
    "normalise_observation",
    "normaliser_epsilon",
    "normaliser_clip",
    "normaliser_dtype",
    "observation_dtype",
)


def _widths(policy: ActorCritic) -> list[int]:
    """Widths of a trunk's layers; empty if it is a wrapped network, whose layers are not known."""
    config = policy.config
    layers = [nn.Linear, ACTIVATIONS[config.activation]] * len(config.hidden_sizes)
    plain = isinstance(policy.trunk, nn.Sequential) and [type(module) for module in policy.trunk] == layers
    return config.hidden_sizes if plain else []


def _difference(expert: ActorCritic, repaired: ActorCritic) -> str:
    """The trunks side by side, in words."""
    sides = zip_longest(_widths(expert), _widths(repaired), fillvalue="none")
    listed = [f"trunk {number} has {a} and {b} units" for number, (a, b) in enumerate(sides, start=1)]
    kinds = f"the non-linearities are {expert.config.activation} and {repaired.config.activation}"
    return ", ".join([*(listed or ["both are wrapped networks"]), kinds]) + "."


def _require_shared(pair: RepairPair) -> None:
    try:
        shared_layers(pair.expert.policy, pair.model.policy)
    except ValueError as error:
        raise ValueError(
            f"--models {pair.model.uri} cannot be patched with its expert {pair.expert.uri}: {error} Leave it out, or "
            "name an expert of the same architecture with --expert."
        ) from error


def _finish(audit: PairAudit, content: Mapping[str, Any]) -> None:
    """Write the files, record them as an MLflow run, and print the table."""
    from lightning_unlearn.audits.figures import patching_figure, save_png  # matplotlib waits until something is drawn

    table = pd.DataFrame(content["rows"])
    table.to_csv(audit.folder / TABLE, index=False)
    save_png(patching_figure(table, content["signal"]), audit.folder / FIGURE)
    outputs.write_json(audit.folder / RESULT, content)
    shown = ["model", "direction", "layer", "return", "cost", "c_forget", "returned", "action_change_share"]
    print(f"\n{table[shown].to_string(index=False, float_format='{:.3g}'.format, na_rep='-')}\n")
    numbers = {f"{row['model']}/{row['direction']}/{row['layer']}": row for row in content["rows"]}
    audit.record(KIND, NAME, numbers, (TABLE, RESULT, FIGURE))
