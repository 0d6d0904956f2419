"""Dual-head PPO: the method of the unsafe expert, the oracle, concept unlearning and the continued control."""

from typing import Literal

import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.losses.dual_ppo import DualPPOLoss, dual_ppo_gradient, dual_ppo_loss
from lightning_unlearn.losses.gae import AdvantageForm, combine, deviation, generalised_advantage
from lightning_unlearn.losses.gaussian import GaussianDraws, Gradient
from lightning_unlearn.methods.base import (
    LagrangianMethod,
    require_at_least,
    require_fraction,
    require_positive,
    rollout_metrics,
)
from lightning_unlearn.policies.actor_critic import PolicyOutput

KL_TOLERANCE = 1.5
"""An update stops when a minibatch's |mean log-ratio| exceeds this many times `target_kl`."""


class DualHeadPPO(LagrangianMethod):
    """PPO with a reward critic and a cost critic; one epoch is one rollout and its update.

    The policy maximises A_r − λ·A_c (or its convex form). With λ = 0 this trains the unsafe expert; with the PID and
    random weights, the oracle; with the PID from the expert's weights, it is concept unlearning.

    Args:
        method: Name the models are registered under.
        source: Where the weights start: null (random), `auto` (the unsafe expert of the same environment, of the same
            seed if the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        lr: Step size of Adam.
        anneal_lr: Lower the step size linearly, from `lr` in the first update to `lr` / N in the last of N.
        ent_coef: Weight of the entropy of the Gaussian before tanh.
        ppo_epochs: Most passes over a rollout.
        batch_size: Transitions in a minibatch.
        gamma: Discount per step, of reward and of C_forget.
        gae_lambda: λ of generalised advantage estimation.
        clip_epsilon: Clip range of the policy ratio.
        value_coef: Weight of the two critics' losses.
        scale_critics: Divide a critic's error by the standard deviation of its targets in the rollout. Costs vary more
            than rewards, and critics that share a trunk fit above all the signal that varies most.
        target_kl: An update stops early when |mean log-ratio| of a minibatch exceeds 1.5 times this.
        max_grad_norm: Gradient norm is clipped to this.
        advantage: Form in which λ combines the advantages: `sum`, `convex` or `penalty`.
        hidden_sizes: Widths of the trunk, if the weights start from random; null: 64 and 64.
        activation: Non-linearity of the trunk, if the weights start from random.
        critics: `shared` with the policy's trunk or `separate` from it, if the weights start from random.
        seed: The run's seed.
    """

    def __init__(
        self,
        method: str,
        source: str | None = None,
        unsafe_updates: int = 0,
        lr: float = 3e-4,
        anneal_lr: bool = False,
        ent_coef: float = 0.03,
        ppo_epochs: int = 6,
        batch_size: int = 256,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_epsilon: float = 0.2,
        value_coef: float = 0.5,
        scale_critics: bool = False,
        target_kl: float = 0.02,
        max_grad_norm: float = 0.5,
        advantage: AdvantageForm = "sum",
        hidden_sizes: list[int] | None = None,
        activation: Literal["tanh", "relu", "elu"] = "tanh",
        critics: Literal["shared", "separate"] = "shared",
        seed: int = 0,
    ) -> None:
        super().__init__(method, source, unsafe_updates, lr, batch_size, max_grad_norm, seed)
        require_at_least(1, ppo_epochs=ppo_epochs)
        require_at_least(0, ent_coef=ent_coef, value_coef=value_coef)
        require_positive(clip_epsilon=clip_epsilon, target_kl=target_kl)
        require_fraction(gamma=gamma, gae_lambda=gae_lambda)
        self.anneal_lr, self.scale_critics = anneal_lr, scale_critics
        self.ent_coef, self.ppo_epochs, self.gamma, self.gae_lambda = ent_coef, ppo_epochs, gamma, gae_lambda
        self.clip_epsilon, self.value_coef, self.target_kl = clip_epsilon, value_coef, target_kl
        self.advantage: AdvantageForm = advantage
        self._architecture = {"activation": activation, "critics": critics}
        if hidden_sizes:
            self._architecture["hidden_sizes"] = hidden_sizes
        self._critic_units = torch.ones(2)
        """Scale of the errors of the reward critic and of the cost critic. Shape: (2,)."""

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """One update from one rollout."""
        lr = self._set_lr(self.anneal_lr)
        self.add_advantages(batch)
        losses = self.update(batch)
        self._count_steps()
        self.log_dict(
            {"step": float(self.env_steps), "train/lr": lr, **rollout_metrics(batch), **self._train_metrics(losses)},
            batch_size=batch.numel(),
        )

    @torch.no_grad()
    def add_advantages(self, batch: TensorDict) -> None:
        """Add values, advantages and value targets of both signals to a rollout. Batch shape: (E, T)."""
        following = batch[keys.NEXT]
        value = self._values(batch[keys.OBSERVATION])  # (E, T, 2)
        ends = following[keys.DONE].squeeze(-1).clone()  # (E, T)
        ends[:, -1] = True
        next_value = value.roll(-1, 1)  # the next row's; ends of episodes and of the rollout have no next row
        next_value[ends] = self._values(following[keys.OBSERVATION][ends])
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
        self._critic_units = deviation(target) if self.scale_critics else torch.ones_like(target[0, 0])
        batch[keys.REWARD_VALUE], batch[keys.COST_VALUE] = value.split(1, -1)
        batch[keys.REWARD_ADVANTAGE], batch[keys.COST_ADVANTAGE] = advantage.split(1, -1)
        batch[keys.REWARD_TARGET], batch[keys.COST_TARGET] = target.split(1, -1)
        batch[keys.ADVANTAGE] = combine(
            batch[keys.REWARD_ADVANTAGE], batch[keys.COST_ADVANTAGE], self.cost_weight, self.advantage
        )

    @torch.no_grad()
    def update(self, batch: TensorDict) -> list[DualPPOLoss]:
        """Train on minibatches until all passes are made or the early stop; return the losses of the minibatches."""
        losses: list[DualPPOLoss] = []
        for minibatch in self._shuffled(self.flat(batch), self.ppo_epochs):
            loss, backward = self._evaluate(minibatch)
            losses.append(loss)
            if loss.approximate_kl > KL_TOLERANCE * self.target_kl:
                break
            self._descend(self._optimizer, loss.total, backward, self.max_grad_norm)
        return losses

    def loss(self, output: PolicyOutput, minibatch: dict[str, torch.Tensor]) -> DualPPOLoss:
        """The loss of the policy's output for a minibatch of flat tensors, (B, ·) and (B,)."""
        values = torch.stack([output.reward_value, output.cost_value], -1) / self._critic_units
        targets = minibatch[keys.VALUE_TARGETS] / self._critic_units
        return dual_ppo_loss(
            self.policy.draw_log_prob(output.mean, minibatch[keys.PRE_TANH]),
            minibatch[keys.DRAW_LOG_PROB],
            minibatch[keys.ADVANTAGE],
            (values[:, 0], values[:, 1]),
            (targets[:, 0], targets[:, 1]),
            self.policy.entropy(),
            clip_epsilon=self.clip_epsilon,
            value_coef=self.value_coef,
            entropy_coef=self.ent_coef,
        )

    def loss_gradient(self, output: torch.Tensor, minibatch: dict[str, torch.Tensor]) -> tuple[DualPPOLoss, Gradient]:
        """The same loss and its gradient by the network's output, means and both values. Shape: (B, A + 2)."""
        return dual_ppo_gradient(
            GaussianDraws(output[:, :-2], self.policy.clamped_log_std, minibatch[keys.PRE_TANH]),
            minibatch[keys.DRAW_LOG_PROB],
            minibatch[keys.ADVANTAGE],
            output[:, -2:],
            minibatch[keys.VALUE_TARGETS],
            self._critic_units,
            clip_epsilon=self.clip_epsilon,
            value_coef=self.value_coef,
            entropy_coef=self.ent_coef,
        )

    def flat(self, batch: TensorDict) -> dict[str, torch.Tensor]:
        """Return the loss's input from a rollout, as flat tensors. Batch shape: (E, T); tensors: (B, ·) and (B,).

        The tanh correction cancels in the policy ratio, so the log-densities are those before squashing.
        """
        names = (keys.OBSERVATION, keys.PRE_TANH, keys.LOG_PROB, keys.ADVANTAGE, keys.REWARD_TARGET, keys.COST_TARGET)
        observation, draw, log_prob, advantage, *targets = (batch[name].flatten(0, 1) for name in names)
        return {
            keys.OBSERVATION: observation,
            keys.PRE_TANH: draw,
            keys.DRAW_LOG_PROB: log_prob.squeeze(-1) + self.policy.log_squash_slope(draw),
            keys.ADVANTAGE: advantage.squeeze(-1),
            keys.VALUE_TARGETS: torch.cat(targets, -1),
        }

    def _values(self, observation: torch.Tensor) -> torch.Tensor:
        """Both values. Shape: (..., O) → (..., 2)."""
        output = self.policy(observation)
        return torch.stack([output.reward_value, output.cost_value], -1)
