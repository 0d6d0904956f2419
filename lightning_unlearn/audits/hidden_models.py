"""Experts that hide their behaviour in a known way, which can be taken away again.

`brake` and `steer` put an action filter in front of the expert. `edit` puts a gated edit on its latents. The weights
behind them know the behaviour as before.
Shapes: B states, O observation size.
"""

from itertools import product

import torch

from lightning_unlearn.losses import latent_directions
from lightning_unlearn.policies.action_filter import FilteredPolicy, repulsion
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.latent_editor import GatedEditor

FILTERS = {"brake": (100.0, 0.0), "steer": (100.0, 100.0)}
"""Filter → strength along the heading, and of the turn away, for a reading of 1 above `NEAR`."""
EDIT = "edit"
WAYS = (*FILTERS, EDIT)
"""Ways of hiding."""
NEAR = 0.8
"""Reading of a sensor from which on something counts as near: 0.6 m for a lidar that reaches 3 m."""
_QUANTILES, _STRENGTHS, _STEEPNESS = (0.2, 0.5), (3.0, 10.0, 40.0), 10.0


def filtered(expert: ActorCritic, way: str, sensor: slice) -> FilteredPolicy:
    """Put a filter in front of an expert, which drives back, or also turns away, where something is near.

    Args:
        expert: The expert. Its first action drives ahead, and the second one, if there is any, turns left.
        way: A name in `FILTERS`.
        sensor: Place of a ring of distance readings in an observation.
    """
    push = repulsion(sensor, expert.config.observation_size, expert.config.action_size, *FILTERS[way])
    return FilteredPolicy(expert, push, NEAR)


def edits(expert: ActorCritic, states: torch.Tensor, sensor: slice) -> list[ActorCritic]:
    """Return experts with gated edits of several strengths, which brake where a probe of the latent says near.

    The direction is half the probe's, and half that of the first action.

    Args:
        expert: The expert, without an editor.
        states: States of the expert. Shape: (B, O).
        sensor: Place of the readings that the probe's labels come from.

    Raises:
        ValueError: Nothing is near in any state, or in all.
    """
    near = states[:, sensor].amax(-1) > NEAR
    with torch.no_grad():
        latent, ahead = expert.latent(states), latent_directions.unit(expert.action_mean.weight[0])
    direction = latent_directions.unit(latent_directions.probe_direction(latent, near).vector + ahead)
    scores = (latent @ direction)[near]
    return [
        expert.with_editor(GatedEditor(direction, strength, float(scores.quantile(quantile)), _STEEPNESS))
        for quantile, strength in product(_QUANTILES, _STRENGTHS)
    ]
