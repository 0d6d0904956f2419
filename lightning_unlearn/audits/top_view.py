"""The scene seen from above, as a still map and as an animated GIF; matplotlib draws it, so no display or GL is needed.

Shapes: L steps of the episode, n objects of one kind, P points of a path.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imageio.v3 as iio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from lightning_unlearn.audits.drawing import GREEN, INK, SKY, VERMILLION
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs.simulator import TopView

FORGET = VERMILLION
TRAIL_STEPS = 100
_DEFAULT_RADIUS = 0.1
_TITLE_CHARACTERS = 48


@dataclass(frozen=True, slots=True)
class _Style:
    """How one kind of object is drawn."""

    colour: str
    opacity: float
    shape: Literal["disc", "square"] = "disc"
    labelled: bool = True


_STYLES = {
    "hazards": _Style(VERMILLION, 0.25, labelled=False),
    "goal": _Style(GREEN, 0.45, labelled=False),
    "vases": _Style(SKY, 0.7, "square", labelled=False),
    "gremlins": _Style("#CC79A7", 0.7),
    "buttons": _Style("#F0E442", 0.8),
    "push_box": _Style("#E69F00", 0.6),
    "circle": _Style(GREEN, 0.08),
}
_OTHER_KIND = _Style("#999999", 0.5)


class SceneMap:
    """The objects of a scene, one artist a kind, to be moved from step to step; the agent is not among them.

    Args:
        axes: Where to draw.
        positions: Kind → xy of its objects. Shape of each: (n, 2).
        radii: Kind → radius in metres; half the side of what is drawn as a square.
    """

    def __init__(self, axes: Axes, positions: dict[str, np.ndarray], radii: dict[str, float]) -> None:
        self._shown = {kind: xy.copy() for kind, xy in positions.items() if kind != "agent"}
        self._outlines = {kind: _outline(kind, radii) for kind in self._shown}
        self._shapes = {kind: self._draw(axes, kind) for kind in self._shown}
        self._labels = {kind: self._draw_labels(axes, kind) for kind in self._shown}

    def move(self, positions: dict[str, np.ndarray]) -> None:
        """Put the objects that changed place where they are now."""
        for kind, before in self._shown.items():
            if not np.array_equal(before, positions[kind]):
                self._move(kind, positions[kind])

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

    def _draw_labels(self, axes: Axes, kind: str) -> list[Text]:
        if not _STYLES.get(kind, _OTHER_KIND).labelled:
            return []
        name = kind.replace("_", " ").removesuffix("s")
        places = self._label_places(kind)
        return [axes.text(x, y, name, fontsize=6, ha="center", va="top", zorder=3) for x, y in places]

    def _move(self, kind: str, xy: np.ndarray) -> None:
        self._shown[kind] = xy.copy()
        self._shapes[kind].set_verts(self._corners(kind))
        for label, (x, y) in zip(self._labels[kind], self._label_places(kind), strict=False):  # not every kind has any
            label.set_position((x, y))

    def _label_places(self, kind: str) -> np.ndarray:
        return self._shown[kind] + np.array([0.0, self._outlines[kind][:, 1].min()])

    def _corners(self, kind: str) -> list[np.ndarray]:
        return list(self._shown[kind][:, None] + self._outlines[kind])


class Path2D:
    """An agent's path, thick and in the colour of what is to be forgotten where that was shown.

    Args:
        axes: Where to draw.
        colour: Of the steps that did not show it.
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
    """Whether the task says where the agent is, without which nothing can be drawn."""
    return "agent" in scene.positions


