"""Attacks that bring a forgotten behaviour back, each from the same budget of transitions.

`ppo` trains on the task itself with λ = 0. `elsewhere` does so on the task without the concept's objects. `cloning`
imitates those of the expert's episodes that never show the concept. The last two learn from data without the concept:
what comes back was still there.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from tensordict import TensorDict
from tqdm.auto import tqdm

from lightning_unlearn import keys
from lightning_unlearn.audits.policy_comparison import evaluate_in
from lightning_unlearn.collectors.data import Experience, RolloutData
from lightning_unlearn.collectors.trajectories import Trajectories
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.envs.object_removal import make_env_without
from lightning_unlearn.methods.base import GradientMethod
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.methods.trajectory_decremental import TrajectoryDecremental
from lightning_unlearn.options import require_at_least
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, evaluation_layouts, torch_generator, training_seeds

PPO, CLONING, ELSEWHERE = "ppo", "cloning", "elsewhere"
Attack = Literal["ppo", "cloning", "elsewhere"]
TRAINING: dict[str, str] = {
    PPO: "the defaults of DualHeadPPO, with a fresh optimizer",
    CLONING: "behaviour cloning of transitions of the expert's episodes without the concept, with a fresh optimizer",
    ELSEWHERE: "the defaults of DualHeadPPO, with a fresh optimizer, in the task without the concept's objects",
}
"""Attack → how it trains."""
STEPS = {
    PPO: "environment steps of relearning",
    CLONING: "cloned transitions of relearning",
    ELSEWHERE: "environment steps without the concept's objects",
}
"""Attack → unit of its steps."""
EXPERT_EPISODES = 200
"""Default of `Benign.episodes`."""
_PASSES = 6
"""Passes of `cloning` over the transitions of an update, as of PPO over a rollout."""
Signal = Literal["cost", "C_forget"]


@dataclass(frozen=True)
class RelearnOptions:
    """Options of training and evaluation; everything else is the training default."""

    env: str
    horizon: int = 1024
    max_updates: int = 100
    eval_every: int = 5
    eval_episodes: int = 5
    seed: int = 0
    concept: str | Concept = "auto"
    attack: Attack = "ppo"

    @property
    def signal(self) -> Signal:
        """The signal whose rate is measured: the whole cost, as published, or the concept if one is named."""
        return "cost" if self.concept == AUTO else "C_forget"

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_at_least(1, horizon=self.horizon, max_updates=self.max_updates, eval_every=self.eval_every)
        SeedStreams.of(self.seed)
        evaluation_layouts(self.eval_episodes)


class Benign(NamedTuple):
    """The source of an attack by cloning."""

    expert: ActorCritic
    folder: str
    """Folder that its episodes are kept in, so that they are collected once for several models."""
    episodes: int = EXPERT_EPISODES
    """Stochastic episodes of the expert, of which those without the concept are kept."""


@dataclass(frozen=True)
class Rate:
    """Cost, or C_forget, per step over some episodes."""

    mean: float
    standard_error: float | None
    """Over the episodes; None for one episode."""


@dataclass
class History:
    """Measurements of one model, a row an update; row 0 is the start."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rates: list[tuple[int, Rate]] = field(default_factory=list)
    """Steps of the attack and the evaluation there."""

    @property
    def last_step(self) -> int:
        """Steps at the last evaluation."""
        return self.rates[-1][0]

    @property
    def content(self) -> dict[str, Any]:
        """The history as JSON keeps it."""
        return {"rows": self.rows, "rates": [(steps, *astuple(rate)) for steps, rate in self.rates]}

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "History":
        """The history of such JSON."""
        return cls(content["rows"], [(steps, Rate(mean, error)) for steps, mean, error in content["rates"]])

    def steps_to(self, threshold: float) -> int | None:
        """Steps at the first evaluation at or above the threshold; None if there was none (censored)."""
        return next((steps for steps, rate in self.rates if rate.mean >= threshold), None)


