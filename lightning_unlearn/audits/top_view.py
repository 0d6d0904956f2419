"""Episodes seen from above: the frames of one, and a figure of two policies on the same layouts.

matplotlib draws them, so no display or GL is needed.
Shapes: N episodes, L steps of the longest one, n objects of one kind, P points of a path, G goals.
"""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from lightning_unlearn.audits.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs.simulator import TopView
from lightning_unlearn.options import require_at_least

FORGET = VERMILLION
TRAIL_STEPS = 100
_DEFAULT_RADIUS = 0.1
_TITLE_CHARACTERS = 48
_POLICIES = ((INK, "o"), (BLUE, "s"))
"""Colour and marker of the policy before, and of the one after."""


@dataclass(frozen=True, slots=True)
class _Style:
    """Drawing style of one kind of object."""

    colour: str
    opacity: float
    shape: Literal["disc", "square"] = "disc"
    labelled: bool = True


_STYLES = {
    "hazards": _Style(VERMILLION, 0.25, labelled=False),
    "goal": _Style(GREEN, 0.45, labelled=False),
    "vases": _Style(SKY, 0.7, "square", labelled=False),
    "gremlins": _Style(PURPLE, 0.7),
    "buttons": _Style("#F0E442", 0.8),
    "push_box": _Style(ORANGE, 0.6),
    "circle": _Style(GREEN, 0.08),
}
_OTHER_KIND = _Style("#999999", 0.5)


class SceneMap:
    """Objects of a scene except the agent, one artist a kind, which `move` moves from step to step.

    Args:
        axes: Axes to draw on.
        positions: Kind → xy of its objects. Shape of each: (n, 2).
        radii: Kind → radius in metres; half the side of what is drawn as a square.
    """

    def __init__(self, axes: Axes, positions: dict[str, np.ndarray], radii: dict[str, float]) -> None:
        self._shown = {kind: xy.copy() for kind, xy in positions.items() if kind != "agent"}
        self._outlines = {kind: _outline(kind, radii) for kind in self._shown}
        self._shapes = {kind: self._draw(axes, kind) for kind in self._shown}
        self._labels: dict[str, list[Text]] = {kind: [] for kind in self._shown}
        for kind in (kind for kind in self._shown if _STYLES.get(kind, _OTHER_KIND).labelled):
            name = kind.replace("_", " ").removesuffix("s")
            places = self._label_places(kind)
            self._labels[kind] = [axes.text(x, y, name, fontsize=6, ha="center", va="top", zorder=3) for x, y in places]

    def move(self, positions: dict[str, np.ndarray]) -> None:
        """Move the objects whose positions changed."""
        for kind, before in self._shown.items():
            if np.array_equal(before, positions[kind]):
                continue
            self._shown[kind] = positions[kind].copy()
            self._shapes[kind].set_verts(self._corners(kind))
            for label, (x, y) in zip(self._labels[kind], self._label_places(kind), strict=False):  # some have no label
                label.set_position((x, y))

    def _draw(self, axes: Axes, kind: str) -> PolyCollection:
        style = _STYLES.get(kind, _OTHER_KIND)
        shapes = PolyCollection(
            self._corners(kind),
            facecolors=[to_rgba(style.colour, style.opacity)],
            edgecolors=[to_rgba(style.colour, 0.9)],
            linewidths=0.8,
            zorder=1,
        )
        axes.add_collection(shapes, autolim=False)
        return shapes

    def _label_places(self, kind: str) -> np.ndarray:
        return self._shown[kind] + np.array([0.0, self._outlines[kind][:, 1].min()])

    def _corners(self, kind: str) -> list[np.ndarray]:
        return list(self._shown[kind][:, None] + self._outlines[kind])


class Path2D:
    """An agent's path; steps that show the concept are thick and red.

    Args:
        axes: Axes to draw on.
        colour: Colour of the other steps.
    """

    def __init__(self, axes: Axes, colour: str = INK) -> None:
        (self._whole,) = axes.plot([], [], color=colour, linewidth=1.1, zorder=4)
        (self._flagged,) = axes.plot([], [], color=FORGET, linewidth=2.6, solid_capstyle="round", zorder=4)

    def show(self, xy: np.ndarray, c_forget: np.ndarray) -> None:
        """Replace the path.

        Args:
            xy: The points. Shape: (P, 2).
            c_forget: Of the step from each point to the next one. Shape: (P − 1,).
        """
        steps = np.stack([xy[:-1], xy[1:], np.full_like(xy[1:], np.nan)], axis=1)  # (P − 1, 3, 2), NaN lifts the pen
        self._whole.set_data(*xy.T)
        self._flagged.set_data(*steps[c_forget > 0].reshape(-1, 2).T)


def has_map(scene: TopView) -> bool:
    """True if the scene has the agent's position, without which nothing can be drawn."""
    return "agent" in scene.positions


