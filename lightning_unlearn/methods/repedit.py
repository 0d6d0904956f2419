"""Representation editing: the expert's weights stay as they are, and a gated edit moves its latent off the concept."""

import warnings

import torch
from tensordict import TensorDict
from tqdm.auto import tqdm

from lightning_unlearn import keys
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.losses.editing import near_far
from lightning_unlearn.methods.base import (
    RolloutMethod,
    require_at_least,
    require_fraction,
    require_positive,
    rollout_metrics,
)
from lightning_unlearn.methods.editor_fit import DirectionName, EditOptions, EditorFit, Mode
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.latent_editor import GatedEditor

SMALLEST_OPEN_SHARE = 1e-3
SMALLEST_ACTION_MOVE = 1e-6
"""An edit below either of these does next to nothing, and says so."""
_LOUDER: dict[Mode, str] = {
    "static": "lower model.repedit_tau (or model.repedit_tau_quantile), or raise model.repedit_alpha",
    "trained": "name another model.direction, or raise model.buffer_steps",
}
"""What makes an edit do more."""


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
        repedit_tau: τ, the score from which on the edit acts; null: see the next two.
        repedit_use_artifact_tau: Take τ from the artifact.
        repedit_tau_quantile: Else τ is this quantile of the scores of calibration states that show the concept.
        calibration_steps: Stochastic steps of the expert that quantile and directions are fitted on.
        mode: `static` takes α and τ as given above; `trained` solves both from near and far states.
        direction: What d is: the `probe`'s; or a control with the same α, β and quantile: a `random` one, the probe's
            `flipped`, the `mean_difference`; or `leace`, an affine erasure in place of the gated edit.
        buffer_steps: Steps of the expert that `trained` is solved on.
        near_window: Steps to the concept within which a state counts as near; beyond, in both directions, as far.
        lr: Of the published command, as the next three; the policy is frozen, so they change nothing.
        ent_coef: Changes nothing.
        ppo_epochs: Changes nothing.
        batch_size: Changes nothing.
        seed: The run's seed.
    """

    score_direction: torch.Tensor

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
        lr: float = 3e-4,
        ent_coef: float = 0.03,
        ppo_epochs: int = 6,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(_variant(method, mode, direction), source, unsafe_updates, seed)
        require_at_least(0, repedit_alpha=repedit_alpha)
        require_at_least(1, calibration_steps=calibration_steps, buffer_steps=buffer_steps, near_window=near_window)
        require_positive(repedit_beta=repedit_beta)
        require_fraction(repedit_tau_quantile=repedit_tau_quantile)
        self.options = EditOptions(
            repedit_artifact,
            repedit_alpha,
            repedit_beta,
            repedit_tau,
            repedit_use_artifact_tau,
            repedit_tau_quantile,
            mode,
            direction,
            calibration_steps,
            buffer_steps,
            near_window,
        )
        self._told = False

    def build(self, env: BatchedEnv) -> None:
        """Load the expert, make the editor and put it in; does nothing the second time.

        Raises:
            ValueError: The expert, the artifact or the calibration do not allow the edit that is asked for.
        """
        if hasattr(self, "policy"):
            return
        super().build(env)
        _require_unedited(self.policy, str(self.source_uri))
        fit = EditorFit(self.options, self.policy, env, self.seed)
        self.policy = self.policy.with_editor(fit.editor).requires_grad_(False)
        self.register_buffer("score_direction", fit.direction)
        self.note = fit.note
        print(self.note)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """None: nothing is trained."""
        return []

    def training_step(self, batch: TensorDict, batch_idx: int) -> None:
        """Measure one rollout of the edited policy."""
        following = batch[keys.NEXT]
        near, far = near_far(
            following[keys.C_FORGET][..., 0] > 0, following[keys.DONE][..., 0], self.options.near_window
        )
        observation = batch[keys.OBSERVATION].flatten(0, 1)  # (B, O)
        effect = edit_effect(self.policy, observation, self.score_direction)
        metrics = effect_metrics(effect, {"near": near.flatten(), "far": far.flatten()}) | self._strength()
        self.log_dict(
            {"step": float(self.env_steps), **rollout_metrics(batch), **metrics},
            batch_size=batch.numel(),
        )
        if not self._told:
            self._told = True
            tqdm.write(effect_message(metrics))
            if message := idle_message(self.policy, effect, self.options.mode):
                warnings.warn(message, stacklevel=2)

    def _strength(self) -> dict[str, torch.Tensor]:
        editor = self.policy.editor
        names = ("alpha", "tau", "beta") if isinstance(editor, GatedEditor) else ()
        return {f"repedit/{name}": getattr(editor, name) for name in names}


@torch.no_grad()
def edit_effect(
    policy: ActorCritic, observation: torch.Tensor, score_direction: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What a policy's editor does at each of N states. Shapes: (N, O), (H,) → a dict of (N,).

    `score_before` and `score_after` along the direction; `latent_shift` ‖z' − z‖; `action_move`, the mean and
    `action_move_max`, the largest over action components of |action edited − action raw|, deterministic ones; and of a
    gated editor `gate_open` (1 where g > ½) and `suppression`.
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
    """Means over each group of states; spread and 90th percentile of scores, and the largest action move of any.

    Args:
        effect: From `edit_effect`, (N,) each.
        groups: Name → which states, (N,) bool. An empty group has no metrics but its share.
    """
    metrics: dict[str, torch.Tensor] = {}
    for group, member in groups.items():
        metrics[f"repedit/share_{group}"] = member.float().mean()
        if not member.any():
            continue
        for name, values in effect.items():
            metrics |= {f"repedit/{key}_{group}": value for key, value in _statistics(name, values[member]).items()}
    return metrics


def effect_message(metrics: dict[str, torch.Tensor]) -> str:
    """The mean scores near the concept and far from it, before the edit and after it, from `effect_metrics`."""
    parts = []
    for group in ("near", "far"):
        if f"repedit/score_before_mean_{group}" in metrics:
            before, after = (float(metrics[f"repedit/score_{when}_mean_{group}"]) for when in ("before", "after"))
            gate = metrics.get(f"repedit/gate_open_{group}")
            opened = "" if gate is None else f" (gate open in {float(gate):.0%})"
            parts.append(f"{group} {before:.4g} → {after:.4g}{opened}")
    return f"Mean score of states, before → after the edit: {', '.join(parts)}."


def idle_message(policy: ActorCritic, effect: dict[str, torch.Tensor], mode: Mode) -> str:
    """What to say of an edit that does next to nothing; empty if it does something."""
    editor, move = policy.editor, float(effect["action_move_max"].max())
    open_share = float(effect["gate_open"].mean()) if "gate_open" in effect else 1.0
    if open_share >= SMALLEST_OPEN_SHARE and move >= SMALLEST_ACTION_MOVE:
        return ""
    told = f"The edit does next to nothing: no action moves by more than {move:.1e}"
    if not isinstance(editor, GatedEditor):
        return f"{told}. Choose another model.direction than leace."
    alpha, tau, highest = float(editor.alpha), float(editor.tau), float(effect["score_before"].max())
    return (
        f"{told}, and the gate is open in {open_share:.2%} of the states. The highest score is {highest:.4g} against "
        f"tau={tau:.4g}, alpha={alpha:.4g}: {_LOUDER[mode]}."
    )


def _statistics(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    if name == "action_move_max":
        return {name: values.max()}
    if name.startswith("score"):
        percentile = values.quantile(0.9)
        return {f"{name}_mean": values.mean(), f"{name}_std": values.std(correction=0), f"{name}_p90": percentile}
    return {name: values.mean()}


def _require_unedited(policy: ActorCritic, source: str) -> None:
    if policy.editor is not None:
        raise ValueError(f"model.source={source} has an editor already: name the expert that it was made from.")


def _variant(method: str, mode: Mode, direction: DirectionName) -> str:
    """Name a model is registered under: controls and the trained mode must not pass for the published edit."""
    marks = [mark for mark, usual in ((mode, "static"), (direction, "probe")) if mark != usual]
    return "_".join([method, *marks])
