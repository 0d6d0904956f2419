"""PID-Lagrangian: the controller that moves λ after each rollout, from the rate of C_forget."""

import math
from dataclasses import replace
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.callbacks.expert import NothingToForgetError
from lightning_unlearn.losses.pid import ExpertMeasures, PIDGains, PIDState, pid_step, room_above

ENOUGH_STEPS = 4096
"""Fewest steps of the expert that show that it keeps a limit."""
TARGET_COST = 0.03
"""C_forget per step that the published recipes aim at."""
_RECENT = 0.15
"""Weight of a rollout's episodes in the running mean of returns."""


class PIDLagrangian(pl.Callback):
    """Sets `cost_weight` of a `LagrangianMethod` before the update that uses it.

    Rate and target are C_forget per step; the rate is measured in the environments `measured_envs`. The controller gets
    both divided by the method's `cost_unit`. λ moves for the first time after the last rollout in which the expert acts
    (`expert_rollouts`). With a `return_floor`, the update uses λ·g with

    g = clip((R̂ − R_E + (1 − f)·|R_E|)/(m·|R_E|), 0, 1),

    f the floor, m the margin, R_E the expert's mean episode return, and R̂ a running mean of episode returns since: near
    the floor, the cost weighs less and λ rises less.

    Args:
        kp: Proportional gain.
        ki: Integral gain.
        kd: Derivative gain.
        target_cost: C_forget per step to aim at; null: 0.03, or the target that follows from `cost_limit`.
        cost_limit: Most C_forget per episode, in place of `target_cost`: the target is `limit_share` of it, divided by
            the mean length of the expert's episodes.
        limit_share: Share of `cost_limit` to aim at; below 1, new episodes keep the limit, too.
        return_floor: Share of the expert's return below which the cost has no weight; null: none.
        return_margin: Share of the expert's return above the floor at which λ has its full weight.
        lambda_init: λ before the first rollout; only with the incremental form.
        lambda_max: Upper bound of λ.
        integral_max: Bound of the integral, in both directions.
        form: `incremental` (gains move λ) or `positional` (gains give λ; Stooke et al. 2020).
        smoothing: Share of the past in the smoothed error; only with the positional form.
    """

    def __init__(
        self,
        kp: float,
        ki: float,
        kd: float,
        target_cost: float | None = None,
        lambda_init: float = 0.0,
        lambda_max: float = PIDGains.lambda_max,
        integral_max: float = PIDGains.integral_max,
        form: Literal["incremental", "positional"] = PIDGains.form,
        smoothing: float = PIDGains.smoothing,
        cost_limit: float | None = None,
        limit_share: float = 0.85,
        return_floor: float | None = None,
        return_margin: float = 0.07,
    ) -> None:
        if target_cost is not None and cost_limit is not None:
            raise ValueError(
                f"pid.cost_limit={cost_limit} and pid.target_cost={target_cost} both say what is aimed at: set one to "
                "null."
            )
        _require_at_least_0(kp=kp, ki=ki, kd=kd, lambda_max=lambda_max)
        _require_at_least_0(
            limit_share=limit_share, target_cost=target_cost, cost_limit=cost_limit, return_floor=return_floor
        )
        if not 0.0 <= lambda_init <= lambda_max:
            raise ValueError(f"pid.lambda_init={lambda_init} must lie from 0 to pid.lambda_max={lambda_max}.")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"pid.smoothing={smoothing} is not possible: use a number from 0 up to, not including, 1.")
        if integral_max < 0.0:
            raise ValueError(f"pid.integral_max={integral_max} is not possible: use 0 or more.")
        if not 0.0 < return_margin < math.inf:
            raise ValueError(f"pid.return_margin={return_margin} is not possible: use a number above 0.")
        for other, name, number in (
            ("positional", "lambda_init", lambda_init),
            ("incremental", "smoothing", smoothing),
        ):
            if form == other and number:
                raise ValueError(f"pid.{name}={number} has no effect on the form {form}: set it to 0.")
        self.gains = PIDGains(
            kp, ki, kd, TARGET_COST if target_cost is None else target_cost, lambda_max, integral_max, form, smoothing
        )
        self.cost_limit, self.limit_share = cost_limit, limit_share
        self.return_floor, self.return_margin = return_floor, return_margin
        self.state = PIDState(lambda_init)
        self._recent_return: float | None = None

    @property
    def state_key(self) -> str:
        """One key whatever the gains, so that changed gains still find their state."""
        return "pid"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Move λ by the rollout of this update.

        Raises:
            ValueError: A limit or a floor is given, and the method has no expert.
            NothingToForgetError: The expert keeps the limit already.
        """
        if trainer.current_epoch < pl_module.expert_rollouts.stop - 1:
            return
        following = batch[pl_module.measured_envs][keys.NEXT]
        unit, target = pl_module.cost_unit, self.gains.target
        if self.cost_limit is not None:
            self._require_excess(self._expert(pl_module))
            target = self.limit_share * self.cost_limit / self._expert(pl_module).episode_length
        room = 1.0
        if self.return_floor is not None:
            returns = following[keys.EPISODE_RETURN][following[keys.DONE]]
            room = self._room(self._expert(pl_module).episode_return, returns)
        rate, before = float(following[keys.C_FORGET].mean()), self.state.cost_weight
        self.state, terms = pid_step(replace(self.gains, target=target / unit), self.state, rate / unit)
        if (rise := self.state.cost_weight - before) > 0.0:
            self.state = self.state._replace(cost_weight=before + room * rise)
        pl_module.cost_weight = self.state.cost_weight * room
        metrics = {
            "lagrangian/lambda": pl_module.cost_weight,
            "lagrangian/room": room,
            "lagrangian/target": target,
            "lagrangian/violation": terms.error,
            "lagrangian/proportional": terms.proportional,
            "lagrangian/integral": terms.integral,
            "lagrangian/derivative": terms.derivative,
        }
        pl_module.log_dict(metrics, batch_size=batch.numel())

    def episode_limit(self, pl_module: Any) -> float:
        """Most C_forget per episode: `cost_limit`, or the target times the mean length of the expert's episodes."""
        if self.cost_limit is not None:
            return self.cost_limit
        return self.gains.target * self._expert(pl_module).episode_length

    def state_dict(self) -> dict[str, Any]:
        """The state of the controller."""
        return {**self.state._asdict(), "recent_return": self._recent_return}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        memory = dict(state_dict)
        self._recent_return = memory.pop("recent_return", None)
        self.state = PIDState(**memory)

    def _room(self, expert_return: float, returns: torch.Tensor) -> float:
        recent = expert_return if self._recent_return is None else self._recent_return
        if len(returns):
            recent += _RECENT * (float(returns.mean()) - recent)
        self._recent_return = recent
        return room_above(recent, expert_return, cast(float, self.return_floor), self.return_margin)

    def _require_excess(self, expert: ExpertMeasures) -> None:
        limit, shown = cast(float, self.cost_limit), expert.c_forget * expert.episode_length
        if expert.steps >= ENOUGH_STEPS and shown <= limit:
            raise NothingToForgetError(
                f"pid.cost_limit={limit:g}: the expert costs {shown:.1f} an episode in its first {expert.steps} steps, "
                "so that there is nothing to repair. Use a lower limit."
            )

    def _expert(self, pl_module: Any) -> ExpertMeasures:
        expert: ExpertMeasures | None = pl_module.expert_measures
        if expert is None:
            raise ValueError(
                "pid.cost_limit and pid.return_floor are measured against an expert, and this method has none: "
                "set them to null and use pid.target_cost, or name a model.source."
            )
        return expert


def _require_at_least_0(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 0.0 <= number < math.inf:
            raise ValueError(f"pid.{name}={number} is not possible: use a number of at least 0.")
