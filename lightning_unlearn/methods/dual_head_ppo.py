"""Dual-head PPO: the unsafe expert, the oracle, concept unlearning and the continued control are four configs of it."""

from collections.abc import Iterator
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDict

from lightning_unlearn import keys, registry
from lightning_unlearn.collection.data import RolloutData
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.objectives.advantages import AdvantageForm, combine, generalised_advantage, normalise
from lightning_unlearn.objectives.dual_ppo import DualPPOLoss, dual_ppo_loss
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.seeds import SeedStreams, torch_generator

KL_TOLERANCE = 1.5
"""An update stops when a minibatch's |mean log-ratio| exceeds this many times `target_kl`."""


class DualHeadPPO(pl.LightningModule):
    """PPO with a reward critic and a cost critic; one epoch is one rollout and its update.

    The policy maximises A_r − λ·A_c (or its convex form); λ is `cost_weight`, which a callback moves. Nobody moves it:
    the unsafe expert. The PID does: the oracle. The PID does and the start is the expert: concept unlearning.

    Args:
        method: Name the models are registered under.
        source: Where the weights start: null (random), `auto` (the unsafe expert of the same environment, of the same
            seed if the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        lr: Step size of Adam.
        ent_coef: Weight of the entropy of the Gaussian before tanh.
        ppo_epochs: Most passes over a rollout.
        batch_size: Transitions in a minibatch.
        gamma: Discount per step, of reward and of C_forget.
        gae_lambda: λ of generalised advantage estimation.
        clip_epsilon: Clip range of the policy ratio.
        value_coef: Weight of the two critics' losses.
        target_kl: An update stops early at 1.5 times this |mean log-ratio| of a minibatch.
        max_grad_norm: Gradient norm is clipped to this.
        advantage: How λ enters, `sum` or `convex`.
        hidden_sizes: Widths of the trunk, when the weights start from random.
        activation: Non-linearity of the trunk, when the weights start from random.
        critics: Whether the critics share the policy's trunk, when the weights start from random.
        seed: The run's seed.
    """

    policy: ActorCritic

    def __init__(
        self,
        method: str,
        source: str | None = None,
        unsafe_updates: int = 0,
        lr: float = 3e-4,
        ent_coef: float = 0.03,
        ppo_epochs: int = 6,
        batch_size: int = 256,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_epsilon: float = 0.2,
        value_coef: float = 0.5,
        target_kl: float = 0.02,
        max_grad_norm: float = 0.5,
        advantage: AdvantageForm = "sum",
        hidden_sizes: list[int] | None = None,
        activation: Literal["tanh", "relu", "elu"] = "tanh",
        critics: Literal["shared", "separate"] = "shared",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require_at_least(1, ppo_epochs=ppo_epochs, batch_size=batch_size)
        _require_at_least(0, unsafe_updates=unsafe_updates, ent_coef=ent_coef, value_coef=value_coef)
        _require_positive(lr=lr, clip_epsilon=clip_epsilon, target_kl=target_kl, max_grad_norm=max_grad_norm)
        _require_fraction(gamma=gamma, gae_lambda=gae_lambda)
        self.automatic_optimization = False
        self.method, self.source, self.unsafe_updates, self.seed = method, source, unsafe_updates, seed
        self.lr, self.ent_coef, self.ppo_epochs, self.batch_size = lr, ent_coef, ppo_epochs, batch_size
        self.gamma, self.gae_lambda, self.clip_epsilon = gamma, gae_lambda, clip_epsilon
        self.value_coef, self.target_kl, self.max_grad_norm = value_coef, target_kl, max_grad_norm
        self.advantage: AdvantageForm = advantage
        self._shape = {"hidden_sizes": hidden_sizes or [64, 64], "activation": activation, "critics": critics}
        self.cost_weight = 0.0
        self.source_uri: str | None = None
        self._minibatch_order = torch_generator(SeedStreams.of(seed).minibatches)

    def build(self, env: BatchedEnv) -> None:
        """Make the policy, from random weights or from the source; does nothing the second time.

        Raises:
            ValueError: The source's observation or action size is not the environment's.
        """
        if hasattr(self, "policy"):
            return
        if self.source is None:
            self.policy = ActorCritic(
                _policy_config(env, self._shape), torch_generator(SeedStreams.of(self.seed).weights)
            )
            return
        env_id = env.simulator.env_id
        self.source_uri = registry.expert_uri(env_id, self.seed) if self.source == "auto" else self.source
        self.policy = registry.load_policy(self.source_uri).policy.train()
        _require_fit(self.policy, env, self.source_uri)

    def setup(self, stage: str) -> None:
        """Build what is missing."""
        self.build(self.data.env)

    @property
    def data(self) -> RolloutData:
        """The rollouts this method is trained on."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def env_steps(self) -> int:
        """Environment steps seen so far, those of the source included; the x-axis of every metric."""
        return (self.unsafe_updates + self.trainer.current_epoch + 1) * self.data.steps_per_update

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam over everything."""
        return torch.optim.Adam(self.policy.parameters(), lr=self.lr, fused=True)

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """One update from one rollout."""
        self.add_advantages(batch)
        losses = self.update(batch)
        self.log_dict(
            {"step": float(self.env_steps), **_rollout_metrics(batch), **self._train_metrics(losses)},
            batch_size=batch.numel(),
        )

    @torch.no_grad()
    def add_advantages(self, batch: TensorDict) -> None:
        """Values, advantages and targets of a rollout, both signals at once. Batch shape: (E, T)."""
        following = batch[keys.NEXT]
        value, next_value = (self._values(td[keys.OBSERVATION]) for td in (batch, following))
        signal = torch.cat([following[keys.REWARD], following[keys.C_FORGET]], -1)  # (E, T, 2)
        advantage, target = generalised_advantage(
            signal,
            value,
            next_value,
            bootstrap=~(following[keys.TERMINATED] | following[keys.FAILED]),
            done=following[keys.DONE],
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        batch[keys.REWARD_VALUE], batch[keys.COST_VALUE] = value.split(1, -1)
        batch[keys.REWARD_ADVANTAGE], batch[keys.COST_ADVANTAGE] = advantage.split(1, -1)
        batch[keys.REWARD_TARGET], batch[keys.COST_TARGET] = target.split(1, -1)
        batch[keys.ADVANTAGE] = combine(
            normalise(batch[keys.REWARD_ADVANTAGE]),
            normalise(batch[keys.COST_ADVANTAGE]),
            self.cost_weight,
            self.advantage,
        )

    def update(self, batch: TensorDict) -> list[DualPPOLoss]:
        """Minibatches until all passes are made or the policy has moved far enough; the losses of those taken."""
        losses: list[DualPPOLoss] = []
        for minibatch in self._minibatches(batch):
            loss = self.loss(minibatch)
            losses.append(DualPPOLoss(*(term.detach() for term in loss)))
            if loss.approximate_kl > KL_TOLERANCE * self.target_kl:
                break
            self._descend(loss.total)
        return losses

    def loss(self, minibatch: dict[str, torch.Tensor]) -> DualPPOLoss:
        """The loss of a minibatch of flat tensors, (B, ·) and (B,)."""
        output = self.policy(minibatch[keys.OBSERVATION])
        return dual_ppo_loss(
            self.policy.log_prob(output.mean, minibatch[keys.PRE_TANH]),
            minibatch[keys.LOG_PROB],
            minibatch[keys.ADVANTAGE],
            (output.reward_value, output.cost_value),
            (minibatch[keys.REWARD_TARGET], minibatch[keys.COST_TARGET]),
            self.policy.entropy(),
            clip_epsilon=self.clip_epsilon,
            value_coef=self.value_coef,
            entropy_coef=self.ent_coef,
        )

    def _descend(self, loss: torch.Tensor) -> None:
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        optimizer.step()

    def _minibatches(self, batch: TensorDict) -> Iterator[dict[str, torch.Tensor]]:
        flat = {key: batch[key].flatten(0, 1) for key in _TRAINED_ON}  # (B, ·)
        flat = {key: value.squeeze(-1) if key in _COLUMNS else value for key, value in flat.items()}
        for _ in range(self.ppo_epochs):
            order = torch.randperm(batch.numel(), generator=self._minibatch_order).to(self.device)
            shuffled = {key: value[order].split(self.batch_size) for key, value in flat.items()}
            for chunk in zip(*shuffled.values(), strict=True):
                yield dict(zip(shuffled, chunk, strict=True))

    def _values(self, observation: torch.Tensor) -> torch.Tensor:
        """Both values. Shape: (E, T, O) → (E, T, 2)."""
        output = self.policy(observation)
        return torch.stack([output.reward_value, output.cost_value], -1)

    def _train_metrics(self, losses: list[DualPPOLoss]) -> dict[str, Any]:
        means = {f"train/{name}": torch.stack(terms).mean() for name, terms in _by_term(losses).items()}
        return means | {
            "train/minibatches": float(len(losses)),
            "train/entropy": self.policy.entropy().detach(),
            "train/std": self.policy.std.mean().detach(),
        }


_COLUMNS = (keys.LOG_PROB, keys.ADVANTAGE, keys.REWARD_TARGET, keys.COST_TARGET)
_TRAINED_ON = (keys.OBSERVATION, keys.PRE_TANH, *_COLUMNS)


def _by_term(losses: list[DualPPOLoss]) -> dict[str, tuple[torch.Tensor, ...]]:
    return {
        f"{name}_loss" if name in _LOSSES else name: t
        for name, t in zip(DualPPOLoss._fields, zip(*losses, strict=True), strict=True)
    }


_LOSSES = ("total", "policy", "reward_critic", "cost_critic")


def _rollout_metrics(batch: TensorDict) -> dict[str, torch.Tensor]:
    """Rates over the rollout, and the episodes that ended in it (absent where none did)."""
    following = batch[keys.NEXT]
    ended = following[keys.DONE]
    metrics = {
        "rollout/cost_rate": following[keys.COST].mean(),
        "rollout/c_forget_rate": following[keys.C_FORGET].mean(),
        "rollout/reward_rate": following[keys.REWARD].mean(),
        "rollout/episodes": ended.sum().float(),
        "rollout/simulator_failures": following[keys.FAILED].sum().float(),
    }
    if ended.any():
        metrics["rollout/episode_return"] = following[keys.EPISODE_RETURN][ended].mean()
        metrics["rollout/episode_cost"] = following[keys.EPISODE_COST][ended].mean()
    return metrics


def _policy_config(env: BatchedEnv, shape: dict[str, Any]) -> PolicyConfig:
    sim = env.simulator
    return PolicyConfig(sim.observation_size, sim.action_low.tolist(), sim.action_high.tolist(), **shape)


def _require_fit(policy: ActorCritic, env: BatchedEnv, source: str) -> None:
    has = (policy.config.observation_size, policy.config.action_size)
    needs = (env.simulator.observation_size, len(env.simulator.action_low))
    if has != needs:
        raise ValueError(
            f"model.source={source} takes {has[0]} observations and gives {has[1]} actions, but {env.simulator.env_id} "
            f"has {needs[0]} and {needs[1]}: choose a model of this environment."
        )


def _require_at_least(least: float, **numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= least:
            raise ValueError(f"model.{name}={number} is not possible: use at least {least}.")


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"model.{name}={number} is not possible: use a number above 0.")


def _require_fraction(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"model.{name}={number} is not possible: use a number from 0 to 1.")
