"""Relearning: plain PPO from a model's weights, and the step at which its cost rate is back at a threshold."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from tensordict import TensorDict

from lightning_unlearn.audits.policy_suite import evaluate_in
from lightning_unlearn.audits.records import require_at_least
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, evaluation_layouts

THRESHOLD_EPISODES = 50
"""Episodes of the expert, and of every model at its start, that thresholds are computed from."""
THRESHOLD_SHARE = 0.9
MAIN = "threshold"
Signal = Literal["cost", "C_forget"]


@dataclass(frozen=True)
class RelearnOptions:
    """How a model is trained and watched; what is not named here is the training default."""

    env: str
    horizon: int = 1024
    max_updates: int = 100
    eval_every: int = 5
    eval_episodes: int = 5
    seed: int = 0
    concept: str | Concept = "auto"

    @property
    def signal(self) -> Signal:
        """What is watched: the whole cost, as published, or the concept where one is named."""
        return "cost" if self.concept == AUTO else "C_forget"

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_at_least(1, horizon=self.horizon, max_updates=self.max_updates, eval_every=self.eval_every)
        SeedStreams.of(self.seed)
        evaluation_layouts(self.eval_episodes)


@dataclass(frozen=True)
class Rate:
    """Cost, or C_forget, per step over some episodes."""

    mean: float
    standard_error: float | None
    """Over the episodes; None for one episode."""


@dataclass
class History:
    """What was seen of one model, a row an update; row 0 is the start."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rates: list[tuple[int, Rate]] = field(default_factory=list)
    """Environment steps and the evaluation there."""

    @property
    def last_step(self) -> int:
        """Environment steps of the last evaluation."""
        return self.rates[-1][0]

    def steps_to(self, threshold: float) -> int | None:
        """Environment steps of the first evaluation at or above the threshold; None if there was none (censored)."""
        return next((steps for steps, rate in self.rates if rate.mean >= threshold), None)


def cost_rate(env: BatchedEnv, policy: ActorCritic, signal: Signal = "cost") -> Rate:
    """The deterministic policy's rate, on as many layouts of the bank as there are environments."""
    return rate_of(evaluate_in(env, policy, evaluation_layouts(env.num_envs)).episodes, signal)


def rate_of(episodes: Episodes, signal: Signal = "cost") -> Rate:
    """Cost, or C_forget, over steps of some episodes, and its standard error over them."""
    of_episode = episodes.episode_cost if signal == "cost" else episodes.episode_c_forget  # (N,)
    rates = of_episode / episodes.length
    mean = float(of_episode.sum() / episodes.length.sum())
    return Rate(mean, float(rates.std(ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else None)


def relearn(policy: ActorCritic, options: RelearnOptions, env: BatchedEnv, thresholds: Sequence[float]) -> History:
    """Train a copy of a policy without its editor, λ = 0, until every threshold is reached or the updates are spent.

    Args:
        policy: Where the weights start; it is not changed.
        options: How to train and watch.
        env: Environments of the evaluation, one an episode.
        thresholds: Cost rates.
    """
    module, start = DualHeadPPO("relearn", seed=options.seed), policy.without_editor().requires_grad_(True).train()
    watch = _Watch(env, options, thresholds)
    watch.look(start, update=0)
    if watch.satisfied:
        return watch.history
    data = RolloutData(options.env, 1, options.horizon, options.concept, workers=1, seed=options.seed)
    module.build(data, start)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        _trainer(options.max_updates, watch).fit(module, data)
    return watch.history


def _trainer(updates: int, watch: pl.Callback) -> pl.Trainer:
    """A trainer that leaves nothing behind."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=updates,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Watch(pl.Callback):
    """Times every update, evaluates some, and stops when there is nothing left to see."""

    def __init__(self, env: BatchedEnv, options: RelearnOptions, thresholds: Sequence[float]) -> None:
        self.env, self.options, self.thresholds = env, options, thresholds
        self.history = History()
        self._started = self._update_started = time.perf_counter()

    @property
    def satisfied(self) -> bool:
        """Every threshold is reached."""
        return all(self.history.steps_to(threshold) is not None for threshold in self.thresholds)

    def look(self, policy: ActorCritic, update: int, loss: float | None = None, seconds: float | None = None) -> None:
        """Evaluate, if this update is one to evaluate at, and write its row."""
        rate, steps = None, update * self.options.horizon
        if update % self.options.eval_every == 0 or update == self.options.max_updates:
            rate = cost_rate(self.env, policy, self.options.signal)
            self.history.rates.append((steps, rate))
        self.history.rows.append(
            {
                "update": update,
                "global_steps": steps,
                "loss": loss,
                "update_time_sec": seconds,
                "total_time_sec": time.perf_counter() - self._started,
                "eval_cost": None if rate is None else rate.mean,
            }
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The rollout begins."""
        self._update_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: TensorDict, batch_idx: int
    ) -> None:
        """The update is done."""
        seconds = time.perf_counter() - self._update_started
        loss = float(trainer.callback_metrics["train/total_loss"])
        self.look(pl_module.policy, trainer.current_epoch + 1, loss, seconds)
        trainer.should_stop = self.satisfied
