"""Rollouts as Lightning sees them: one epoch is one rollout."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from tensordict import TensorDict
from torch.utils.data import IterableDataset

from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.spread import SpreadCollector, require_possible
from lightning_unlearn.collectors.stock import StockCollector
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import CostKey
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, torch_generator, training_seeds

CollectorName = Literal["lean", "stock", "ray"]
AnyCollector = RolloutCollector | StockCollector | SpreadCollector


class Experience(IterableDataset):
    """Exactly one batch an epoch. It has a length, so that Lightning gathers nothing ahead of the update.

    Args:
        gather: Makes an epoch's batch.
    """

    def __init__(self, gather: Callable[[], TensorDict]) -> None:
        self.gather = gather

    def __iter__(self) -> Iterator[TensorDict]:
        yield self.gather()

    def __len__(self) -> int:
        return 1


class RolloutData(pl.LightningDataModule):
    """The environments a method is trained in.

    Args:
        env: A Safety-Gymnasium navigation task, or `ToyLine-v0`.
        num_envs: Environments stepped side by side (E).
        horizon: Steps of each environment in a rollout (T).
        concept: What to forget: `auto` (`cost_hazards` where the task has it, else any cost), the info key of a cost,
            or a class with its arguments: a ready one of `envs.concepts`, or your own.
        workers: Processes that step the environments; results do not depend on it.
        seed: The run's seed.
        collector: `lean` (this package's) or `stock` (TorchRL's own, slower); both give the same rollouts. `ray`
            spreads a rollout over a Ray cluster, `workers` being the number of remote collectors: `collection.spread`.
    """

    def __init__(
        self,
        env: str = "SafetyPointGoal1-v0",
        num_envs: int = 8,
        horizon: int = 1024,
        concept: Concept | CostKey = "auto",
        workers: int = 1,
        seed: int = 0,
        collector: CollectorName = "lean",
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(f"horizon={horizon} is not possible: use at least 1.")
        self.env_id, self.num_envs, self.horizon, self.seed = env, num_envs, horizon, seed
        self.concept, self.workers = concept, workers
        self._env: BatchedEnv | None = None
        if collector == "ray":
            require_possible(num_envs, workers)
        self._kind: CollectorName = collector
        self._collector: AnyCollector | None = None
        self._restored: dict[str, Any] | None = None
        self.make_experience: Callable[[], Experience] | None = None
        """Makes the dataset of training; the method sets it."""

    @property
    def env(self) -> BatchedEnv:
        """The training environments, built and seeded at first use."""
        if self._env is None:
            workers = 1 if self._kind == "ray" else self.workers  # the spread ones are elsewhere
            self._env = make_env(self.env_id, self.num_envs, self.concept, workers)
            self._env.seed_environments(training_seeds(SeedStreams.of(self.seed).environments, self.num_envs))
        return self._env

    @property
    def steps_per_update(self) -> int:
        """B = T·E, environment steps in one rollout."""
        return self.num_envs * self.horizon

    def require_whole_actions(self, action_repeat: int) -> None:
        """Refuse what cannot hold an action.

        Raises:
            ValueError: The collector cannot, or a rollout would end within one.
        """
        if action_repeat > 1 and self._kind != "lean":
            raise ValueError(
                f"data.collector={self._kind} cannot hold an action for model.action_repeat={action_repeat} steps: use "
                "lean."
            )
        if self.horizon % action_repeat:
            raise ValueError(
                f"data.horizon={self.horizon} is no multiple of model.action_repeat={action_repeat}: use one, so that "
                "no rollout ends within an action."
            )

    def collector(self, policy: ActorCritic, action_repeat: int = 1, noiseless: int = 0) -> AnyCollector:
        """The collector of a policy, see `RolloutCollector`, built at first use."""
        if self._kind != "lean" and policy.observation_dtype == torch.float64:
            raise ValueError(
                f"data.collector={self._kind} hands over float32 observations, but the policy normalises float64 "
                "ones: use lean."
            )
        if self._collector is None:
            self._collector = (
                self._spread(policy) if self._kind == "ray" else self._here(policy, action_repeat, noiseless)
            )
            if self._restored is not None:
                self._collector.load_state_dict(self._restored)
        return self._collector

    def more_environments(self, num_envs: int) -> BatchedEnv:
        """Environments of the same task beside the training ones; who asks for them seeds and closes them."""
        return make_env(self.env_id, num_envs, self.concept, min(self.workers, num_envs))

    def train_dataloader(self) -> Experience:
        """The dataset that the method learns from."""
        if self.make_experience is None:
            raise ValueError("these environments belong to no method yet: call `build` of the method first.")
        return self.make_experience()

    def state_dict(self) -> dict[str, Any]:
        """Environments and collector, where the method has one."""
        return {"collector": None if self._collector is None else self._collector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until the collector is built."""
        self._restored = state_dict["collector"]

    def teardown(self, stage: Literal["fit", "validate", "test", "predict"] | str) -> None:
        """Close the environments."""
        if self._env is not None and not self._env.is_closed:
            self._env.close()
        if isinstance(self._collector, SpreadCollector):
            self._collector.shutdown()
        self._env, self._collector = None, None

    def _here(self, policy: ActorCritic, action_repeat: int, noiseless: int) -> RolloutCollector | StockCollector:
        noise = torch_generator(SeedStreams.of(self.seed).policy_noise)
        if self._kind == "stock":
            return StockCollector(self.env, policy, self.horizon, noise)
        return RolloutCollector(self.env, policy, self.horizon, noise, action_repeat, noiseless)

    def _spread(self, policy: ActorCritic) -> SpreadCollector:
        streams, about = SeedStreams.of(self.seed), (self.env_id, self.concept, self.num_envs)
        return SpreadCollector(*about, policy, self.horizon, self.workers, streams)
