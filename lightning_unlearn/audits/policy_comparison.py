"""Compare policies on the same layouts: episodes, and KL from the expert near the concept and far from it.

Shapes: B states, O observation size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lightning_unlearn.audits.audited_models import AuditedModel
from lightning_unlearn.audits.headline import LONGEST_STAY, longest_run
from lightning_unlearn.audits.probe_data import LIDAR_DISTANCE, STEPS_DISTANCE, steps_until
from lightning_unlearn.collectors.episodes import Episodes, run_episodes
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import concept_to_json
from lightning_unlearn.envs.concepts import COST_SUM, HAZARDS, Concept
from lightning_unlearn.losses.gaussian import Locality, gaussian_kl, locality
from lightning_unlearn.options import require_at_least
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, evaluation_layouts, torch_generator

if TYPE_CHECKING:  # matplotlib waits until something is drawn
    from lightning_unlearn.audits.videos import VideoOptions, VideoRecorder

HAZARD_LIDAR = "hazards_lidar"


@dataclass(frozen=True)
class Evaluation:
    """A policy's episodes on some layouts."""

    episodes: Episodes
    hazards: slice | None
    """Slice of the hazard lidar in an observation; None if the task has none, or the concept is not hazards."""


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
    """Run a policy in existing environments, one a layout; it is stochastic if `noise` is given."""
    episodes = run_episodes(
        env, policy, list(layout_seeds), max_steps=max_steps, noise=noise, keep_scenes=keep_scenes, label=label
    )
    return Evaluation(episodes, hazard_lidar(env))


def hazard_lidar(env: BatchedEnv) -> slice | None:
    """Slice of the hazard lidar in an observation; None if the task has none, or the concept is not hazards."""
    about_hazards = env.concept in (HAZARDS, COST_SUM)
    return env.simulator.observation_layout.get(HAZARD_LIDAR) if about_hazards else None


def distance_measure(env: BatchedEnv) -> str:
    """Name of the near/far distance measure."""
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
        evaluation: The reference policy's episodes.
        count: Number of states, at most.

    Returns:
        Observations, shape (B, O), and distances, shape (B,): 1 − max(hazard lidar), or without such a lidar the number
        of steps until the next C_forget of the episode, infinite if none came.
    """
    episodes = evaluation.episodes
    states = episodes.observation[episodes.alive]
    chosen = np.linspace(0, len(states) - 1, min(count, len(states))).round().astype(np.int64)
    picked = torch.from_numpy(states[chosen])
    if evaluation.hazards is not None:
        return picked, 1.0 - picked[:, evaluation.hazards].amax(-1)
    ends = np.arange(episodes.reward.shape[1]) == episodes.length[:, None] - 1  # (N, L)
    steps = steps_until(episodes.c_forget.T > 0, ends.T).T[episodes.alive]
    return picked, torch.from_numpy(steps[chosen])


@torch.inference_mode()
def policy_change(
    reference: ActorCritic, policy: ActorCritic, states: torch.Tensor, distance: torch.Tensor
) -> Locality:
    """KL(reference‖policy) of the Gaussians before tanh, mean over action components, near and far from the concept."""
    kl = gaussian_kl(reference.mean(states), reference.std, policy.mean(states), policy.std).mean(-1)  # (B,)
    return locality(kl, distance)


@dataclass(frozen=True)
class SuiteOptions:
    """Options of the policy suite, the same for every model."""

    env: str
    episodes: int = 50
    max_steps: int = 2000
    kl_states: int = 5000
    stochastic: bool = False
    video: "VideoOptions | None" = None
    """How videos are made; None: there are none."""
    concept: str | Concept = "auto"
    seed: int = 0
    """Seed of the stochastic policies' noise."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_at_least(1, max_steps=self.max_steps, kl_states=self.kl_states)
        evaluation_layouts(self.episodes)
        SeedStreams.of(self.seed)

    @property
    def layouts(self) -> list[int]:
        """Layout seed of each episode."""
        return evaluation_layouts(self.episodes)


@dataclass(frozen=True)
class Comparison:
    """A model with its references."""

    model: AuditedModel
    unsafe: AuditedModel
    oracle: AuditedModel | None


@dataclass(frozen=True)
class Result:
    """Episodes of a model, and its change from the references."""

    episodes: pd.DataFrame
    """From `per_episode`, with `longest_stay`."""
    change: dict[str, float | None]
    """KL_States, KL_vs_Unsafe, KL_Near_vs_Unsafe, KL_Far_vs_Unsafe, KL_Locality_Ratio_vs_Unsafe and KL_vs_OracleRef."""

    @property
    def content(self) -> dict[str, Any]:
        """The result as JSON keeps it."""
        return {"episodes": self.episodes.to_dict("list"), "change": self.change}

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "Result | None":
        """The result of such JSON; None if an older release wrote it."""
        if LONGEST_STAY not in content["episodes"]:
            return None
        lost = {place.removeprefix("change/"): float(kind) for place, kind in content.get("not_finite", {}).items()}
        return cls(pd.DataFrame(content["episodes"]), {k: lost.get(k, v) for k, v in content["change"].items()})


