"""Charts of the report: small SVG files that can be read on a phone."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import repeat
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox

from lightning_unlearn.audits.figures import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION
from lightning_unlearn.audits.relearn_attacks import STEPS
from lightning_unlearn.audits.verdict import USUAL_LIMIT
from lightning_unlearn.report.context import Measure, ModelGroup, Point
from lightning_unlearn.report.findings import ModelOrigin, RelearningTest, TrainingRun

NOTE = "#555555"
_FAMILY = {
    "unsafe": INK,
    "oracle": GREEN,
    "concept": BLUE,
    "continued": ORANGE,
    "localized_concept": PURPLE,
    "trajectory_decremental": VERMILLION,
    "repedit": SKY,
    "random": "#999999",
}
_OTHERS = ("#882255", "#999933", "#44AA99", "#AA4499", "#661100", "#6699CC")
_MARKERS = "osD^"
_LINES = ("-", "--", "-.", ":")
_BESIDE = ((5, 4), (5, -9), (-5, 4), (-5, -9), (0, 8), (0, -13), (14, 10), (-14, 10), (14, -15), (-14, -15))
"""Possible offsets of a point's name in typographic points, the preferred one first. A name at the left ends there."""
_AS_WRITTEN: Any = {"text.parse_math": False, "svg.hashsalt": "lightning-unlearn"}
"""Names are not read as formulas, and the ids of SVG elements are the same in every run."""


def colours(families: Sequence[str]) -> dict[str, str]:
    """Map each family to its colour, the same in every chart of a report."""
    others = [family for family in dict.fromkeys(families) if family not in _FAMILY]
    return _FAMILY | {family: _OTHERS[i % len(_OTHERS)] for i, family in enumerate(others)}


@matplotlib.rc_context(_AS_WRITTEN)
def pareto(
    groups: Sequence[ModelGroup],
    published: Mapping[str, Point],
    others: Mapping[str, Point],
    colour: Mapping[str, str],
) -> bytes:
    """Draw return against episode cost: means with seeds and intervals, and published points.

    Args:
        groups: Evaluated models.
        published: Family and update → point, drawn as an open circle with the update.
        others: Name → point, drawn as a cross.
        colour: Family → colour.
    """
    figure, ax = _panel(5.4, 4.6)
    ax.axvline(USUAL_LIMIT, color=NOTE, linewidth=0.8, linestyle=":")
    names = [_draw_group(ax, group, colour[group.model.family]) for group in groups]
    for name, point in published.items():
        family, _, update = name.partition(" ")
        names.append(_draw_point(ax, point, update, "o", colour[family]))
    names += [_draw_point(ax, point, name, "x", NOTE) for name, point in others.items()]
    for family in dict.fromkeys(group.model.family for group in groups):
        ax.plot([], [], "o", color=colour[family], label=family)
    ax.set(xlabel="cost of an episode", ylabel="return of an episode")
    _legend_below(figure, ax)
    keep_apart(figure, ax, names)
    return _svg(figure)


def _draw_point(ax: Axes, point: Point, name: str, marker: str, colour: str) -> Annotation:
    ax.plot(point.cost, point.reward, marker, color=colour, markerfacecolor="none", markersize=5, alpha=0.7)
    return _name(ax, name, point.cost, point.reward, colour)


def _draw_group(ax: Axes, group: ModelGroup, colour: str) -> Annotation:
    cost, reward = (float(group.rows[column].mean()) for column in ("Cost_Sum", "Reward"))
    if group.seeds > 1:
        ax.plot(group.rows["Cost_Sum"], group.rows["Reward"], ".", color=colour, markersize=4, alpha=0.5)
    x, y = (_error(middle, group.interval(q)) for middle, q in ((cost, "Cost"), (reward, "Reward")))
    ax.errorbar(cost, reward, y, x, fmt="o", color=colour, markersize=8, markeredgecolor="white", elinewidth=1)
    return _name(ax, "" if group.model.update is None else str(group.model.update), cost, reward, colour)


