"""Off-policy concept unlearning: learn from every transition seen lately, many times, in place of from each once."""

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
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.losses.off_policy import CRITICS, ActorLoss, CriticLoss, actor_loss, critic_loss, targets
from lightning_unlearn.methods.base import require_at_least, require_fraction, require_positive, rollout_metrics
from lightning_unlearn.methods.flat_adam import FlatAdam
from lightning_unlearn.methods.gradient import GradientMethod, as_numbers, require_source
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.q_ensemble import QEnsemble
from lightning_unlearn.seeding import SeedStreams, torch_generator

TARGET_NOISE_CLIP = 2.5
"""The noise of target actions is clipped to this many of its standard deviations, as in TD3."""
ACTOR_EVERY = 2
"""Steps of the critics for one of the policy, as in TD3."""
MEAN_SIZE = 1.5
"""Root mean square of the expert's means before tanh, once they are brought in."""
SIZE = 5.0
"""Discounted sum of |reward|, and of C_forget, that the expert's are scaled to."""
MOST_PASSES = 160
"""Over the expert's decisions, before the policy learns: few decisions soon have nothing more to teach."""
MOST_BYTES = 1_000_000_000
"""Of the decisions in a checkpoint, which is not read again if it is larger than `checkpoints.MAX_BYTES`."""


