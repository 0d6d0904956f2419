"""This machine's speed, from a few seconds of the real thing."""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_unlearn.callbacks.progress import Throughput
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.study.estimate import Speeds

HORIZON = 256
"""Steps of each environment in a rollout that is timed."""


def measure(data: Mapping[str, Any], workers: int) -> Speeds:
    """Train for two short updates, in the config's environments and in one alone, and time the second one.

    Args:
        data: The config's `data`.
        workers: Processes that step the environments.
    """
    started = time.perf_counter()
    trained, rolled = _train(data["env"], int(data["num_envs"]), workers)
    alone, _ = _train(data["env"], 1, 1)
    return Speeds(trained, rolled, alone, start=max(5.0, time.perf_counter() - started))


def _train(env_id: str, num_envs: int, workers: int) -> tuple[float, float]:
    """Environment steps per second: of collecting and learning, and of collecting alone."""
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
