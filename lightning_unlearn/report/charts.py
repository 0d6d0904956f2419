"""The report's drawings, each a small SVG that can be read on a phone."""

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
from lightning_unlearn.report.findings import Model, Relearning, Training
from lightning_unlearn.report.kinds import Kind
from lightning_unlearn.report.reference import COST_LIMIT, Point

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
"""Where a point's name may stand, in points from it, the likeliest first; left of it, it ends there."""
_AS_WRITTEN: Any = {"text.parse_math": False, "svg.hashsalt": "lightning-unlearn"}
"""Names are no formulas, and element names do not change from run to run."""


def colours(families: Sequence[str]) -> dict[str, str]:
    """One for each family, the same in every drawing of a report."""
    others = [family for family in dict.fromkeys(families) if family not in _FAMILY]
    return _FAMILY | {family: _OTHERS[i % len(_OTHERS)] for i, family in enumerate(others)}


@matplotlib.rc_context(_AS_WRITTEN)
def pareto(
    found: Sequence[Kind],
    published: Mapping[str, Point],
    others: Mapping[str, Point],
    colour: Mapping[str, str],
) -> bytes:
    """Return against episode cost: own means with seeds and intervals, and published points.

    Args:
        found: Own models.
        published: Family and update → point, drawn as an open circle with the update.
        others: Name → point, drawn as a cross.
        colour: Family → colour.
    """
    figure, ax = _panel(5.4, 4.6)
    ax.axvline(COST_LIMIT, color=NOTE, linewidth=0.8, linestyle=":")
    names = [_draw_kind(ax, kind, colour[kind.model.family]) for kind in found]
    for name, point in published.items():
        family, _, update = name.partition(" ")
        names.append(_draw_point(ax, point, update, "o", colour[family]))
    names += [_draw_point(ax, point, name, "x", NOTE) for name, point in others.items()]
    for family in dict.fromkeys(kind.model.family for kind in found):
        ax.plot([], [], "o", color=colour[family], label=family)
    ax.set(xlabel="cost of an episode", ylabel="return of an episode")
    _below(figure, ax)
    keep_apart(figure, ax, names)
    return _svg(figure)


def _draw_point(ax: Axes, point: Point, name: str, marker: str, colour: str) -> Annotation:
    ax.plot(point.cost, point.reward, marker, color=colour, markerfacecolor="none", markersize=5, alpha=0.7)
    return _name(ax, name, point.cost, point.reward, colour)


def _draw_kind(ax: Axes, kind: Kind, colour: str) -> Annotation:
    cost, reward = (float(kind.rows[column].mean()) for column in ("Cost_Sum", "Reward"))
    if kind.seeds > 1:
        ax.plot(kind.rows["Cost_Sum"], kind.rows["Reward"], ".", color=colour, markersize=4, alpha=0.5)
    x, y = (_error(middle, kind.interval(q)) for middle, q in ((cost, "Cost"), (reward, "Reward")))
    ax.errorbar(cost, reward, y, x, fmt="o", color=colour, markersize=8, markeredgecolor="white", elinewidth=1)
    return _name(ax, "" if kind.model.update is None else str(kind.model.update), cost, reward, colour)


def _error(middle: float, interval: tuple[float, float] | None) -> np.ndarray | None:
    """Lengths below and above the middle, as matplotlib wants them. Shape: (2, 1)."""
    if interval is None:
        return None
    return np.array([[max(0.0, middle - interval[0])], [max(0.0, interval[1] - middle)]])


@matplotlib.rc_context(_AS_WRITTEN)
def learning(
    trainings: Sequence[Training], metric: str, unit: str, colour: Mapping[str, str], target: float | None = None
) -> bytes | None:
    """One metric against environment steps: a thin line a seed, a thick one for their mean; None without points."""
    drawn = [training for training in trainings if len(training.curves[metric]) > 1]
    if not drawn:
        return None
    figure, ax = _panel(5.4, 3.8)
    for method in dict.fromkeys(training.method for training in drawn):
        curves = [np.array(t.curves[metric]) for t in drawn if t.method == method]  # (points, 2) each
        for curve in curves:
            ax.plot(*curve.T, color=colour[method], linewidth=0.7, alpha=0.35 if len(curves) > 1 else 0.9)
        mean = _mean_curve(curves)
        ax.plot(*mean.T, color=colour[method], linewidth=1.8, label=method)
    if target is not None:
        ax.axhline(target, color=NOTE, linewidth=0.8, linestyle=":", label=f"target {target:g}")
    ax.set(xlabel="environment steps", ylabel=unit)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    _below(figure, ax)
    return _svg(figure)


