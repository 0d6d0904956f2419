"""Off-policy concept unlearning: TD3 from the expert's weights, with critics of C_forget beside those of reward."""

import math
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.collectors.data import Experience, RolloutData
from lightning_unlearn.collectors.replay import ReplayBuffer, macro_transitions
from lightning_unlearn.losses.td3 import CRITICS, ActorLoss, CriticLoss, actor_loss, critic_loss, td_targets
from lightning_unlearn.methods.base import (
    LagrangianMethod,
    as_numbers,
    require_at_least,
    require_fraction,
    require_positive,
    require_source,
    rollout_metrics,
)
from lightning_unlearn.methods.flat_adam import FlatAdam
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.mean_scale import measured_mean_scale, scale_means
from lightning_unlearn.policies.q_ensemble import QEnsemble
from lightning_unlearn.seeding import SeedStreams, torch_generator

TARGET_NOISE_CLIP = 2.5
"""The noise of target actions is clipped to this many of its standard deviations, as in TD3."""
ACTOR_EVERY = 2
"""Steps of the critics for one of the policy, as in TD3."""
SIZE = 5.0
"""Discounted sum of |reward|, and of C_forget, of the expert in the critics' units."""
MOST_PASSES = 160
"""Most passes of the critics over the expert's macro-actions before the policy learns; more do not improve them."""
MOST_BYTES = 1_000_000_000
"""Most bytes of the replay buffer in a checkpoint; a file above `checkpoints.MAX_BYTES` would not be read again."""


