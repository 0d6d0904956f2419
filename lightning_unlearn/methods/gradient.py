"""What the methods that train by gradient share: Adam, shuffled minibatches, clipped steps, means of losses.

The loop over minibatches calls the optimizer itself. What Lightning puts around each backward pass and each step takes
longer than the step of so small a network.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from lightning_unlearn import keys
from lightning_unlearn.losses.pid import Expert
from lightning_unlearn.losses.written_out import Gradient
from lightning_unlearn.methods.base import RolloutMethod, require_at_least, require_positive
from lightning_unlearn.methods.flat_adam import FlatAdam
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.shared_trunk import Layer, SharedTrunk, has_shared_trunk
from lightning_unlearn.seeding import SeedStreams, torch_generator


class GradientMethod(RolloutMethod):
    """Trains the policy on shuffled minibatches of flat tensors.

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
        self.measured: Expert | None = None
        """What it starts from, measured in `expert_rollouts`; None before, or where that was not measured."""
        self._network: SharedTrunk | None = None
        """The policy with its gradients written out; None where autograd is needed."""
        self._uncounted = 0
        """Steps of optimizers that are still to be added to Lightning's count."""

    @property
    def expert_rollouts(self) -> range:
        """Those that are the expert's, counted from 0: here the first one."""
        return range(1)

    @property
    def released_rows(self) -> slice:
        """Environments that show the policy as it will be judged: here all, with the noise that it learns from."""
        return slice(None)

    @property
    def cost_unit(self) -> float:
        """C_forget per step that the multiplier counts as one."""
        return 1.0

    def configure_optimizers(self) -> Any:
        """One Adam over everything."""
        self._optimizer = FlatAdam(self.policy.parameters(), self.lr)
        self._network = written_out_network(self.policy, self._optimizer)
        return self._optimizer

    def loss(self, minibatch: dict[str, torch.Tensor]) -> Any:
        """The loss of a minibatch, a named tuple with `total`, for autograd."""
        raise NotImplementedError

    def written_out(self, output: torch.Tensor, minibatch: dict[str, torch.Tensor]) -> tuple[Any, Gradient]:
        """The same loss, and its gradient, of the means and values that the network gives. Shape: (B, A + 2)."""
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

        They are views of buffers that the next pass fills anew.
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
        """Update u of N, counted from 0, is made with lr·(1 − u/N) where the step size is annealed."""
        left = 1.0 - self.trainer.current_epoch / cast(int, self.trainer.max_epochs) if anneal else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * left
        return self.lr * left

    def _evaluate(self, minibatch: dict[str, torch.Tensor]) -> tuple[Any, Callable[[], None]]:
        """The loss of a minibatch, as numbers, and what fills in its gradient."""
        if self._network is None or torch.is_autocast_enabled(self.device.type):
            with torch.enable_grad():
                loss = self.loss(minibatch)
            return as_numbers(loss), loss.total.backward
        loss, gradient = self.written_out(self._network.forward(minibatch[keys.OBSERVATION]), minibatch)
        return as_numbers(loss), partial(self._fill_in, self._network, gradient)

    def _fill_in(self, network: SharedTrunk, gradient: Gradient) -> None:
        log_std = self.policy.log_std
        inside = log_std == self.policy.clamped_log_std
        torch.mul(gradient.log_std, inside, out=cast(torch.Tensor, log_std.grad))
        network.backward(torch.cat([gradient.mean, gradient.values], -1))

    def _descend(self, loss: float, backward: Callable[[], None]) -> None:
        """One clipped step of the policy."""
        self._step_down(self._optimizer, loss, backward, self.max_grad_norm)

    def _step_down(
        self, optimizer: FlatAdam, loss: float, backward: Callable[[], None], max_norm: float, lr: str = "lr"
    ) -> None:
        optimizer.zero_grad()
        backward()
        norm = optimizer.clip(max_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"the loss is {loss} and its gradient's norm {norm}: this step is not made, the weights are those "
                f"before it. Lower model.{lr}, or look for what is infinite in the rewards."
            )
        optimizer.advance()
        self._uncounted += 1

    def _count_steps(self) -> None:
        """Add the update's steps to Lightning's `global_step`, which checkpoints and callbacks go by."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for count in (progress.total, progress.current):
            count.ready += self._uncounted
            count.completed += self._uncounted
        self._uncounted = 0

    def _train_metrics(self, losses: Sequence[Any]) -> dict[str, Any]:
        """Means over the minibatches of an update. `losses` are named tuples of numbers, one a minibatch."""
        terms = zip(losses[0]._fields, zip(*losses, strict=True), strict=True)
        return {f"train/{_METRIC.get(name, name)}": math.fsum(values) / len(values) for name, values in terms} | {
            "train/minibatches": float(len(losses)),
            "train/entropy": self.policy.entropy().detach(),
            "train/std": self.policy.std.mean().detach(),
        }


def frozen_copy(policy: ActorCritic) -> ActorCritic:
    """The policy as it is now; it is not trained."""
    return deepcopy(policy).requires_grad_(False)


def require_source(source: str | None, why: str) -> None:
    """Refuse a method that needs an expert and is to start from random weights."""
    if source is None:
        raise ValueError(f"model.source=null is not possible: {why}. Use auto, or name a model.")


_METRIC = {name: f"{name}_loss" for name in ("total", "policy", "reward_critic", "cost_critic", "cloning")}


def as_numbers(loss: Any) -> Any:
    """The same named tuple of numbers in place of scalar tensors: one transfer, wherever they are."""
    return loss._make(torch.stack([term.detach() for term in loss]).tolist())


def written_out_network(policy: ActorCritic, optimizer: FlatAdam) -> SharedTrunk | None:
    """The policy's passes written out, on the optimizer's own vectors; None where the policy is of another kind."""
    if not has_shared_trunk(policy):
        return None

    def layer(*side_by_side: nn.Linear) -> Layer:
        weights, biases = [linear.weight for linear in side_by_side], [linear.bias for linear in side_by_side]
        return Layer(*optimizer.side_by_side(weights), *optimizer.side_by_side(biases))

    hidden = [layer(linear) for linear in policy.trunk if isinstance(linear, nn.Linear)]
    return SharedTrunk(hidden, layer(policy.action_mean, policy.reward_value, policy.cost_value))