def _error(middle: float, interval: tuple[float, float] | None) -> np.ndarray | None:
    """Return the lengths of an error bar below and above its middle. Shape: (2, 1)."""
    if interval is None:
        return None
    return np.array([[max(0.0, middle - interval[0])], [max(0.0, interval[1] - middle)]])


@matplotlib.rc_context(_AS_WRITTEN)
def learning(
    trainings: Sequence[TrainingRun], metric: str, unit: str, colour: Mapping[str, str], target: float | None = None
) -> bytes | None:
    """Draw a metric against environment steps, a thin line per seed, a thick one for the mean; None without points."""
    drawn = [training for training in trainings if len(training.curves[metric]) > 1]
    if not drawn:
        return None
    figure, ax = _panel(5.4, 3.8)
    for method in dict.fromkeys(training.method for training in drawn):
        curves = [np.array(t.curves[metric]) for t in drawn if t.method == method]  # (points, 2) each
        by_step = [dict(curve) for curve in curves]
        shared = sorted(set.intersection(*map(set, by_step)))
        for curve in curves:
            ax.plot(*curve.T, color=colour[method], linewidth=0.7, alpha=0.35 if len(curves) > 1 else 0.9)
        mean = np.array([(step, np.mean([curve[step] for curve in by_step])) for step in shared]).reshape(-1, 2)
        ax.plot(*mean.T, color=colour[method], linewidth=1.8, label=method)
    if target is not None:
        ax.axhline(target, color=NOTE, linewidth=0.8, linestyle=":", label=f"target {target:g}")
    ax.set(xlabel="environment steps", ylabel=unit)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend_below(figure, ax)
    return _svg(figure)


@matplotlib.rc_context(_AS_WRITTEN)
def relearning(tests: Sequence[RelearningTest], colour: Mapping[str, str]) -> bytes:
    """Draw the rate against steps of one attack, a line per model and seed; a cross ends a run without relearning."""
    figure, ax = _panel(5.4, 4.0)
    styles = _line_styles(list(dict.fromkeys(test.model for test in tests)))
    for test in tests:
        steps, rates = np.array(test.curve).T
        shade, kind = colour[test.model.family], test.model.kind
        ax.plot(steps, rates, styles[kind], color=shade, linewidth=1.2, marker="o", markersize=2.5, label=kind)
        if test.censored:
            ax.plot(steps[-1], rates[-1], "x", color=shade, markersize=8, markeredgewidth=2)
    for threshold in {test.test["threshold"] for test in tests}:
        ax.axhline(threshold, color=INK, linewidth=0.9, linestyle="--")
    for rate in {test.test["unsafe_cost"] for test in tests}:
        ax.axhline(rate, color=NOTE, linewidth=0.9, linestyle=":")
    ax.set(xlabel=STEPS[tests[0].attack], ylabel=" or ".join(sorted({test.test["unit"] for test in tests})))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])  # a policy without any cost stays visible
    _legend_below(figure, ax)
    return _svg(figure)