def require_scenes(episodes: Episodes, episode: int) -> None:
    """Refuse what cannot be drawn.

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
    """Where the objects of a kind were before each step of an episode. Shape: (L, n, 2)."""
    scenes = episodes.scenes[: episodes.length[episode]]
    return np.stack([scene.positions[kind][episode] for scene in scenes])


def extent(episodes: Episodes, episode: int) -> np.ndarray:
    """The lowest and the highest xy that anything in an episode covers. Shape: (2, 2)."""
    scene, corners = episodes.scenes[0], []
    for kind in scene.positions:
        xy = track(episodes, episode, kind).reshape(-1, 2)
        radius = scene.radii.get(kind, _DEFAULT_RADIUS)
        corners += [xy - radius, xy + radius]
    covered = np.concatenate(corners)
    return np.stack([covered.min(0), covered.max(0)])


def prepare_map(axes: Axes, covered: np.ndarray) -> None:
    """A square map with a scale bar of 1 m in place of ticks. `covered` is as from `extent`, shape (2, 2)."""
    span = float((covered[1] - covered[0]).max())
    centre, half = covered.mean(0) - (0.0, 0.05 * span), 0.57 * span  # with a margin below for the scale bar
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")
    left, bottom = centre - 0.96 * half
    axes.plot([left, left + 1], [bottom, bottom], color="#555555", linewidth=2, solid_capstyle="butt", zorder=6)
    axes.text(left + 0.5, bottom + 0.02 * half, "1 m", color="#555555", fontsize=7, ha="center", va="bottom", zorder=6)


def write_gif(path: Path, episodes: Episodes, episode: int, title: str, every: int = 5, fps: int = 25) -> None:
    """Write an episode as an animated GIF that loops for ever.

    Each frame shows the scene before a step, with the return and the cost of the steps until then.

    Args:
        path: File to write.
        episodes: With scenes.
        episode: Which of them.
        title: First line of the header.
        every: Steps from one frame to the next.
        fps: Frames per second; GIF rounds the time of a frame to 1/100 s.

    Raises:
        ValueError: The episodes cannot be drawn, as in `require_scenes`, or a number is impossible.
    """
    require_scenes(episodes, episode)
    for name, value in (("every", every), ("fps", fps)):
        if value < 1:
            raise ValueError(f"{name}={value} is not possible: use at least 1.")
    animation = _Animation(episodes, episode, title)
    frames = list(animation.frames(every))
    iio.imwrite(path, frames, extension=".gif", plugin="pillow", duration=1000 / fps, loop=0)


class _Animation:
    """Artists that are made once and moved for each frame."""

    def __init__(self, episodes: Episodes, episode: int, title: str) -> None:
        self._episodes, self._episode = episodes, episode
        self._agent = track(episodes, episode, "agent")[:, 0]
        self._totals = _totals_before(episodes.reward[episode]), _totals_before(episodes.cost[episode])
        figure = Figure(figsize=(3.2, 3.5), dpi=100)
        self._canvas = FigureCanvasAgg(figure)
        self._header = _draw_header(figure, title)
        axes = figure.add_axes((0.0125, 0.0115, 0.975, 0.8915))
        prepare_map(axes, extent(episodes, episode))
        self._map = SceneMap(axes, positions_at(episodes, episode, 0), episodes.scenes[0].radii)
        self._trail = Path2D(axes)
        (self._dot,) = axes.plot([], [], "o", color=INK, markersize=8, markeredgecolor="white", zorder=5)

    def frames(self, every: int) -> Iterator[np.ndarray]:
        """Shape of each: (height, width, 3), uint8."""
        for step in range(0, len(self._agent), every):
            self._show(step)
            self._canvas.draw()
            yield np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def _show(self, step: int) -> None:
        since = max(0, step - TRAIL_STEPS)
        self._map.move(positions_at(self._episodes, self._episode, step))
        self._trail.show(self._agent[since : step + 1], self._episodes.c_forget[self._episode, since:step])
        self._dot.set_data([self._agent[step, 0]], [self._agent[step, 1]])
        earned, paid = (total[step] for total in self._totals)
        self._header.set_text(f"step {step:4d}  return {earned:7.2f}  cost {paid:4.0f}")


def _totals_before(per_step: np.ndarray) -> np.ndarray:
    """The sum over the steps before each step. Shape: (L,) → (L + 1,)."""
    return np.concatenate([[0.0], per_step.cumsum()])


def _draw_header(figure: Figure, title: str) -> Text:
    """Write the title and return the line under it, still empty."""
    short = textwrap.shorten(title, _TITLE_CHARACTERS, placeholder="…")
    figure.text(0.02, 0.985, short, fontsize=8, fontweight="bold", va="top", parse_math=False)
    return figure.text(0.02, 0.94, "", fontsize=8, family="monospace", va="top")


def _outline(kind: str, radii: dict[str, float]) -> np.ndarray:
    """Corners around (0, 0). Shape: (corners, 2)."""
    square = _STYLES.get(kind, _OTHER_KIND).shape == "square"
    angles = np.pi / 4 + np.arange(4) * np.pi / 2 if square else np.linspace(0, 2 * np.pi, 48, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return radii.get(kind, _DEFAULT_RADIUS) * (np.sqrt(2) if square else 1.0) * unit
