"""Localized concept unlearning: concept unlearning that stays near the expert wherever the concept does not show."""

from typing import NamedTuple

import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.losses import written_out
from lightning_unlearn.losses.advantages import AdvantageForm
from lightning_unlearn.losses.locality import gaussian_kl, kept_kl
from lightning_unlearn.methods.base import require_at_least
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.methods.gradient import frozen_copy, require_source
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyOutput


class LocalizedLoss(NamedTuple):
    """`DualPPOLoss` with the penalty in its total, and the penalty's KL; every field is a scalar tensor."""

    total: torch.Tensor
    policy: torch.Tensor
    reward_critic: torch.Tensor
    cost_critic: torch.Tensor
    approximate_kl: torch.Tensor
    clip_fraction: torch.Tensor
    locality_kl: torch.Tensor


class LocalizedConcept(DualHeadPPO):
    """Dual-head PPO plus β·KL(π‖π_unsafe), averaged over the transitions with C_forget = 0.

    The KL is that of the joint Gaussian before tanh, the sum over the action's components.

    Args:
        method: Name the models are registered under.
        source: The unsafe expert, where the weights start and what they stay near: `auto` (the one of the same
            environment, of the same seed if the store has it, else the shipped one), or a model URI or file.
        beta: Weight of the KL. With 0 this is concept unlearning.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        lr: Step size of Adam.
        anneal_lr: Whether the step size falls linearly, from `lr` in the first update to `lr` / N in the last of N.
        ent_coef: Weight of the entropy of the Gaussian before tanh.
        ppo_epochs: Most passes over a rollout.
        batch_size: Transitions in a minibatch.
        gamma: Discount per step, of reward and of C_forget.
        gae_lambda: λ of generalised advantage estimation.
        clip_epsilon: Clip range of the policy ratio.
        value_coef: Weight of the two critics' losses.
        scale_critics: Whether a critic's error counts in units of the standard deviation of its targets in the rollout.
        target_kl: An update stops early at 1.5 times this |mean log-ratio| of a minibatch.
        max_grad_norm: Gradient norm is clipped to this.
        advantage: How λ enters, `sum`, `convex` or `penalty`.
        seed: The run's seed.
    """

    expert: ActorCritic

    def __init__(
        self,
        method: str,
        source: str | None = "auto",
        beta: float = 0.05,
        unsafe_updates: int = 300,
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
        seed: int = 0,
    ) -> None:
        super().__init__(
            method,
            source,
            unsafe_updates=unsafe_updates,
            lr=lr,
            anneal_lr=anneal_lr,
            ent_coef=ent_coef,
            ppo_epochs=ppo_epochs,
            batch_size=batch_size,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_epsilon=clip_epsilon,
            value_coef=value_coef,
            scale_critics=scale_critics,
            target_kl=target_kl,
            max_grad_norm=max_grad_norm,
            advantage=advantage,
            seed=seed,
        )
        require_at_least(0, beta=beta)
        require_source(source, "this method stays near the expert that it starts from")
        self.beta = beta

    def build(self, env: BatchedEnv) -> None:
        """Make the policy, and keep the expert as it is; does nothing the second time."""
        super().build(env)
        if not hasattr(self, "expert"):
            self.expert = frozen_copy(self.policy)

    def flat(self, batch: TensorDict) -> dict[str, torch.Tensor]:
        """As `DualHeadPPO.flat`, with the expert's Gaussian mean, made once a rollout, and C_forget."""
        flat = super().flat(batch)
        with torch.no_grad():
            flat[keys.EXPERT_MEAN] = self.expert.mean(flat[keys.OBSERVATION])
        return flat | {keys.C_FORGET: batch[keys.NEXT, keys.C_FORGET].flatten()}

    def loss_of(self, output: PolicyOutput, minibatch: dict[str, torch.Tensor]) -> LocalizedLoss:  # type: ignore[override]
        """The loss of dual-head PPO, its fields and one more, with the penalty."""
        loss = super().loss_of(output, minibatch)
        kl = gaussian_kl(output.mean, self.policy.std, minibatch[keys.EXPERT_MEAN], self.expert.std)
        locality_kl = kept_kl(kl, minibatch[keys.C_FORGET])
        return LocalizedLoss(loss.total + self.beta * locality_kl, *loss[1:], locality_kl)

    def written_out(  # type: ignore[override]
        self, output: torch.Tensor, minibatch: dict[str, torch.Tensor]
    ) -> tuple[LocalizedLoss, written_out.Gradient]:
        """The same loss, and its gradient, of the means and values that the network gives. Shape: (B, A + 2)."""
        loss, gradient = super().written_out(output, minibatch)
        locality_kl, by_mean, by_log_std = written_out.kept_kl(
            output[:, :-2],
            self.policy.clamped_log_std,
            minibatch[keys.EXPERT_MEAN],
            self.expert.clamped_log_std,
            minibatch[keys.C_FORGET],
        )
        gradient = gradient._replace(
            mean=gradient.mean + self.beta * by_mean, log_std=gradient.log_std + self.beta * by_log_std
        )
        return LocalizedLoss(loss.total + self.beta * locality_kl, *loss[1:], locality_kl), gradient
