"""The policy suite: every model on the same layouts, and how it differs from the unsafe expert and the oracle."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lightning_unlearn.audits.drawing import save_png
from lightning_unlearn.audits.figures import before_after
from lightning_unlearn.audits.policy_suite import (
    Evaluation,
    distance_measure,
    evaluate_in,
    mean_change,
    per_episode,
    policy_change,
    reference_states,
)
from lightning_unlearn.audits.records import require_at_least
from lightning_unlearn.audits.subjects import Subject
from lightning_unlearn.audits.top_view import write_gif
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concept_config import concept_to_json
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, evaluation_layouts, torch_generator


@dataclass(frozen=True)
class SuiteOptions:
    """What is asked of every model."""

    env: str
    episodes: int = 50
    max_steps: int = 2000
    kl_states: int = 5000
    stochastic: bool = False
    record_videos: bool = False
    concept: str | Concept = "auto"
    seed: int = 0
    """Of the stochastic policies' noise."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_at_least(1, max_steps=self.max_steps, kl_states=self.kl_states)
        evaluation_layouts(self.episodes)
        SeedStreams.of(self.seed)

    @property
    def layouts(self) -> list[int]:
        """The layout of each episode."""
        return evaluation_layouts(self.episodes)


@dataclass(frozen=True)
class Comparison:
    """A model with the ones that it is compared with."""

    subject: Subject
    unsafe: Subject
    oracle: Subject | None


@dataclass(frozen=True)
class Result:
    """What was found about one model."""

    episodes: pd.DataFrame
    """As from `per_episode`."""
    change: dict[str, float | None]
    """KL_States, KL_vs_Unsafe, KL_Near_vs_Unsafe, KL_Far_vs_Unsafe, KL_Locality_Ratio_vs_Unsafe and KL_vs_OracleRef."""


class Suite:
    """Evaluates one model after the other in the same environments.

    Args:
        env: One environment an episode.
        options: What is asked.
        videos: Folder of the videos; none are drawn without it.
    """

    def __init__(self, env: BatchedEnv, options: SuiteOptions, videos: Path | None) -> None:
        self.env, self.options, self.videos = env, options, videos
        self._references: dict[str, Evaluation] = {}

    @property
    def distance_measure(self) -> str:
        """What nearness to the concept is read from."""
        return distance_measure(self.env)

    def examine(self, comparison: Comparison) -> Result:
        """Run a model's episodes, compare it with its references, and draw its video and what changed."""
        subject = comparison.subject
        reference = self._reference(comparison.unsafe)
        evaluation = self._evaluation(subject)
        if self.videos is not None:
            shown = _median_episode(reference)
            if subject.digest != comparison.unsafe.digest:
                pair, names = (reference.episodes, evaluation.episodes), (comparison.unsafe.label, subject.label)
                save_png(before_after(*pair, shown, names), self.videos / f"{subject.label}.png")
            write_gif(self.videos / f"{subject.label}.gif", evaluation.episodes, shown, subject.label)
        return Result(per_episode(evaluation.episodes), self._change(comparison))

    def video_layout(self, unsafe: Subject) -> int:
        """The layout that videos show: the one of the unsafe expert's median cost."""
        return self.options.layouts[_median_episode(self._reference(unsafe))]

    def _change(self, comparison: Comparison) -> dict[str, float | None]:
        policy, unsafe, oracle = comparison.subject.policy, comparison.unsafe, comparison.oracle
        states, distance = reference_states(self._reference(unsafe), self.options.kl_states)
        found = policy_change(unsafe.policy, policy, states, distance)
        itself = comparison.subject.digest == unsafe.digest
        return {
            "KL_States": len(states),
            "KL_vs_Unsafe": found.overall,
            "KL_Near_vs_Unsafe": found.near,
            "KL_Far_vs_Unsafe": found.far,
            "KL_Locality_Ratio_vs_Unsafe": 1.0 if itself else found.ratio,
            "KL_vs_OracleRef": None if oracle is None else self._change_from_oracle(oracle, policy),
        }

    def _change_from_oracle(self, oracle: Subject, policy: ActorCritic) -> float:
        states, _ = reference_states(self._reference(oracle), self.options.kl_states)
        return mean_change(oracle.policy, policy, states)

    def _reference(self, subject: Subject) -> Evaluation:
        """A reference's deterministic episodes, run once."""
        if subject.digest not in self._references:
            self._references[subject.digest] = self._run(subject, None, f"{subject.label} (reference)")
        return self._references[subject.digest]

    def _evaluation(self, subject: Subject) -> Evaluation:
        """A model's episodes; those it was a reference with, where they are the same."""
        if not self.options.stochastic:
            return self._references.get(subject.digest) or self._run(subject, None, subject.label)
        noise = torch_generator(SeedStreams.of(self.options.seed).evaluation)
        return self._run(subject, noise, subject.label)

    def _run(self, subject: Subject, noise: torch.Generator | None, label: str) -> Evaluation:
        return evaluate_in(
            self.env,
            subject.policy,
            self.options.layouts,
            max_steps=self.options.max_steps,
            noise=noise,
            keep_scenes=self.videos is not None,
            label=label,
        )


def settings(options: SuiteOptions, comparison: Comparison) -> dict[str, Any]:
    """All that a model's result depends on."""
    parts = {"subject": comparison.subject, "unsafe": comparison.unsafe, "oracle": comparison.oracle}
    return (
        asdict(options)
        | {"concept": concept_to_json(options.concept)}
        | {name: None if s is None else s.digest for name, s in parts.items()}
    )


def _median_episode(evaluation: Evaluation) -> int:
    cost = evaluation.episodes.episode_cost
    return int(np.argsort(cost, kind="stable")[len(cost) // 2])
