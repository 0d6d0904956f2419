"""Whole episodes of a policy on chosen layouts, all in one batch, for evaluation, probes and cloning.

Shapes: N episodes, L steps of the longest one, O observation size.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import COST_SUM, concept_signal
from lightning_unlearn.envs.simulator import TopView
from lightning_unlearn.policies.actor_critic import ActorCritic


@dataclass(frozen=True)
class Episodes:
    """N finished episodes. What lies beyond an episode's length is zero."""

    layout_seeds: list[int]
    """The seed each episode's environment was reset with, length N."""
    observation: np.ndarray
    """What the policy saw before each step. Shape: (N, L, O), float32."""
    reward: np.ndarray
    """Shape: (N, L), float64."""
    cost: np.ndarray
    """Shape: (N, L), float64."""
    c_forget: np.ndarray
    """Shape: (N, L), float64."""
    goal_met: np.ndarray
    """Shape: (N, L), bool."""
    length: np.ndarray
    """Steps of each episode. Shape: (N,), int64."""
    scenes: list[TopView] = field(default_factory=list)
    """Where things were before each step, of all N environments, when it was asked for; length L."""

    @property
    def alive(self) -> np.ndarray:
        """True where a step belongs to its episode. Shape: (N, L), bool."""
        return np.arange(self.reward.shape[1]) < self.length[:, None]

    @property
    def episode_return(self) -> np.ndarray:
        """Shape: (N,)."""
        return self.reward.sum(1)

    @property
    def episode_cost(self) -> np.ndarray:
        """Shape: (N,)."""
        return self.cost.sum(1)

    @property
    def episode_c_forget(self) -> np.ndarray:
        """Shape: (N,)."""
        return self.c_forget.sum(1)


@torch.inference_mode()
def run_episodes(
    env: BatchedEnv,
    policy: ActorCritic,
    layout_seeds: list[int],
    *,
    max_steps: int = 2000,
    noise: torch.Generator | None = None,
    keep_scenes: bool = False,
    label: str | None = None,
) -> Episodes:
    """Run one episode in each environment.

    Args:
        env: N environments.
        policy: Acts deterministically, or with Gaussian noise where `noise` is given.
        layout_seeds: One reset seed per environment.
        max_steps: Episodes are cut here at the latest.
        noise: Stream of the stochastic policy's noise.
        keep_scenes: Whether to keep the top view of every step.
        label: Names the progress bar; none is shown without it.
    """
    env.seed_environments(layout_seeds)
    sim, recorder = env.simulator, _Recorder(layout_seeds)
    observation = env.reset()["observation"]
    steps = min(max_steps, sim.max_episode_steps)
    for _ in tqdm(range(steps), desc=label, unit="step", disable=label is None, leave=False):
        scene = sim.top_view() if keep_scenes else None
        step = sim.step(_action(policy, observation, noise).numpy().astype(np.float64))
        signals = (step.reward, step.costs[COST_SUM], concept_signal(env.concept, step.costs), step.goal_met)
        recorder.add(observation.numpy(), signals, step.terminated | step.truncated, scene)
        if recorder.all_ended:
            break
        following = sim.reset(recorder.ended) if recorder.ended.any() else step.observation
        observation = torch.from_numpy(following.astype(np.float32))
    return recorder.episodes()


def _action(policy: ActorCritic, observation: torch.Tensor, noise: torch.Generator | None) -> torch.Tensor:
    mean = policy.mean(observation)
    if noise is not None:
        mean = mean + policy.std * torch.randn(mean.shape, generator=noise)
    return policy.squash(mean)


class _Recorder:
    """Collects steps until every episode has ended once."""

    def __init__(self, layout_seeds: list[int]) -> None:
        self.layout_seeds = layout_seeds
        self.ended = np.zeros(len(layout_seeds), dtype=bool)
        self._length = np.zeros(len(layout_seeds), dtype=np.int64)
        self._observations: list[np.ndarray] = []
        self._signals: list[tuple[np.ndarray, ...]] = []
        self._scenes: list[TopView] = []

    @property
    def all_ended(self) -> bool:
        return bool(self.ended.all())

    def add(
        self, observation: np.ndarray, signals: tuple[np.ndarray, ...], done: np.ndarray, scene: TopView | None
    ) -> None:
        alive = ~self.ended
        self._observations.append(observation * alive[:, None])
        self._signals.append(tuple(signal * alive for signal in signals))
        if scene is not None:
            self._scenes.append(scene)
        self._length += alive
        self.ended |= done

    def episodes(self) -> Episodes:
        reward, cost, c_forget, goal_met = (np.stack(s, axis=1) for s in zip(*self._signals, strict=True))
        return Episodes(
            self.layout_seeds,
            np.stack(self._observations, axis=1),
            reward,
            cost,
            c_forget,
            goal_met,
            self._length,
            self._scenes,
        )
