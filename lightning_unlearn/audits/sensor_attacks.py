"""Disturb what a policy sees, inside a budget of ε standard deviations of each sensor, so that it costs more.

Two attacks. *Gradient*: in every step, projected gradient ascent on the advantage of the action that the policy would
take, by a critic of actions that is fitted to the expert's cost critic. *Random*: constant offsets of the sensors,
drawn at random; the one of highest realised cost counts. The environment itself is never changed.
Sources: Pattanaik et al. 2018 (critics as attackers); Madry et al. 2018 (projected gradient); Liu et al. 2023 (attacks
that maximise cost).
Shapes: N episodes, L steps of the longest one, B states, O observation size, A action size.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lightning_unlearn.collectors.acting import TorchActor
from lightning_unlearn.collectors.episodes import Episodes, run_episodes
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, torch_generator, validation_layouts

LAYOUTS = 100
"""Most validation layouts on which the expert shows how far each sensor varies."""
GAMMA = 0.99
"""Discount of the expert's cost critic: the default of the methods that train experts."""
ASCENTS = 3
"""Steps of gradient ascent in every step of an episode."""
_HIDDEN, _PASSES, _BATCH, _LEARNING_RATE, _HELD_OUT = 64, 10, 512, 1e-3, 10


class ActionCritic(nn.Module):
    """Advantage of an action for the expert's cost, in standard deviations of the steps that it was fitted to.

    Args:
        mean: Mean of the observations. Shape: (O,).
        deviation: Standard deviation of the observations. Shape: (O,).
        actions: A.
    """

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, actions: int) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation.clamp(min=1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, second = nn.Linear(len(mean) + actions, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)
            self.network = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(_HIDDEN, 1))

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Compute the advantage. Shape: (B, O), (B, A) → (B,)."""
        normalised = ((observation - self.mean) / self.deviation).clamp(-10.0, 10.0)
        return self.network(torch.cat([normalised, action], -1)).squeeze(-1)


@dataclass(frozen=True)
class Reference:
    """The expert's part in an attack."""

    deviation: np.ndarray
    """Standard deviation of each observation component over the expert's validation states. Shape: (O,), float64."""
    critic: ActionCritic
    explained: float
    """Share of the advantages' variance that the critic explains on steps that it was not fitted to."""


def reference_of(env: BatchedEnv, expert: ActorCritic) -> Reference:
    """Run an expert on validation layouts, and fit a critic of actions to its cost critic.

    Args:
        env: N environments; each gets a validation layout, and from `LAYOUTS` on they repeat.
        expert: The expert. It is run once as it is, for the states, and once with noise of standard deviation 1 before
            squashing, so that the critic sees all actions.
    """
    layouts = np.resize(validation_layouts(LAYOUTS), env.num_envs).tolist()
    generator = torch_generator(SeedStreams.of(0).calibration)
    calm = run_episodes(env, expert, layouts)
    states = calm.observation[calm.alive].astype(np.float64)
    mean, deviation = states.mean(0), states.std(0)
    wide = deepcopy(expert)
    wide.log_std.data.zero_()
    observation, action, advantage = advantages(run_episodes(env, wide, layouts, noise=generator), expert)
    critic = ActionCritic(torch.from_numpy(mean).float(), torch.from_numpy(deviation).float(), action.shape[1])
    return Reference(deviation, critic, fit(critic, observation, action, advantage, generator))