def _mean_curve(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the seeds at steps that all of them have. Shape: (points, 2)."""
    steps = sorted(set.intersection(*(set(curve[:, 0]) for curve in curves)))
    values = [dict(curve) for curve in curves]
    return np.array([(step, np.mean([value[step] for value in values])) for step in steps]).reshape(-1, 2)


@matplotlib.rc_context(_AS_WRITTEN)
def relearning(tests: Sequence[Relearning], colour: Mapping[str, str]) -> bytes:
    """Rate against environment steps, a line a model and seed; a cross where a run ended without relearning."""
    figure, ax = _panel(5.4, 4.0)
    styles = _line_styles(list(dict.fromkeys(test.model for test in tests)))
    for test in tests:
        steps, rates = np.array(test.curve).T
        shade, kind = colour[test.model.family], test.model.kind
        ax.plot(steps, rates, styles[kind], color=shade, linewidth=1.2, marker="o", markersize=2.5, label=kind)
        if test.result["censored"]:
            ax.plot(steps[-1], rates[-1], "x", color=shade, markersize=8, markeredgewidth=2)
    for threshold in {test.test["threshold"] for test in tests}:
        ax.axhline(threshold, color=INK, linewidth=0.9, linestyle="--")
    for rate in {test.test["unsafe_cost"] for test in tests}:
        ax.axhline(rate, color=NOTE, linewidth=0.9, linestyle=":")
    ax.set(xlabel="environment steps of relearning", ylabel=" or ".join(sorted({test.test["unit"] for test in tests})))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])  # a policy without any cost stays visible
    _below(figure, ax)
    return _svg(figure)


def _line_styles(models: Sequence[Model]) -> dict[str, str]:
    """Kind → style of its line: those of a family differ, seeds of a kind do not."""
    kinds: dict[str, list[str]] = {}
    for model in models:
        kinds.setdefault(model.family, []).append(model.kind)
    own = [(kind, index) for names in kinds.values() for index, kind in enumerate(dict.fromkeys(names))]
    return {kind: _LINES[index % len(_LINES)] for kind, index in own}


@matplotlib.rc_context(_AS_WRITTEN)
def dots(rows: Mapping[str, Mapping[str, float]], unit: str, lines: Mapping[str, float] | None = None) -> bytes:
    """Some values of every row as dots on a line of its own, with levels that are compared with.

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
    _below(figure, ax)
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
    """Move each name to where it covers least of the points and of the names before it."""
    figure.draw_without_rendering()  # the axes get their place
    points = ax.transData.transform([name.xy for name in names])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in points]
    for name in names:
        covered = {place: sum(map(_area, taken, repeat(_moved(name, place)))) for place in _BESIDE}
        taken.append(_moved(name, min(_BESIDE, key=covered.__getitem__)))


def _moved(name: Annotation, place: tuple[int, int]) -> Bbox:
    """Where a name then stands, in pixels."""
    name.xyann = place
    name.set_horizontalalignment("right" if place[0] < 0 else "left" if place[0] else "center")
    return name.get_window_extent()


def _area(one: Bbox, other: Bbox) -> float:
    """What two boxes share."""
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else shared.width * shared.height


def _below(figure: Figure, ax: Axes) -> None:
    """The legend under the drawing, where it hides nothing."""
    named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # one entry a name
    if named:
        figure.legend(named.values(), named.keys(), frameon=False, fontsize=8, ncols=3, loc="outside lower center")


def _svg(figure: Figure) -> bytes:
    """Equal figures give equal files."""
    out = BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