@matplotlib.rc_context(_AS_WRITTEN)
def measures(shown: Sequence[Measure], colour: Mapping[str, str]) -> bytes:
    """Draw a panel per measure, a line per model, and a mark per training seed.

    A dot is a number, an open arrow one that would be larger if the test had gone on. The tall bar is the middle, and
    the thin line its interval, as far as the panel goes.
    """
    models = list(dict.fromkeys(model for measure in shown for model in measure.values))
    figure = Figure(figsize=(1.8 + 1.9 * len(shown), 1.5 + 0.34 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, measure in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        for height, model in enumerate(models):
            values, shade = measure.values.get(model, ()), colour[model.family]
            for value, is_open in zip(values, measure.censored.get(model, [False] * len(values)), strict=True):
                marker, fill = (">", "none") if is_open else ("o", "full")
                ax.plot(value, height, marker, color=shade, fillstyle=fill, markersize=6, alpha=0.85)
        ends = [0.0, *ax.get_xlim()]  # of the seeds: an interval of two of them may be ten times as wide
        for height, model in enumerate(models):
            middle, interval = measure.middle(model), measure.interval(model)
            ax.plot(interval or (), [height] * 2 if interval else (), color=colour[model.family], linewidth=1.2)
            if middle is not None:
                ax.plot([middle] * 2, [height - 0.3, height + 0.3], color=colour[model.family], linewidth=2)
        ax.set(xlim=(min(ends), max(ends)), yticks=range(len(models)), yticklabels=[model.kind for model in models])
        ax.set(ylim=(len(models) - 0.5, -0.5))
        ax.set_title(measure.title, fontsize=9)
        ax.set_xlabel(measure.reading + (f"\ntrust {measure.trust}" if measure.trust else ""), fontsize=8)
        if measure.censored:
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.grid(axis="y", color="#E3E3E3", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return _svg(figure)


def _line_styles(models: Sequence[ModelOrigin]) -> dict[str, str]:
    """Map family and update to a line style. Updates of a family differ; seeds of an update do not."""
    kinds: dict[str, list[str]] = {}
    for model in models:
        kinds.setdefault(model.family, []).append(model.kind)
    own = [(kind, index) for names in kinds.values() for index, kind in enumerate(dict.fromkeys(names))]
    return {kind: _LINES[index % len(_LINES)] for kind, index in own}


@matplotlib.rc_context(_AS_WRITTEN)
def dots(rows: Mapping[str, Mapping[str, float]], unit: str, lines: Mapping[str, float] | None = None) -> bytes:
    """Draw the values of each row as dots on a line of its own, with reference levels.

    Args:
        rows: Row → name of a value → value.
        unit: Label of the axis.
        lines: Name of a level → value.
    """
    figure, ax = _panel(5.4, 1.6 + 0.34 * len(rows))
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for name, marker, shade in zip(names, _MARKERS, (BLUE, VERMILLION, ORANGE, PURPLE), strict=False):
        heights = [i for i, row in enumerate(rows.values()) if name in row]
        values = [row[name] for row in rows.values() if name in row]
        ax.plot(values, heights, marker, color=shade, markersize=6, alpha=0.85, label=name)
    for (name, level), style in zip((lines or {}).items(), (":", "--", "-."), strict=False):
        ax.axvline(level, color=NOTE, linewidth=1, linestyle=style, label=name)
    ax.set(xlabel=unit, yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="y", color="#E3E3E3", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.set_xlim(left=0)
    _legend_below(figure, ax)
    return _svg(figure)


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(9)
    return figure, ax


def _name(ax: Axes, name: str, x: float, y: float, colour: str) -> Annotation:
    return ax.annotate(name, (x, y), xytext=_BESIDE[0], textcoords="offset points", fontsize=7, color=colour)


def keep_apart(figure: Figure, ax: Axes, names: Sequence[Annotation]) -> None:
    """Move each name to the offset that covers least of the points and of the names before it."""
    figure.draw_without_rendering()  # the axes get their place
    points = ax.transData.transform([name.xy for name in names])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    for name in names:
        covered = {place: sum(map(_area, taken, repeat(_moved(name, place)))) for place in _BESIDE}
        taken.append(_moved(name, min(_BESIDE, key=covered.__getitem__)))


def _moved(name: Annotation, place: tuple[int, int]) -> Bbox:
    """Move a name and return its box, in pixels."""
    name.xyann = place
    name.set_horizontalalignment("right" if place[0] < 0 else "left" if place[0] else "center")
    return name.get_window_extent()


def _area(one: Bbox, other: Bbox) -> float:
    """Return the area of the intersection of two boxes."""
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else shared.width * shared.height


def _legend_below(figure: Figure, ax: Axes) -> None:
    """Put the legend under the chart, so that it hides nothing."""
    named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # one entry a name
    if named:
        figure.legend(named.values(), named.keys(), frameon=False, fontsize=8, ncols=3, loc="outside lower center")


def _svg(figure: Figure) -> bytes:
    """Write a figure as SVG; equal figures give equal files."""
    out = BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