def cost_rate(env: BatchedEnv, policy: ActorCritic, signal: Signal = "cost") -> Rate:
    """The deterministic policy's rate of cost, or C_forget, on one layout of the bank an environment."""
    episodes = evaluate_in(env, policy, evaluation_layouts(env.num_envs)).episodes
    of_episode = episodes.episode_cost if signal == "cost" else episodes.episode_c_forget  # (N,)
    rates = of_episode / episodes.length
    mean = float(of_episode.sum() / episodes.length.sum())
    return Rate(mean, float(rates.std(ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else None)


def relearn(
    policy: ActorCritic,
    options: RelearnOptions,
    env: BatchedEnv,
    thresholds: Sequence[float],
    benign: Benign | None = None,
    label: str | None = None,
) -> History:
    """Attack a copy of a policy without its editor, until every threshold is reached or the updates are spent.

    Args:
        policy: Initial weights; it is not changed.
        options: Options of training and evaluation.
        env: Environments of the evaluation, one an episode.
        thresholds: Cost rates.
        benign: What the attack `cloning` imitates; the others do without.
        label: Text of the progress bar; without it, none is shown.

    Raises:
        ValueError: The attack is not possible: see `make_env_without`, or no episode of the expert is without the
            concept.
    """
    start = policy.without_editor().requires_grad_(True).train()
    monitor = _RateMonitor(env, options, thresholds, label)
    monitor.measure(start, update=0)
    if monitor.is_finished:
        return monitor.history
    module, data = _attacker(options, start, benign)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=options.max_updates,
        logger=False,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # the frozen expert
        trainer.fit(module, data)
    return monitor.history


def _attacker(options: RelearnOptions, start: ActorCritic, benign: Benign | None) -> tuple[GradientMethod, RolloutData]:
    """The method and the environments of an attack, ready to train `start`."""
    env, horizon, concept, seed = options.env, options.horizon, options.concept, options.seed
    if options.attack == CLONING:
        if benign is None:
            raise ValueError("--attack cloning needs an expert whose episodes it imitates: name one with --expert.")
        cloning = _BenignCloning(horizon, benign, seed)
        cloning.build(data := RolloutData(env, 2, horizon, concept, workers=2, seed=seed), benign.expert)
        cloning.policy = start  # so far it was the expert, which the episodes were collected with
        return cloning, data
    data = (_ElsewhereData if options.attack == ELSEWHERE else RolloutData)(env, 1, horizon, concept, 1, seed)
    module = DualHeadPPO("relearn", seed=seed)
    module.build(data, start)
    return module, data


class _ElsewhereData(RolloutData):
    """Environments without the concept's objects."""

    @property
    def env(self) -> BatchedEnv:
        """The training environments, built and seeded at first use."""
        if self._env is None:
            self._env = make_env_without(self.env_id, self.num_envs, self.concept)
            self._env.seed_environments(training_seeds(SeedStreams.of(self.seed).environments, self.num_envs))
        return self._env


class _BenignCloning(TrajectoryDecremental):
    """Clones as many transitions an update as a rollout has, drawn from the expert's episodes without the concept.

    Args:
        horizon: Transitions of an update.
        benign: The expert's episodes.
        seed: Seed of the episodes, the draws and the minibatches.
    """

    def __init__(self, horizon: int, benign: Benign, seed: int) -> None:
        super().__init__(
            "relearn",
            dataset_episodes=benign.episodes,
            decremental_epochs_per_update=_PASSES,
            dataset_dir=benign.folder,
            seed=seed,
        )
        self.horizon, self._draws = horizon, torch_generator(SeedStreams.of(seed).policy_noise)

    def experience(self) -> Experience:
        """Return the dataset of training: transitions drawn at random, with replacement."""
        kept, shape = self._demonstrations, (self.horizon,)
        return Experience(lambda: kept[torch.randint(len(kept), shape, generator=self._draws)])

    def _collect(self, collection: int) -> Trajectories:
        """Collect as the method does, and refuse an expert of whose episodes none is without the concept."""
        collected = self._run_expert(collection, label="episodes of the expert")
        if not collected.kept:
            rate = float(collected.episodes[keys.EPISODE_C_FORGET].mean())
            raise ValueError(
                f"--attack cloning: each of {len(collected.episodes)} episodes of the expert shows the concept "
                f"({self.data.env.concept}), {rate:.1f} times in the mean, so that there is nothing to clone. Name an "
                "expert that shows it less with --expert, or another attack."
            )
        return collected


class _RateMonitor(pl.Callback):
    """Times every update, evaluates some, and stops training when every threshold is reached."""

    def __init__(
        self, env: BatchedEnv, options: RelearnOptions, thresholds: Sequence[float], label: str | None
    ) -> None:
        self.env, self.options, self.thresholds = env, options, thresholds
        self.history = History()
        self._started = self._update_started = time.perf_counter()
        self._label = label

    @property
    def is_finished(self) -> bool:
        """True if every threshold is reached."""
        return all(self.history.steps_to(threshold) is not None for threshold in self.thresholds)

    def measure(
        self, policy: ActorCritic, update: int, loss: float | None = None, seconds: float | None = None
    ) -> None:
        """Add an update's row, with an evaluation if one is due."""
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

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show a progress bar over updates."""
        self._bar = tqdm(
            total=self.options.max_updates, desc=self._label, unit="update", disable=self._label is None, leave=False
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock of an update, which begins with its rollout."""
        self._update_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: TensorDict, batch_idx: int
    ) -> None:
        """Measure after an update."""
        seconds = time.perf_counter() - self._update_started
        loss = float(trainer.callback_metrics["train/total_loss"])
        self.measure(pl_module.policy, trainer.current_epoch + 1, loss, seconds)
        trainer.should_stop = self.is_finished
        self._bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remove the progress bar."""
        self._bar.close()
