"""Whole episodes of a policy on chosen layouts, all in one batch, for evaluation, probes and cloning.

Shapes: N episodes, L steps of the longest one, O observation size, A action size.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import COST_SUM
from lightning_unlearn.envs.rollout import Actor, RolloutBuffer, roll_out
from lightning_unlearn.envs.simulator import TopView
from lightning_unlearn.policies.actor_critic import ActorCritic

BLOCK_STEPS = 128
"""Steps in a block; after each block it is checked which episodes have ended."""
_KEPT = ("pre_tanh", "reward", "goal_met", "terminated", "failed")
"""Arrays of a rollout that episodes keep."""


@dataclass(frozen=True)
class Episodes:
    """N finished episodes, padded with zeros to the longest one."""

    layout_seeds: list[int]
    """The seed each episode's environment was reset with, length N."""
    observation: np.ndarray
    """Observation before each step. Shape: (N, L, O), in the policy's `observation_dtype`."""
    pre_tanh: np.ndarray
    """The Gaussian draw before squashing; the mean, if the policy is deterministic. Shape: (N, L, A), float32."""
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
    """Observation after each episode's last step. Shape: (N, O), of the same dtype."""
    terminated: np.ndarray
    """The task itself ended the episode; otherwise it was cut. Shape: (N,), bool."""
    failed: np.ndarray
    """The simulator failed: the final observation has no meaning. Shape: (N,), bool."""
    scenes: list[TopView] = field(default_factory=list)
    """Top view of all N environments before each step, if `keep_scenes` was set; length L."""
    costs: dict[str, np.ndarray] = field(default_factory=dict)
    """Every cost by its info key, summed over each episode. Shape of each: (N,), float64."""
    unfinished: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """`max_steps` ended the episode before the environment did. Shape: (N,), bool."""

    @property
    def alive(self) -> np.ndarray:
        """True where a step belongs to its episode, not to the padding. Shape: (N, L), bool."""
        return np.arange(self.reward.shape[1]) < self.length[:, None]

    @property
    def episode_return(self) -> np.ndarray:
        """Reward summed over each episode. Shape: (N,)."""
        return self.reward.sum(1)

    @property
    def episode_cost(self) -> np.ndarray:
        """Cost summed over each episode. Shape: (N,)."""
        return self.cost.sum(1)

    @property
    def episode_c_forget(self) -> np.ndarray:
        """C_forget summed over each episode. Shape: (N,)."""
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
    actor: Actor | None = None,
) -> Episodes:
    """Run one episode in each environment.

    Args:
        env: N environments.
        policy: Acts deterministically, or with Gaussian noise if `noise` is given.
        layout_seeds: One reset seed per environment.
        max_steps: Episodes are cut here at the latest.
        noise: Stream of the stochastic policy's noise.
        keep_scenes: Keep the top view of every step.
        label: Text of the progress bar; without it, none is shown.
        actor: Acts in the policy's place, such as the policy behind disturbed sensors.

    Raises:
        ValueError: The policy gives actions that are not finite.
    """
    sim, recorder = env.simulator, _Recorder(layout_seeds, env.simulator.observation_size, policy.observation_dtype)
    steps = min(max_steps, sim.max_episode_steps)
    buffer, actor = sim.rollout_buffer(min(steps, BLOCK_STEPS)), actor or actor_of(policy)
    buffer.current[0], buffer.ended[0] = sim.reset(None, layout_seeds), False
    scenes: list[TopView] = []
    with tqdm(total=steps, desc=label, unit="step", disable=label is None, leave=False) as bar:
        for start in range(0, steps, BLOCK_STEPS):
            block = buffer.first(steps - start)
            block.deviation[:] = 0.0
            if noise is not None:
                drawn = torch.randn(block.deviation.shape, generator=noise, dtype=torch.float32)
                block.deviation[:] = (policy.std * drawn).numpy()
            if keep_scenes:
                roll_out(sim, actor, block, scenes=scenes)
            else:
                sim.roll_out(actor, block)
            recorder.add(block, env.c_forget_of(block), block.costs_of(sim))
            bar.update(block.horizon)
            if recorder.all_ended:
                break
    return recorder.episodes(scenes)


class _Recorder:
    """Joins blocks of steps; keeps each environment's steps up to the end of its first episode."""

    def __init__(self, layout_seeds: list[int], observation_size: int, dtype: torch.dtype) -> None:
        self._layout_seeds, n = layout_seeds, len(layout_seeds)
        self._ended, self._length = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
        self._final = torch.zeros(n, observation_size, dtype=dtype).numpy()
        self._costs: dict[str, np.ndarray] = {}
        self._blocks: list[dict[str, np.ndarray]] = []

    @property
    def all_ended(self) -> bool:
        return bool(self._ended.all())

    def add(self, block: RolloutBuffer, c_forget: np.ndarray, costs: dict[str, np.ndarray]) -> None:
        """Keep a block of steps; steps after an episode's end become zero."""
        alive = ~np.logical_or.accumulate(np.vstack([self._ended, block.done]))[:-1]  # (T, N)
        kept = {name: getattr(block, name) for name in _KEPT} | {"c_forget": c_forget, "cost": costs[COST_SUM]}
        kept["observation"] = block.observation.astype(self._final.dtype)
        self._costs = {key: self._costs.get(key, 0.0) + (cost * alive).sum(0) for key, cost in costs.items()}
        self._blocks.append(
            {name: array * (alive if array.ndim == 2 else alive[..., None]) for name, array in kept.items()}
        )
        steps = alive.sum(0)
        rows = np.flatnonzero(steps)
        self._final[rows] = block.next_observation[steps[rows] - 1, rows]
        self._length += steps
        self._ended |= block.done.any(0)

    def episodes(self, scenes: list[TopView]) -> Episodes:
        """Return what was kept, cut at the end of the longest episode."""
        longest = int(self._length.max())
        whole = {
            name: np.concatenate([block[name].swapaxes(0, 1) for block in self._blocks], axis=1)[:, :longest]
            for name in self._blocks[0]
        }
        terminated, failed = (whole.pop(flag).any(1) for flag in ("terminated", "failed"))
        return Episodes(
            layout_seeds=self._layout_seeds,
            length=self._length,
            final_observation=self._final,
            terminated=terminated,
            failed=failed,
            scenes=scenes[:longest],
            costs=self._costs,
            unfinished=~self._ended,
            **whole,
        )
