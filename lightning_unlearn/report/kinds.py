"""A policy suite's table by family and update, over training seeds."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.report.findings import Evaluation, Model, Wanted


@dataclass(frozen=True)
class Kind:
    """The models of a family and update, one a seed."""

    model: Model
    """Without a seed."""
    rows: pd.DataFrame
    """Of `summary.csv`."""
    over_seeds: dict[str, Any]
    """Intervals and tests; empty with one seed."""

    @property
    def name(self) -> str:
        """Family and update; without the update where the family has only one, as the unsafe expert."""
        return self.model.kind

    def mean(self, column: str) -> float | None:
        """Mean over seeds; None where it is not known of any."""
        value = self.rows[column].mean()
        return None if pd.isna(value) else float(value)

    def interval(self, quantity: str) -> tuple[float, float] | None:
        """The 95 % interval over seeds of Reward or Cost; None with one seed."""
        bounds = [self.over_seeds.get(f"{quantity}_Seeds_{end}") for end in ("Low", "High")]
        return None if None in bounds else (bounds[0], bounds[1])  # type: ignore[return-value]

    @property
    def seeds(self) -> int:
        """How many training seeds; 1 where none is known."""
        return max(1, self.rows["Seed"].nunique())


def kinds(evaluation: Evaluation, wanted: Wanted) -> list[Kind]:
    """In the table's order.

    Raises:
        ValueError: A method is asked for that the evaluation does not hold.
    """
    table = evaluation.table
    families = set(table["Family"].dropna())
    if absent := set(wanted.methods) - families:
        raise ValueError(
            f"--models {' '.join(sorted(absent))}: evaluation {evaluation.eval_id} holds {', '.join(sorted(families))}."
        )
    rows = table[[wanted.method(family) for family in table["Family"].fillna("")]]
    over_seeds = {(row["Family"], row["Update"]): row for row in evaluation.findings["over_seeds"]}
    found = []
    for (family, update), group in rows.groupby(["Family", "Update"], sort=False, dropna=False):
        model = Model(_text(family) or group["Model"].iloc[0], None if pd.isna(update) else int(update))
        found.append(Kind(model, group, over_seeds.get((model.family, model.update), {})))
    return found


def expert(found: list[Kind]) -> Kind:
    """The unsafe experts, which every evaluation holds."""
    return next(kind for kind in found if kind.model.family == UNSAFE)


def last_updates(found: list[Kind]) -> list[Kind]:
    """The last save point of every family, in order."""
    last = {
        kind.model.family: max(kind.model.update or 0, 0) for kind in sorted(found, key=lambda k: k.model.update or 0)
    }
    return [kind for kind in found if (kind.model.update or 0) == last[kind.model.family]]


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
