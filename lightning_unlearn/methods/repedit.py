"""Representation editing: a gated edit moves the latent of a frozen expert away from the concept.

Shapes: E environments, T steps of each, N = E·T states, O observation size, H latent size.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from tensordict import TensorDict
from tqdm.auto import tqdm

from lightning_unlearn import keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.losses import latent_directions
from lightning_unlearn.losses.latent_directions import near_far, quantile_tau, solve_strength
from lightning_unlearn.methods.base import (
    RolloutMethod,
    require_at_least,
    require_fraction,
    require_positive,
    rollout_metrics,
)
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.latent_editor import AffineEditor, Direction, Editor, GatedEditor, load_direction
from lightning_unlearn.seeding import SeedStreams, torch_generator, training_seeds
from lightning_unlearn.tracking import runs

Mode = Literal["static", "trained"]
DirectionName = Literal["probe", "random", "flipped", "mean_difference", "leace"]
SMALLEST_OPEN_SHARE = 1e-3
SMALLEST_ACTION_MOVE = 1e-6
"""An edit below either of these has next to no effect; `idle_message` reports it."""
_REMEDIES: dict[Mode, str] = {
    "static": "lower model.repedit_tau (or model.repedit_tau_quantile), or raise model.repedit_alpha",
    "trained": "name another model.direction, or raise model.buffer_steps",
}


class RepEdit(RolloutMethod):
    """Edits the latent of a frozen expert; every update is a rollout of the edited policy that is only measured.

    z' = z − α·g·relu(s − τ)·d with s = z·d and g = sigmoid(β(s − τ)), for a unit direction d.

    Args:
        method: Name the models are registered under.
        source: The expert: `auto` (the unsafe one of the same environment, of the same seed if the store has it, else
            the shipped one), or a model URI or file.
        unsafe_updates: Updates that the unsafe expert was trained for; only moves the origin of `env_steps`.
        repedit_artifact: File with the probe's direction (`probe export`), on disk or of a run
            (`runs:/<run id>/probes/hazard_direction.pt`); null: a probe is fitted on the calibration.
        repedit_alpha: α, strength of the edit; `trained` solves it.
        repedit_beta: β, steepness of the gate.
        repedit_tau: τ, the score above which the edit acts; null: see the next two.
        repedit_use_artifact_tau: Take τ from the artifact.
        repedit_tau_quantile: Else τ is this quantile of the scores of calibration states that show the concept.
        calibration_steps: Stochastic steps of the expert that quantile and directions are fitted on.
        mode: `static` takes α and τ as given above; `trained` solves both from near and far states.
        direction: d: the `probe`'s; or a control with the same α, β and quantile: a `random` one, the probe's
            `flipped`, the `mean_difference`; or `leace`, an affine erasure in place of the gated edit.
        buffer_steps: Steps of the expert that `trained` is solved on.
        near_window: A state is near within this many steps before the concept, and far beyond it in both directions.
        seed: The run's seed.
    """

    score_direction: torch.Tensor
    """The unit direction that scores are read along; for LEACE the mean difference, which it removes. Shape: (H,)."""

    def __init__(
        self,
        method: str = "repedit",
        source: str = "auto",
        unsafe_updates: int = 300,
        repedit_artifact: str | None = None,
        repedit_alpha: float = 1.5,
        repedit_beta: float = 10.0,
        repedit_tau: float | None = None,
        repedit_use_artifact_tau: bool = False,
        repedit_tau_quantile: float = 0.8,
        calibration_steps: int = 5000,
        mode: Mode = "static",
        direction: DirectionName = "probe",
        buffer_steps: int = 50_000,
        near_window: int = 20,
        seed: int = 0,
    ) -> None:
        # controls and the trained mode get names of their own: they must not pass for the published edit
        variants = [name for name, usual in ((mode, "static"), (direction, "probe")) if name != usual]
        super().__init__("_".join([method, *variants]), source, unsafe_updates, seed)
        require_at_least(0, repedit_alpha=repedit_alpha)
        require_at_least(1, calibration_steps=calibration_steps, buffer_steps=buffer_steps, near_window=near_window)
        require_positive(repedit_beta=repedit_beta)
        require_fraction(repedit_tau_quantile=repedit_tau_quantile)
        self.artifact, self.mode, self.direction, self.near_window = repedit_artifact, mode, direction, near_window
        self.alpha, self.beta, self.tau = repedit_alpha, repedit_beta, repedit_tau
        self.use_artifact_tau, self.tau_quantile = repedit_use_artifact_tau, repedit_tau_quantile
        self.calibration_steps, self.buffer_steps = calibration_steps, buffer_steps
        needs_artifact = repedit_use_artifact_tau and repedit_tau is None
        if needs_artifact and (repedit_artifact is None or direction != "probe"):
            raise ValueError(
                "model.repedit_use_artifact_tau=true needs the artifact that holds it: name it with "
                "model.repedit_artifact and keep model.direction=probe, or leave the option out for a quantile."
            )
        if mode == "trained" and (direction == "leace" or repedit_tau is not None or repedit_use_artifact_tau):
            raise ValueError(
                "model.mode=trained solves alpha and tau of a gated edit: leave out model.repedit_tau, "
                "model.repedit_use_artifact_tau and model.direction=leace, or use model.mode=static."
            )
        self._artifact: Direction | None = None
        self._random = torch_generator(SeedStreams.of(seed).calibration.spawn(3)[2])
        self._is_reported = False

    def build(self, data: RolloutData, policy: ActorCritic | None = None) -> None:
        """Load the expert, fit the editor and put it into the policy.

        Raises:
            ValueError: The expert has an editor; the artifact is missing, of another latent size, all zeros, or without
                the τ asked for; or the calibration does not show the concept.
        """
        super().build(data, policy)
        if self.policy.editor is not None:
            raise ValueError(
                f"model.source={self.source_uri} has an editor already: name the expert that it was made from."
            )
        if self.artifact is not None:
            with runs.local_file(self.artifact) as path:
                self._artifact = load_direction(path, self.policy.config.latent_size)
        editor: Editor
        if self.direction == "leace":
            self._require_both_classes()
            editor = AffineEditor(*latent_directions.leace(self._calibration.latents, self._calibration.labels))
        else:
            alpha, tau = self._solved_strength() if self.mode == "trained" else (self.alpha, self._static_tau())
            editor = GatedEditor(self._unit_direction, alpha, tau, self.beta)
        self.register_buffer("score_direction", self._unit_direction)
        self.note = self._description(editor)
        self.policy = self.policy.with_editor(editor).requires_grad_(False)
        print(self.note)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """No optimizer: nothing is trained."""
        return []

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Measure one rollout of the edited policy. Batch shape: (E, T)."""
        following = batch[keys.NEXT]
        near, far = near_far(following[keys.C_FORGET][..., 0] > 0, following[keys.DONE][..., 0], self.near_window)
        effect = edit_effect(self.policy, batch[keys.OBSERVATION].flatten(0, 1), self.score_direction)
        metrics = effect_metrics(effect, {"near": near.flatten(), "far": far.flatten()})
        if isinstance(editor := self.policy.editor, GatedEditor):
            metrics |= {f"repedit/{name}": getattr(editor, name) for name in ("alpha", "tau", "beta")}
        self.log_dict(
            {"step": float(self.env_steps), **rollout_metrics(batch), **metrics},
            batch_size=batch.numel(),
        )
        if not self._is_reported:
            self._is_reported = True
            tqdm.write(effect_message(metrics))
            if message := idle_message(self.policy, effect, self.mode):
                warnings.warn(message, stacklevel=2)

    @cached_property
    def _calibration(self) -> "Calibration":
        steps = self.buffer_steps if self.mode == "trained" else self.calibration_steps
        print(f"Rolling the frozen expert for {steps} steps to fit the edit.")
        return calibrate(self.data.env, self.policy, steps, self.seed)

    @cached_property
    def _unit_direction(self) -> torch.Tensor:
        if self.direction == "random":
            return latent_directions.random_direction(self.policy.config.latent_size, self._random)
        if self.direction in ("probe", "flipped"):
            return self._probe_direction() if self.direction == "probe" else -self._probe_direction()
        self._require_both_classes()
        return latent_directions.mean_difference(self._calibration.latents, self._calibration.labels)

    def _probe_direction(self) -> torch.Tensor:
        if self._artifact is not None:
            return self._artifact.vector
        self._require_both_classes()
        return latent_directions.probe_direction(self._calibration.latents, self._calibration.labels).vector

    def _static_tau(self) -> float:
        if self.tau is not None:
            return self.tau
        if not self.use_artifact_tau or self._artifact is None:
            scores = self._calibration.latents @ self._unit_direction  # (N,)
            return quantile_tau(scores, self._calibration.labels, self.tau_quantile)
        if self._artifact.tau is None:
            raise ValueError(
                f"model.repedit_use_artifact_tau=true, but {self.artifact} holds no tau: export it with "
                "`probe export --include_tau`, or give model.repedit_tau or model.repedit_tau_quantile instead."
            )
        return self._artifact.tau

    def _solved_strength(self) -> tuple[float, float]:
        near, far = near_far(self._calibration.c_forget, self._calibration.done, self.near_window)
        scores = (self._calibration.latents @ self._unit_direction).view_as(near)
        if not (near.any() and far.any()):
            raise ValueError(
                f"model.mode=trained needs states near the concept and far from it, but of {near.numel()} expert steps "
                f"{int(near.sum())} are near and {int(far.sum())} far: raise model.buffer_steps, change "
                f"model.near_window={self.near_window}, or use model.mode=static."
            )
        try:
            return solve_strength(scores[near], scores[far], self.beta, self._random)
        except ValueError as error:
            raise ValueError(
                f"model.mode=trained: {error} Raise model.buffer_steps={self.buffer_steps}, or name another "
                f"model.direction than {self.direction}."
            ) from error

    def _require_both_classes(self) -> None:
        try:
            latent_directions.require_both_classes(self._calibration.latents, self._calibration.labels)
        except ValueError as error:
            option = "buffer_steps" if self.mode == "trained" else "calibration_steps"
            raise ValueError(
                f"model.direction={self.direction}: {error} Raise model.{option}={getattr(self, option)}, or name "
                "another data.concept."
            ) from error

    def _description(self, editor: Editor) -> str:
        """How the editor was made, in one line."""
        direction = f"direction {self.direction}"
        if self._artifact is not None and self.direction in ("probe", "flipped"):
            direction += f" (from {self.artifact})"
        elif self.direction != "random":
            labels = self._calibration.labels
            direction += f" (fitted on {len(labels)} steps of the expert, {int(labels.sum())} of them C_forget)"
        if not isinstance(editor, GatedEditor):
            return f"{self.mode} edit: {direction}"
        if self.mode == "trained":
            origin = "solved"
        elif self.tau is not None:
            origin = "given"
        else:
            origin = "of the artifact" if self.use_artifact_tau else f"quantile {self.tau_quantile}"
        alpha, beta, tau = (f"{name} {float(getattr(editor, name)):.4g}" for name in ("alpha", "beta", "tau"))
        return f"{self.mode} edit: {direction}, {alpha}, {beta}, {tau} ({origin})"


