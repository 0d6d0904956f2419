"""Localized concept unlearning: concept unlearning with a penalty on leaving the expert where the concept is absent."""

from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.losses.gaussian import Gradient, gaussian_kl, kept_kl, kept_kl_gradient
from lightning_unlearn.methods.base import frozen_copy, require_at_least, require_source
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
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
        options: Options of `DualHeadPPO`, but for those of random weights.
    """

    expert: ActorCritic

    def __init__(
        self, method: str, source: str | None = "auto", beta: float = 0.05, unsafe_updates: int = 300, **options: Any
    ) -> None:
        super().__init__(
            method, source, unsafe_updates, hidden_sizes=None, activation="tanh", critics="shared", **options
        )
        require_at_least(0, beta=beta)
        require_source(source, "this method stays near the expert that it starts from")
        self.beta = beta

    def build(self, data: RolloutData, policy: ActorCritic | None = None) -> None:
        """Make the policy, and a frozen copy of it as the expert."""
        super().build(data, policy)
        self.expert = frozen_copy(self.policy)

    def flat(self, batch: TensorDict) -> dict[str, torch.Tensor]:
        """As `DualHeadPPO.flat`, with the expert's Gaussian mean, computed once a rollout, and C_forget."""
        flat = super().flat(batch)
        with torch.no_grad():
            flat[keys.EXPERT_MEAN] = self.expert.mean(flat[keys.OBSERVATION])
        return flat | {keys.C_FORGET: batch[keys.NEXT, keys.C_FORGET].flatten()}

    def loss(self, output: PolicyOutput, minibatch: dict[str, torch.Tensor]) -> LocalizedLoss:  # type: ignore[override]
        """The loss of dual-head PPO with the penalty."""
        loss = super().loss(output, minibatch)
        kl = gaussian_kl(output.mean, self.policy.std, minibatch[keys.EXPERT_MEAN], self.expert.std)
        locality_kl = kept_kl(kl, minibatch[keys.C_FORGET])
        return LocalizedLoss(loss.total + self.beta * locality_kl, *loss[1:], locality_kl)

    def loss_gradient(  # type: ignore[override]
        self, output: torch.Tensor, minibatch: dict[str, torch.Tensor]
    ) -> tuple[LocalizedLoss, Gradient]:
        """The same loss and its gradient by the network's output, means and both values. Shape: (B, A + 2)."""
        loss, gradient = super().loss_gradient(output, minibatch)
        locality_kl, by_mean, by_log_std = kept_kl_gradient(
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
