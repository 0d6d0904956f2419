"""Estimate how long steps take: from earlier steps of their kind, else from this machine's measured speed."""

import heapq
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_unlearn.callbacks.progress import Throughput
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.study.steps import StudyStep

HORIZON = 256
"""Steps of each environment in a rollout that is timed."""


@dataclass(frozen=True)
class Speeds:
    """Environment steps per second on this machine, by kind of work."""

    trained: float
    rolled: float
    alone: float
    start: float
    """Seconds that a process needs before its first step."""


def measure_speeds(data: Mapping[str, Any], workers: int) -> Speeds:
    """Train for two short updates, in a config's environments and in one of them alone, and time the second update.

    Args:
        data: The config's `data`.
        workers: Processes that step the environments.
    """
    started = time.perf_counter()
    trained, rolled = _time_training(data["env"], int(data["num_envs"]), workers)
    alone, _ = _time_training(data["env"], 1, 1)
    return Speeds(trained, rolled, alone, start=max(5.0, time.perf_counter() - started))


def _time_training(env_id: str, num_envs: int, workers: int) -> tuple[float, float]:
    """Return environment steps per second of collecting and learning, and of collecting only."""
    module = DualHeadPPO("measure")
    data = RolloutData(env_id, num_envs, HORIZON, workers=min(workers, num_envs))
    module.build(data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            logger=False,
            callbacks=[Throughput()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        torch.set_num_threads(1)
        trainer.fit(module, data)
    seconds = {name: float(trainer.callback_metrics[f"time/{name}_s"]) for name in ("collect", "update")}
    steps = num_envs * HORIZON
    return steps / sum(seconds.values()), steps / seconds["collect"]


def step_seconds(step: StudyStep, speeds: Speeds, pace: tuple[float, float] | None) -> float:
    """Estimate the seconds that a step takes.

    Args:
        step: The step.
        speeds: Used if there is no pace.
        pace: Seconds and environment steps of an earlier step of the kind.
    """
    work = step.work
    if pace is not None:
        seconds, steps = pace
        return seconds * work.total / steps if steps else seconds
    return speeds.start + work.trained / speeds.trained + work.rolled / speeds.rolled + work.alone / speeds.alone


def urgency(steps: Sequence[StudyStep], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return, for each step, the seconds from its start to the end of the longest chain that waits for it."""
    longest: dict[str, float] = {}
    for step in reversed(steps):
        longest[step.name] = seconds[step.name] + longest.get(step.name, 0.0)
        for need in step.needs:
            longest[need] = max(longest.get(need, 0.0), longest[step.name])
    return longest


def wall_seconds(steps: Sequence[StudyStep], left: Mapping[str, float], running: Sequence[str], jobs: int) -> float:
    """Estimate the seconds until all steps are done, if the most urgent ready step always starts first.

    Args:
        steps: Steps that are not done, in order.
        left: Seconds left of each.
        running: Names of those that run already.
        jobs: Steps side by side.
    """
    rank, waiting = urgency(steps, left), {step.name: step for step in steps if step.name not in running}
    ends = [(left[name], name) for name in running]
    heapq.heapify(ends)
    undone, now = {step.name for step in steps}, 0.0
    while undone:
        ready = [step for step in waiting.values() if undone.isdisjoint(step.needs)]
        for step in sorted(ready, key=lambda step: -rank[step.name])[: max(0, jobs - len(ends))]:
            heapq.heappush(ends, (now + left[step.name], step.name))
            del waiting[step.name]
        now, name = heapq.heappop(ends)
        undone.discard(name)
    return now


def in_words(seconds: float) -> str:
    """Format a duration as `2 h 05 min`, `7 min 20 s` or `12 s`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
