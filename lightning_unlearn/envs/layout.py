"""Drawing layouts as safety_gymnasium does, number for number, without an array per distance.

Crowded tasks reject most drawings (Button1: 0.6 s a reset with the original's code).
Source: `RandomGenerator.sample_layout` and `draw_placement` of safety_gymnasium 1.0.0.
"""

import math
from typing import Any

import numpy as np

_TRIES = 100

Disc = tuple[float, float, float]
"""x and y in metres, and the radius to keep free."""


def sample_layout(generator: Any) -> bool:
    """Try once to place all objects; on success they are in `generator.layout`. Takes the place of the method.

    Args:
        generator: A `RandomGenerator`; its stream advances exactly as with its own method.
    """
    placed: dict[str, Disc] = {}
    for name, (placements, keepout) in generator.placements.items():
        spot = _free_spot(generator, placements, keepout, list(placed.values()))
        if spot is None:
            return False
        placed[name] = (*spot, keepout)
    generator.layout = {name: np.array(disc[:2]) for name, disc in placed.items()}
    return True


def _free_spot(generator: Any, placements: Any, keepout: float, placed: list[Disc]) -> tuple[float, float] | None:
    # The sum is in the original's order, for the last bit.
    near = [(x, y, other + generator.placements_margin + keepout) for x, y, other in placed]
    for _ in range(_TRIES):
        spot = _draw(generator, placements, keepout)
        if _is_free(*spot, near):
            return spot
    return None


def _draw(generator: Any, placements: Any, keepout: float) -> tuple[float, float]:
    if placements is not None and len(placements) > 1:  # which of several areas is a draw of its own
        x, y = generator.draw_placement(placements, keepout)
        return float(x), float(y)
    area = generator.placements_extents if placements is None else placements[0]
    x_min, y_min, x_max, y_max = generator.constrain_placement(area, keepout)
    uniform = generator.random_generator.random_sample
    return x_min + (x_max - x_min) * uniform(), y_min + (y_max - y_min) * uniform()


def _is_free(x: float, y: float, near: list[Disc]) -> bool:
    for other_x, other_y, distance in near:
        dx, dy = x - other_x, y - other_y
        if math.sqrt(dx * dx + dy * dy) < distance:
            return False
    return True
