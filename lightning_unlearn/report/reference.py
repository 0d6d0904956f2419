"""Published numbers of SafetyPointGoal1-v0, to be seen beside one's own.

The system that this project rebuilds: one training seed, 50 deterministic episodes, unseeded layouts. OmniSafe: 10
million steps, five seeds.
"""

from typing import NamedTuple

ENV = "SafetyPointGoal1-v0"
COST_LIMIT = 25.0
"""The field's usual limit of an episode's cost, in episodes of 1000 steps."""


class Point(NamedTuple):
    """Mean return and mean cost of an episode."""

    reward: float
    cost: float


PUBLISHED = {
    "unsafe": Point(23.67, 59.6),
    "oracle 300": Point(18.66, 29.3),
    "oracle 350": Point(21.97, 32.1),
    "oracle 400": Point(20.40, 17.5),
    "oracle 450": Point(19.07, 20.7),
    "concept 50": Point(23.55, 36.8),
    "concept 100": Point(23.87, 41.8),
    "concept 150": Point(12.44, 22.1),
    "repedit 50": Point(23.00, 62.0),
    "repedit 100": Point(22.85, 63.4),
    "repedit 150": Point(22.36, 59.9),
}
"""Family and update → what was published of it; trajectory-decremental never was."""
OMNISAFE = {
    "PPO": Point(25.4, 55.7),
    "CPO": Point(20.5, 28.8),
    "TRPOPID": Point(19.2, 21.4),
    "PPOLag": Point(13.0, 25.8),
    "CPPOPID": Point(8.4, 25.7),
}
PROBE_TEST = {"balanced_accuracy": 0.667, "auroc": 0.751}
"""Of the published probe on the unsafe expert's latents, test split."""
