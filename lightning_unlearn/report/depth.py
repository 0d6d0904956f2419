"""The section "How deep": audits that look behind a repair's behaviour, side by side, over training seeds.

An audit is shown if the store has a result of it. To show another one, add its measures to `_measures`.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import pandas as pd

from lightning_unlearn.audits import elicitation, patching, weight_path
from lightning_unlearn.audits.patching import INTO_REPAIRED, MEAN
from lightning_unlearn.report import charts
from lightning_unlearn.report.context import (
    NOTHING,
    Gallery,
    Measure,
    Paragraph,
    Picture,
    ReportContext,
    Section,
    Table,
    number,
    percent,
)
from lightning_unlearn.report.findings import Findings, ModelOrigin

_TEXT = (
    "A repair can suppress a behaviour without erasing it. Each panel is one test of that, from the models in the "
    "store. Compare a repair with the oracle, which never had the behaviour, and with a random network. "
    "Trust tells how well a test separates experts that hide the behaviour from oracles, in SafetyPointGoal1-v0: 1 "
    "is always, 0.5 is chance, and below 0.7 it is weak. Relearning and distances look behind what hides it, so that "
    "their trust is high by construction."
)
_CAPTION = (
    "Dots: training seeds; open arrows: seeds whose cost was not back when the test ended. Bars: means over seeds, of "
    "steps the median of Kaplan and Meier, which counts the open arrows. Thin lines: 95 % intervals over seeds. Cost "
    "that returns, or C_forget if a concept was named: 0 is the repair, 1 the expert. Sensors are off by at most so "
    "many standard deviations, or the expert's activation of one layer is put into the repair while it acts. Barrier: "
    "the most by which a policy on the line between the weights of expert and repair is worse than the straight line "
    "between the two, an episode."
)
_PATHS = {
    "l2_distance": ("distance from\nthe expert's weights", "more: further away"),
    "cost_barrier": ("cost barrier on the\nline to the expert", "more: no straight way back"),
    "return_barrier": ("return barrier on the\nline to the expert", "more: no straight way back"),
}
"""Column of `weight_path.csv` → title and reading."""
_T = TypeVar("_T")


def how_deep(context: ReportContext) -> Section | None:
    """Put the measures of depth side by side; None if there are none, or one relearning curve a model is all."""
    measures = _measures(context.findings)
    is_pooled = len(measures) > 1 or any(len(seeds) > 1 for measure in measures for seeds in measure.values.values())
    if not is_pooled:
        return None
    models = list(dict.fromkeys(model for measure in measures for model in measure.values))
    rows = [[model.kind, *(measure.cell(model) for measure in measures)] for model in models]
    rows.append(["trust (AUC)", *(measure.trust or NOTHING for measure in measures)])
    titles = [measure.title.replace("\n", " ") for measure in measures]
    caption = "Square brackets: 95 % interval over seeds. Round brackets: seeds whose cost came back."
    table = Table(("model", *titles), rows, caption)
    drawing = charts.measures(measures, charts.colours(context.families))
    picture = Picture("how_deep.svg", drawing, _CAPTION)
    return Section("How deep", [Paragraph(_TEXT), Gallery([picture], wide=True), table])


@cache
def trust(audit: str) -> str:
    """Return an audit's AUC on the bank of `meta-evaluate`, with its interval, and whether it is weak.

    Args:
        audit: A row of the shipped `trust.csv`; empty text if there is none.
    """
    table = pd.read_csv(Path(__file__).with_name("trust.csv"), index_col="audit")
    if audit not in table.index:
        return ""
    row = table.loc[audit]
    return f"{row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{', weak' if row['weak'] else ''}"


def _measures(findings: Findings) -> list[Measure]:
    """Return the measures of every audit with results.

    They are: relearning by attack, elicitation at the largest ε, patching by layer, distance and barriers.
    """
    found = []
    for attack in dict.fromkeys(test.attack for test in findings.relearning):
        newest = {t.model: t for t in findings.relearning if t.attack == attack and t.model.line is None}.values()
        times, censored = (_by_model((t.model, getattr(t, name)) for t in newest) for name in ("time", "censored"))
        title, trusted = f"steps to relearn\n({attack})", trust(f"relearn_{attack}")
        found.append(Measure(title, "more: deeper", "{:.0f}".format, times, censored, trusted))
    names = elicitation.NAME, patching.NAME, weight_path.NAME
    of = {name: [pair for pair in findings.pairs if pair.run.audit == name] for name in names}
    attacked = [(pair.model, row) for pair in of[elicitation.NAME] for row in pair.rows if row["epsilon"]]
    most = max((row["epsilon"] for _, row in attacked), default=0.0)
    for attack in (elicitation.GRADIENT, elicitation.RANDOM):
        strongest = [(model, row) for model, row in attacked if (row["attack"], row["epsilon"]) == (attack, most)]
        back = _by_model((model, row["returned"]) for model, row in strongest)
        title = f"cost that returns, sensors\noff by {most:g} SD ({attack})"
        found.append(Measure(title, "more: easier to elicit", percent, back, trust=trust(f"elicit_{attack}")))
    patched = [
        (pair.model, row) for pair in of[patching.NAME] for row in pair.rows if row["direction"] == INTO_REPAIRED
    ]
    for layer in dict.fromkeys(row["layer"] for _, row in patched if row["layer"] not in (patching.NOTHING, MEAN)):
        back = _by_model((model, row["returned"]) for model, row in patched if row["layer"] == layer)
        title, trusted = f"cost that returns with\nthe expert's {layer}", trust(f"patch_{layer.replace(' ', '_')}")
        found.append(Measure(title, "more: later layers keep it", percent, back, trust=trusted))
    for column, (title, reading) in _PATHS.items():
        numbers = _by_model((pair.model, pair.rows[0][column]) for pair in of[weight_path.NAME])
        found.append(Measure(title, reading, partial(number, digits=2), numbers, trust=trust(column)))
    return [measure for measure in found if measure.values]


def _by_model(entries: Iterable[tuple[ModelOrigin, _T | None]]) -> dict[ModelOrigin, list[_T]]:
    """Group the values of models by the model without its seed; unknown ones are left out."""
    grouped: dict[ModelOrigin, list[_T]] = {}
    for model, value in entries:
        if value is not None:
            grouped.setdefault(replace(model, seed=None), []).append(value)
    return grouped
