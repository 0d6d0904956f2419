"""What every method is: a LightningModule with one policy, fed by rollouts, measured against environment steps."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.collectors.data import Experience, RolloutData
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.seeding import ARITHMETIC, SeedStreams, torch_generator
from lightning_unlearn.tracking import registry


class RolloutMethod(pl.LightningModule):
    """One epoch is one rollout and what the method does with it.

    Args:
        method: Name the models are registered under.
        source: Where the weights start: null (random), `auto` (the unsafe expert of the same environment, of the same
            seed if the store has it, else the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        seed: The run's seed.
    """

    policy: ActorCritic
    most_threads = 1
    """Threads of PyTorch that an update gains from; more cost small networks more than they bring."""

    def __init__(self, method: str, source: str | None, unsafe_updates: int, seed: int) -> None:
        super().__init__()
        require_at_least(0, unsafe_updates=unsafe_updates)
        self.automatic_optimization = False
        self.method, self.source, self.unsafe_updates, self.seed = method, source, unsafe_updates, seed
        self.source_uri: str | None = None
        self.note = ""
        """What else has to be known of the policy; travels with the run and with every save point."""
        self._shape: dict[str, Any] = {}
        self.updates_made = 0
        """By the run that this one goes on with."""

    def resume_from(self, updates: int, source: str | None) -> None:
        """Go on with a run that has made updates, and started from this model (None: from what the config says)."""
        self.updates_made, self.source = updates, source or self.source

    def build(self, env: BatchedEnv) -> None:
        """Make the policy, from random weights or from the source; does nothing the second time.

        Raises:
            ValueError: The source's observation or action size is not the environment's.
        """
        if hasattr(self, "policy"):
            return
        if self.source is None:
            generator = torch_generator(SeedStreams.of(self.seed).weights)
            self.policy = ActorCritic(_policy_config(env, self._shape), generator)
            return
        env_id = env.simulator.env_id
        own = self.source == "auto"
        self.source_uri = registry.expert_uri(env_id, self.seed) if own else registry.pinned(self.source)
        self.policy = registry.load_policy(self.source_uri).policy.train()
        require_fit(self.policy, env, f"model.source={self.source_uri}")
        print(f"Starting from {self.source_uri}.")

    def prepare(self, data: RolloutData) -> None:
        """Make all that training starts from, and refuse what is impossible, before a run exists."""
        self.build(data.env)

    def setup(self, stage: str) -> None:
        """Make what is missing."""
        self.prepare(self.data)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the weights do not tell."""
        checkpoint["origin"] = {"source_uri": self.source_uri, "note": self.note}
        checkpoint["arithmetic"] = ARITHMETIC

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added, and say so if the updates to come are computed in another way."""
        if (theirs := checkpoint.get("arithmetic", 1)) != ARITHMETIC:
            print(
                f"This run was begun with version {theirs} of the arithmetic of training, and goes on with version "
                f"{ARITHMETIC}: from here on its weights differ in rounding from those that it would have had."
            )
        self.source_uri, self.note = checkpoint["origin"]["source_uri"], checkpoint["origin"]["note"]

    def experience(self, data: RolloutData) -> Experience:
        """What an epoch hands to `training_step`: here a rollout of the policy."""
        return Experience(data.collector(self.policy).rollout)

    def steps_in(self, batch: TensorDict) -> int:
        """Environment steps that were made for this epoch's batch."""
        return batch.numel()

    @property
    def data(self) -> RolloutData:
        """The rollouts this method is fed with."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def env_steps(self) -> int:
        """Environment steps seen so far, those of the source included; the x-axis of every metric."""
        return (self.unsafe_updates + self.trainer.current_epoch + 1) * self.data.steps_per_update


def rollout_metrics(batch: TensorDict) -> dict[str, torch.Tensor]:
    """Rates over the rollout, and the episodes that ended in it (absent where none did)."""
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


def _policy_config(env: BatchedEnv, shape: dict[str, Any]) -> PolicyConfig:
    sim = env.simulator
    return PolicyConfig(sim.observation_size, sim.action_low.tolist(), sim.action_high.tolist(), **shape)


def require_fit(policy: ActorCritic, env: BatchedEnv, source: str) -> None:
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