def require_scenes(episodes: Episodes, episode: int) -> None:
    """Refuse an episode that cannot be drawn.

    Raises:
        ValueError: The episodes came without scenes, have no such number, or are of a task without a map.
    """
    count = len(episodes.length)
    if not 0 <= episode < count:
        raise ValueError(f"episode={episode} is not possible: there are {count}, use 0 to {count - 1}.")
    if not episodes.scenes:
        raise ValueError("These episodes came without scenes, so nothing can be drawn: evaluate with keep_scenes=True.")
    if not has_map(episodes.scenes[0]):
        raise ValueError("These episodes are of a task without a map (no place of the agent): nothing can be drawn.")


def positions_at(episodes: Episodes, episode: int, step: int) -> dict[str, np.ndarray]:
    """Kind → xy of its objects in one episode before a step. Shape of each: (n, 2)."""
    return {kind: xy[episode] for kind, xy in episodes.scenes[step].positions.items()}


def track(episodes: Episodes, episode: int, kind: str) -> np.ndarray:
    """Positions of the objects of a kind before each step of an episode. Shape: (L, n, 2)."""
    scenes = episodes.scenes[: episodes.length[episode]]
    return np.stack([scene.positions[kind][episode] for scene in scenes])


def extent(episodes: Episodes, episode: int) -> np.ndarray:
    """Lowest and highest xy that anything in an episode covers. Shape: (2, 2)."""
    scene, corners = episodes.scenes[0], []
    for kind in scene.positions:
        xy = track(episodes, episode, kind).reshape(-1, 2)
        radius = scene.radii.get(kind, _DEFAULT_RADIUS)
        corners += [xy - radius, xy + radius]
    covered = np.concatenate(corners)
    return np.stack([covered.min(0), covered.max(0)])


def prepare_map(axes: Axes, covered: np.ndarray) -> None:
    """Make the axes a square map with a scale bar of 1 m in place of ticks; `covered` is from `extent`."""
    span = float((covered[1] - covered[0]).max())
    centre, half = covered.mean(0) - (0.0, 0.05 * span), 0.57 * span  # with a margin below for the scale bar
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")
    left, bottom = centre - 0.96 * half
    axes.plot([left, left + 1], [bottom, bottom], color=GREY, linewidth=2, solid_capstyle="butt", zorder=6)
    axes.text(left + 0.5, bottom + 0.02 * half, "1 m", color=GREY, fontsize=7, ha="center", va="bottom", zorder=6)


def drawn_frames(episodes: Episodes, episode: int, title: str, every: int = 5, size: int = 320) -> list[np.ndarray]:
    """Draw an episode; each frame shows the scene before a step, with the return and the cost of the steps until then.

    Args:
        episodes: With scenes.
        episode: Index of the episode.
        title: First line of the header.
        every: Steps from one frame to the next.
        size: Width of a frame, pixels.

    Returns:
        The frames. Shape of each: (height, size, 3), uint8.

    Raises:
        ValueError: The episodes cannot be drawn, as in `require_scenes`, or a number is impossible.
    """
    require_scenes(episodes, episode)
    require_at_least(1, every=every, size=size)
    return list(_Animation(episodes, episode, title, size).frames(every))


class _Animation:
    """Artists that are made once and moved from frame to frame."""

    def __init__(self, episodes: Episodes, episode: int, title: str, size: int) -> None:
        self._episodes, self._episode = episodes, episode
        self._agent = track(episodes, episode, "agent")[:, 0]
        self._totals = [np.append(0.0, column[episode].cumsum()) for column in (episodes.reward, episodes.cost)]
        """Return and cost of the steps before each step. Shape of each: (L + 1,)."""
        figure = Figure(figsize=(3.2, 3.5), dpi=size / 3.2)
        self._canvas = FigureCanvasAgg(figure)
        short = textwrap.shorten(title, _TITLE_CHARACTERS, placeholder="…")
        figure.text(0.02, 0.985, short, fontsize=8, fontweight="bold", va="top", parse_math=False)
        self._header = figure.text(0.02, 0.94, "", fontsize=8, family="monospace", va="top")
        axes = figure.add_axes((0.0125, 0.0115, 0.975, 0.8915))
        prepare_map(axes, extent(episodes, episode))
        self._map = SceneMap(axes, positions_at(episodes, episode, 0), episodes.scenes[0].radii)
        self._trail = Path2D(axes)
        (self._dot,) = axes.plot([], [], "o", color=INK, markersize=8, markeredgecolor="white", zorder=5)

    def frames(self, every: int) -> Iterator[np.ndarray]:
        """Shape of each: (height, width, 3), uint8."""
        for step in range(0, len(self._agent), every):
            since = max(0, step - TRAIL_STEPS)
            self._map.move(positions_at(self._episodes, self._episode, step))
            self._trail.show(self._agent[since : step + 1], self._episodes.c_forget[self._episode, since:step])
            self._dot.set_data([self._agent[step, 0]], [self._agent[step, 1]])
            earned, paid = (total[step] for total in self._totals)
            self._header.set_text(f"step {step:4d}  return {earned:7.2f}  cost {paid:4.0f}")
            self._canvas.draw()
            yield np.asarray(self._canvas.buffer_rgba())[..., :3].copy()


