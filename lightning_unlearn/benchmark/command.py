"""The `bench` command: one run that times everything and can be repeated anywhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lightning_unlearn.benchmark import ours, peers, report, trained
from lightning_unlearn.benchmark.plan import PEER_ENVS, Item, Measurement, Plan
from lightning_unlearn.benchmark.soak import soak
from lightning_unlearn.options import CommandParser
from lightning_unlearn.processes import cores

_PHYSICS_LIMIT = Measurement("physics.limit", "10 mj_step + 3 mj_forward on all cores", "steps/s", [])


def main(args: Sequence[str]) -> None:
    """Measure, print the table, write JSON and figures; the last line holds the summary."""
    options = _options(args)
    torch.set_num_threads(1)
    make = Plan.quick if options.quick else Plan.full
    plan = make(options.env, options.repeats or (2 if options.quick else 5), options.seed)
    measurements = measure(plan, options.workers)
    soaked = soak(plan, options.soak_steps) if options.soak_steps else None
    print(report.table(measurements))
    if soaked:
        verdict = "flat" if soaked.flat else "not flat"
        print(f"soak: {verdict}; speed {soaked.speed_change:+.1%}, memory {soaked.memory_change:+.1%}")
    if options.workers:
        print(report.scaling_table(ours.rollout_costs(plan), plan.horizon))
    written = report.write(Path(options.out), plan, measurements, soaked)
    print("wrote " + ", ".join(map(str, written)))
    print(report.summary_line(report.summary(measurements)))


def measure(plan: Plan, workers: Sequence[int] = ()) -> list[Measurement]:
    """Everything, in order, and collecting with each of these numbers of workers; a line to stderr as each begins."""
    measurements, started = [], time.perf_counter()
    listed = [*items(plan), *(Item(f"scaling, {w} worker(s)", partial(ours.scaling, workers=w)) for w in workers)]
    for number, item in enumerate(listed, start=1):
        elapsed = time.perf_counter() - started
        print(f"[{number}/{len(listed)}, {elapsed:.0f} s] {item.label}", file=sys.stderr, flush=True)
        measurements += item.run(plan)
    return measurements


def items(plan: Plan) -> Iterator[Item]:
    """What is measured, the limit first."""
    yield Item("physics limit", ours.physics, (_PHYSICS_LIMIT,))
    for num_envs in plan.sizes:
        for workers in sorted({1, min(cores(), num_envs)}):
            yield Item(f"stepping, E={num_envs}", partial(ours.stepping, num_envs=num_envs, workers=workers))
    yield Item(f"vector.make, E={PEER_ENVS}, in a process of its own", peers.vector_make, peers.VECTOR)
    if plan.thorough:
        yield Item("TorchRL's ParallelEnv, in a process of its own", peers.torchrl_parallel, peers.TORCHRL)
    yield Item("resets", ours.resets)
    yield Item("collecting, lean and stock collector", ours.collection)
    yield Item("training", trained.whole_training)
    for threads in ("1", "auto") if plan.thorough else ("1",):
        row = trained.off_policy_row(threads)
        yield Item(row.what, partial(trained.off_policy_updates, threads=threads), (row,))
    if plan.thorough:
        yield Item("evaluation", ours.evaluation)
        yield Item("memory of 128 environments, in a process of its own", peers.memory)


def _options(args: Sequence[str]) -> Namespace:
    parser = CommandParser(prog="lightning-unlearn bench", description=__doc__)
    parser.add_argument("--env", type=str, default="SafetyPointGoal1-v0", help="the task that is measured")
    quick = "about a minute: less of all, and no TorchRL, off-policy updates on all cores, evaluation or memory"
    parser.add_argument("--quick", action="store_true", help=quick)
    scaling = "also collect with each of these numbers of workers and 8 environments each, and extrapolate to 64"
    parser.add_argument("--workers", type=PositiveInt, nargs="*", default=[], help=scaling)
    parser.add_argument("--repeats", type=PositiveInt | None, help="of each measurement; medians count; 5, quick 2")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of layouts, actions and policies")
    parser.add_argument("--soak_steps", type=NonNegativeInt, default=0, help="also collect so many steps; 0: do not")
    parser.add_argument("--out", type=str, default="bench/bench.json", help="JSON file; figures are written beside it")
    return parser.parse_args(args)
