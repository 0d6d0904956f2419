"""The PID-Lagrangian: moves the module's one float λ from each rollout's C_forget rate."""

import math
from dataclasses import replace
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.callbacks.concept_check import NothingToForgetError
from lightning_unlearn.losses.pid import Expert, PIDGains, PIDState, PIDTerms, pid_step, room_above

ENOUGH_STEPS = 4096
"""Of the expert, to tell from them that it keeps a limit."""
TARGET_COST = 0.03
"""Of the published recipes."""
_RECENT = 0.15
"""Share of a rollout's episodes in the running mean of returns."""


class PIDLagrangian(pl.Callback):
    """Sets `module.cost_weight` before the update that uses it. Every number but `cost_limit` is per step.

    It goes by what the environments `module.released_rows` show, in units of `module.cost_unit`: 1 or, where the method
    measures its expert, the expert's own rate of C_forget. λ stands still while the expert is watched. With a
    `return_floor`, what the update uses is λ·g with

    g = clip((R̂ − f·R_E)/(m·R_E), 0, 1),

    f the floor, m the margin, R_E the expert's mean return of an episode in training's first rollouts, and R̂ a running
    mean of those since: the nearer to the floor, the less the cost weighs, and the less λ rises. Where R_E is negative,
    its size counts: f·R_E is R_E − (1 − f)·|R_E|.

    Args:
        kp: Proportional gain.
        ki: Integral gain.
        kd: Derivative gain.
        target_cost: C_forget per step that is aimed at; null: 0.03, or what `cost_limit` makes of it.
        cost_limit: C_forget per episode that is not to be exceeded, in place of `target_cost`: what is aimed at is
            `limit_share` of it, divided by the mean length of the expert's episodes.
        limit_share: Below 1, so that episodes that training has not seen keep the limit, too.
        return_floor: Share of the expert's return below which the cost does not count; null: none.
        return_margin: Share of the expert's return above the floor from which on λ counts in full.
        lambda_init: λ before the first rollout; of the incremental form alone.
        lambda_max: λ never exceeds this.
        integral_max: The integral never exceeds this, in either direction.
        form: `incremental` (gains move λ) or `positional` (gains give λ; Stooke et al. 2020).
        smoothing: Share of the past in the smoothed error; of the positional form alone.
    """

    def __init__(
        self,
        kp: float,
        ki: float,
        kd: float,
        target_cost: float | None = None,
        lambda_init: float = 0.0,
        lambda_max: float = 200.0,
        integral_max: float = 5.0,
        form: Literal["incremental", "positional"] = "incremental",
        smoothing: float = 0.0,
        cost_limit: float | None = None,
        limit_share: float = 0.75,
        return_floor: float | None = None,
        return_margin: float = 0.07,
    ) -> None:
        _require_one_aim(target_cost, cost_limit)
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
        """Move λ from the rollout that the coming update learns from.

        Raises:
            ValueError: A limit or a floor is to be measured against an expert, and there is none.
            NothingToForgetError: The expert keeps the limit already.
        """
        if trainer.current_epoch < pl_module.expert_rollouts.stop - 1:
            return
        following = batch[pl_module.released_rows][keys.NEXT]
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
        pl_module.log_dict(self._metrics(terms, target, room), batch_size=batch.numel())

    def episode_limit(self, pl_module: Any) -> float:
        """C_forget of an episode that is not to be exceeded: `cost_limit`, or the target times the expert's length."""
        if self.cost_limit is not None:
            return self.cost_limit
        return self.gains.target * self._expert(pl_module).episode_length

    def state_dict(self) -> dict[str, Any]:
        """The controller's whole memory."""
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

    def _require_excess(self, expert: Expert) -> None:
        limit, shown = cast(float, self.cost_limit), expert.c_forget * expert.episode_length
        if expert.steps >= ENOUGH_STEPS and shown <= limit:
            raise NothingToForgetError(
                f"pid.cost_limit={limit:g}: the expert costs {shown:.1f} an episode in its first {expert.steps} steps, "
                "so that there is nothing to repair. Use a lower limit."
            )

    def _expert(self, pl_module: Any) -> Expert:
        expert: Expert | None = pl_module.measured
        if expert is None:
            raise ValueError(
                "pid.cost_limit and pid.return_floor are measured against an expert, and this method has none: "
                "set them to null and use pid.target_cost, or name a model.source."
            )
        return expert

    def _metrics(self, terms: PIDTerms, target: float, room: float) -> dict[str, float]:
        return {
            "lagrangian/lambda": self.state.cost_weight * room,
            "lagrangian/room": room,
            "lagrangian/target": target,
            "lagrangian/violation": terms.error,
            "lagrangian/proportional": terms.proportional,
            "lagrangian/integral": terms.integral,
            "lagrangian/derivative": terms.derivative,
        }


def _require_one_aim(target_cost: float | None, cost_limit: float | None) -> None:
    if target_cost is not None and cost_limit is not None:
        raise ValueError(
            f"pid.cost_limit={cost_limit} and pid.target_cost={target_cost} both say what is aimed at: set one to null."
        )


def _require_at_least_0(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 0.0 <= number < math.inf:
            raise ValueError(f"pid.{name}={number} is not possible: use a number of at least 0.")
