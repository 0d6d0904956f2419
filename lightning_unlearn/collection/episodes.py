"""Whole episodes of a policy on chosen layouts, all in one batch, for evaluation, probes and cloning.

Shapes: N episodes, L steps of the longest one, O observation size, A action size.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import COST_SUM
from lightning_unlearn.envs.simulator import Step, TopView
from lightning_unlearn.policies.actor_critic import ActorCritic


@dataclass(frozen=True)
class Episodes:
    """N finished episodes. What lies beyond an episode's length is zero."""

    layout_seeds: list[int]
    """The seed each episode's environment was reset with, length N."""
    observation: np.ndarray
    """What the policy saw before each step. Shape: (N, L, O), in the policy's `observation_dtype`."""
    pre_tanh: np.ndarray
    """The Gaussian draw (its mean, of a deterministic policy) before squashing. Shape: (N, L, A), float32."""
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
    final_observation: np.ndarray
    """What each episode's last step led to. Shape: (N, O), of the same dtype."""
    terminated: np.ndarray
    """The task itself ended the episode; without it, it was cut. Shape: (N,), bool."""
    failed: np.ndarray
    """The simulator failed: the final observation has no meaning. Shape: (N,), bool."""
    scenes: list[TopView] = field(default_factory=list)
    """Where things were before each step, of all N environments, when it was asked for; length L."""
    costs: dict[str, np.ndarray] = field(default_factory=dict)
    """Every cost by its info key, summed over each episode. Shape of each: (N,), float64."""
    unfinished: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """`max_steps` ended the episode before the environment did. Shape: (N,), bool."""

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

    Raises:
        ValueError: The policy gives actions that are not finite.
    """
    env.seed_environments(layout_seeds)
    env.reset()
    sim, observation = env.simulator, env.observation(policy.observation_dtype)
    recorder = _Recorder(layout_seeds, observation.numpy())
    steps = min(max_steps, sim.max_episode_steps)
    for _ in tqdm(range(steps), desc=label, unit="step", disable=label is None, leave=False):
        scene = sim.top_view() if keep_scenes else None
        pre_tanh = _draw(policy, observation, noise)
        if not pre_tanh.isfinite().all():
            raise ValueError(f"the policy {label or ''} gives actions that are not finite: its weights are too large.")
        action = policy.squash(pre_tanh).numpy().astype(np.float64)
        step = sim.step(action)
        c_forget = env.c_forget(observation.numpy(), action, step)
        recorder.add(observation.numpy(), pre_tanh.numpy(), step, c_forget, scene)
        if recorder.all_ended:
            break
        done = step.terminated | step.truncated
        following = sim.reset(done) if done.any() else step.observation
        observation = torch.from_numpy(following).to(policy.observation_dtype)
    return recorder.episodes()


def _draw(policy: ActorCritic, observation: torch.Tensor, noise: torch.Generator | None) -> torch.Tensor:
    mean = policy.mean(observation)
    if noise is None:
        return mean
    return mean + policy.std * torch.randn(mean.shape, generator=noise, dtype=torch.float32)


class _Recorder:
    """Collects steps until every episode has ended once; an environment that goes on after its end is ignored."""

    def __init__(self, layout_seeds: list[int], observation: np.ndarray) -> None:
        self.layout_seeds, n = layout_seeds, len(layout_seeds)
        self.ended, self._terminated, self._failed = (np.zeros(n, dtype=bool) for _ in range(3))
        self._length = np.zeros(n, dtype=np.int64)
        self._final = np.zeros_like(observation)
        self._inputs: list[tuple[np.ndarray, np.ndarray]] = []
        self._signals: list[tuple[np.ndarray, ...]] = []
        self._costs: dict[str, np.ndarray] = {}
        self._scenes: list[TopView] = []

    @property
    def all_ended(self) -> bool:
        return bool(self.ended.all())

    def add(
        self, observation: np.ndarray, pre_tanh: np.ndarray, step: Step, c_forget: np.ndarray, scene: TopView | None
    ) -> None:
        alive = ~self.ended
        signals = (step.reward, step.costs[COST_SUM], c_forget, step.goal_met)
        self._inputs.append((observation * alive[:, None], pre_tanh * alive[:, None]))
        self._signals.append(tuple(signal * alive for signal in signals))
        if scene is not None:
            self._scenes.append(scene)
        self._costs = {key: self._costs.get(key, 0.0) + cost * alive for key, cost in step.costs.items()}
        self._length += alive
        self._final[alive] = step.observation[alive]
        self._terminated |= step.terminated & alive
        self._failed |= step.failed & alive
        self.ended |= step.terminated | step.truncated

    def episodes(self) -> Episodes:
        columns = zip(
            *(inputs + signals for inputs, signals in zip(self._inputs, self._signals, strict=True)), strict=True
        )
        observation, pre_tanh, reward, cost, c_forget, goal_met = (np.stack(column, axis=1) for column in columns)
        return Episodes(
            layout_seeds=self.layout_seeds,
            observation=observation,
            pre_tanh=pre_tanh,
            reward=reward,
            cost=cost,
            c_forget=c_forget,
            goal_met=goal_met,
            length=self._length,
            final_observation=self._final,
            terminated=self._terminated,
            failed=self._failed,
            scenes=self._scenes,
            costs=self._costs,
            unfinished=~self.ended,
        )