@torch.no_grad()
def advantages(episodes: Episodes, expert: ActorCritic) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return observation, action and C_forget + γ·V(o′) − V(o) of every step, with the expert's cost critic V.

    V(o′) is 0 after an episode that the task ended. A step in which the simulator failed is left out.
    Shapes: (B, O), (B, A), (B,), float32.
    """
    last = np.arange(len(episodes.length)), episodes.length - 1
    following = np.roll(episodes.observation, -1, axis=1)
    following[last] = episodes.final_observation
    bootstraps, kept = np.ones(episodes.reward.shape), episodes.alive.copy()
    bootstraps[last] = ~episodes.terminated
    kept[last] = ~episodes.failed
    now, then = (torch.from_numpy(array[kept]) for array in (episodes.observation, following))
    signal, goes_on = (torch.from_numpy(array[kept]).float() for array in (episodes.c_forget, bootstraps))
    action = expert.squash(torch.from_numpy(episodes.pre_tanh[kept]))
    return now.float(), action, signal + GAMMA * goes_on * expert(then).cost_value - expert(now).cost_value


def fit(
    critic: ActionCritic,
    observation: torch.Tensor,
    action: torch.Tensor,
    advantage: torch.Tensor,
    generator: torch.Generator,
) -> float:
    """Fit a critic to standardised advantages by least squares; the last tenth of the steps is held out.

    Returns:
        The share of the held-out variance that is explained; 0 if there is none.
    """
    target = (advantage - advantage.mean()) / advantage.std().clamp(min=1e-6)
    used = len(target) - max(1, len(target) // _HELD_OUT)
    optimizer = torch.optim.Adam(critic.parameters(), lr=_LEARNING_RATE, fused=True)
    for _ in range(_PASSES):
        for at in torch.randperm(used, generator=generator).split(_BATCH):
            optimizer.zero_grad()
            (critic(observation[at], action[at]) - target[at]).square().mean().backward()
            optimizer.step()
    critic.requires_grad_(False)
    error = (critic(observation[used:], action[used:]) - target[used:]).square().mean()
    variance = target[used:].var(correction=0)
    return float(1.0 - error / variance) if variance > 1e-12 else 0.0


class GradientActor(TorchActor):
    """A policy whose observations are moved, in every step, to where its action has the highest advantage for cost.

    Args:
        policy: The policy, on the CPU.
        critic: The advantage of an action in the true state.
        reach: Most that each observation component is moved by. Shape: (O,).
    """

    def __init__(self, policy: ActorCritic, critic: ActionCritic, reach: np.ndarray) -> None:
        super().__init__(policy)
        self.policy, self.critic, self.reach = policy, critic, torch.from_numpy(reach)

    def mean(self, observation: np.ndarray, first: int) -> np.ndarray:
        """See `Actor.mean`."""
        return super().mean(self.disturbed(observation), first)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def disturbed(self, observation: np.ndarray) -> np.ndarray:
        """Return the observations that the policy is made to see. Shape: (n, O) → (n, O)."""
        true = torch.from_numpy(observation)
        offset, state = torch.zeros_like(true), true.float()
        for _ in range(ASCENTS):
            offset.requires_grad_(True)
            action = self.policy.act((true + offset).to(self.policy.observation_dtype))
            (slope,) = torch.autograd.grad(self.critic(state, action).sum(), offset)
            moved = offset.detach() + slope.sign() * self.reach * 2.0 / ASCENTS
            offset = moved.clamp(-self.reach, self.reach)
        return (true + offset).numpy()


def is_differentiable(policy: ActorCritic, states: torch.Tensor) -> bool:
    """Return True if the gradient of the means exists, is finite and not zero everywhere. Shape: (B, O)."""
    states = states.clone().requires_grad_(True)
    try:
        (slope,) = torch.autograd.grad(policy.mean(states).sum(), states)
    except RuntimeError:  # an operation of the policy has no gradient
        return False
    return bool(slope.isfinite().all() and slope.any())


def random_signs(sensors: Mapping[str, slice], size: int, episodes: int, candidate: int) -> np.ndarray:
    """Draw the direction in which each observation component is off; it depends on nothing but the arguments.

    All components of a sensor are off in the same direction if the candidate is even and there are several sensors.

    Args:
        sensors: Slice of each sensor in an observation.
        size: O.
        episodes: N.
        candidate: Number of the draw, from 0.

    Returns:
        1 or −1. Shape: (N, O), float64.
    """
    signs = np.random.default_rng(candidate).choice([-1.0, 1.0], (episodes, size))
    if candidate % 2 == 0 and len(sensors) > 1:
        for columns in sensors.values():
            signs[:, columns] = signs[:, columns][:, :1]
    return signs
