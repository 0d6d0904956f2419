"""Figures of a repair: what two policies do on the same layouts.

Shapes: N episodes, L steps of the longest one, G goals in the order they were given.
"""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from lightning_unlearn.audits.drawing import BLUE, GREEN, INK, SKY
from lightning_unlearn.audits.top_view import (
    FORGET,
    Path2D,
    SceneMap,
    extent,
    positions_at,
    prepare_map,
    require_scenes,
    track,
)
from lightning_unlearn.collectors.episodes import Episodes

_COLOURS = (INK, BLUE)
_MARKERS = ("o", "s")
_PAIR, _NOTE = "#BBBBBB", "#555555"
_DARK_GREEN = "#00664B"


def before_after(before: Episodes, after: Episodes, episode: int, names: tuple[str, str]) -> Figure:
    """Two policies on the same layouts: both paths on one layout, cost over the steps, return against cost.

    An episode that ended early keeps its cost until the longest one ends; bands span the middle half of the episodes.

    Args:
        before: Of the first policy, with scenes.
        after: Of the second policy on the same layouts, with scenes.
        episode: Whose paths are drawn.
        names: Of the two policies.

    Returns:
        The figure, with axes in the order first map, second map, cost, return against cost.

    Raises:
        ValueError: The layouts differ, or an episode cannot be drawn.
    """
    if before.layout_seeds != after.layout_seeds:
        raise ValueError(f"Layouts {before.layout_seeds} and {after.layout_seeds} differ: evaluate both on the same.")
    pair = (before, after)
    for episodes in pair:
        require_scenes(episodes, episode)
    figure = Figure(figsize=(12, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["before", "after", "cost"], ["before", "after", "return"]], width_ratios=(1, 1, 0.9))
    _draw_maps((axes["before"], axes["after"]), pair, episode, names)
    _draw_cost(axes["cost"], pair, names)
    _draw_return_against_cost(axes["return"], pair)
    _draw_map_legend(figure, before.scenes[0].positions)
    return figure


def goals_given(episodes: Episodes, episode: int) -> np.ndarray:
    """Every place the goal had in an episode, in order; none where the task has no goal. Shape: (G, 2)."""
    if "goal" not in episodes.scenes[0].positions:
        return np.zeros((0, 2))
    goal = track(episodes, episode, "goal")[:, 0]
    moved = np.r_[True, (goal[1:] != goal[:-1]).any(-1)]
    return goal[moved]


def _draw_maps(axes: tuple[Axes, Axes], pair: tuple[Episodes, Episodes], episode: int, names: tuple[str, str]) -> None:
    corners = np.stack([extent(episodes, episode) for episodes in pair])  # (2, 2, 2)
    covered = np.stack([corners[:, 0].min(0), corners[:, 1].max(0)])
    for ax, episodes, name, colour in zip(axes, pair, names, _COLOURS, strict=True):
        prepare_map(ax, covered)
        _draw_episode(ax, episodes, episode, colour)
        _draw_title(ax, episodes, episode, name, colour)


def _draw_episode(ax: Axes, episodes: Episodes, episode: int, colour: str) -> None:
    positions, radii = positions_at(episodes, episode, 0), episodes.scenes[0].radii
    _draw_goals(ax, goals_given(episodes, episode), radii.get("goal", 0.3))
    SceneMap(ax, {kind: xy for kind, xy in positions.items() if kind != "goal"}, radii)
    agent = track(episodes, episode, "agent")[:, 0]
    Path2D(ax, colour).show(agent, episodes.c_forget[episode, : len(agent) - 1])
    ax.plot(*agent[0], "o", color="white", markeredgecolor=colour, markersize=7, markeredgewidth=1.5, zorder=5)
    ax.plot(*agent[-1], "o", color=colour, markeredgecolor="white", markersize=8, zorder=5)


def _draw_goals(ax: Axes, goals: np.ndarray, radius: float) -> None:
    """Faint discs under everything else, the first one stronger; their numbers lie above everything."""
    for number, (x, y) in enumerate(goals, start=1):
        fill = to_rgba(GREEN, 0.35 if number == 1 else 0.1)
        ax.add_patch(Circle((x, y), radius, facecolor=fill, edgecolor=to_rgba(GREEN, 0.5), linewidth=0.8, zorder=0.5))
        text = ax.text(x, y, str(number), color=_DARK_GREEN, fontsize=8, ha="center", va="center", zorder=6)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _draw_title(ax: Axes, episodes: Episodes, episode: int, name: str, colour: str) -> None:
    earned, paid = episodes.episode_return[episode], episodes.episode_cost[episode]
    ax.set_title(name, color=colour, fontsize=11, fontweight="bold", loc="left", parse_math=False)
    ax.set_xlabel(f"layout {episodes.layout_seeds[episode]}: return {earned:.1f}, cost {paid:.0f}", fontsize=9)


def _draw_cost(ax: Axes, pair: tuple[Episodes, Episodes], names: tuple[str, str]) -> None:
    for episodes, name, colour in zip(pair, names, _COLOURS, strict=True):
        so_far = episodes.cost.cumsum(1)  # (N, L)
        steps = np.arange(1, so_far.shape[1] + 1)
        low, high = np.quantile(so_far, [0.25, 0.75], axis=0)
        ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(steps, so_far.mean(0), color=colour, linewidth=1.8, label=name)
    ax.set(xlabel="step", ylabel="cost so far")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set_title(f"mean and middle half of {len(pair[0].length)} layouts", fontsize=8, color=_NOTE, loc="right")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    _tidy(ax)


def _draw_return_against_cost(ax: Axes, pair: tuple[Episodes, Episodes]) -> None:
    points = np.stack([np.stack([e.episode_cost, e.episode_return], axis=-1) for e in pair])  # (2, N, 2)
    ax.add_collection(LineCollection(list(points.swapaxes(0, 1)), colors=_PAIR, linewidths=0.6, zorder=1))
    for xy, colour, marker in zip(points, _COLOURS, _MARKERS, strict=True):
        (cost, earned), (mean_cost, mean_earned) = xy.T, xy.mean(0)
        ax.scatter(cost, earned, s=14, color=[to_rgba(colour, 0.45)], marker=marker, linewidths=0, zorder=2)
        ax.scatter(mean_cost, mean_earned, s=110, color=colour, marker=marker, edgecolors="white", zorder=3)
    ax.set(xlabel="cost of an episode", ylabel="return of an episode")
    ax.set_title("one line a layout, large: means", fontsize=8, color=_NOTE, loc="right")
    _tidy(ax)


def _draw_map_legend(figure: Figure, kinds: Iterable[str]) -> None:
    signs = {
        "hazards": Line2D([], [], color=FORGET, alpha=0.35, marker="o", markersize=10, linewidth=0, label="hazard"),
        "goal": Line2D([], [], color=GREEN, alpha=0.35, marker="o", markersize=10, linewidth=0, label="goals in order"),
        "vases": Line2D([], [], color=SKY, marker="s", markersize=8, linewidth=0, label="vase"),
    }
    handles = [
        Line2D([], [], color=INK, marker="o", markerfacecolor="white", linewidth=0, label="start"),
        Line2D([], [], color=INK, marker="o", linewidth=0, label="end"),
        Line2D([], [], color=FORGET, linewidth=2.6, label="shows the behaviour to forget"),
        *(signs[kind] for kind in signs if kind in kinds),
    ]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=6, loc="outside lower left")


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.xaxis.label.set_fontsize(9)
    ax.yaxis.label.set_fontsize(9)
    ax.tick_params(labelsize=8)
