"""What a benchmark run leaves: a table, a JSON file, figures, and the summary."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_unlearn.audits.drawing import BLUE, INK, save_png
from lightning_unlearn.benchmark.ours import RolloutCosts, stepping_name
from lightning_unlearn.benchmark.plan import PEER_ENVS, Measurement, Plan
from lightning_unlearn.benchmark.soak import Soak
from lightning_unlearn.processes import cores

_VERSIONS = ("lightning-unlearn", "torch", "torchrl", "lightning", "mujoco", "safety-gymnasium", "numpy")
_PEER, _LIMIT = "#BBBBBB", "#555555"


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in _VERSIONS},
    }


def summary(measurements: Sequence[Measurement]) -> dict[str, float | None]:
    """Speed-ups over `vector.make` at E = 8, training's rate and share of the limit, and an off-policy minibatch."""
    median = {m.name: m.median for m in measurements}
    training = median.get("train.published")
    stepping = median.get(stepping_name(PEER_ENVS, min(cores(), PEER_ENVS)))
    return {
        "env_speedup": _ratio(stepping, median.get("env.vector_make")),
        "collect_speedup": _ratio(median.get("collect.lean"), median.get("collect.vector_make")),
        "train_steps_per_s": training,
        "limit_fraction": _ratio(training, median.get("physics.limit")),
        "off_policy_update_ms": median.get("update.off_policy"),
    }


def summary_line(numbers: dict[str, float | None]) -> str:
    """`key=value` pairs, null where something could not be measured."""
    return " ".join(f"{key}={'null' if value is None else f'{value:.4g}'}" for key, value in numbers.items())


def table(measurements: Sequence[Measurement]) -> str:
    """One row a quantity: words, median, unit, spread over the repeats, note."""
    rows = [("what", "median", "unit", "lowest to highest", "note"), *(_row(m) for m in measurements)]
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return "\n".join(
        f"{what:<{widths[0]}}  {median:>{widths[1]}}  {unit:<{widths[2]}}  {spread:<{widths[3]}}  {note}".rstrip()
        for what, median, unit, spread, note in rows
    )


def scaling_table(costs: RolloutCosts, horizon: int) -> str:
    """Rates of collecting with more cores than were measured: one row a number of workers, 8 environments each."""
    rows = [f"{workers:>7}  {costs.rate(workers, horizon):>9,.0f}" for workers in (1, 2, 4, 8, 16, 32, 64)]
    return "\n".join(
        [
            f"EXTRAPOLATED, not measured: collecting, 8 environments x {horizon} steps a worker, one core each",
            f"(one worker: {1e6 * costs.step_s:.1f} us a step; each further one: {1e3 * costs.message_s:.2f} ms a "
            f"rollout; handing over: {1e6 * costs.hand_over_s:.2f} us a step)",
            "workers    steps/s",
            *rows,
        ]
    )


def write(out: Path, plan: Plan, measurements: Sequence[Measurement], soak: Soak | None) -> list[Path]:
    """Write the JSON file, and figures beside it; return what was written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "options": vars(plan),
        "summary": summary(measurements),
        "measurements": [m.record() for m in measurements],
        "soak": soak.record() if soak else None,
    }
    out.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    figures = {out.with_suffix(".png"): bars(measurements)}
    if soak:
        figures[out.with_name(f"{out.stem}_soak.png")] = soak_curve(soak)
    for path, figure in figures.items():
        save_png(figure, path)
    return [out, *figures]


def bars(measurements: Sequence[Measurement]) -> Figure:
    """Every rate as a horizontal bar: the limit and peers grey, this package blue."""
    rates = [(m.what, m.median, _colour(m.name)) for m in measurements if m.unit == "steps/s" and m.median]
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(rates)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for row, (_, rate, colour) in enumerate(reversed(rates)):
        ax.barh(row, rate, color=colour, height=0.7)
        ax.text(rate, row, f" {rate:,.0f}", va="center", fontsize=8)
    ax.set_yticks(range(len(rates)), [what for what, _, _ in reversed(rates)])
    ax.set_xlabel("environment steps per second, median; blue: this package, light grey: peers")
    _tidy(ax)
    return figure


def soak_curve(soak: Soak) -> Figure:
    """Speed and memory along the soak."""
    figure = Figure(figsize=(8, 4.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(2, 1, sharex=True)
    millions = [steps / 1e6 for steps in soak.env_steps]
    for ax, values, label in ((speed, soak.steps_per_s, "steps/s"), (memory, soak.memory_mb, "memory (PSS), MB")):
        ax.plot(millions, values, color=BLUE, marker="o", markersize=3)
        ax.set_ylim(0, 1.2 * max(values))
        ax.set_ylabel(label)
        _tidy(ax)
    memory.set_xlabel("environment steps, millions")
    return figure


def _row(m: Measurement) -> tuple[str, str, str, str, str]:
    if m.median is None:
        return m.what, "null", m.unit, "", m.note
    spread = f"{_number(min(m.values))} to {_number(max(m.values))} ({len(m.values)})"
    return m.what, _number(m.median), m.unit, spread, m.note


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _colour(name: str) -> str:
    if name.startswith("physics"):
        return _LIMIT
    return _PEER if name in ("env.vector_make", "env.torchrl_parallel", "collect.vector_make") else BLUE


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=INK)
    ax.xaxis.label.set_fontsize(9)
    ax.yaxis.label.set_fontsize(9)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
