"""Returns and costs of policies on the same layouts, and where a policy changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lightning_unlearn.audits.probe_data import LIDAR_DISTANCE, STEPS_DISTANCE, steps_until
from lightning_unlearn.collectors.episodes import Episodes, run_episodes
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concepts import COST_SUM, HAZARDS, Concept
from lightning_unlearn.losses.gaussian import Locality, gaussian_kl, locality
from lightning_unlearn.policies.actor_critic import ActorCritic

HAZARD_LIDAR = "hazards_lidar"


@dataclass(frozen=True)
class Evaluation:
    """A policy's episodes on the layout bank, and the environment's lidar that tells nearness."""

    episodes: Episodes
    hazards: slice | None
    """Where the hazard lidar is in an observation, if the task has one and hazards are the concept."""


def evaluate(
    policy: ActorCritic,
    env_id: str,
    layout_seeds: Sequence[int],
    *,
    concept: str | Concept = "auto",
    workers: int = 1,
    max_steps: int = 2000,
    keep_scenes: bool = False,
    label: str | None = None,
) -> Evaluation:
    """Run the deterministic policy once on every layout, all in one batch."""
    env = make_env(env_id, len(layout_seeds), concept, min(workers, len(layout_seeds)))
    try:
        return evaluate_in(env, policy, layout_seeds, max_steps=max_steps, keep_scenes=keep_scenes, label=label)
    finally:
        env.close()


def evaluate_in(
    env: BatchedEnv,
    policy: ActorCritic,
    layout_seeds: Sequence[int],
    *,
    max_steps: int = 2000,
    noise: torch.Generator | None = None,
    keep_scenes: bool = False,
    label: str | None = None,
) -> Evaluation:
    """The same in environments that are there already, one a layout; stochastic where `noise` is given."""
    episodes = run_episodes(
        env, policy, list(layout_seeds), max_steps=max_steps, noise=noise, keep_scenes=keep_scenes, label=label
    )
    return Evaluation(episodes, hazard_lidar(env))


def hazard_lidar(env: BatchedEnv) -> slice | None:
    """Where in an observation nearness to the concept is read: only hazards' lidar tells it, and only of hazards."""
    about_hazards = env.concept in (HAZARDS, COST_SUM)
    return env.simulator.observation_layout.get(HAZARD_LIDAR) if about_hazards else None


def distance_measure(env: BatchedEnv) -> str:
    """What nearness to the concept is read from."""
    return STEPS_DISTANCE if hazard_lidar(env) is None else LIDAR_DISTANCE


def per_episode(episodes: Episodes) -> pd.DataFrame:
    """One row an episode, with the columns of the published `per_episode.csv` first."""
    return pd.DataFrame(
        {
            "reward": episodes.episode_return,
            "cost_sum": episodes.episode_cost,
            "cforget_sum": episodes.episode_c_forget,
            "cforget_rate": episodes.episode_c_forget / episodes.length,
            "episode_length": episodes.length,
            "episode_idx": np.arange(len(episodes.length)),
            "layout_seed": episodes.layout_seeds,
            "goals": episodes.goal_met.sum(1),
            "simulator_failed": episodes.failed,
            "cut_at_max_steps": episodes.unfinished,
        }
        | {key: cost for key, cost in episodes.costs.items() if key != COST_SUM}
    )


def reference_states(evaluation: Evaluation, count: int = 5000) -> tuple[torch.Tensor, torch.Tensor]:
    """States of a policy's rollout, evenly spread over its episodes, with their distance to the concept.

    Args:
        evaluation: Of the reference policy.
        count: How many, or all there are.

    Returns:
        Observations (B, O), and of each (B,) 1 − max(hazard lidar); where the task has no such lidar, or something else
        is the concept, the steps until the next C_forget of the episode, infinite if none came.
    """
    episodes = evaluation.episodes
    states = episodes.observation[episodes.alive]
    chosen = np.linspace(0, len(states) - 1, min(count, len(states))).round().astype(np.int64)
    picked = torch.from_numpy(states[chosen])
    if evaluation.hazards is not None:
        return picked, 1.0 - picked[:, evaluation.hazards].amax(-1)
    return picked, torch.from_numpy(_steps_until_concept(episodes)[chosen])


@torch.inference_mode()
def policy_change(
    reference: ActorCritic, policy: ActorCritic, states: torch.Tensor, distance: torch.Tensor
) -> Locality:
    """KL(reference‖policy) of the Gaussians before tanh, mean over action components, near and far from the concept."""
    return locality(_kl(reference, policy, states), distance)


@torch.inference_mode()
def mean_change(reference: ActorCritic, policy: ActorCritic, states: torch.Tensor) -> float:
    """KL(reference‖policy) of the Gaussians before tanh, mean over states (B, O) and action components."""
    return float(_kl(reference, policy, states).mean())


def _kl(reference: ActorCritic, policy: ActorCritic, states: torch.Tensor) -> torch.Tensor:
    """Mean over action components. Shape: (B, O) → (B,)."""
    return gaussian_kl(reference.mean(states), reference.std, policy.mean(states), policy.std).mean(-1)


def _steps_until_concept(episodes: Episodes) -> np.ndarray:
    """Of every state of every episode, in order. Shape: (number of states,), float32."""
    ends = np.arange(episodes.reward.shape[1]) == episodes.length[:, None] - 1  # (N, L)
    return steps_until(episodes.c_forget.T > 0, ends.T).T[episodes.alive]
