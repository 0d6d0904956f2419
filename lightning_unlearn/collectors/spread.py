"""One rollout spread over a Ray cluster by TorchRL's `RayCollector`: the stock collector on every node.

The environments and their layouts are those of one machine. The policy's noise is drawn where the environments are, a
stream for each collector, so that rollouts are equal in distribution, not bit for bit; they do not depend on which node
a collector runs on, only on how many there are.
"""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import TransformedEnv

from lightning_unlearn import keys
from lightning_unlearn.collectors.acting import ActingPolicy
from lightning_unlearn.collectors.stock import kept_keys, with_sums
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.processes import ray_runtime
from lightning_unlearn.seeding import SeedStreams, child, torch_generator, training_seeds

ENDLESS = 2**62
"""Frames that nobody collects: TorchRL's own sign for no end, -1, ends a `RayCollector` at once."""


class SpreadCollector:
    """Rolls the current stochastic policy for T steps in each of E environments, on several processes or machines.

    Args:
        env_id: The task.
        concept: Of the environments.
        num_envs: E.
        policy: Its weights are sent at the start of every rollout.
        horizon: T.
        collectors: Remote collectors, one core each; E must be a multiple of it.
        streams: Of the run.
    """

    def __init__(
        self,
        env_id: str,
        concept: str | Concept,
        num_envs: int,
        policy: ActorCritic,
        horizon: int,
        collectors: int,
        streams: SeedStreams,
    ) -> None:
        require_possible(num_envs, collectors)
        self._make = partial(_make, env_id, concept)
        self._num_envs, self._horizon, self._collectors, self._streams = num_envs, horizon, collectors, streams
        self._acting, self._done = ActingPolicy(policy), 0
        self._actor = _Actor(self._acting.current(), torch_generator(streams.policy_noise))
        self._collector: Any = None
        self._rollouts: Iterator[TensorDictBase] = iter(())

    def rollout(self) -> TensorDict:
        """Collect one rollout. Batch shape: (E, T); keys and shapes in `lightning_unlearn.keys`."""
        started = self._collector is not None
        if not started:
            self._collector = self._start()
        self._actor.policy = self._acting.current()
        self._collector.update_policy_weights_(TensorDict.from_module(self._actor).data)
        if not started:
            self._rollouts = iter(self._collector)
        rollout = next(self._rollouts).flatten(0, 1)  # (collectors, E / collectors, T) → (E, T)
        self._done += 1
        return rollout.select(*kept_keys(rollout[keys.NEXT, keys.COSTS].keys()))

    def state_dict(self) -> dict[str, Any]:
        """How many rollouts were made; episodes under way on other machines are not part of it."""
        return {"rollouts": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with new episodes, which no rollout before had."""
        self._done = state_dict["rollouts"]

    def shutdown(self) -> None:
        """End the remote collectors."""
        if self._collector is not None:
            self._collector.shutdown(shutdown_ray=False)

    def _start(self) -> Any:
        from torchrl.collectors.distributed import RayCollector

        environments, noise = self._streams.environments, self._streams.policy_noise
        if self._done:
            environments, noise = child(environments, self._done), child(noise, self._done)
        seeds, share = training_seeds(environments, self._num_envs), self._num_envs // self._collectors
        shares = [seeds[first : first + share] for first in range(0, self._num_envs, share)]
        streams, config = noise.spawn(self._collectors), self._acting.current().config
        with ray_runtime() as runtime:
            return RayCollector(
                [partial(self._make, some) for some in shares],
                policy_factory=[partial(_remote_actor, config, stream) for stream in streams],
                frames_per_batch=self._num_envs * self._horizon,
                total_frames=ENDLESS,
                sync=True,
                remote_configs={"num_cpus": 1},
                # one dictionary each: TorchRL writes every collector's own factory into it
                collector_kwargs=[{"auto_register_policy_transforms": False} for _ in shares],
                num_collectors=self._collectors,
                ray_init_config={"runtime_env": runtime},  # of no effect in a session that has begun
            )


def require_possible(num_envs: int, collectors: int) -> None:
    """Refuse what cannot be spread.

    Raises:
        ValueError: Ray is not installed, or the environments cannot be shared out evenly.
    """
    if find_spec("ray") is None:
        raise ValueError(
            "data.collector=ray: Ray is not installed: install lightning-unlearn with its extra, "
            "`lightning-unlearn[ray]`, on every node."
        )
    if collectors < 1 or num_envs % collectors:
        raise ValueError(
            f"data.num_envs={num_envs} cannot be shared out evenly among data.workers={collectors} collectors: use a "
            "multiple of it."
        )


class _Actor(TensorDictModuleBase):
    """The stochastic policy with noise of its own. Batch shape: that of the environments beside it."""

    in_keys = [keys.OBSERVATION]  # noqa: RUF012 (TensorDict's own convention)
    out_keys = [keys.ACTION, keys.PRE_TANH, keys.LOG_PROB]  # noqa: RUF012

    def __init__(self, policy: ActorCritic, generator: torch.Generator) -> None:
        super().__init__()
        self.policy, self._generator = policy, generator

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write action, draw before squashing and log-probability."""
        mean = self.policy.mean(tensordict[keys.OBSERVATION])
        pre_tanh = mean + self.policy.std * torch.randn(mean.shape, generator=self._generator, dtype=torch.float32)
        tensordict[keys.ACTION], tensordict[keys.PRE_TANH] = self.policy.squash(pre_tanh), pre_tanh
        tensordict[keys.LOG_PROB] = self.policy.log_prob(mean, pre_tanh).unsqueeze(-1)
        return tensordict


def _remote_actor(config: PolicyConfig, noise: np.random.SeedSequence) -> _Actor:
    torch.set_num_threads(1)
    return _Actor(ActorCritic(config), torch_generator(noise))


def _make(env_id: str, concept: str | Concept, seeds: list[int]) -> TransformedEnv:
    env = make_env(env_id, len(seeds), concept)
    env.seed_environments(seeds)
    return with_sums(env)