@dataclass(frozen=True)
class Calibration:
    """Steps of the expert that an edit is fitted on."""

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
    """Roll the stochastic policy for at least `steps` steps, on random streams of their own.

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


@torch.no_grad()
def edit_effect(
    policy: ActorCritic, observation: torch.Tensor, score_direction: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Measure the effect of a policy's editor at each of N states. Shapes: (N, O), (H,) → a dict of (N,).

    `score_before` and `score_after` along the direction; `latent_shift` ‖z' − z‖; `action_move` and `action_move_max`,
    mean and maximum over action components of |action edited − action raw|, both deterministic; and for a gated editor
    `gate_open` (1 where g > ½) and `suppression`.
    """
    editor, raw = policy.editor, policy.latent(observation)
    if editor is None:
        raise ValueError("the policy has no editor whose effect could be measured.")
    edited = editor(raw)
    move = (policy.squash(policy.action_mean(edited)) - policy.squash(policy.action_mean(raw))).abs()  # (N, A)
    effect = {
        "score_before": raw @ score_direction,
        "score_after": edited @ score_direction,
        "latent_shift": (edited - raw).norm(dim=-1),
        "action_move": move.mean(-1),
        "action_move_max": move.amax(-1),
    }
    if isinstance(editor, GatedEditor):
        effect |= {"gate_open": (editor.gate(raw) > 0.5).float(), "suppression": editor.suppression(raw)}
    return effect