class OffPolicyConcept(LagrangianMethod):
    """TD3 (twin delayed policy gradients) from the expert's weights, with twin critics of reward and of C_forget.

    The policy maximises min(Q₁, Q₂) − λ·max(Q₃, Q₄) of its own deterministic action, by the critics' gradient. Only the
    critics have target networks. An epoch is one rollout, which is added to the replay buffer, and `steps` minibatches
    from the buffer.

    The first epochs, a share `warm_up`, only collect rollouts of the expert. At the end of the last of them the critics
    are trained on these for `critic_steps` minibatches; then the policy is trained, too.

    While learning, an action is repeated for `action_repeat` steps: one step changes too little for a critic to see.
    The repaired policy chooses an action in every step. Where the expert's means lie far out on the tanh, the gradient
    of an action vanishes: after the first rollout they are scaled down, which changes actions but hardly return and
    cost. (Without tanh, actions are clipped: at a bound, the critics' gradient counts only where it points inside.) The
    standard deviation is set to `exploration_std` and not trained.

    Reward and C_forget are divided by the expert's mean |reward| and mean C_forget per step, and multiplied with
    `SIZE`·(1 − γ), so that settings carry over between tasks; λ is in these units, too.

    KL from the expert and the line through both policies (`extrapolate`) count the scaling of the means. The policy's
    own value heads are not trained: PPO from this policy starts with the expert's, on a changed trunk.

    Args:
        method: Name the models are registered under.
        source: The unsafe expert, where the weights start: `auto` (the one of the same environment, of the same seed if
            the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        lr: Step size of the policy's Adam.
        anneal_lr: Lower it linearly, from `lr` in the first update to `lr` / N in the last of N.
        critic_lr: Step size of the critics' Adam.
        batch_size: Macro-actions in a minibatch.
        action_repeat: Steps that an action is repeated for.
        steps: Minibatches in an update.
        warm_up: Share of the updates, the first ones, that only collect; at least one does.
        critic_steps: Minibatches for the critics alone, after the warm-up; at most `MOST_PASSES` passes.
        capacity: Most macro-actions in the replay buffer.
        gamma: Discount per step, of reward and of C_forget; below 1.
        target_rate: Share of the way that the target critics go towards the critics after each minibatch.
        target_noise: Standard deviation of the noise on target actions, in halves of the action range.
        exploration_std: Standard deviation of the policy's Gaussian before tanh.
        noiseless: Share of the environments that act without noise, as the registered policy does. λ and the expert's
            measures go by these: with noise, a policy that stands still would not be noticed.
        mean_scale: Factor on the expert's means before tanh; null: the one, at most 1, that brings their root mean
            square in the first rollout to `MEAN_SIZE`.
        critic_sizes: Widths of the critics' hidden layers; null: 128 and 128.
        max_grad_norm: The gradient norm of the policy is clipped to this.
        seed: The run's seed.
    """

    values: QEnsemble
    target_values: QEnsemble
    max_threads = CRITICS

    def __init__(
        self,
        method: str,
        source: str | None = "auto",
        unsafe_updates: int = 300,
        lr: float = 3e-4,
        anneal_lr: bool = True,
        critic_lr: float = 1e-3,
        batch_size: int = 256,
        action_repeat: int = 4,
        steps: int = 512,
        warm_up: float = 0.0667,
        critic_steps: int = 5_000,
        capacity: int = 327_680,
        gamma: float = 0.99,
        target_rate: float = 0.005,
        target_noise: float = 0.1,
        exploration_std: float = 0.8,
        noiseless: float = 0.5,
        mean_scale: float | None = None,
        critic_sizes: list[int] | None = None,
        max_grad_norm: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(method, source, unsafe_updates, lr, batch_size, max_grad_norm, seed)
        require_source(source, "this method repairs the expert that it starts from")
        sizes = critic_sizes or [128, 128]
        require_at_least(1, action_repeat=action_repeat, capacity=capacity, critic_sizes=min(sizes))
        require_at_least(ACTOR_EVERY, steps=steps)
        require_at_least(0, critic_steps=critic_steps, target_noise=target_noise)
        require_positive(critic_lr=critic_lr, exploration_std=exploration_std, target_rate=target_rate)
        if mean_scale is not None:
            require_positive(mean_scale=mean_scale)
        require_fraction(target_rate=target_rate, warm_up=warm_up, noiseless=noiseless)
        if not 0.0 <= gamma < 1.0:  # reward and C_forget are scaled by 1 − γ
            raise ValueError(f"model.gamma={gamma} is not possible: use a number from 0 up to, not including, 1.")
        self.anneal_lr, self.critic_lr, self.action_repeat, self.steps = anneal_lr, critic_lr, action_repeat, steps
        self.warm_up, self.critic_steps, self.gamma = warm_up, critic_steps, gamma
        self.target_rate, self.target_noise = target_rate, target_noise
        self.exploration_std, self.noiseless, self.mean_scale = exploration_std, noiseless, mean_scale
        self.critic_sizes = sizes
        self.replay = ReplayBuffer(capacity)
        self._units: tuple[float, ...] = (1.0, 1.0)
        """Factors on reward and on C_forget."""

    def build(self, data: RolloutData, policy: ActorCritic | None = None) -> None:
        """Make the policy and the critics.

        Raises:
            ValueError: `capacity`, `action_repeat`, `exploration_std` or `mean_scale` is not possible.
        """
        super().build(data, policy)
        if self.mean_scale is not None:
            rescale_policy_mean(self.policy, self.mean_scale, self.exploration_std)
        config, generator = self.policy.config, torch_generator(SeedStreams.of(self.seed).weights)
        self.values = QEnsemble(CRITICS, config.observation_size, config.action_size, self.critic_sizes, generator)
        self.target_values = deepcopy(self.values).requires_grad_(False)
        data.require_whole_actions(self.action_repeat)
        most = MOST_BYTES // (4 * (2 * config.observation_size + config.action_size + 3))
        if not data.steps_per_update <= self.replay.capacity <= most:
            raise ValueError(
                f"model.capacity={self.replay.capacity} is not possible: a rollout may have {data.steps_per_update} "
                f"macro-actions, and a checkpoint holds at most {most}; use a number from the one to the other."
            )

    def experience(self) -> Experience:
        """Return the dataset of training: rollouts of the policy with repeated actions, some without noise."""
        return Experience(self.data.collector(self.policy, self.action_repeat, self._noiseless_envs).rollout)

    def configure_optimizers(self) -> list[FlatAdam]:
        """The policy's Adam and the critics' Adam."""
        self._optimizer = FlatAdam(self._actor_parameters, self.lr)
        self._critic_optimizer = FlatAdam(self.values.parameters(), self.critic_lr)
        return [self._optimizer, self._critic_optimizer]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the replay buffer and the units."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["replay"] = self.replay.state_dict()
        checkpoint["units"] = list(self._units)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self.replay.load_state_dict(checkpoint["replay"])
        self._units = tuple(checkpoint.get("units", (1.0, 1.0)))

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Add a rollout to the replay buffer, and learn from the buffer. Batch shape: (E, T)."""
        self.replay.add(macro_transitions(batch.cpu(), self.action_repeat, self.gamma))
        metrics: dict[str, Any] = {"step": float(self.env_steps), **rollout_metrics(batch)}
        epoch, last_warm_up = self.trainer.current_epoch, self.expert_rollouts.stop - 1
        if epoch == 0 and self.mean_scale is None:
            observation = batch[keys.OBSERVATION].flatten(0, 1)
            rescale_policy_mean(self.policy, measured_mean_scale(self.policy, observation), self.exploration_std)
        if epoch >= last_warm_up:
            if epoch == last_warm_up:
                self._begin()
            metrics |= {"train/lr": self._set_lr(self.anneal_lr), **self.update()}
            self._count_steps()
        self.log_dict(metrics, batch_size=batch.numel())

    def update(self) -> dict[str, Any]:
        """Train the critics on `steps` minibatches, and the policy on every second one; return the mean losses."""
        critics: list[CriticLoss] = []
        actors: list[ActorLoss] = []
        for number, minibatch in enumerate(self._minibatches(self.steps), start=1):
            critics.append(self._fit_critics(minibatch))
            if number % ACTOR_EVERY == 0:
                actors.append(self._improve(minibatch))
        return self._train_metrics(actors) | self._train_metrics(critics)

    @torch.no_grad()
    def targets(self, minibatch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Targets of the critics for a minibatch of flat tensors, (B, ·) and (B,). Shape: (4, B)."""
        following = minibatch[keys.NEXT_OBSERVATION]
        next_values = self.target_values(following, self._noisy(self.policy.act(following)))
        reward, c_forget, discount = (minibatch[key] for key in (keys.REWARD, keys.C_FORGET, keys.DISCOUNT))
        return td_targets(reward * self._units[0], c_forget * self._units[1], discount, next_values)

    @property
    def expert_rollouts(self) -> range:
        """Rollouts of the warm-up, without the first one if its means and standard deviation are still changed."""
        updates = cast(int, self.trainer.max_epochs)
        first = 0 if self.mean_scale is not None or updates == 1 else 1
        return range(first, max(first + 1, round(self.warm_up * updates)))

    @property
    def measured_envs(self) -> slice:
        """Environments without noise, or all if every one has noise."""
        return slice(-self._noiseless_envs, None) if self._noiseless_envs else slice(None)

    @property
    def cost_unit(self) -> float:
        """The expert's rate of C_forget."""
        return 1.0 if self.expert_measures is None else self.expert_measures.c_forget

    @property
    def _noiseless_envs(self) -> int:
        """Number of environments, the last ones, that act without noise."""
        return round(self.noiseless * self.data.num_envs)

    @property
    def _actor_parameters(self) -> list[torch.nn.Parameter]:
        return [*self.policy.trunk.parameters(), *self.policy.action_mean.parameters()]

    def _begin(self) -> None:
        """Set units and observation statistics from the expert's rollouts, and train the critics on them."""
        if self.expert_measures is not None:
            sizes = (self.expert_measures.reward_size, self.expert_measures.c_forget)
            self._units = tuple(SIZE * (1.0 - self.gamma) / size for size in sizes)
        for values in (self.values, self.target_values):
            values.normalise_by(self.replay.observations.to(self.device))
        passes = len(self.replay) / self.batch_size
        for minibatch in self._minibatches(min(self.critic_steps, math.ceil(MOST_PASSES * passes))):
            self._fit_critics(minibatch)

    def _fit_critics(self, minibatch: dict[str, torch.Tensor]) -> CriticLoss:
        """Make one step of the critics, unclipped as their loss is linear in large errors, and of their targets."""
        values = self.values(minibatch[keys.OBSERVATION], minibatch[keys.ACTION])
        loss = critic_loss(values, self.targets(minibatch))
        numbers = as_numbers(loss)
        self._descend(self._critic_optimizer, numbers.total, loss.total.backward, math.inf, "critic_lr")
        with torch.no_grad():
            theirs, parameters = tuple(self.target_values.parameters()), tuple(self.values.parameters())
            torch._foreach_lerp_(theirs, parameters, self.target_rate)
        return numbers

    def _improve(self, minibatch: dict[str, torch.Tensor]) -> ActorLoss:
        """Make one clipped step of the policy; the critics get no gradient from it."""
        observation = minibatch[keys.OBSERVATION]
        mean = self.policy.mean(observation)
        action = self.policy.squash(mean.detach()).requires_grad_()
        loss = actor_loss(self.values(observation, action), self.cost_weight)
        (by_action,) = torch.autograd.grad(loss.policy, action)
        by_mean = by_action * self._slope(action.detach(), by_action)
        numbers = as_numbers(loss)
        backward = partial(mean.backward, by_mean, inputs=self._actor_parameters)
        self._descend(self._optimizer, numbers.policy, backward, self.max_grad_norm)
        return numbers

    def _slope(self, action: torch.Tensor, by_action: torch.Tensor) -> torch.Tensor:
        """∂action/∂mean; 0 for an action at a bound if descent would lead farther out. Shape: (B, A)."""
        low, high = self.policy.action_low, self.policy.action_high
        half_range = 0.5 * (high - low)
        if self.policy.config.squash == "tanh":
            return half_range * (1.0 - ((action - low) / half_range - 1.0).square())
        outward = ((action <= low) & (by_action > 0.0)) | ((action >= high) & (by_action < 0.0))
        scale = half_range if self.policy.config.squash == "scale" else torch.ones_like(half_range)
        return scale * ~outward

    def _noisy(self, action: torch.Tensor) -> torch.Tensor:
        """Add the noise of TD3's target policy smoothing. Shape: (B, A) → (B, A)."""
        noise = torch.randn(action.shape, generator=self._minibatch_order, dtype=torch.float32)
        noise = noise.clamp(-TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
        low, high = self.policy.action_low, self.policy.action_high
        half_range = 0.5 * (high - low)
        return (action + self.target_noise * half_range * noise.to(action)).clamp(low, high)

    def _minibatches(self, count: int) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(count):
            drawn = self.replay.draw(self.batch_size, self._minibatch_order)
            yield {key: row.to(self.device) for key, row in drawn.items()}


def rescale_policy_mean(policy: ActorCritic, mean_scale: float, std: float) -> None:
    """Scale the means before tanh, and set their standard deviation.

    Args:
        policy: The expert; changed in place.
        mean_scale: Factor on the means; no effect on a policy without tanh.
        std: Before tanh, or in halves of the action range if the policy does not squash.

    Raises:
        ValueError: `std` is outside the policy's bounds, or the means belong to a wrapped network.
    """
    half_range = 0.5 * (policy.action_high - policy.action_low)
    log_std = torch.log(std * (half_range if policy.config.squash == "none" else torch.ones_like(half_range)))
    low, high = policy.config.log_std_range
    if not low <= float(log_std.min()) <= float(log_std.max()) <= high:
        raise ValueError(
            f"model.exploration_std={std} is not possible: this policy's is clamped to {math.exp(low):.3g} to "
            f"{math.exp(high):.3g}."
        )
    with torch.no_grad():
        policy.log_std.copy_(log_std)
    scale_means(policy, mean_scale)
