"""Trajectory-decremental unlearning: behaviour cloning of the expert's episodes without the concept."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.collectors import trajectories
from lightning_unlearn.collectors.acting import ActingPolicy
from lightning_unlearn.collectors.data import Experience, RolloutData
from lightning_unlearn.collectors.trajectories import Trajectories
from lightning_unlearn.losses.cloning import CloningLoss, cloning_gradient, cloning_loss, discounted_returns
from lightning_unlearn.losses.gaussian import GaussianDraws, Gradient
from lightning_unlearn.methods.base import (
    GradientMethod,
    frozen_copy,
    require_at_least,
    require_fraction,
    require_source,
)
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyOutput
from lightning_unlearn.seeding import SeedStreams, child, torch_generator, training_seeds


class TrajectoryDecremental(GradientMethod):
    """Clones the frozen expert's episodes without C_forget; an epoch is one update from a collection of them.

    Every `recollect_every` updates the expert runs `dataset_episodes` episodes on new layouts; every episode with any
    C_forget is dropped. The reward critic is fitted to the returns of the others. The cost critic is not trained.

    Args:
        method: Name the models are registered under.
        source: The unsafe expert, which is imitated and where the weights start: `auto` (the one of the same
            environment, of the same seed if the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        dataset_episodes: Episodes in a collection, before any is dropped.
        decremental_epochs_per_update: Passes over the retained transitions in an update.
        decremental_bc_coef: Weight of −log π(a|s).
        decremental_value_coef: Weight of ½MSE(reward value, return).
        decremental_ent_coef: Weight of the entropy of the Gaussian before tanh.
        recollect_every: Updates after which a new collection replaces the last.
        dataset_dir: Folder of collections, for use by later runs; null: collections are not stored.
        lr: Step size of Adam.
        batch_size: Transitions in a minibatch.
        gamma: Discount per step.
        max_grad_norm: Gradient norm is clipped to this.
        seed: The run's seed.
    """

    expert: ActorCritic

    def __init__(
        self,
        method: str,
        source: str | None = "auto",
        unsafe_updates: int = 300,
        dataset_episodes: int = 200,
        decremental_epochs_per_update: int = 10,
        decremental_bc_coef: float = 1.0,
        decremental_value_coef: float = 0.5,
        decremental_ent_coef: float = 0.01,
        recollect_every: int = 10,
        dataset_dir: str | None = None,
        lr: float = 3e-4,
        batch_size: int = 256,
        gamma: float = 0.99,
        max_grad_norm: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(method, source, unsafe_updates, lr, batch_size, max_grad_norm, seed)
        require_source(source, "this method imitates the expert that it starts from")
        require_at_least(
            1,
            dataset_episodes=dataset_episodes,
            decremental_epochs_per_update=decremental_epochs_per_update,
            recollect_every=recollect_every,
        )
        self._coefficients = {
            "bc_coef": decremental_bc_coef,
            "value_coef": decremental_value_coef,
            "entropy_coef": decremental_ent_coef,
        }
        require_at_least(0, **{f"decremental_{name}": weight for name, weight in self._coefficients.items()})
        require_fraction(gamma=gamma)
        self.dataset_episodes, self.passes, self.recollect_every = (
            dataset_episodes,
            decremental_epochs_per_update,
            recollect_every,
        )
        self.dataset_dir, self.gamma = None if dataset_dir is None else Path(dataset_dir), gamma
        self._collection = -1
        self._demonstrations, self._counts = TensorDict(), dict[str, float]()
        self._steps, self._new_steps = dict[int, int](), 0
        """Environment steps of each collection, and those made for the present update."""

    @property
    def env_steps(self) -> int:
        """Environment steps so far: those of the expert's training and of every collection."""
        return self.unsafe_updates * self.data.steps_per_update + sum(self._steps.values())

    def env_steps_of(self, batch: TensorDict) -> int:
        """Steps of the collection that was made for this update; 0 if an earlier one is used again."""
        return self._new_steps

    def build(self, data: RolloutData, policy: ActorCritic | None = None) -> None:
        """Make the policy, a frozen copy of it as the expert, and the first collection.

        Raises:
            ValueError: No episode was retained, or `dataset_dir` cannot be used.
        """
        super().build(data, policy)
        self.expert = frozen_copy(self.policy)
        if self.dataset_dir is not None:  # one that cannot be written is refused before the long work
            try:
                self.dataset_dir.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.dataset_dir):
                    pass
            except OSError as error:
                raise ValueError(
                    f"model.dataset_dir={self.dataset_dir} cannot be written ({error.strerror}): choose another "
                    "folder, or null to keep no collections."
                ) from error
        self._use_collection(self.first_update // self.recollect_every)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of steps; the collection itself is made again, from the same seeds."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["steps"] = self._steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added."""
        super().on_load_checkpoint(checkpoint)
        self._steps = checkpoint["steps"] | self._steps

    def experience(self) -> Experience:
        """Return the dataset of training: the retained transitions of the present collection."""
        return Experience(self._demonstrations_now)

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """One update from the retained transitions. Batch shape: (M,)."""
        losses = self.update(batch)
        self._count_steps()
        metrics = {"step": float(self.env_steps), **self._counts, **self._train_metrics(losses)}
        self.log_dict(metrics, batch_size=batch.numel())

    @torch.no_grad()
    def update(self, batch: TensorDict) -> list[CloningLoss]:
        """Make all passes over the retained transitions; return the losses of the minibatches. Batch shape: (M,)."""
        flat = {key: batch[key] for key in (keys.OBSERVATION, keys.PRE_TANH)}
        flat[keys.DISCOUNTED_RETURN] = batch[keys.DISCOUNTED_RETURN].squeeze(-1)
        flat[keys.LOG_SLOPE] = self.policy.log_squash_slope(batch[keys.PRE_TANH])
        losses: list[CloningLoss] = []
        for minibatch in self._shuffled(flat, self.passes):
            loss, backward = self._evaluate(minibatch)
            losses.append(loss)
            self._descend(self._optimizer, loss.total, backward, self.max_grad_norm)
        return losses

    def loss(self, output: PolicyOutput, minibatch: dict[str, torch.Tensor]) -> CloningLoss:
        """The loss of the policy's output for a minibatch of flat tensors, (B, ·) and (B,)."""
        return cloning_loss(
            self.policy.draw_log_prob(output.mean, minibatch[keys.PRE_TANH]) - minibatch[keys.LOG_SLOPE],
            output.reward_value,
            minibatch[keys.DISCOUNTED_RETURN],
            self.policy.entropy(),
            **self._coefficients,
        )

    def loss_gradient(self, output: torch.Tensor, minibatch: dict[str, torch.Tensor]) -> tuple[CloningLoss, Gradient]:
        """The same loss and its gradient by the network's output, means and both values. Shape: (B, A + 2)."""
        return cloning_gradient(
            GaussianDraws(output[:, :-2], self.policy.clamped_log_std, minibatch[keys.PRE_TANH]),
            minibatch[keys.LOG_SLOPE],
            output[:, -2],
            minibatch[keys.DISCOUNTED_RETURN],
            **self._coefficients,
        )

    @torch.no_grad()
    def returns(self, retained: Trajectories) -> torch.Tensor:
        """Discounted returns, bootstrapped by the expert's reward value if an episode was truncated. Shape: (M, 1)."""
        table = retained.episodes
        bootstrap = ~(table[keys.TERMINATED] | table[keys.FAILED]).squeeze(-1)  # (N,)
        value = self._acting_expert(table[keys.FINAL_OBSERVATION]).reward_value.where(bootstrap, 0.0)  # (N,)
        steps = {key: retained.transitions[key].squeeze(-1) for key in (keys.REWARD, keys.DONE, keys.EPISODE)}
        final_value = value[steps[keys.EPISODE]]  # (M,)
        return discounted_returns(steps[keys.REWARD], steps[keys.DONE], final_value, self.gamma).unsqueeze(-1)

    @property
    def _acting_expert(self) -> ActorCritic:
        """The expert on the CPU, whatever device the learner is on."""
        return ActingPolicy(self.expert).current()

    def _demonstrations_now(self) -> TensorDict:
        """Return the retained transitions, of a new collection every `recollect_every` updates."""
        collection, before = self.trainer.current_epoch // self.recollect_every, self.env_steps
        if collection != self._collection:
            self._use_collection(collection)
        self._new_steps = self.env_steps - before
        return self._demonstrations

    def _use_collection(self, collection: int) -> None:
        path = None if self.dataset_dir is None else self.dataset_dir / f"collection_{collection}.safetensors"
        if path is not None and path.exists():
            found = trajectories.load(path, self._facts(collection))
        else:
            found = self._collect(collection)
            if path is not None:
                trajectories.save(path, found, self._facts(collection))
        table = found.episodes
        self._demonstrations = found.transitions.select(keys.OBSERVATION, keys.PRE_TANH)
        self._demonstrations[keys.DISCOUNTED_RETURN] = self.returns(found)
        self._collection = collection
        self._steps[collection] = int(table[keys.LENGTH].sum())
        self._counts = {
            "decremental/episodes_collected": float(len(table)),
            "decremental/episodes_retained": float(found.kept),
            "decremental/transitions_retained": float(len(found.transitions)),
        }

    def _run_expert(self, collection: int, label: str) -> Trajectories:
        """Collect the expert's episodes, with seeds of their own for each collection."""
        streams = SeedStreams.of(self.seed)
        return trajectories.collect(
            self.data.more_environments,
            self._acting_expert,
            training_seeds(child(streams.environments, collection), self.dataset_episodes),
            torch_generator(child(streams.policy_noise, collection)),
            label=label,
        )

    def _collect(self, collection: int) -> Trajectories:
        collected = self._run_expert(collection, label=f"collection {collection}")
        episodes, concept = len(collected.episodes), self.data.env.concept
        message = f"{episodes} episodes were collected with {self.source_uri or 'the expert'} in {self.data.env_id}, "
        if not collected.kept:
            rate = float(collected.episodes[keys.EPISODE_C_FORGET].mean())
            raise ValueError(
                f"{message}and none is retained: each shows the concept ({concept}), {rate:.1f} times in the mean. "
                "Raise model.dataset_episodes, or name a model.source that shows it less."
            )
        if collection == 0 and collected.kept == episodes:  # a later one may lack it by chance
            raise ValueError(
                f"{message}and none shows the concept ({concept}): there is nothing to forget. Name another "
                "data.concept or a model.source that shows it, or raise model.dataset_episodes."
            )
        return collected

    def _facts(self, collection: int) -> dict[str, Any]:
        """Return all that determines a collection; a stored one with other facts is refused."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.expert.state_dict().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return {
            "env": self.data.env_id,
            "concept": self.data.env.concept,
            "source": self.source_uri,
            "expert_sha256": digest.hexdigest(),
            "seed": self.seed,
            "collection": collection,
            "dataset_episodes": self.dataset_episodes,
        }