def effect_metrics(effect: dict[str, torch.Tensor], groups: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means over each group of states; of scores also spread and 90th percentile, of the action move the maximum.

    Args:
        effect: From `edit_effect`, (N,) each.
        groups: Name → members, (N,) bool. An empty group has no metrics but its share.
    """
    metrics: dict[str, torch.Tensor] = {}
    for group, member in groups.items():
        metrics[f"repedit/share_{group}"] = member.float().mean()
        if not member.any():
            continue
        for name, every in effect.items():
            values = every[member]
            if name == "action_move_max":
                found = {name: values.max()}
            elif name.startswith("score"):
                spread, percentile = values.std(correction=0), values.quantile(0.9)
                found = {f"{name}_mean": values.mean(), f"{name}_std": spread, f"{name}_p90": percentile}
            else:
                found = {name: values.mean()}
            metrics |= {f"repedit/{key}_{group}": value for key, value in found.items()}
    return metrics


def effect_message(metrics: dict[str, torch.Tensor]) -> str:
    """Report the mean scores near the concept and far from it, before and after the edit, from `effect_metrics`."""
    parts = []
    for group in ("near", "far"):
        if f"repedit/score_before_mean_{group}" in metrics:
            before, after = (float(metrics[f"repedit/score_{when}_mean_{group}"]) for when in ("before", "after"))
            gate = metrics.get(f"repedit/gate_open_{group}")
            opened = "" if gate is None else f" (gate open in {float(gate):.0%})"
            parts.append(f"{group} {before:.4g} → {after:.4g}{opened}")
    return f"Mean score of states, before → after the edit: {', '.join(parts)}."


def idle_message(policy: ActorCritic, effect: dict[str, torch.Tensor], mode: Mode) -> str:
    """Return a warning if the edit has next to no effect, with a remedy; else an empty string."""
    editor, move = policy.editor, float(effect["action_move_max"].max())
    open_share = float(effect["gate_open"].mean()) if "gate_open" in effect else 1.0
    if open_share >= SMALLEST_OPEN_SHARE and move >= SMALLEST_ACTION_MOVE:
        return ""
    message = f"The edit does next to nothing: no action moves by more than {move:.1e}"
    if not isinstance(editor, GatedEditor):
        return f"{message}. Choose another model.direction than leace."
    alpha, tau, highest = float(editor.alpha), float(editor.tau), float(effect["score_before"].max())
    return (
        f"{message}, and the gate is open in {open_share:.2%} of the states. The highest score is {highest:.4g} "
        f"against tau={tau:.4g}, alpha={alpha:.4g}: {_REMEDIES[mode]}."
    )
