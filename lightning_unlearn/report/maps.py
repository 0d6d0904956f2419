"""Where policies drive, seen from above: the share of time in each cell, and how it differs from the expert's.

Shapes: N episodes, L steps of the longest one, P positions, C cells a side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from lightning_unlearn.audits.figures import VERMILLION
from lightning_unlearn.audits.policy_comparison import evaluate_in
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.policies.actor_critic import ActorCritic

CELLS = 40
REACH = 0.8
"""Half the side of the map around the nearest hazard, in metres."""
_DEFAULT_RADIUS = 0.2


@dataclass(frozen=True)
class Places:
    """Where an agent was over some episodes."""

    arena: np.ndarray
    """In the task's own plane. Shape: (P, 2)."""
    from_hazard: np.ndarray
    """Seen from the nearest hazard; empty in a task without hazards. Shape: (P, 2)."""
    hazard_radius: float


def drive(env: BatchedEnv, policy: ActorCritic, layouts: Sequence[int], label: str) -> Places:
    """Run the deterministic policy once on every layout."""
    return places(evaluate_in(env, policy, layouts, keep_scenes=True, label=label).episodes)


def places(episodes: Episodes) -> Places:
    """Every step of every episode, those with scenes."""
    alive = episodes.alive.T  # (L, N)
    agent = np.stack([scene.positions["agent"][:, 0] for scene in episodes.scenes])[alive]
    scene = episodes.scenes[0]
    if "hazards" not in scene.positions:
        return Places(agent, np.zeros((0, 2)), 0.0)
    hazards = np.stack([scene.positions["hazards"] for scene in episodes.scenes])[alive]  # (P, n, 2)
    away = agent[:, None] - hazards
    nearest = np.square(away).sum(-1).argmin(1)
    return Places(agent, away[np.arange(len(away)), nearest], scene.radii.get("hazards", _DEFAULT_RADIUS))


def together(parts: Sequence[Places]) -> Places:
    """Those of several seeds as one."""
    arena, from_hazard = (np.concatenate([getattr(p, name) for p in parts]) for name in ("arena", "from_hazard"))
    return Places(arena, from_hazard, parts[0].hazard_radius)


def occupancy(xy: np.ndarray, half: float) -> np.ndarray:
    """Share of time in each cell of a square around the origin, in percent; what lies outside counts in the whole.

    Args:
        xy: Shape: (P, 2).
        half: Half the square's side.

    Returns:
        Rows are y, columns x. Shape: (C, C).
    """
    edges = np.linspace(-half, half, CELLS + 1)
    counts, _, _ = np.histogram2d(xy[:, 1], xy[:, 0], bins=(edges, edges))
    return 100.0 * counts / max(1, len(xy))


def heat_maps(driven: Mapping[str, Places], expert: str) -> dict[str, bytes]:
    """One PNG a name, all on the same scales: where it drives and what changed, in the arena and around hazards.

    Args:
        driven: Name → places.
        expert: Which of them is compared with.
    """
    frames = {"arena": _half(driven[expert].arena)}
    if len(driven[expert].from_hazard):
        frames["from_hazard"] = REACH
    shares = {
        name: {frame: occupancy(getattr(where, frame), half) for frame, half in frames.items()}
        for name, where in driven.items()
    }
    scales = {frame: _scales([s[frame] for s in shares.values()], shares[expert][frame]) for frame in frames}
    radius = driven[expert].hazard_radius
    return {
        name: _figure(own, None if name == expert else shares[expert], frames, scales, radius)
        for name, own in shares.items()
    }


def _half(xy: np.ndarray) -> float:
    """Half the side of a square that holds all but the farthest hundredth."""
    return float(np.quantile(np.abs(xy).max(1), 0.99)) * 1.05


def _scales(shares: Sequence[np.ndarray], expert: np.ndarray) -> tuple[float, float]:
    """Upper ends for shares and for changes, a few extreme cells left out."""
    changes = np.abs(np.stack([share - expert for share in shares]))
    return float(np.quantile(np.stack(shares), 0.999)), max(float(np.quantile(changes, 0.999)), 1e-9)


def _figure(
    own: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray] | None,
    frames: Mapping[str, float],
    scales: Mapping[str, tuple[float, float]],
    radius: float,
) -> bytes:
    """A column a frame; a row for the share of time, and one for its change where there is something before."""
    rows = 1 if before is None else 2
    figure = Figure(figsize=(3.1 * len(frames), 3.0 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(frames), squeeze=False)
    for column, (frame, half) in zip(grid.T, frames.items(), strict=True):
        highest, largest = scales[frame]
        panels = [("time spent", own[frame], "magma", 0.0, highest)]
        if before is not None:
            panels.append(("change", own[frame] - before[frame], "RdBu_r", -largest, largest))
        for ax, (what, share, shades, low, high) in zip(column, panels, strict=True):
            image = ax.imshow(
                share, origin="lower", extent=(-half, half, -half, half), cmap=shades, vmin=low, vmax=high
            )
            _finish(ax, what, frame, radius)
            figure.colorbar(image, ax=ax, shrink=0.8, format="%.2g").ax.tick_params(labelsize=6)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _finish(ax: Axes, what: str, frame: str, radius: float) -> None:
    where = "in the arena" if frame == "arena" else "around the nearest hazard"
    ax.set_title(f"{what} {where}", fontsize=8)
    ax.tick_params(labelsize=6)
    if frame != "arena":
        ax.add_patch(Circle((0, 0), radius, fill=False, edgecolor=VERMILLION, linewidth=1.2))
