"""Warm-up of an imported agent's critics: regression on its own rollouts, with the policy frozen."""

import time
from copy import deepcopy
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tqdm.auto import tqdm

from lightning_unlearn import keys
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.losses.gae import deviation, explained_variance
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.policies.actor_critic import ActorCritic

PASSES = 4
"""Passes over all rollouts so far, after each rollout."""
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
_TARGETS = ((keys.REWARD_VALUE, keys.REWARD_TARGET), (keys.COST_VALUE, keys.COST_TARGET))


@dataclass(frozen=True)
class Fit:
    """Explained variance of each critic on the newest rollout, before it is fitted to that rollout."""

    reward: float
    cost: float


@dataclass(frozen=True)
class WarmUp:
    """Result of a warm-up."""

    before: Fit
    """Fit of the original critics."""
    after: Fit
    """Fit of the warmed-up critics."""
    observations: torch.Tensor
    """Observations of all rollouts. Shape: (N, O)."""
    seconds: float


def warm_up(policy: ActorCritic, data: RolloutData, rollouts: int) -> WarmUp:
    """Fit both critics to GAE targets after each rollout; the policy acts stochastically and does not change.

    The errors of each critic are divided by the standard deviation of its targets. Costs may vary ten times as much as
    rewards, so that a trunk shared by both critics would otherwise unlearn the agent's reward critic.

    Args:
        policy: Its critics are changed, with their trunk if it is their own.
        data: The environments.
        rollouts: Number of rollouts, at least 2.
    """
    started = time.perf_counter()
    original, estimator = _ppo_of(deepcopy(policy)), _ppo_of(policy)
    generator, seen = torch.Generator().manual_seed(data.seed), []
    critics = [module for module in (policy.critic_trunk, policy.reward_value, policy.cost_value) if module is not None]
    policy.requires_grad_(False)
    for module in critics:
        module.requires_grad_(True)
    parameters = [parameter for module in critics for parameter in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    try:
        for _ in tqdm(range(rollouts), desc="warming up the critics", unit="rollout", leave=False):
            seen.append(data.collector(policy).rollout().clone())
            for batch in seen:
                estimator.add_advantages(batch)
            after = _fit(seen[-1])
            regress(policy, optimizer, torch.cat(seen), generator)
    finally:
        policy.requires_grad_(True)
    observations = torch.cat([batch[keys.OBSERVATION].flatten(0, 1) for batch in seen])
    original.add_advantages(seen[-1])
    return WarmUp(_fit(seen[-1]), after, observations, time.perf_counter() - started)


def _ppo_of(policy: ActorCritic) -> DualHeadPPO:
    """Return the method that computes advantages and value targets from a policy's critics."""
    method = DualHeadPPO("warm-up")
    method.policy = policy
    return method


def _fit(batch: TensorDict) -> Fit:
    return Fit(*(explained_variance(batch[value], batch[target]) for value, target in _TARGETS))


def regress(
    policy: ActorCritic, optimizer: torch.optim.Optimizer, batch: TensorDict, generator: torch.Generator
) -> None:
    """Fit the critics to the targets of a batch, in minibatches that are shuffled before each pass."""
    observation = batch[keys.OBSERVATION].flatten(0, 1)  # (N, O)
    target = torch.cat([batch[key] for _, key in _TARGETS], -1).flatten(0, 1)  # (N, 2)
    unit = deviation(target)
    for _ in range(PASSES):
        for chosen in torch.randperm(len(target), generator=generator).split(BATCH_SIZE):
            output = policy(observation[chosen])
            error = torch.stack([output.reward_value, output.cost_value], -1) - target[chosen]  # (B, 2)
            optimizer.zero_grad()
            (error / unit).square().mean().backward()
            optimizer.step()
