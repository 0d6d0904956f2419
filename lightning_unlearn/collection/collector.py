"""The collector that feeds a method: a lean TorchRL `BaseCollector` over one batched environment."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.collectors import BaseCollector

from lightning_unlearn import keys
from lightning_unlearn.collection.acting import ActingPolicy
from lightning_unlearn.collection.plain import to_arrays, to_tensors
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import COST_SUM
from lightning_unlearn.envs.simulator import Step
from lightning_unlearn.policies.actor_critic import ActorCritic


class RolloutCollector(BaseCollector):
    """Rolls the current stochastic policy for T steps in each of E environments.

    Every rollout is written into the same preallocated TensorDict of batch shape (E, T): use it before the next one
    is asked for. Episodes go on across rollouts.

    Args:
        env: The environments; seeded already, they are reset here.
        policy: Its weights are read at the start of every rollout, wherever they are.
        horizon: T.
        generator: The stream the policy's noise is drawn from.
        hold: Steps that an action is held for; shorter at the end of a rollout or an episode.
    """

    def __init__(
        self, env: BatchedEnv, policy: ActorCritic, horizon: int, generator: torch.Generator, hold: int = 1
    ) -> None:
        super().__init__()
        if horizon < 1:
            raise ValueError(f"horizon={horizon} is not possible: use at least 1.")
        if hold < 1:
            raise ValueError(f"hold={hold} is not possible: use at least 1.")
        self.env, self.horizon, self.generator, self.hold = env, horizon, generator, hold
        self._acting = ActingPolicy(policy)
        self._dtype = policy.observation_dtype
        self._buffer = _RolloutBuffer(env, policy, horizon)
        env.reset()
        self._observation = env.observation(self._dtype)

    def rollout(self) -> TensorDict:
        """Collect one rollout. Batch shape: (E, T); keys and shapes in `lightning_unlearn.keys`."""
        policy = self._acting.current()
        shape = (self.horizon, self.env.num_envs, self._buffer.action_size)
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float32)
        with torch.inference_mode():
            self._buffer.deviation[:] = (noise * policy.std).numpy()
            for t in range(self.horizon):
                self._advance(policy, t)
        if not self._buffer.is_finite:
            raise FloatingPointError(
                f"{self.env.simulator.env_id}: an observation or a reward is not a finite number. The policy has not "
                "learned from this rollout."
            )
        return self._buffer.finish(policy)

    def iterator(self) -> Iterator[TensorDict]:
        """Rollouts without end."""
        while True:
            yield self.rollout()

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed environments and policy noise, and start new episodes."""
        self.env.set_seed(seed)
        self.generator.manual_seed(seed)
        self.env.reset()
        self._observation = self.env.observation(self._dtype)
        return seed if static_seed else seed + 1

    def shutdown(self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True) -> None:
        """Close the environments."""
        if close_env and not self.env.is_closed:
            self.env.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the next rollout depends on besides the policy: noise stream, environments, episodes begun."""
        return {
            "generator": self.generator.get_state(),
            "simulator": to_tensors(self.env.simulator.state_dict()),
            "observation": self._observation.clone(),
            "episodes": to_tensors(self._buffer.running),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.generator.set_state(state_dict["generator"])
        self.env.simulator.load_state_dict(to_arrays(state_dict["simulator"]))
        self._observation = state_dict["observation"].clone()
        self._buffer.running = to_arrays(state_dict["episodes"])

    def _advance(self, policy: ActorCritic, t: int) -> None:
        observation = self._observation
        mean, pre_tanh = self._decide(policy, t)
        action = policy.squash(pre_tanh)
        controls = action.numpy().astype(np.float64)
        step = self.env.simulator.step(controls)
        c_forget = self.env.c_forget(observation.numpy(), controls, step)
        self._buffer.write(t, observation, mean, pre_tanh, action, step, c_forget)
        done = step.terminated | step.truncated
        following = self.env.simulator.reset(done) if done.any() else step.observation
        self._observation = torch.from_numpy(following).to(self._dtype)

    def _decide(self, policy: ActorCritic, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean and the draw of a step: new ones where it is time or an episode begins. Shape of each: (E, A)."""
        if t % self.hold == 0:
            return self._draw(policy, t)
        (held_mean, held), begins = self._buffer.decision_at(t - 1), self._buffer.ended_at(t - 1)
        if not begins.any():
            return held_mean, held
        mean, draw = self._draw(policy, t)
        return torch.where(begins, mean, held_mean), torch.where(begins, draw, held)

    def _draw(self, policy: ActorCritic, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        mean = policy.mean(self._observation)
        return mean, mean + self._buffer.deviation_at(t)


class _RolloutBuffer:
    """Arrays of shape (T, E, ...), written row by row, and the (E, T) TensorDict that views them."""

    def __init__(self, env: BatchedEnv, policy: ActorCritic, horizon: int) -> None:
        self.env, self.action_size = env, policy.config.action_size
        shape, sim = (horizon, env.num_envs), env.simulator
        self.deviation = np.empty((*shape, self.action_size), np.float32)
        self._mean = np.empty((*shape, self.action_size), np.float32)
        self._observation, self._next_observation = (
            torch.empty((*shape, sim.observation_size), dtype=policy.observation_dtype).numpy() for _ in range(2)
        )
        self._pre_tanh, self._action = (np.empty((*shape, self.action_size), np.float32) for _ in range(2))
        self._log_prob = np.empty((*shape, 1), np.float32)
        self._scalars = {k: np.empty((*shape, 1), np.float32) for k in _SCALARS}
        self._flags = {k: np.empty((*shape, 1), bool) for k in _FLAGS}
        self._costs = {k: np.empty((*shape, 1), np.float32) for k in sim.cost_keys}
        self._return, self._cost = np.zeros(env.num_envs), np.zeros(env.num_envs)
        self._rollout = self._views()

    @property
    def is_finite(self) -> bool:
        """Whether what was written can be learned from."""
        numbers = (self._observation, self._next_observation, self._scalars[keys.REWARD], self._scalars[keys.COST])
        return all(np.isfinite(array).all() for array in numbers)

    @property
    def running(self) -> dict[str, np.ndarray]:
        """Sums over the episodes that have begun. Shape of each: (E,)."""
        return {keys.EPISODE_RETURN: self._return, keys.EPISODE_COST: self._cost}

    @running.setter
    def running(self, sums: dict[str, np.ndarray]) -> None:
        self._return, self._cost = sums[keys.EPISODE_RETURN].copy(), sums[keys.EPISODE_COST].copy()

    def deviation_at(self, t: int) -> torch.Tensor:
        """The scaled noise of one step. Shape: (E, A)."""
        return torch.from_numpy(self.deviation[t])

    def decision_at(self, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and draw of one step. Shape of each: (E, A)."""
        return torch.from_numpy(self._mean[t]), torch.from_numpy(self._pre_tanh[t])

    def ended_at(self, t: int) -> torch.Tensor:
        """Where an episode ended in one step. Shape: (E, 1)."""
        return torch.from_numpy(self._flags[keys.DONE][t])

    def write(
        self,
        t: int,
        observation: torch.Tensor,
        mean: torch.Tensor,
        pre_tanh: torch.Tensor,
        action: torch.Tensor,
        step: Step,
        c_forget: np.ndarray,
    ) -> None:
        """Keep one step of all environments."""
        self._observation[t], self._mean[t] = observation.numpy(), mean.numpy()
        self._pre_tanh[t], self._action[t] = pre_tanh.numpy(), action.numpy()
        self._next_observation[t] = step.observation
        self._write_signals(t, step, c_forget)

    def finish(self, policy: ActorCritic) -> TensorDict:
        """Add the log-probabilities and return the rollout."""
        with torch.no_grad():
            self._log_prob[..., 0] = policy.log_prob(torch.from_numpy(self._mean), torch.from_numpy(self._pre_tanh))
        if len(self._costs) > len(self._rollout[keys.NEXT, keys.COSTS].keys()):
            self._rollout = self._views()
        return self._rollout

    def _write_signals(self, t: int, step: Step, c_forget: np.ndarray) -> None:
        done = step.terminated | step.truncated
        cost = step.costs[COST_SUM]
        self._return += step.reward
        self._cost += cost
        values = {
            keys.REWARD: step.reward,
            keys.COST: cost,
            keys.C_FORGET: c_forget,
            keys.EPISODE_RETURN: self._return,
            keys.EPISODE_COST: self._cost,
        }
        flags = {
            keys.DONE: done,
            keys.TERMINATED: step.terminated,
            keys.TRUNCATED: step.truncated,
            keys.FAILED: step.failed,
            keys.GOAL_MET: step.goal_met,
        }
        if len(step.costs) > len(self._costs):  # one was reported for the first time: it was 0 until here
            self._costs = {key: self._costs.get(key, np.zeros_like(self._log_prob)) for key in step.costs}
        for arrays, news in ((self._scalars, values), (self._flags, flags), (self._costs, step.costs)):
            for key, array in arrays.items():
                array[t, :, 0] = news[key]
        self._return[done], self._cost[done] = 0.0, 0.0

    def _views(self) -> TensorDict:
        horizon, num_envs = self.deviation.shape[:2]
        following = {k: _swap(v) for k, v in {**self._scalars, **self._flags}.items()}
        following[keys.OBSERVATION] = _swap(self._next_observation)
        following[keys.COSTS] = TensorDict({k: _swap(v) for k, v in self._costs.items()}, (num_envs, horizon))
        return TensorDict(
            {
                keys.OBSERVATION: _swap(self._observation),
                keys.ACTION: _swap(self._action),
                keys.PRE_TANH: _swap(self._pre_tanh),
                keys.LOG_PROB: _swap(self._log_prob),
                keys.NEXT: TensorDict(following, (num_envs, horizon)),
            },
            (num_envs, horizon),
            names=[None, "time"],
        )


_SCALARS = (keys.REWARD, keys.COST, keys.C_FORGET, keys.EPISODE_RETURN, keys.EPISODE_COST)
_FLAGS = (keys.DONE, keys.TERMINATED, keys.TRUNCATED, keys.FAILED, keys.GOAL_MET)


def _swap(array: np.ndarray) -> torch.Tensor:
    """(T, E, ...) → a view of shape (E, T, ...)."""
    return torch.from_numpy(array).transpose(0, 1)
