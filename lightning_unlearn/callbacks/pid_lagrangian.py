"""The PID-Lagrangian: moves the module's one float λ from each rollout's C_forget rate."""

import math
from typing import Any, Literal

import lightning.pytorch as pl
from tensordict import TensorDict

from lightning_unlearn import keys
from lightning_unlearn.objectives.pid import PIDGains, PIDState, PIDTerms, pid_step


class PIDLagrangian(pl.Callback):
    """Sets `module.cost_weight` before the update that uses it. Every number is per step, not per episode.

    Args:
        kp: Proportional gain.
        ki: Integral gain.
        kd: Derivative gain.
        target_cost: C_forget per step that is aimed at.
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
        target_cost: float = 0.03,
        lambda_init: float = 0.0,
        lambda_max: float = 200.0,
        integral_max: float = 5.0,
        form: Literal["incremental", "positional"] = "incremental",
        smoothing: float = 0.0,
    ) -> None:
        gains = {"kp": kp, "ki": ki, "kd": kd}
        for name, number in (gains | {"target_cost": target_cost, "lambda_max": lambda_max}).items():
            if not 0.0 <= number < math.inf:
                raise ValueError(f"pid.{name}={number} is not possible: use a number of at least 0.")
        if not 0.0 <= lambda_init <= lambda_max:
            raise ValueError(f"pid.lambda_init={lambda_init} must lie from 0 to pid.lambda_max={lambda_max}.")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"pid.smoothing={smoothing} is not possible: use a number from 0 up to, not including, 1.")
        for other, name, number in (
            ("positional", "lambda_init", lambda_init),
            ("incremental", "smoothing", smoothing),
        ):
            if form == other and number:
                raise ValueError(f"pid.{name}={number} has no effect on the form {form}: set it to 0.")
        if integral_max < 0.0:
            raise ValueError(f"pid.integral_max={integral_max} is not possible: use 0 or more.")
        self.gains = PIDGains(kp, ki, kd, target_cost, lambda_max, integral_max, form, smoothing)
        self.state = PIDState(lambda_init)

    @property
    def state_key(self) -> str:
        """One key whatever the gains, so that changed gains still find their state."""
        return "pid"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: TensorDict, batch_idx: int) -> None:
        """Move λ from the rollout that the coming update learns from."""
        rate = float(batch[keys.NEXT, keys.C_FORGET].mean())
        self.state, terms = pid_step(self.gains, self.state, rate)
        pl_module.cost_weight = self.state.cost_weight
        pl_module.log_dict(self._metrics(terms), batch_size=batch.numel())

    def state_dict(self) -> dict[str, Any]:
        """The controller's whole memory."""
        return self.state._asdict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.state = PIDState(**state_dict)

    def _metrics(self, terms: PIDTerms) -> dict[str, float]:
        return {
            "lagrangian/lambda": self.state.cost_weight,
            "lagrangian/target": self.gains.target,
            "lagrangian/violation": terms.error,
            "lagrangian/proportional": terms.proportional,
            "lagrangian/integral": terms.integral,
            "lagrangian/derivative": terms.derivative,
        }
