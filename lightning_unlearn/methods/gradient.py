"""What the methods that train by gradient share: Adam, shuffled minibatches, clipped steps, means of losses."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from lightning_unlearn.methods.base import RolloutMethod, require_at_least, require_positive
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeds import SeedStreams, torch_generator


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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam over everything."""
        return torch.optim.Adam(self.policy.parameters(), lr=self.lr, fused=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the stream of minibatches."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["minibatch_order"] = self._minibatch_order.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self._minibatch_order.set_state(checkpoint["minibatch_order"])

    def _shuffled(self, flat: dict[str, torch.Tensor], passes: int) -> Iterator[dict[str, torch.Tensor]]:
        """Minibatches of tensors of shape (B, ·) or (B,), in a new order each pass; the last one may be smaller."""
        size = len(next(iter(flat.values())))
        for _ in range(passes):
            order = torch.randperm(size, generator=self._minibatch_order).to(self.device)
            shuffled = {key: value[order].split(self.batch_size) for key, value in flat.items()}
            for chunk in zip(*shuffled.values(), strict=True):
                yield dict(zip(shuffled, chunk, strict=True))

    def _set_lr(self, optimizer: LightningOptimizer, anneal: bool) -> float:
        """Update u of N, counted from 0, is made with lr·(1 − u/N) where the step size is annealed."""
        left = 1.0 - self.trainer.current_epoch / cast(int, self.trainer.max_epochs) if anneal else 1.0
        for group in optimizer.param_groups:
            group["lr"] = self.lr * left
        return self.lr * left

    def _descend(self, loss: torch.Tensor) -> None:
        """One clipped step of the policy."""
        self._step_down(loss, cast(LightningOptimizer, self.optimizers()), self.policy.parameters(), self.max_grad_norm)

    def _step_down(
        self,
        loss: torch.Tensor,
        optimizer: LightningOptimizer,
        parameters: Iterable[torch.nn.Parameter],
        max_norm: float,
        lr: str = "lr",
    ) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        # by itself it takes the parameters one by one on a CPU
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
        if not (loss.isfinite() and norm.isfinite()):
            raise FloatingPointError(
                f"the loss is {float(loss.detach())} and its gradient's norm {float(norm)}: this step is not made, the "
                f"weights are those before it. Lower model.{lr}, or look for what is infinite in the rewards."
            )
        optimizer.step()

    def _train_metrics(self, losses: Sequence[Any]) -> dict[str, Any]:
        """Means over the minibatches of an update. `losses` are named tuples of detached scalars, one a minibatch."""
        terms = zip(losses[0]._fields, zip(*losses, strict=True), strict=True)
        return {f"train/{_METRIC.get(name, name)}": torch.stack(values).mean() for name, values in terms} | {
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


def detached(loss: Any) -> Any:
    """The same named tuple of tensors, cut from the graph."""
    return loss._make(term.detach() for term in loss)
