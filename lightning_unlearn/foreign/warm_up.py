"""Critics that know an agent: regression on its own rollouts, with the policy frozen."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch.nn import functional as F
from tqdm.auto import tqdm

from lightning_unlearn import keys
from lightning_unlearn.collection.data import RolloutData
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.policies.actor_critic import ActorCritic

PASSES = 4
"""Over all that was collected so far, after each rollout."""
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
_TARGETS = ((keys.REWARD_VALUE, keys.REWARD_TARGET), (keys.COST_VALUE, keys.COST_TARGET))


@dataclass(frozen=True)
class Fit:
    """Share of the targets' variance that each critic explains, on a rollout that it was not fitted to."""

    reward: float
    cost: float


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up did."""

    before: Fit
    """Of the critics as they came."""
    after: Fit
    """Of the warmed critics, on the last rollout, before they were fitted to it."""
    observations: torch.Tensor
    """What the agent saw. Shape: (N, O)."""
    seconds: float


def warm_up(policy: ActorCritic, data: RolloutData, rollouts: int) -> WarmUp:
    """Fit both critics to GAE targets after each rollout; the policy acts, stochastic, and does not change.

    Args:
        policy: Its critics are changed, and its trunk only where it is the critics' own.
        data: The environments.
        rollouts: How many rollouts of it; at least 2.
    """
    started = time.perf_counter()
    estimator = DualHeadPPO("warm-up", seed=data.seed)
    estimator.policy = policy
    generator, seen, fits = torch.Generator().manual_seed(data.seed), [], []
    with _only_critics(policy) as optimizer:
        for _ in tqdm(range(rollouts), desc="warming up the critics", unit="rollout", leave=False):
            seen.append(data.collector(policy).rollout().clone())
            for batch in seen:
                estimator.add_advantages(batch)
            fits.append(_fit(seen[-1]))
            for observation, target in _minibatches(torch.cat(seen), generator):
                _descend(policy, optimizer, observation, target)
    observations = torch.cat([batch[keys.OBSERVATION].flatten(0, 1) for batch in seen])
    return WarmUp(fits[0], fits[-1], observations, time.perf_counter() - started)


def _fit(batch: TensorDict) -> Fit:
    return Fit(*(explained(batch[value], batch[target]) for value, target in _TARGETS))


def explained(value: torch.Tensor, target: torch.Tensor) -> float:
    """1 − Var(target − value)/Var(target); 0 where the targets do not vary. Any equal shapes."""
    variance = target.var(correction=0)
    return 0.0 if variance < 1e-12 else float(1.0 - (target - value).var(correction=0) / variance)


@contextmanager
def _only_critics(policy: ActorCritic) -> Iterator[torch.optim.Optimizer]:
    """An optimizer of the critics; everything else is frozen inside the block."""
    critics = [module for module in (policy.critic_trunk, policy.reward_value, policy.cost_value) if module is not None]
    policy.requires_grad_(False)
    for module in critics:
        module.requires_grad_(True)
    try:
        yield torch.optim.Adam([p for module in critics for p in module.parameters()], lr=LEARNING_RATE, fused=True)
    finally:
        policy.requires_grad_(True)


def _minibatches(batch: TensorDict, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Observations (B, O) and both targets (B, 2), shuffled anew each pass."""
    observation = batch[keys.OBSERVATION].flatten(0, 1)
    target = torch.cat([batch[key] for _, key in _TARGETS], -1).flatten(0, 1)
    for _ in range(PASSES):
        for chosen in torch.randperm(len(target), generator=generator).split(BATCH_SIZE):
            yield observation[chosen], target[chosen]


def _descend(
    policy: ActorCritic, optimizer: torch.optim.Optimizer, observation: torch.Tensor, target: torch.Tensor
) -> None:
    output = policy(observation)
    loss = F.mse_loss(torch.stack([output.reward_value, output.cost_value], -1), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
