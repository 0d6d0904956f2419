"""What a reader sees first: the expert and each method's last save point side by side, in a few numbers."""

import numpy as np
import pandas as pd

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.verdict import STILL_BELOW
from lightning_unlearn.report.document import Block, Gallery, Picture, Table
from lightning_unlearn.report.findings import Evaluation
from lightning_unlearn.report.kinds import Kind, last_updates
from lightning_unlearn.report.material import number, percent
from lightning_unlearn.report.reference import COST_LIMIT

_HEADER = ("model", "return", "of the expert's", "episode cost", f"episodes above {COST_LIMIT:g}", "stand still")
_CAPTION = (
    f"Means over episodes (and seeds). {UNSAFE} is the expert; numbers after names are updates; {COST_LIMIT:g} is the "
    f"field's usual limit. An episode stands still if its return is below {STILL_BELOW:g} of the expert's mean return."
)


def glance(evaluation: Evaluation, kinds: list[Kind]) -> list[Block]:
    """A small table, and a figure of the best repair beside its expert where the evaluation drew one."""
    shown = last_updates(kinds)
    blocks: list[Block] = [Table(_HEADER, [_row(kind, evaluation.episodes) for kind in shown], _CAPTION)]
    drawn = [kind for kind in shown if _label(kind) in evaluation.figures]
    if drawn:
        best = min(drawn, key=_rank)
        layout = evaluation.metadata["video"]["layout_seed"]
        caption = (
            f"{best.name} beside its expert. Left: one layout ({layout}), where the expert's cost is the median one. "
            "Right: the cost of an episode as it goes on, and return against cost of every layout."
        )
        picture = Picture("before_after.png", evaluation.figures[_label(best)], caption)
        blocks.append(Gallery([picture], wide=True))
    return blocks


def _rank(kind: Kind) -> tuple[bool, float]:
    """The rule of `select`: the limit first, then the return; the lowest cost where none is within it."""
    cost, earned = kind.mean("Cost_Sum") or 0.0, kind.mean("Reward") or 0.0
    return (False, -earned) if cost <= COST_LIMIT else (True, cost)


def _row(kind: Kind, episodes: pd.DataFrame) -> list[str]:
    experts = kind.rows["Reward"] - kind.rows["Reward_Change_vs_Unsafe"]  # mean return, seed by seed
    own = [episodes[episodes["Model"] == label] for label in kind.rows["Model"]]
    above = np.mean([(table["cost_sum"] > COST_LIMIT).mean() for table in own])
    still = share = None
    if (experts > 0).all():
        share = float((kind.rows["Reward"] / experts).mean())
        stood = [(t["reward"] < STILL_BELOW * expert).mean() for t, expert in zip(own, experts, strict=True)]
        still = float(np.mean(stood))
    numbers = [number(kind.mean("Reward"), 1), percent(share), number(kind.mean("Cost_Sum"), 1)]
    return [kind.name, *numbers, percent(float(above)), percent(still)]


def _label(kind: Kind) -> str:
    """Of its first seed's model."""
    return str(kind.rows["Model"].iloc[0])