class OffPolicyConcept(GradientMethod):
    """TD3 (twin delayed policy gradients) from the expert on, with critics of C_forget beside those of reward.

    Unlike TD3, only critics have slowly following copies: targets look ahead with the present policy.

    The policy maximises min(Q₁, Q₂) − λ·max(Q₃, Q₄) of its own deterministic action, by the critics' gradient; λ is
    `cost_weight`, and the PID moves it, from the first update on. One epoch is
    one rollout, whose decisions are kept among the last `capacity`, and `steps` minibatches of those. In the first
    epochs, a share `warm_up`, nothing is learnt: rollouts are those of the expert, its means and standard deviation
    changed as below. After the last of these epochs the critics learn from their rollouts for `critic_steps`
    minibatches, and then learning begins.

    One step of control hardly changes what comes of it, and a critic's errors hide that little. So an action is held
    for `action_repeat` steps while learning, and is worth what these bring together; the policy learnt acts anew in
    each step. Far out on the tanh, where an expert's means may lie, an action's gradient vanishes: they are brought in
    after the first rollout, which moves actions but hardly return and cost. (Other squashes clip: beyond the bounds,
    the critics' gradient counts where it points inside.) The policy's own standard deviation is that of exploration,
    `exploration_std`; it is not trained.

    Units are measured, so that settings carry over between tasks: the critics learn reward and C_forget divided by the
    expert's mean |reward| and mean C_forget of a step, times `SIZE`·(1 − γ), and λ is in these units, too.

    The scaling shows in what compares Gaussians before tanh: KL from the expert counts it, and so does the line through
    both (`extrapolate`). The policy's own value heads are not trained: who trains it on with PPO begins with the
    expert's, on a trunk that has moved.

    Args:
        method: Name the models are registered under.
        source: The unsafe expert, where the weights start: `auto` (the one of the same environment, of the same seed if
            the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        lr: Step size of the policy's Adam.
        anneal_lr: Whether it falls linearly, from `lr` in the first update to `lr` / N in the last of N.
        critic_lr: Step size of the critics' Adam.
        batch_size: Decisions in a minibatch.
        action_repeat: Steps that an action is held for.
        steps: Minibatches in an update.
        warm_up: Share of the updates, the first ones, that only collect; at least one does.
        critic_steps: Minibatches that the critics then learn from alone; fewer, where they are more than `MOST_PASSES`.
        capacity: Decisions that are kept.
        gamma: Discount per step, of reward and of C_forget; below 1.
        target_rate: Share of the way that the target critics go towards the critics after each minibatch.
        target_noise: Standard deviation of the noise on the actions that targets look ahead to, of half their range.
        exploration_std: Standard deviation of the policy's Gaussian before tanh.
        noiseless: Share of the environments that act without it. What is released has none: there, noise cannot hide
            that the policy has come to stand still, and the multiplier goes by what it does there.
        mean_scale: What the expert's means before tanh are multiplied with; null: what makes their root mean square in
            the first rollout `MEAN_SIZE`, at most 1.
        critic_sizes: Widths of the critics' hidden layers.
        max_grad_norm: The gradient norm of the policy is clipped to this.
        seed: The run's seed.
    """

    values: QEnsemble
    target_values: QEnsemble
    most_threads = CRITICS

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
        require_positive(critic_lr=critic_lr, exploration_std=exploration_std)
        if mean_scale is not None:
            require_positive(mean_scale=mean_scale)
        require_positive(target_rate=target_rate)
        require_fraction(target_rate=target_rate, warm_up=warm_up, noiseless=noiseless)
        if not 0.0 <= gamma < 1.0:  # reward and C_forget are scaled by 1 − γ
            raise ValueError(f"model.gamma={gamma} is not possible: use a number from 0 up to, not including, 1.")
        self.anneal_lr, self.critic_lr, self.action_repeat, self.steps = anneal_lr, critic_lr, action_repeat, steps
        self.warm_up, self.critic_steps, self.gamma = warm_up, critic_steps, gamma
        self.target_rate, self.target_noise = target_rate, target_noise
        self.exploration_std, self.noiseless, self.mean_scale = exploration_std, noiseless, mean_scale
        self.critic_sizes = sizes
        self.replay = ReplayBuffer(capacity)
        self.cost_weight = 0.0
        self._units: tuple[float, ...] = (1.0, 1.0)
        """What reward and C_forget are multiplied with."""

    def build(self, env: BatchedEnv) -> None:
        """Make the policy and the critics; does nothing the second time."""
        super().build(env)
        if hasattr(self, "values"):
            return
        if self.mean_scale is not None:
            _bring_in(self.policy, self.mean_scale, self.exploration_std)
        config, generator = self.policy.config, torch_generator(SeedStreams.of(self.seed).weights)
        sizes = (config.observation_size, config.action_size, self.critic_sizes)
        self.values = QEnsemble(CRITICS, *sizes, generator)
        self.target_values = deepcopy(self.values).requires_grad_(False)

    def prepare(self, data: RolloutData) -> None:
        """Build, and refuse a replay that is too small or too large, and a collector that cannot hold an action.

        Raises:
            ValueError: `capacity` or `action_repeat` is not possible.
        """
        super().prepare(data)
        data.require_whole_actions(self.action_repeat)
        config = self.policy.config
        most = MOST_BYTES // (4 * (2 * config.observation_size + config.action_size + 3))
        if not data.steps_per_update <= self.replay.capacity <= most:
            raise ValueError(
                f"model.capacity={self.replay.capacity} is not possible: a rollout may have {data.steps_per_update} "
                f"decisions, and a checkpoint holds {most} at most; use a number from the one to the other."
            )

    def experience(self, data: RolloutData) -> Experience:
        """A rollout of the policy, its actions held."""
        return Experience(data.collector(self.policy, self.action_repeat, self._noiseless_envs(data)).rollout)

    def configure_optimizers(self) -> list[FlatAdam]:
        """The policy's Adam and the critics'."""
        self._optimizer = FlatAdam(self._trained, self.lr)
        self._critic_optimizer = FlatAdam(self.values.parameters(), self.critic_lr)
        return [self._optimizer, self._critic_optimizer]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the transitions."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["replay"] = self.replay.state_dict()
        checkpoint["units"] = list(self._units)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self.replay.load_state_dict(checkpoint["replay"])
        self._units = tuple(checkpoint.get("units", (1.0, 1.0)))

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """One update: keep the rollout, and learn from what is kept. Batch shape: (E, T)."""
        self.replay.add(macro_transitions(batch.cpu(), self.action_repeat, self.gamma))
        metrics: dict[str, Any] = {"step": float(self.env_steps), **rollout_metrics(batch)}
        epoch, watched = self.trainer.current_epoch, self.expert_rollouts
        if epoch == 0 and self.mean_scale is None:
            _bring_in(self.policy, self._measured_scale(batch), self.exploration_std)
        if epoch >= watched.stop - 1:
            if epoch == watched.stop - 1:
                self._begin()
            metrics |= {"train/lr": self._set_lr(self.anneal_lr), **self.update()}
            self._count_steps()
        self.log_dict(metrics, batch_size=batch.numel())

    def update(self) -> dict[str, Any]:
        """Minibatches for the critics, every second one for the policy, too; means of the losses."""
        critics: list[CriticLoss] = []
        actors: list[ActorLoss] = []
        for number, minibatch in enumerate(self._minibatches(self.steps), start=1):
            critics.append(self._fit_critics(minibatch))
            if number % ACTOR_EVERY == 0:
                actors.append(self._improve(minibatch))
        return self._train_metrics(actors) | self._train_metrics(critics)

    @torch.no_grad()
    def targets(self, minibatch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the critics are to say of a minibatch of flat tensors, (B, ·) and (B,). Shape: (4, B)."""
        following = minibatch[keys.NEXT_OBSERVATION]
        next_values = self.target_values(following, self._noisy(self.policy.act(following)))
        reward, c_forget, discount = (minibatch[key] for key in (keys.REWARD, keys.C_FORGET, keys.DISCOUNT))
        return targets(reward * self._units[0], c_forget * self._units[1], discount, next_values)

    @property
    def expert_rollouts(self) -> range:
        """The first ones, which only watch; not the very first, where its means and standard deviation then change."""
        updates = cast(int, self.trainer.max_epochs)
        first = 0 if self.mean_scale is not None or updates == 1 else 1
        return range(first, max(first + 1, round(self.warm_up * updates)))

    @property
    def released_rows(self) -> slice:
        """Those without noise, if there are any."""
        count = self._noiseless_envs(self.data)
        return slice(-count, None) if count else slice(None)

    @property
    def cost_unit(self) -> float:
        """The expert's own rate."""
        return 1.0 if self.measured is None else self.measured.c_forget

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return [*self.policy.trunk.parameters(), *self.policy.action_mean.parameters()]

    def _noiseless_envs(self, data: RolloutData) -> int:
        """Number of environments, the last ones, that act without noise."""
        return round(self.noiseless * data.num_envs)

    @torch.no_grad()
    def _measured_scale(self, batch: TensorDict) -> float:
        """What brings the means in, of what the expert has seen. Batch shape: (E, T)."""
        if not isinstance(self.policy.action_mean, torch.nn.Linear):
            return 1.0  # of a wrapped network they are its own
        size = float(self.policy.mean(batch[keys.OBSERVATION].flatten(0, 1)).square().mean().sqrt())
        return min(1.0, MEAN_SIZE / size) if size else 1.0

    def _begin(self) -> None:
        """What the expert showed is what observations are seen in units of; then the critics learn what it is worth."""
        if self.measured is not None:
            sizes = (self.measured.reward_size, self.measured.c_forget)
            self._units = tuple(SIZE * (1.0 - self.gamma) / size for size in sizes)
        for values in (self.values, self.target_values):
            values.normalise_by(self.replay.observations.to(self.device))
        passes = len(self.replay) / self.batch_size
        for minibatch in self._minibatches(min(self.critic_steps, math.ceil(MOST_PASSES * passes))):
            self._fit_critics(minibatch)

    def _fit_critics(self, minibatch: dict[str, torch.Tensor]) -> CriticLoss:
        """One step of the critics, not clipped (their loss is linear in large errors), and of their targets."""
        values = self.values(minibatch[keys.OBSERVATION], minibatch[keys.ACTION])
        loss = critic_loss(values, self.targets(minibatch))
        numbers = as_numbers(loss)
        self._step_down(self._critic_optimizer, numbers.total, loss.total.backward, math.inf, "critic_lr")
        with torch.no_grad():
            theirs, parameters = tuple(self.target_values.parameters()), tuple(self.values.parameters())
            torch._foreach_lerp_(theirs, parameters, self.target_rate)
        return numbers

    def _improve(self, minibatch: dict[str, torch.Tensor]) -> ActorLoss:
        """One clipped step of the policy; the critics get no gradient from it."""
        observation = minibatch[keys.OBSERVATION]
        mean = self.policy.mean(observation)
        action = self.policy.squash(mean.detach()).requires_grad_()
        loss = actor_loss(self.values(observation, action), self.cost_weight)
        (by_action,) = torch.autograd.grad(loss.policy, action)
        by_mean = by_action * self._slope(action.detach(), by_action)
        numbers = as_numbers(loss)
        self._descend(numbers.policy, partial(mean.backward, by_mean, inputs=self._trained))
        return numbers

    def _slope(self, action: torch.Tensor, by_action: torch.Tensor) -> torch.Tensor:
        """∂action/∂mean; that of a clipped action is 0 only where descent would lead farther out. Shape: (B, A)."""
        low, high = self.policy.action_low, self.policy.action_high
        half_range = 0.5 * (high - low)
        if self.policy.config.squash == "tanh":
            return half_range * (1.0 - ((action - low) / half_range - 1.0).square())
        outward = ((action <= low) & (by_action > 0.0)) | ((action >= high) & (by_action < 0.0))
        scale = half_range if self.policy.config.squash == "scale" else torch.ones_like(half_range)
        return scale * ~outward

    def _noisy(self, action: torch.Tensor) -> torch.Tensor:
        """Smooth the targets over like actions. Shape: (B, A) → (B, A)."""
        noise = torch.randn(action.shape, generator=self._minibatch_order, dtype=torch.float32)
        noise = noise.clamp(-TARGET_NOISE_CLIP, TARGET_NOISE_CLIP)
        low, high = self.policy.action_low, self.policy.action_high
        half_range = 0.5 * (high - low)
        return (action + self.target_noise * half_range * noise.to(action)).clamp(low, high)

    def _minibatches(self, count: int) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(count):
            drawn = self.replay.draw(self.batch_size, self._minibatch_order)
            yield {key: row.to(self.device) for key, row in drawn.items()}


def _bring_in(policy: ActorCritic, mean_scale: float, std: float) -> None:
    """Scale the means, where they go through tanh, and set their standard deviation.

    Args:
        policy: The expert.
        mean_scale: 1 leaves the means as they are.
        std: Before tanh, or of half the range between the bounds where the draw itself is clipped to them.

    Raises:
        ValueError: The means of a wrapped network are its own, or the policy has bounds that `std` is not within.
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
        if policy.config.squash != "tanh" or mean_scale == 1.0:
            return
        if not isinstance(policy.action_mean, torch.nn.Linear):
            raise ValueError(f"model.mean_scale={mean_scale} cannot scale a wrapped network: use 1.")
        policy.action_mean.weight.mul_(mean_scale)
        policy.action_mean.bias.mul_(mean_scale)
