"""The `bench` command: one run that times everything and can be repeated anywhere."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_unlearn.audits.figures import BLUE, INK, save_png
from lightning_unlearn.benchmark import ours, peers, training_speed
from lightning_unlearn.benchmark.measurement import PEER_ENVS, Item, Measurement, Plan
from lightning_unlearn.options import CommandParser
from lightning_unlearn.processes import cores

_VERSIONS = ("lightning-unlearn", "torch", "torchrl", "lightning", "mujoco", "safety-gymnasium", "numpy")
_PEER, _LIMIT = "#BBBBBB", "#555555"
_PHYSICS_LIMIT = Measurement("physics.limit", "10 mj_step + 3 mj_forward on all cores", "steps/s", [])


def main(args: Sequence[str]) -> None:
    """Measure, print the table, write JSON and figures; the last line of the output is the summary."""
    options = _options(args)
    torch.set_num_threads(1)
    make = Plan.quick if options.quick else Plan.full
    plan = make(options.env, options.repeats or (2 if options.quick else 5), options.seed)
    measurements = measure(plan, options.workers)
    soaked = ours.soak(plan, options.soak_steps) if options.soak_steps else None
    print(table(measurements))
    if soaked:
        verdict = "flat" if soaked.flat else "not flat"
        print(f"soak: {verdict}; speed {soaked.speed_change:+.1%}, memory {soaked.memory_change:+.1%}")
    if options.workers:
        print(scaling_table(ours.rollout_costs(plan), plan.horizon))
    written = write(Path(options.out), plan, measurements, soaked)
    print("wrote " + ", ".join(map(str, written)))
    print(summary_line(summary(measurements)))


def measure(plan: Plan, workers: Sequence[int] = ()) -> list[Measurement]:
    """Run all items, and collecting with each of these numbers of workers. Each item prints a line to stderr first."""
    measurements, started = [], time.perf_counter()
    listed = [*items(plan), *(Item(f"scaling, {w} worker(s)", partial(ours.scaling, workers=w)) for w in workers)]
    for number, item in enumerate(listed, start=1):
        elapsed = time.perf_counter() - started
        print(f"[{number}/{len(listed)}, {elapsed:.0f} s] {item.label}", file=sys.stderr, flush=True)
        measurements += item.run(plan)
    return measurements


def items(plan: Plan) -> Iterator[Item]:
    """Yield the items of a plan, the physics limit first."""
    yield Item("physics limit", ours.physics, (_PHYSICS_LIMIT,))
    for num_envs in plan.sizes:
        for workers in sorted({1, min(cores(), num_envs)}):
            yield Item(f"stepping, E={num_envs}", partial(ours.stepping, num_envs=num_envs, workers=workers))
    fork = partial(peers.in_own_process, "fork")
    yield Item(f"vector.make, E={PEER_ENVS}, in a process of its own", partial(fork, peers.vector_make), peers.VECTOR)
    if plan.thorough:
        label = "TorchRL's ParallelEnv, in a process of its own"
        yield Item(label, partial(fork, peers.torchrl_parallel), peers.TORCHRL)
    yield Item("resets", ours.resets)
    yield Item("collecting", ours.collection)
    yield Item("training", training_speed.whole_training)
    for threads in ("1", "auto") if plan.thorough else ("1",):
        row = training_speed.off_policy_row(threads)
        yield Item(row.what, partial(training_speed.off_policy_updates, threads=threads), (row,))
    if plan.thorough:
        yield Item("evaluation", ours.evaluation)
        spawn = partial(peers.in_own_process, "spawn")  # a forked process shares memory with this one
        yield Item("memory of 128 environments, in a process of its own", partial(spawn, peers.memory))


def _options(args: Sequence[str]) -> Namespace:
    parser = CommandParser(prog="lightning-unlearn bench", description=__doc__)
    parser.add_argument("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    quick = "about a minute: less of all, and no TorchRL, off-policy updates on all cores, evaluation or memory"
    parser.add_argument("--quick", action="store_true", help=quick)
    scaling = (
        "also measure collecting with each of these numbers of workers (8 environments each), and extrapolate to 64"
    )
    parser.add_argument("--workers", type=PositiveInt, nargs="*", default=[], help=scaling)
    parser.add_argument(
        "--repeats",
        type=PositiveInt | None,
        help="repeats of each measurement, whose median counts; default: 5, quick: 2",
    )
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="seed of layouts, actions and policies")
    parser.add_argument(
        "--soak_steps",
        type=NonNegativeInt,
        default=0,
        help="steps of a long collection, to see whether speed or memory drift; 0: none",
    )
    parser.add_argument("--out", type=str, default="bench/bench.json", help="JSON file; figures are written beside it")
    return parser.parse_args(args)


def machine() -> dict[str, Any]:
    """Describe this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else platform.machine()
    except OSError:
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": cpu,
        "cores": cores(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in _VERSIONS},
    }