def settings(options: SuiteOptions, comparison: Comparison) -> dict[str, Any]:
    """Everything that a model's result depends on."""
    parts = {"subject": comparison.model, "unsafe": comparison.unsafe, "oracle": comparison.oracle}
    digests = {name: None if model is None else model.digest for name, model in parts.items()}
    same = asdict(options)
    video = same.pop("video")
    same["record_videos"] = video is not None
    if video is not None:
        same["video"] = video | {"formats": list(video["formats"])}
    return same | {"concept": concept_to_json(options.concept)} | digests


class Suite:
    """Evaluates one model after the other in the same environments.

    Args:
        env: One environment an episode.
        options: Options of the suite.
        videos: Writes videos and figures; None: there are none.
    """

    def __init__(self, env: BatchedEnv, options: SuiteOptions, videos: "VideoRecorder | None") -> None:
        self.env, self.options, self.videos = env, options, videos
        self._references: dict[str, Evaluation] = {}

    def examine(self, comparison: Comparison) -> Result:
        """Run a model's episodes, compare it with its references, and draw its video and figure."""
        model, reference = comparison.model, self._reference(comparison.unsafe)
        if self.options.stochastic:
            noise = torch_generator(SeedStreams.of(self.options.seed).evaluation)
            evaluation = self._run(model, noise, model.label)
        else:  # run once, if it is a reference too
            evaluation = self._references.get(model.digest) or self._run(model, None, model.label)
        if self.videos is not None:
            self._draw(comparison, reference, evaluation, self.videos)
        episodes = per_episode(evaluation.episodes)
        episodes[LONGEST_STAY] = longest_run(evaluation.episodes.c_forget > 0)
        return Result(episodes, self._change(comparison))

    def video_layout(self, unsafe: AuditedModel) -> int:
        """The layout that videos show: the one of the unsafe expert's median cost."""
        return self.options.layouts[median_episode(self._reference(unsafe))]

    def _draw(
        self, comparison: Comparison, reference: Evaluation, evaluation: Evaluation, videos: "VideoRecorder"
    ) -> None:
        from lightning_unlearn.audits.figures import save_png
        from lightning_unlearn.audits.top_view import before_after
        from lightning_unlearn.audits.videos import Shot

        model, unsafe, episode = comparison.model, comparison.unsafe, median_episode(reference)
        shots = [Shot(model.label, model.policy, evaluation.episodes, episode)]
        if model.digest != unsafe.digest:
            shots.insert(0, Shot(unsafe.label, unsafe.policy, reference.episodes, episode))
            if videos.has_map:
                figure = before_after(reference.episodes, evaluation.episodes, episode, (unsafe.label, model.label))
                save_png(figure, videos.folder / f"{model.label}.png")
        videos.write(model.label, shots)

    def _change(self, comparison: Comparison) -> dict[str, float | None]:
        policy, unsafe, oracle = comparison.model.policy, comparison.unsafe, comparison.oracle
        states, distance = reference_states(self._reference(unsafe), self.options.kl_states)
        found = policy_change(unsafe.policy, policy, states, distance)
        from_oracle = None
        if oracle is not None:
            visited = reference_states(self._reference(oracle), self.options.kl_states)
            from_oracle = policy_change(oracle.policy, policy, *visited).overall
        return {
            "KL_States": len(states),
            "KL_vs_Unsafe": found.overall,
            "KL_Near_vs_Unsafe": found.near,
            "KL_Far_vs_Unsafe": found.far,
            "KL_Locality_Ratio_vs_Unsafe": 1.0 if comparison.model.digest == unsafe.digest else found.ratio,
            "KL_vs_OracleRef": from_oracle,
        }

    def _reference(self, model: AuditedModel) -> Evaluation:
        """A reference's deterministic episodes, run once."""
        if model.digest not in self._references:
            self._references[model.digest] = self._run(model, None, f"{model.label} (reference)")
        return self._references[model.digest]

    def _run(self, model: AuditedModel, noise: torch.Generator | None, label: str) -> Evaluation:
        return evaluate_in(
            self.env,
            model.policy,
            self.options.layouts,
            max_steps=self.options.max_steps,
            noise=noise,
            keep_scenes=self.videos is not None and self.videos.has_map,
            label=label,
        )


def median_episode(evaluation: Evaluation) -> int:
    """Return the index of the episode of median cost, which videos show."""
    cost = evaluation.episodes.episode_cost
    return int(np.argsort(cost, kind="stable")[len(cost) // 2])
