"""Base classes of the methods: LightningModules with one policy; one epoch is one update.

`RolloutMethod` has a policy and environments, `GradientMethod` trains the policy on minibatches, and a
`LagrangianMethod` weighs C_forget by λ.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.collectors.data import Experience, RolloutData
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.losses.gaussian import Gradient
from lightning_unlearn.losses.pid import ExpertMeasures
from lightning_unlearn.methods.flat_adam import FlatAdam, written_out_network
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig, PolicyOutput
from lightning_unlearn.policies.shared_trunk import SharedTrunk
from lightning_unlearn.seeding import ARITHMETIC, SeedStreams, torch_generator
from lightning_unlearn.tracking import registry


class RolloutMethod(pl.LightningModule):
    """A policy in its environments; an epoch is one batch of experience and what the method does with it.

    `fit` calls `build` before a run exists; with a bare `Trainer`, Lightning does so at the start of training.

    Args:
        method: Name the models are registered under.
        source: Where the weights start: null (random), `auto` (the unsafe expert of the same environment, of the same
            seed if the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        seed: The run's seed.
    """

    policy: ActorCritic
    data: RolloutData
    """The environments, after `build`."""
    max_threads = 1
    """PyTorch threads that speed up an update; with more, small networks are slower."""

    def __init__(self, method: str, source: str | None, unsafe_updates: int, seed: int) -> None:
        super().__init__()
        require_at_least(0, unsafe_updates=unsafe_updates)
        self.automatic_optimization = False
        self.method, self.source, self.unsafe_updates, self.seed = method, source, unsafe_updates, seed
        self.source_uri: str | None = None
        """Model that the weights come from; None: random weights."""
        self.note = ""
        """Remark on the policy that is stored with the run and with every save point."""
        self.first_update = 0
        """Updates that a resumed run had made."""
        self._architecture: dict[str, Any] = {}
        """Fields of the policy's description, if the weights start from random."""
        self._is_built = False

    def resume_from(self, updates: int, source: str | None) -> None:
        """Continue a run that has made `updates` updates and started from `source` (None: the config's)."""
        self.first_update, self.source = updates, source or self.source

    def build(self, data: RolloutData, policy: ActorCritic | None = None) -> None:
        """Make all that training starts from, and refuse what cannot be trained.

        Args:
            data: The environments.
            policy: Start of training in place of `source`.

        Raises:
            ValueError: The source's observation or action size is not the environment's.
        """
        self.data, self._is_built = data, True
        data.make_experience = self.experience
        simulator = data.env.simulator
        if policy is not None:
            self.policy = policy
        elif self.source is None:
            bounds = (simulator.action_low.tolist(), simulator.action_high.tolist())
            config = PolicyConfig(simulator.observation_size, *bounds, **self._architecture)
            self.policy = ActorCritic(config, torch_generator(SeedStreams.of(self.seed).weights))
        else:
            is_auto = self.source == "auto"
            self.source_uri = (
                registry.expert_uri(simulator.env_id, self.seed) if is_auto else registry.pinned(self.source)
            )
            self.policy = registry.load_policy(self.source_uri).policy.train()
            require_same_sizes(self.policy, data.env, f"model.source={self.source_uri}")
            print(f"Starting from {self.source_uri}.")

    def configure_model(self) -> None:
        """Build, unless `fit` has done so."""
        if not self._is_built:
            self.build(self.trainer.datamodule)  # type: ignore[attr-defined]

    def experience(self) -> Experience:
        """Return the dataset of training, one batch an epoch: a rollout of the policy."""
        return Experience(self.data.collector(self.policy).rollout)

    def env_steps_of(self, batch: TensorDict) -> int:
        """Environment steps made to collect this epoch's batch."""
        return batch.numel()

    @property
    def env_steps(self) -> int:
        """Environment steps so far, including those of the source; the x-axis of every metric."""
        return (self.unsafe_updates + self.trainer.current_epoch + 1) * self.data.steps_per_update

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the source, the note and the version of the arithmetic."""
        checkpoint["origin"] = {"source_uri": self.source_uri, "note": self.note}
        checkpoint["arithmetic"] = ARITHMETIC

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added, and print a line if the arithmetic has changed since."""
        if (theirs := checkpoint.get("arithmetic", 1)) != ARITHMETIC:
            print(
                f"This run was begun with version {theirs} of the arithmetic of training, and goes on with version "
                f"{ARITHMETIC}: from here on its weights differ in rounding from those that it would have had."
            )
        self.source_uri, self.note = checkpoint["origin"]["source_uri"], checkpoint["origin"]["note"]


class GradientMethod(RolloutMethod):
    """Trains the policy by Adam on shuffled minibatches of flat tensors.

    The loop over minibatches calls the optimizer itself: Lightning's hooks around a backward pass and a step take
    longer than the step of so small a network.

    Args:
        method: Name the models are registered under.
        source: Where the weights start, see `RolloutMethod`.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        lr: Step size of Adam.
        batch_size: Transitions in a minibatch.
        max_grad_norm: Gradient norm is clipped to this.
        seed: The run's seed.
    """

    def __init__(
        self,
        method: str,
        source: str | None,
        unsafe_updates: int,
        lr: float,
        batch_size: int,
        max_grad_norm: float,
        seed: int,
    ) -> None:
        super().__init__(method, source, unsafe_updates, seed)
        require_at_least(1, batch_size=batch_size)
        require_positive(lr=lr, max_grad_norm=max_grad_norm)
        self.lr, self.batch_size, self.max_grad_norm = lr, batch_size, max_grad_norm
        self._minibatch_order = torch_generator(SeedStreams.of(seed).minibatches)
        self._network: SharedTrunk | None = None
        """The policy with written-out gradients; None if the policy needs autograd."""
        self._uncounted_steps = 0
        """Optimizer steps that are not yet in Lightning's count."""

    def configure_optimizers(self) -> Any:
        """One Adam over everything."""
        self._optimizer = FlatAdam(self.policy.parameters(), self.lr)
        self._network = written_out_network(self.policy, self._optimizer)
        return self._optimizer

    def loss(self, output: PolicyOutput, minibatch: dict[str, torch.Tensor]) -> Any:
        """The loss of the policy's output for a minibatch, a named tuple with `total`, for autograd."""
        raise NotImplementedError

    def loss_gradient(self, output: torch.Tensor, minibatch: dict[str, torch.Tensor]) -> tuple[Any, Gradient]:
        """The same loss and its gradient by the network's output, means and both values. Shape: (B, A + 2)."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the stream of minibatches."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["minibatch_order"] = self._minibatch_order.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self._minibatch_order.set_state(checkpoint["minibatch_order"])

    def _shuffled(self, flat: dict[str, torch.Tensor], passes: int) -> Iterator[dict[str, torch.Tensor]]:
        """Minibatches of tensors of shape (B, ·) or (B,), in a new order each pass; the last one may be smaller.

        They are views of buffers that the next pass overwrites.
        """
        shuffled = {key: torch.empty_like(rows, memory_format=torch.contiguous_format) for key, rows in flat.items()}
        chunks = zip(*(rows.split(self.batch_size) for rows in shuffled.values()), strict=True)
        minibatches = [dict(zip(shuffled, chunk, strict=True)) for chunk in chunks]
        size = len(next(iter(flat.values())))
        for _ in range(passes):
            order = torch.randperm(size, generator=self._minibatch_order).to(self.device)
            for key, rows in flat.items():
                torch.index_select(rows, 0, order, out=shuffled[key])
            yield from minibatches

    def _set_lr(self, anneal: bool) -> float:
        """Set the step size of update u of N, counted from 0: lr·(1 − u/N) if it is annealed, else lr."""
        left = 1.0 - self.trainer.current_epoch / cast(int, self.trainer.max_epochs) if anneal else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * left
        return self.lr * left

    def _evaluate(self, minibatch: dict[str, torch.Tensor]) -> tuple[Any, Callable[[], None]]:
        """Return the loss of a minibatch, as numbers, and the function that writes its gradient."""
        if self._network is None or torch.is_autocast_enabled(self.device.type):
            with torch.enable_grad():
                loss = self.loss(self.policy(minibatch[keys.OBSERVATION]), minibatch)
            return as_numbers(loss), loss.total.backward
        loss, gradient = self.loss_gradient(self._network.forward(minibatch[keys.OBSERVATION]), minibatch)
        return as_numbers(loss), partial(self._write_gradient, self._network, gradient)

    def _write_gradient(self, network: SharedTrunk, gradient: Gradient) -> None:
        log_std = self.policy.log_std
        is_inside = log_std == self.policy.clamped_log_std
        torch.mul(gradient.log_std, is_inside, out=cast(torch.Tensor, log_std.grad))
        network.backward(torch.cat([gradient.mean, gradient.values], -1))

    def _descend(
        self,
        optimizer: FlatAdam,
        loss: float,
        backward: Callable[[], None],
        max_norm: float,
        lr_option: str = "lr",
    ) -> None:
        """Make one clipped step.

        Raises:
            FloatingPointError: The loss or its gradient is not finite; the weights stay as they are.
        """
        optimizer.zero_grad()
        backward()
        norm = optimizer.clip(max_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"the loss is {loss} and its gradient's norm {norm}: this step is not made, the weights are those "
                f"before it. Lower model.{lr_option}, or look for what is infinite in the rewards."
            )
        optimizer.advance()
        self._uncounted_steps += 1

    def _count_steps(self) -> None:
        """Add the update's steps to Lightning's `global_step`, which checkpoints and callbacks use."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for count in (progress.total, progress.current):
            count.ready += self._uncounted_steps
            count.completed += self._uncounted_steps
        self._uncounted_steps = 0

    def _train_metrics(self, losses: Sequence[Any]) -> dict[str, Any]:
        """Means over the minibatches of an update. `losses` are named tuples of numbers, one a minibatch."""
        terms = zip(losses[0]._fields, zip(*losses, strict=True), strict=True)
        return {f"train/{_METRIC_NAMES.get(name, name)}": math.fsum(each) / len(each) for name, each in terms} | {
            "train/minibatches": float(len(losses)),
            "train/entropy": self.policy.entropy().detach(),
            "train/std": self.policy.std.mean().detach(),
        }


_METRIC_NAMES = {name: f"{name}_loss" for name in ("total", "policy", "reward_critic", "cost_critic", "cloning")}


class LagrangianMethod(GradientMethod):
    """A method that weighs C_forget by λ. `PIDLagrangian` moves λ; without it λ stays 0."""

    cost_weight = 0.0
    """λ."""
    expert_measures: ExpertMeasures | None = None
    """Means over the expert's rollouts; None before they are made, or if the weights start from random."""

    @property
    def expert_rollouts(self) -> range:
        """Rollouts, counted from 0, in which the expert still acts, unchanged; its measures are means over them."""
        return range(1)

    @property
    def measured_envs(self) -> slice:
        """Environments whose C_forget and returns λ and the expert's measures go by: here all."""
        return slice(None)

    @property
    def cost_unit(self) -> float:
        """C_forget per step by which the PID divides rates and targets: here 1."""
        return 1.0


def rollout_metrics(batch: TensorDict) -> dict[str, torch.Tensor]:
    """Rates over the rollout, and means over the episodes that ended in it (absent if none did)."""
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


def as_numbers(loss: Any) -> Any:
    """The same named tuple of numbers in place of scalar tensors, by one transfer from the device."""
    return loss._make(torch.stack([term.detach() for term in loss]).tolist())


def frozen_copy(policy: ActorCritic) -> ActorCritic:
    """Copy a policy; the copy is not trained."""
    return deepcopy(policy).requires_grad_(False)


def require_at_least(least: float, **numbers: float) -> None:
    """Refuse options below a number."""
    for name, number in numbers.items():
        if not least <= number < math.inf:
            raise ValueError(f"model.{name}={number} is not possible: use a number of at least {least}.")


def require_positive(**numbers: float) -> None:
    """Refuse options that are not above 0."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"model.{name}={number} is not possible: use a number above 0.")


def require_fraction(**numbers: float) -> None:
    """Refuse options outside [0, 1]."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"model.{name}={number} is not possible: use a number from 0 to 1.")


def require_source(source: str | None, why: str) -> None:
    """Refuse random weights for a method that needs an expert."""
    if source is None:
        raise ValueError(f"model.source=null is not possible: {why}. Use auto, or name a model.")


def require_same_sizes(policy: ActorCritic, env: BatchedEnv, source: str) -> None:
    """Refuse a policy, called `source` in the message, of another environment.

    Raises:
        ValueError: Its observations or actions are of other sizes.
    """
    has = (policy.config.observation_size, policy.config.action_size)
    needs = (env.simulator.observation_size, len(env.simulator.action_low))
    if has != needs:
        raise ValueError(
            f"{source} takes {has[0]} observations and gives {has[1]} actions, but {env.simulator.env_id} "
            f"has {needs[0]} and {needs[1]}: choose a model of this environment."
        )