def summary(measurements: Sequence[Measurement]) -> dict[str, float | None]:
    """Compute speed-ups over `vector.make` at E = 8, training's rate and share of the limit, an off-policy update."""
    median = {m.name: m.median for m in measurements}
    training = median.get("train.published")
    stepping = median.get(ours.stepping_name(PEER_ENVS, min(cores(), PEER_ENVS)))
    return {
        "env_speedup": _ratio(stepping, median.get("env.vector_make")),
        "collect_speedup": _ratio(median.get("collect.lean"), median.get("collect.vector_make")),
        "train_steps_per_s": training,
        "limit_fraction": _ratio(training, median.get("physics.limit")),
        "off_policy_update_ms": median.get("update.off_policy"),
    }


def summary_line(numbers: dict[str, float | None]) -> str:
    """Format the summary as `key=value` pairs; a value that could not be measured is null."""
    return " ".join(f"{key}={'null' if value is None else f'{value:.4g}'}" for key, value in numbers.items())


def table(measurements: Sequence[Measurement]) -> str:
    """Format one row a quantity: description, median, unit, spread over the repeats, note."""
    rows = [("what", "median", "unit", "lowest to highest", "note")]
    for m in measurements:
        median, spread = "null", ""
        if m.median is not None:
            median = _number(m.median)
            spread = f"{_number(min(m.values))} to {_number(max(m.values))} ({len(m.values)})"
        rows.append((m.what, median, m.unit, spread, m.note))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return "\n".join(
        f"{what:<{widths[0]}}  {median:>{widths[1]}}  {unit:<{widths[2]}}  {spread:<{widths[3]}}  {note}".rstrip()
        for what, median, unit, spread, note in rows
    )


def scaling_table(costs: ours.RolloutCosts, horizon: int) -> str:
    """Format extrapolated rates of collecting: one row a number of workers, with 8 environments and a core each."""
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


def write(out: Path, plan: Plan, measurements: Sequence[Measurement], soak: ours.Soak | None) -> list[Path]:
    """Write the JSON file, and figures beside it; return what was written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "options": vars(plan),
        "summary": summary(measurements),
        "measurements": [m.as_json() for m in measurements],
        "soak": soak.as_json() if soak else None,
    }
    out.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    figures = {out.with_suffix(".png"): bars(measurements)}
    if soak:
        figures[out.with_name(f"{out.stem}_soak.png")] = soak_curve(soak)
    for path, figure in figures.items():
        save_png(figure, path)
    return [out, *figures]


def bars(measurements: Sequence[Measurement]) -> Figure:
    """Draw every rate as a horizontal bar: the limit and peers grey, this package blue."""
    rates = []
    for m in measurements:
        if m.unit == "steps/s" and m.median:
            is_peer = m.name in ("env.vector_make", "env.torchrl_parallel", "collect.vector_make")
            colour = _LIMIT if m.name.startswith("physics") else _PEER if is_peer else BLUE
            rates.append((m.what, m.median, colour))
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


def soak_curve(soak: ours.Soak) -> Figure:
    """Draw speed and memory along the soak."""
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


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8, color=INK)
    ax.xaxis.label.set_fontsize(9)
    ax.yaxis.label.set_fontsize(9)
