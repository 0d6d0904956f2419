"""Heat maps of where policies drive, seen from above: share of time in each cell, and its change from the expert's.

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

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.figures import VERMILLION
from lightning_unlearn.audits.policy_comparison import evaluate_in
from lightning_unlearn.audits.top_view import has_map
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.report.context import ModelGroup
from lightning_unlearn.tracking import registry

CELLS = 40
REACH = 0.8
"""Half the side of the map around the nearest hazard. Unit: m."""
_DEFAULT_RADIUS = 0.2


@dataclass(frozen=True)
class Places:
    """Positions of an agent over some episodes."""

    arena: np.ndarray
    """Positions in the task's plane. Shape: (P, 2)."""
    from_hazard: np.ndarray
    """Positions relative to the nearest hazard; empty in a task without hazards. Shape: (P, 2)."""
    hazard_radius: float


def drive(env_id: str, groups: Sequence[ModelGroup], layouts: Sequence[int], workers: int) -> dict[str, bytes]:
    """Run each group's deterministic policies once per layout, and draw their maps; nothing if the task has no map.

    Args:
        env_id: Environment id.
        groups: Models of an evaluation, among them the unsafe expert.
        layouts: Layout seeds.
        workers: Processes that step the environments.

    Returns:
        Name of a group → PNG of all its seeds together.
    """
    env = make_env(env_id, len(layouts), workers=min(workers, len(layouts)))
    try:
        if not has_map(env.simulator.top_view()):
            return {}
        driven: dict[str, Places] = {}
        for number, group in enumerate(groups, start=1):
            print(f"heat map {number}/{len(groups)}: {group.name}", flush=True)
            policies = [registry.load_policy(str(uri)).policy for uri in group.rows["Path"]]
            runs = [evaluate_in(env, policy, layouts, keep_scenes=True, label=group.name) for policy in policies]
            driven[group.name] = together([places(run.episodes) for run in runs])
    finally:
        env.close()
    return heat_maps(driven, next(group.name for group in groups if group.model.family == UNSAFE))


def places(episodes: Episodes) -> Places:
    """Return the positions of every step of episodes that kept their scenes."""
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
    """Join the positions of several seeds."""
    arena, from_hazard = (np.concatenate([getattr(p, name) for p in parts]) for name in ("arena", "from_hazard"))
    return Places(arena, from_hazard, parts[0].hazard_radius)


def occupancy(xy: np.ndarray, half: float) -> np.ndarray:
    """Return the share of time in each cell of a square around the origin, in percent of the time inside and outside.

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
    """Draw one PNG per name, all on the same scales: share of time and its change, in the arena and around hazards.

    Args:
        driven: Name → places.
        expert: Name of the expert, which the others are compared with.
    """
    # the square of the arena holds all but the expert's farthest hundredth
    frames = {"arena": float(np.quantile(np.abs(driven[expert].arena).max(1), 0.99)) * 1.05}
    if len(driven[expert].from_hazard):
        frames["from_hazard"] = REACH
    shares = {
        name: {frame: occupancy(getattr(where, frame), half) for frame, half in frames.items()}
        for name, where in driven.items()
    }
    scales = {}
    for frame in frames:  # a few extreme cells lie beyond the scales
        every = np.stack([share[frame] for share in shares.values()])
        changes = np.abs(every - shares[expert][frame])
        scales[frame] = float(np.quantile(every, 0.999)), max(float(np.quantile(changes, 0.999)), 1e-9)
    radius = driven[expert].hazard_radius
    return {
        name: _figure(own, None if name == expert else shares[expert], frames, scales, radius)
        for name, own in shares.items()
    }


def _figure(
    own: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray] | None,
    frames: Mapping[str, float],
    scales: Mapping[str, tuple[float, float]],
    radius: float,
) -> bytes:
    """Draw a column per frame; a row for the share of time, and one for its change if there is something before."""
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
