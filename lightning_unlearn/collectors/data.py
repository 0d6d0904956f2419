"""The LightningDataModule of rollouts: one epoch is one rollout."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import lightning.pytorch as pl
from tensordict import TensorDict
from torch.utils.data import IterableDataset

from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import CostKey
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, torch_generator, training_seeds


class Experience(IterableDataset):
    """A dataset of exactly one batch per epoch. It has a length, so that Lightning gathers nothing ahead of the update.

    Args:
        gather: Makes the batch of an epoch.
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
    """

    def __init__(
        self,
        env: str = "SafetyPointGoal1-v0",
        num_envs: int = 8,
        horizon: int = 1024,
        concept: Concept | CostKey = "auto",
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(f"horizon={horizon} is not possible: use at least 1.")
        self.env_id, self.num_envs, self.horizon, self.seed = env, num_envs, horizon, seed
        self.concept, self.workers = concept, workers
        self._env: BatchedEnv | None = None
        self._collector: RolloutCollector | None = None
        self._restored: dict[str, Any] | None = None
        self.make_experience: Callable[[], Experience] | None = None
        """Makes the dataset of training; the method sets it."""

    @property
    def env(self) -> BatchedEnv:
        """The training environments, built and seeded at first use."""
        if self._env is None:
            self._env = make_env(self.env_id, self.num_envs, self.concept, self.workers)
            self._env.seed_environments(training_seeds(SeedStreams.of(self.seed).environments, self.num_envs))
        return self._env

    @property
    def steps_per_update(self) -> int:
        """B = T·E, environment steps in one rollout."""
        return self.num_envs * self.horizon

    def require_whole_actions(self, action_repeat: int) -> None:
        """Refuse a horizon that is no multiple of the action repeat.

        Raises:
            ValueError: A rollout would end within a macro-action.
        """
        if self.horizon % action_repeat:
            raise ValueError(
                f"data.horizon={self.horizon} is no multiple of model.action_repeat={action_repeat}: use one, so that "
                "no rollout ends within an action."
            )

    def collector(self, policy: ActorCritic, action_repeat: int = 1, noiseless: int = 0) -> RolloutCollector:
        """Return the collector of a policy, built at first use; see `RolloutCollector`."""
        if self._collector is None:
            noise = torch_generator(SeedStreams.of(self.seed).policy_noise)
            self._collector = RolloutCollector(self.env, policy, self.horizon, noise, action_repeat, noiseless)
            if self._restored is not None:
                self._collector.load_state_dict(self._restored)
        return self._collector

    def more_environments(self, num_envs: int) -> BatchedEnv:
        """Make environments of the same task beside the training ones; the caller seeds and closes them."""
        return make_env(self.env_id, num_envs, self.concept, min(self.workers, num_envs))

    def train_dataloader(self) -> Experience:
        """The dataset that the method learns from."""
        if self.make_experience is None:
            raise ValueError("these environments belong to no method yet: call `build` of the method first.")
        return self.make_experience()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of environments and collector, if the method has one."""
        return {"collector": None if self._collector is None else self._collector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned until the collector is built."""
        self._restored = state_dict["collector"]

    def teardown(self, stage: Literal["fit", "validate", "test", "predict"] | str) -> None:
        """Close the environments."""
        if self._env is not None and not self._env.is_closed:
            self._env.close()
        self._env, self._collector = None, None
