"""Speed of whole trainings, built as `fit` builds them, and of their minibatch loop beside a plain PyTorch loop."""

import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import fit, keys
from lightning_unlearn.benchmark.measurement import Measurement, Plan
from lightning_unlearn.configuration import shipped_config
from lightning_unlearn.losses.dual_ppo import dual_ppo_loss
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.processes import cores
from lightning_unlearn.tracking.addresses import sqlite_uri

METHOD, OFF_POLICY = "method/unsafe.yaml", "method/off_policy_concept.yaml"
"""Configs of the published settings (8 environments of 1024 steps, 6 epochs, minibatches of 256) and of off-policy
unlearning."""
_OFF_POLICY_NAMES = {"1": "update.off_policy", "auto": "update.off_policy_auto"}
OFF_POLICY_STEPS = 128
"""Minibatches of an off-policy update, fewer than the method's default: only one of them is timed."""


class Stopwatch(pl.Callback):
    """Seconds of every update, with and without rollout and logging, its minibatches, and the last rollout."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.updates: list[float] = []
        self.minibatches: list[float] = []
        self.rollout: TensorDict | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note the start of the rollout."""
        self.starts.append(time.perf_counter())

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Note the start of the update."""
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: TensorDict, batch_idx: int
    ) -> None:
        """Keep the update's duration and its rollout."""
        self.updates.append(time.perf_counter() - self._began)
        self.minibatches.append(float(trainer.callback_metrics.get("train/minibatches", 0)))
        self.rollout = batch.clone()

    def cycles(self) -> list[float]:
        """Return the seconds from each rollout's start to the next one's."""
        return [after - before for before, after in zip(self.starts[:-1], self.starts[1:], strict=True)]


def whole_training(plan: Plan) -> list[Measurement]:
    """Measure training at the published settings, and its minibatch loop beside a plain one on the last rollout."""
    clock, module = _train(_options(plan, METHOD, plan.updates))
    rates = [8 * plan.horizon / seconds for seconds in clock.cycles()]
    taken = f"{statistics.median(clock.minibatches):.0f} minibatches an update"
    ours = [1000 * seconds / number for seconds, number in zip(clock.updates, clock.minibatches, strict=True)]
    plain = [_plain_update(module, clock.rollout) for _ in range(plan.repeats)]
    return [
        Measurement(
            "train.published", f"training, 8 x {plan.horizon}, the published settings", "steps/s", rates, taken
        ),
        Measurement("update.ours", "updating, a minibatch of 256, through Lightning", "ms", ours),
        Measurement("update.plain", "the same as a plain PyTorch loop", "ms", plain),
    ]


def off_policy_updates(plan: Plan, threads: Literal["1", "auto"]) -> list[Measurement]:
    """Measure a minibatch of `off_policy_concept` through Lightning; every second one also updates the policy."""
    options = [*_options(plan, OFF_POLICY, 1 + plan.updates), "--model.steps", str(OFF_POLICY_STEPS)]
    options += ["--horizon", "256", "--model.warm_up", "0.0", "--model.critic_steps", "0", "--data.workers", "1"]
    clock, _ = _train([*options, "--torch_threads", threads])
    torch.set_num_threads(1)
    values = [1000 * seconds / OFF_POLICY_STEPS for seconds in clock.updates[1:]]  # the first one warms up
    return [replace(off_policy_row(threads), values=values)]


def off_policy_row(threads: Literal["1", "auto"]) -> Measurement:
    """Return the row of `off_policy_updates` without values."""
    what = f"updating off policy, a minibatch of 256, torch_threads={threads}"
    return Measurement(_OFF_POLICY_NAMES[threads], what, "ms", [])


def _train(options: Sequence[str]) -> tuple[Stopwatch, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cli = fit.FitCLI([*options, "--tracking_uri", sqlite_uri(Path(folder) / "mlflow.db")])
        cli.build()
        clock = Stopwatch()
        cli.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        try:
            cli.trainer.fit(cli.model, cli.datamodule)
        finally:
            cli.datamodule.teardown("fit")
    return clock, cli.model


def _options(plan: Plan, method: str, updates: int) -> list[str]:
    given = {
        "env": plan.env,
        "seed": str(plan.seed),
        "horizon": str(plan.horizon),
        "updates": str(updates),
        "save_points": "null",
        "keep_best": "false",
        "data.workers": str(min(cores(), 8)),
    }
    chain = ("base.yaml", "env/point_goal1.yaml", method)
    files = [part for name in chain for part in ("-c", str(shipped_config(name)))]
    return files + [part for key, value in given.items() for part in (f"--{key}", value)]


def _plain_update(module: DualHeadPPO, rollout: TensorDict | None) -> float:
    """Measure the milliseconds a minibatch of the loop as usually written: a gather for every minibatch and key."""
    assert rollout is not None
    flat = {key: rollout[key].reshape(rollout.numel(), -1) for key in _READ}
    optimizer = torch.optim.Adam(module.policy.parameters(), lr=module.lr)
    started = time.perf_counter()
    for _ in range(module.ppo_epochs):
        for index in torch.randperm(rollout.numel()).split(module.batch_size):
            optimizer.zero_grad()
            _plain_loss(module, {key: value[index] for key, value in flat.items()}).backward()
            torch.nn.utils.clip_grad_norm_(module.policy.parameters(), module.max_grad_norm)
            optimizer.step()
    minibatches = module.ppo_epochs * math.ceil(rollout.numel() / module.batch_size)
    return 1000 * (time.perf_counter() - started) / minibatches


def _plain_loss(module: DualHeadPPO, minibatch: dict[str, torch.Tensor]) -> torch.Tensor:
    output = module.policy(minibatch[keys.OBSERVATION])
    return dual_ppo_loss(
        module.policy.log_prob(output.mean, minibatch[keys.PRE_TANH]),
        minibatch[keys.LOG_PROB].squeeze(-1),
        minibatch[keys.ADVANTAGE].squeeze(-1),
        (output.reward_value, output.cost_value),
        (minibatch[keys.REWARD_TARGET].squeeze(-1), minibatch[keys.COST_TARGET].squeeze(-1)),
        module.policy.entropy(),
        clip_epsilon=module.clip_epsilon,
        value_coef=module.value_coef,
        entropy_coef=module.ent_coef,
    ).total


_READ = (keys.OBSERVATION, keys.PRE_TANH, keys.LOG_PROB, keys.ADVANTAGE, keys.REWARD_TARGET, keys.COST_TARGET)
