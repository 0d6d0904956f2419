"""TorchRL's own collector, giving the same rollouts as `RolloutCollector`, more slowly."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import RewardSum, TransformedEnv

from lightning_unlearn import keys
from lightning_unlearn.collectors.acting import ActingPolicy
from lightning_unlearn.collectors.collector import to_arrays, to_tensors
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.policies.actor_critic import ActorCritic


class StockCollector:
    """Rolls the current stochastic policy for T steps in each of E environments, through TorchRL's `Collector`.

    Args:
        env: The environments; seeded already, they are reset here.
        policy: Its weights are read at the start of every rollout.
        horizon: T.
        generator: The stream the policy's noise is drawn from.
    """

    def __init__(self, env: BatchedEnv, policy: ActorCritic, horizon: int, generator: torch.Generator) -> None:
        if horizon < 1:
            raise ValueError(f"horizon={horizon} is not possible: use at least 1.")
        self.env, self.horizon, self.generator = env, horizon, generator
        self._acting, self._action_size = ActingPolicy(policy), policy.config.action_size
        self._actor = _NoisyActor(self._acting.current(), env.num_envs)
        self._collector = Collector(
            with_sums(env),
            self._actor,
            frames_per_batch=env.num_envs * horizon,
            total_frames=-1,
            auto_register_policy_transforms=False,
        )
        self._rollouts: Iterator[TensorDictBase] = iter(self._collector)

    def rollout(self) -> TensorDict:
        """Collect one rollout. Batch shape: (E, T); keys and shapes in `lightning_unlearn.keys`."""
        policy = self._acting.current()
        shape = (self.horizon, self.env.num_envs, self._action_size)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float32)
        self._actor.begin(policy, noise)
        return next(self._rollouts).select(*kept_keys(self.env.cost_keys))

    def state_dict(self) -> dict[str, Any]:
        """All that the next rollout depends on besides the policy; TorchRL's own state holds only the policy."""
        return {
            "generator": self.generator.get_state(),
            "simulator": to_tensors(self.env.simulator.state_dict()),
            "carrier": self._collector._carrier.clone().to_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.generator.set_state(state_dict["generator"])
        self.env.simulator.load_state_dict(to_arrays(state_dict["simulator"]))
        self._collector._carrier.update_(TensorDict(state_dict["carrier"]))

    def shutdown(self) -> None:
        """Close the environments."""
        self._collector.shutdown()


def with_sums(env: BatchedEnv) -> TransformedEnv:
    """The environments, with the return and the cost of the running episodes."""
    sums = RewardSum(
        [keys.REWARD, keys.COST], [keys.EPISODE_RETURN, keys.EPISODE_COST], reset_keys=["_reset", "_reset"]
    )
    return TransformedEnv(env, sums)


def kept_keys(costs: Iterable[str]) -> list[Any]:
    """What methods read of a rollout, with these costs."""
    following = (*_FOLLOWING, *((keys.COSTS, key) for key in costs))
    nested = [(keys.NEXT, *(key if isinstance(key, tuple) else (key,))) for key in following]
    return [keys.OBSERVATION, keys.ACTION, keys.PRE_TANH, keys.LOG_PROB, *nested]


_FOLLOWING = (
    keys.OBSERVATION,
    keys.REWARD,
    keys.COST,
    keys.C_FORGET,
    keys.EPISODE_RETURN,
    keys.EPISODE_COST,
    keys.DONE,
    keys.TERMINATED,
    keys.TRUNCATED,
    keys.FAILED,
    keys.GOAL_MET,
)


class _NoisyActor(TensorDictModuleBase):
    """The stochastic policy with noise that was drawn beforehand. Batch shape: (E,)."""

    in_keys = [keys.OBSERVATION]  # noqa: RUF012 (TensorDict's own convention)
    out_keys = [keys.ACTION, keys.PRE_TANH, keys.LOG_PROB]  # noqa: RUF012

    def __init__(self, policy: ActorCritic, num_envs: int) -> None:
        super().__init__()
        self.policy = policy
        self._noise, self._step = torch.zeros(1, num_envs, policy.config.action_size, dtype=torch.float32), 0

    def begin(self, policy: ActorCritic, noise: torch.Tensor) -> None:
        """Act with this policy and this noise from here on. Shape: (T, E, A)."""
        self.policy, self._noise, self._step = policy, noise, 0

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write action, draw before squashing and log-probability."""
        mean = self.policy.mean(tensordict[keys.OBSERVATION])
        pre_tanh = mean + self._noise[self._step % len(self._noise)] * self.policy.std
        self._step += 1
        tensordict[keys.ACTION], tensordict[keys.PRE_TANH] = self.policy.squash(pre_tanh), pre_tanh
        tensordict[keys.LOG_PROB] = self.policy.log_prob(mean, pre_tanh).unsqueeze(-1)
        return tensordict