def _outline(kind: str, radii: dict[str, float]) -> np.ndarray:
    """Corners around (0, 0). Shape: (corners, 2)."""
    square = _STYLES.get(kind, _OTHER_KIND).shape == "square"
    angles = np.pi / 4 + np.arange(4) * np.pi / 2 if square else np.linspace(0, 2 * np.pi, 48, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return radii.get(kind, _DEFAULT_RADIUS) * (np.sqrt(2) if square else 1.0) * unit


def before_after(before: Episodes, after: Episodes, episode: int, names: tuple[str, str]) -> Figure:
    """Two policies on the same layouts: both paths on one layout, cost over the steps, return against cost.

    An episode that ended early keeps its cost until the longest one ends; bands span the middle half of the episodes.

    Args:
        before: Episodes of the first policy, with scenes.
        after: Those of the second policy on the same layouts, with scenes.
        episode: Index of the episode whose paths are drawn.
        names: Names of the two policies.

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
    corners = np.stack([extent(episodes, episode) for episodes in pair])  # (2, 2, 2)
    covered = np.stack([corners[:, 0].min(0), corners[:, 1].max(0)])
    for ax, episodes, name, (colour, _) in zip((axes["before"], axes["after"]), pair, names, _POLICIES, strict=True):
        prepare_map(ax, covered)
        _draw_episode(ax, episodes, episode, colour)
        earned, paid = episodes.episode_return[episode], episodes.episode_cost[episode]
        ax.set_title(name, color=colour, fontsize=11, fontweight="bold", loc="left", parse_math=False)
        ax.set_xlabel(f"layout {episodes.layout_seeds[episode]}: return {earned:.1f}, cost {paid:.0f}", fontsize=9)
    _draw_cost(axes["cost"], pair, names)
    _draw_return_against_cost(axes["return"], pair)
    _draw_map_legend(figure, before.scenes[0].positions)
    return figure


def goals_given(episodes: Episodes, episode: int) -> np.ndarray:
    """Positions that the goal had in an episode, in order; none if the task has no goal. Shape: (G, 2)."""
    if "goal" not in episodes.scenes[0].positions:
        return np.zeros((0, 2))
    goal = track(episodes, episode, "goal")[:, 0]
    moved = np.r_[True, (goal[1:] != goal[:-1]).any(-1)]
    return goal[moved]


def _draw_episode(ax: Axes, episodes: Episodes, episode: int, colour: str) -> None:
    """Draw goals as faint discs, the first one stronger, with their numbers above everything; objects; the path."""
    positions, radii = positions_at(episodes, episode, 0), episodes.scenes[0].radii
    for number, (x, y) in enumerate(goals_given(episodes, episode), start=1):
        fill, edge = to_rgba(GREEN, 0.35 if number == 1 else 0.1), to_rgba(GREEN, 0.5)
        ax.add_patch(Circle((x, y), radii.get("goal", 0.3), facecolor=fill, edgecolor=edge, linewidth=0.8, zorder=0.5))
        text = ax.text(x, y, str(number), color="#00664B", fontsize=8, ha="center", va="center", zorder=6)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    SceneMap(ax, {kind: xy for kind, xy in positions.items() if kind != "goal"}, radii)
    agent = track(episodes, episode, "agent")[:, 0]
    Path2D(ax, colour).show(agent, episodes.c_forget[episode, : len(agent) - 1])
    ax.plot(*agent[0], "o", color="white", markeredgecolor=colour, markersize=7, markeredgewidth=1.5, zorder=5)
    ax.plot(*agent[-1], "o", color=colour, markeredgecolor="white", markersize=8, zorder=5)


def _draw_cost(ax: Axes, pair: tuple[Episodes, Episodes], names: tuple[str, str]) -> None:
    for episodes, name, (colour, _) in zip(pair, names, _POLICIES, strict=True):
        so_far = episodes.cost.cumsum(1)  # (N, L)
        steps = np.arange(1, so_far.shape[1] + 1)
        low, high = np.quantile(so_far, [0.25, 0.75], axis=0)
        ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(steps, so_far.mean(0), color=colour, linewidth=1.8, label=name)
    ax.set(xlabel="step", ylabel="cost so far")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set_title(f"mean and middle half of {len(pair[0].length)} layouts", fontsize=8, color=GREY, loc="right")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    _tidy(ax)


def _draw_return_against_cost(ax: Axes, pair: tuple[Episodes, Episodes]) -> None:
    points = np.stack([np.stack([e.episode_cost, e.episode_return], axis=-1) for e in pair])  # (2, N, 2)
    ax.add_collection(LineCollection(list(points.swapaxes(0, 1)), colors="#BBBBBB", linewidths=0.6, zorder=1))
    for xy, (colour, marker) in zip(points, _POLICIES, strict=True):
        (cost, earned), (mean_cost, mean_earned) = xy.T, xy.mean(0)
        ax.scatter(cost, earned, s=14, color=[to_rgba(colour, 0.45)], marker=marker, linewidths=0, zorder=2)
        ax.scatter(mean_cost, mean_earned, s=110, color=colour, marker=marker, edgecolors="white", zorder=3)
    ax.set(xlabel="cost of an episode", ylabel="return of an episode")
    ax.set_title("one line a layout, large: means", fontsize=8, color=GREY, loc="right")
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
