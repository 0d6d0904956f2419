"""Making a latent editor for a frozen policy: where its direction, τ and α come from.

Shapes: E environments, T steps of each, N = E·T states, H latent size.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from lightning_unlearn import keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.losses import directions
from lightning_unlearn.losses.editing import near_far, quantile_tau, solve_strength
from lightning_unlearn.losses.erasure import leace
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.latent_editor import AffineEditor, Direction, Editor, GatedEditor, load_direction
from lightning_unlearn.seeding import SeedStreams, torch_generator, training_seeds
from lightning_unlearn.tracking import runs

Mode = Literal["static", "trained"]
DirectionName = Literal["probe", "random", "flipped", "mean_difference", "leace"]


@dataclass(frozen=True)
class EditOptions:
    """What the edit is to be: the options that `RepEdit` documents, less their prefix."""

    artifact: str | None
    alpha: float
    beta: float
    tau: float | None
    use_artifact_tau: bool
    tau_quantile: float
    mode: Mode
    direction: DirectionName
    calibration_steps: int
    buffer_steps: int
    near_window: int

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.use_artifact_tau and self.tau is None and (self.artifact is None or self.direction != "probe"):
            raise ValueError(
                "model.repedit_use_artifact_tau=true needs the artifact that holds it: name it with "
                "model.repedit_artifact and keep model.direction=probe, or leave the option out for a quantile."
            )
        if self.mode == "trained" and (self.direction == "leace" or self.tau is not None or self.use_artifact_tau):
            raise ValueError(
                "model.mode=trained solves alpha and tau of a gated edit: leave out model.repedit_tau, "
                "model.repedit_use_artifact_tau and model.direction=leace, or use model.mode=static."
            )

    @property
    def steps(self) -> int:
        """Expert steps that the edit is fitted on."""
        return self.buffer_steps if self.mode == "trained" else self.calibration_steps


@dataclass(frozen=True)
class Calibration:
    """What the expert met."""

    latents: torch.Tensor
    """Shape: (N, H)."""
    c_forget: torch.Tensor
    """Shape: (E, T), bool."""
    done: torch.Tensor
    """Shape: (E, T), bool."""

    @property
    def labels(self) -> torch.Tensor:
        """True where the step that starts in the state shows the concept. Shape: (N,), bool."""
        return self.c_forget.flatten()


def calibrate(env: BatchedEnv, policy: ActorCritic, steps: int, seed: int) -> Calibration:
    """Roll the stochastic policy for at least `steps` steps, on streams of their own.

    The environments are the training's; they are seeded for it anew afterwards.
    """
    environments, noise = SeedStreams.of(seed).calibration.spawn(2)
    env.seed_environments(training_seeds(environments, env.num_envs))
    horizon = -(-steps // env.num_envs)
    batch = RolloutCollector(env, policy, horizon, torch_generator(noise)).rollout()
    env.seed_environments(training_seeds(SeedStreams.of(seed).environments, env.num_envs))
    with torch.no_grad():
        latents = policy.latent(batch[keys.OBSERVATION].flatten(0, 1))  # (N, H)
    following = batch[keys.NEXT]
    return Calibration(latents, following[keys.C_FORGET][..., 0] > 0, following[keys.DONE][..., 0].clone())


class EditorFit:
    """One editor in the making. What it was made from ends up in `note`.

    Args:
        options: What it is to be.
        expert: The frozen policy, without an editor.
        env: Where the expert is rolled, if need be.
        seed: The run's seed.

    Raises:
        ValueError: The artifact is missing, of another latent size, all zeros, or without the τ that is asked for.
    """

    def __init__(self, options: EditOptions, expert: ActorCritic, env: BatchedEnv, seed: int) -> None:
        self.options, self.expert, self.env, self.seed = options, expert, env, seed
        self.artifact: Direction | None = None
        if options.artifact is not None:
            with runs.local_file(options.artifact) as path:
                self.artifact = load_direction(path, expert.config.latent_size)
        self._random = torch_generator(SeedStreams.of(seed).calibration.spawn(3)[2])

    @cached_property
    def calibration(self) -> Calibration:
        """The expert's steps, rolled at first need."""
        print(f"Rolling the frozen expert for {self.options.steps} steps to fit the edit.")
        return calibrate(self.env, self.expert, self.options.steps, self.seed)

    @cached_property
    def editor(self) -> Editor:
        """The editor."""
        if self.options.direction == "leace":
            self._require_both_classes()
            return AffineEditor(*leace(self.calibration.latents, self.calibration.labels))
        alpha, tau = self._solved() if self.options.mode == "trained" else (self.options.alpha, self._tau())
        return GatedEditor(self.direction, alpha, tau, self.options.beta)

    @cached_property
    def direction(self) -> torch.Tensor:
        """The unit direction that scores are read along; for LEACE the mean difference, which it removes. (H,)."""
        name = self.options.direction
        if name == "random":
            return directions.random_direction(self.expert.config.latent_size, self._random)
        if name == "probe":
            return self._probe
        if name == "flipped":
            return directions.flipped(self._probe)
        self._require_both_classes()
        return directions.mean_difference(self.calibration.latents, self.calibration.labels)

    @property
    def note(self) -> str:
        """How the editor was made, in one line."""
        parts = [f"direction {self.options.direction}{self._direction_origin()}"]
        if isinstance(self.editor, GatedEditor):
            parts += [f"{name} {float(getattr(self.editor, name)):.4g}" for name in ("alpha", "beta", "tau")]
            parts[-1] += f" ({self._tau_origin()})"
        return f"{self.options.mode} edit: " + ", ".join(parts)

    @cached_property
    def _probe(self) -> torch.Tensor:
        if self.artifact is not None:
            return self.artifact.vector
        self._require_both_classes()
        return directions.probe_direction(self.calibration.latents, self.calibration.labels).vector

    @cached_property
    def _scores(self) -> torch.Tensor:
        return self.calibration.latents @ self.direction  # (N,)

    def _tau(self) -> float:
        options = self.options
        if options.tau is not None:
            return options.tau
        if options.use_artifact_tau and self.artifact is not None:
            return self._artifact_tau(self.artifact)
        return quantile_tau(self._scores, self.calibration.labels, options.tau_quantile)

    def _artifact_tau(self, artifact: Direction) -> float:
        if artifact.tau is None:
            raise ValueError(
                f"model.repedit_use_artifact_tau=true, but {self.options.artifact} holds no tau: export it with "
                "`probe export --include_tau`, or give model.repedit_tau or model.repedit_tau_quantile instead."
            )
        return artifact.tau

    def _solved(self) -> tuple[float, float]:
        near, far = near_far(self.calibration.c_forget, self.calibration.done, self.options.near_window)
        scores = self._scores.view_as(near)
        if not (near.any() and far.any()):
            raise ValueError(
                f"model.mode=trained needs states near the concept and far from it, but of {near.numel()} expert steps "
                f"{int(near.sum())} are near and {int(far.sum())} far: raise model.buffer_steps, change "
                f"model.near_window={self.options.near_window}, or use model.mode=static."
            )
        try:
            return solve_strength(scores[near], scores[far], self.options.beta, self._random)
        except ValueError as error:
            raise ValueError(
                f"model.mode=trained: {error} Raise model.buffer_steps={self.options.buffer_steps}, or name another "
                f"model.direction than {self.options.direction}."
            ) from error

    def _require_both_classes(self) -> None:
        try:
            directions.require_both_classes(self.calibration.latents, self.calibration.labels)
        except ValueError as error:
            option = "buffer_steps" if self.options.mode == "trained" else "calibration_steps"
            raise ValueError(
                f"model.direction={self.options.direction}: {error} Raise model.{option}="
                f"{getattr(self.options, option)}, or name another data.concept."
            ) from error

    def _direction_origin(self) -> str:
        if self.options.direction == "random":
            return ""
        if self.artifact is not None and self.options.direction in ("probe", "flipped"):
            return f" (from {self.options.artifact})"
        labels = self.calibration.labels
        return f" (fitted on {len(labels)} steps of the expert, {int(labels.sum())} of them C_forget)"

    def _tau_origin(self) -> str:
        if self.options.mode == "trained":
            return "solved"
        if self.options.tau is not None:
            return "given"
        return "of the artifact" if self.options.use_artifact_tau else f"quantile {self.options.tau_quantile}"
