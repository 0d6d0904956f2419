"""Palette, and the figures of audits and of repairs.

They use matplotlib's object interface, which needs no display.
Shapes: N states, A action size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, BLUE, SKY, GREEN, VERMILLION = "#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00"
ORANGE, PURPLE, GREY = "#E69F00", "#CC79A7", "#555555"
"""Okabe and Ito's palette, which colour-blind readers can tell apart, and a grey for notes."""
_SERIES = (BLUE, GREEN, ORANGE, PURPLE, SKY)
_MODELS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure at its own size; equal figures give equal files."""
    figure.savefig(path, format="png", metadata={"Software": None})


def probe_figure(outcomes: Mapping[str, tuple[np.ndarray, np.ndarray]], aurocs: Mapping[str, float]) -> Figure:
    """ROC curves of several probes on the test split, and how the first one scores safe and hazard states.

    Args:
        outcomes: Name → log-odds of the test states, and their labels. Shape of each: (N,).
        aurocs: Name → area under its curve.
    """
    from sklearn.metrics import roc_curve  # a second to import, which latent shift does not need

    figure, (roc, histogram) = _panels()
    for colour, (name, (decision, labels)) in zip(_SERIES, outcomes.items(), strict=False):
        false_alarms, hits, _ = roc_curve(labels, decision)
        roc.plot(false_alarms, hits, color=colour, linewidth=1.6, label=f"{name}, AUROC {aurocs[name]:.3f}")
    roc.plot((0, 1), (0, 1), color=GREY, linewidth=0.8, linestyle=":", label="chance")
    roc.set(xlabel="safe states called hazard (share)", ylabel="hazard states found (share)", xlim=(0, 1), ylim=(0, 1))
    roc.legend(frameon=False, fontsize=8, loc="lower right")
    name, (decision, labels) = next(iter(outcomes.items()))
    low, high = np.quantile(decision, (0.001, 0.999))  # the tails would leave no width to the rest
    edges = list(np.linspace(float(low), float(high), 50))
    for label, group, colour in ((0, "safe (far)", INK), (1, "hazard (near)", VERMILLION)):
        histogram.hist(decision[labels == label], bins=edges, density=True, color=colour, alpha=0.4, label=group)
    histogram.axvline(0.0, color=GREY, linewidth=0.8, linestyle=":")
    histogram.set(xlabel="score (log-odds of hazard)", ylabel="density")
    histogram.legend(frameon=False, fontsize=8)
    histogram.set_title(f"{name}, {len(labels)} test states", fontsize=9, color=GREY, loc="right")
    return figure


def shift_figure(distance: np.ndarray, shifts: Mapping[str, np.ndarray], distance_name: str) -> Figure:
    """Shift against hazard distance, one panel a kind of shift: mean and quartile band of bins of equal count.

    Args:
        distance: Shape: (N,); infinite values are counted in the title only.
        shifts: Axis label → shift of each state. Shape of each: (N,).
        distance_name: Label of the horizontal axis.
    """
    figure, panels = _panels()
    near = np.isfinite(distance)
    for ax, (name, shift) in zip(panels, shifts.items(), strict=True):
        centres, bands = binned(distance[near], shift[near])
        ax.fill_between(centres, bands[:, 1], bands[:, 2], color=BLUE, alpha=0.2, linewidth=0, label="middle half")
        ax.plot(centres, bands[:, 0], color=BLUE, marker="o", markersize=3, linewidth=1.6, label="mean")
        ax.set(xlabel=distance_name, ylabel=name)
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=8)
    if not near.all():
        panels[0].set_title(f"{(~near).sum()} states without a distance left out", fontsize=8, color=GREY, loc="left")
    return figure


def prediction_figure(actual: np.ndarray, predicted: np.ndarray, r2: float) -> Figure:
    """Action means of the test states against those predicted from the latent. Shapes: (N, A), (N, A)."""
    figure, (scatter, residual) = _panels()
    for component, colour in zip(range(actual.shape[1]), _SERIES, strict=False):
        label = f"action {component}"
        scatter.plot(actual[:, component], predicted[:, component], ".", color=colour, markersize=2, label=label)
        error = predicted[:, component] - actual[:, component]
        residual.hist(error, bins=60, color=colour, histtype="step", linewidth=1.4, label=label)
    low, high = float(actual.min()), float(actual.max())
    scatter.plot((low, high), (low, high), color=GREY, linewidth=0.8, linestyle=":")
    scatter.set(xlabel="action mean before tanh", ylabel="predicted from the latent")
    scatter.set_title(f"{len(actual)} test states, R² {r2:.3f}", fontsize=9, color=GREY, loc="right")
    residual.set(xlabel="predicted minus actual", ylabel="states")
    for ax in (scatter, residual):
        ax.legend(frameon=False, fontsize=8, markerscale=4)
    return figure


def relearn_figure(
    curves: Mapping[str, Sequence[tuple[int, float, float]]],
    further_thresholds: Mapping[str, Sequence[float]],
    threshold: float,
    expert_rate: float,
    title: str,
    axes: tuple[str, str],
) -> Figure:
    """Rate against steps of relearning, one curve a model, with thresholds as lines.

    Args:
        curves: Model → steps, mean rate and its standard error of each evaluation.
        further_thresholds: Model → thresholds of its own, drawn in its colour.
        threshold: The threshold that all models share.
        expert_rate: The unsafe expert's own rate.
        title: Small note above the axes.
        axes: Units of the steps and of all rates.
    """
    figure = Figure(figsize=(8, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for index, (model, curve) in enumerate(curves.items()):
        colour = _MODELS[index % len(_MODELS)]
        steps, means, errors = zip(*curve, strict=True)
        ax.errorbar(steps, means, errors, color=colour, marker="o", markersize=3, capsize=2, label=model)
        for value in further_thresholds[model]:
            ax.axhline(value, color=colour, linewidth=0.6, linestyle="--", alpha=0.6)
    ax.axhline(threshold, color=INK, linewidth=1.2, linestyle="--", label=f"threshold {threshold:.4f}")
    ax.axhline(expert_rate, color=GREY, linewidth=1.2, linestyle=":", label=f"unsafe expert {expert_rate:.4f}")
    ax.set(xlabel=axes[0], ylabel=axes[1])
    ax.set_ylim(bottom=0)
    ax.set_title(title, fontsize=9, color=GREY, loc="right")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="best")
    return figure


def patching_figure(table: pd.DataFrame, signal: str) -> Figure:
    """Share of the expert's behaviour by the layer that is patched, one panel a direction and one line a model.

    Args:
        table: Rows of `patching.csv`.
        signal: `cost` or `c_forget`.
    """
    figure, panels = _panels()
    lists = [list(group["layer"].unique()) for _, group in table.groupby("model")]
    layers = max(lists, key=lambda names: len(names))
    for ax, (direction, rows) in zip(panels, table.groupby("direction", sort=False), strict=True):
        for index, (model, line) in enumerate(rows.groupby("model", sort=False)):
            share = line[["returned", "returned_low", "returned_high"]].to_numpy(float)
            reach = np.abs(share[:, 1:] - share[:, :1]).T
            places = [layers.index(layer) + 0.06 * index for layer in line["layer"]]
            colour = _MODELS[index % len(_MODELS)]
            ax.errorbar(places, share[:, 0], reach, color=colour, marker="o", markersize=4, capsize=2, label=model)
        for value in (0.0, 1.0):
            ax.axhline(value, color=GREY, linewidth=0.8, linestyle=":")
        ax.set_xticks(range(len(layers)), layers)
        ax.set(xlabel="layer taken from the other policy", title=str(direction), ylim=(-0.5, 1.5))
        ax.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel(f"share of the expert's {signal} (0 repaired, 1 expert)")
    return figure


def elicitation_figure(table: pd.DataFrame, signal: str) -> Figure:
    """Cost against ε, mean and worst tenth of layouts: a colour a model; solid by gradient, dotted by random search.

    Args:
        table: Rows of `elicitation.csv`.
        signal: `cost` or `c_forget`.
    """
    figure, panels = _panels()
    for ax, (column, of) in zip(panels, {signal: "mean", f"{signal}_worst_tenth": "worst tenth"}.items(), strict=True):
        for index, (model, rows) in enumerate(table.groupby("model", sort=False)):
            for attack, style in (("gradient", "-"), ("random", ":")):
                line = rows[rows["attack"].isin(["none", attack])]
                label = f"{model}, {attack}" if len(line) > 1 else None
                colour = _MODELS[index % len(_MODELS)]
                ax.plot(line["epsilon"], line[column], style, color=colour, marker="o", markersize=4, label=label)
        ax.set(xlabel="ε (standard deviations of each sensor)", ylabel=f"{signal} an episode, {of} of the layouts")
        ax.set_ylim(bottom=0)
    panels[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def path_figure(points: pd.DataFrame) -> Figure:
    """Cost and return along the line from expert to repair, one line a model; dotted between its ends."""
    figure, panels = _panels()
    for ax, measure in zip(panels, ("cost", "return"), strict=True):
        for index, (model, line) in enumerate(points.groupby("model", sort=False)):
            colour, values = _MODELS[index % len(_MODELS)], line[measure].to_numpy(float)
            errors = line[f"{measure}_standard_error"].to_numpy(float)
            alphas = line["alpha"].to_numpy(float)
            ax.errorbar(alphas, values, errors, color=colour, marker="o", markersize=4, capsize=2, label=model)
            ax.plot(alphas[[0, -1]], values[[0, -1]], color=colour, linewidth=0.8, linestyle=":")
        ax.set(xlabel="alpha (0 expert, 1 repair)", ylabel=f"{measure} an episode")
        ax.legend(frameon=False, fontsize=8)
    panels[0].set_title("mean ± 1 standard error over layouts", fontsize=8, color=GREY, loc="left")
    return figure


def before_after_figure(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], limit: float) -> Figure:
    """Return against C_forget of each episode, before and after a repair, with the means and the limit.

    Args:
        before: The expert's columns of `policy_comparison.per_episode`.
        after: Those of the repair.
        limit: Mean C_forget of an episode that is not to be exceeded.
    """
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for name, table, colour in (("before", before, VERMILLION), ("after", after, BLUE)):
        cost, earned = (np.asarray(table[column], np.float64) for column in ("cforget_sum", "reward"))
        ax.plot(cost, earned, ".", color=colour, markersize=4, alpha=0.4)
        label = f"{name}: return {earned.mean():.1f}, C_forget {cost.mean():.1f}"
        ax.plot(cost.mean(), earned.mean(), "o", color=colour, markersize=9, markeredgecolor=INK, label=label)
    ax.axvline(limit, color=INK, linewidth=1, linestyle="--", label=f"limit of the mean C_forget, {limit:g}")
    ax.set(xlabel="C_forget of an episode", ylabel="return of an episode")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="best")
    return figure


def binned(distance: np.ndarray, shift: np.ndarray, bins: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Mean and quartiles of a shift in bins of equal count; equal distances share a bin.

    Args:
        distance: Finite. Shape: (N,).
        shift: Shape: (N,).
        bins: At most so many.

    Returns:
        Mean distance of each bin, shape (K,), and its mean, first and third quartile of the shift, shape (K, 3).
    """
    if not len(distance):
        return np.zeros(0), np.zeros((0, 3))
    edges = np.unique(np.quantile(distance, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, distance, side="left")
    members = [bin_of == b for b in np.unique(bin_of)]
    centres = np.array([distance[m].mean() for m in members])
    return centres, np.array([[shift[m].mean(), *np.quantile(shift[m], (0.25, 0.75))] for m in members])


def _panels() -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, 2))
    for ax in panels:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, panels
