"""The PID controller that moves the Lagrange multiplier λ."""

from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class PIDGains:
    """Gains and limits of the controller; `target` has the unit of the rate that `pid_step` is given."""

    kp: float
    ki: float
    kd: float
    target: float
    lambda_max: float = 200.0
    integral_max: float = 5.0
    form: Literal["incremental", "positional"] = "incremental"
    smoothing: float = 0.0
    """Share of the past in the positional form's smoothed error, in [0, 1)."""


class PIDState(NamedTuple):
    """State of the controller between rollouts."""

    cost_weight: float
    """λ."""
    integral: float = 0.0
    previous_error: float = 0.0


class PIDTerms(NamedTuple):
    """Terms of one step, each times its gain."""

    error: float
    """Rate less target."""
    proportional: float
    integral: float
    derivative: float


class ExpertMeasures(NamedTuple):
    """Means over the expert's rollouts before training: the reference of a repair.

    If no episode ended in them, one is assumed to have the task's maximum length and the same reward per step. If the
    expert showed no C_forget, or no reward, the sum over these rollouts counts as 1, since others are divided by it.
    """

    steps: int
    """Environment steps that the means are over."""
    reward_size: float
    """|reward| per step."""
    c_forget: float
    """C_forget per step."""
    episode_return: float
    episode_length: float
    """In steps."""


def pid_step(gains: PIDGains, state: PIDState, rate: float) -> tuple[PIDState, PIDTerms]:
    """Update λ after a rollout with mean C_forget `rate`.

    e = rate − target. `incremental`: I ← clip(I + e, ±integral_max),
    λ ← clip(λ + Kp·e + Ki·I + Kd·(e − e_prev), 0, λ_max). `positional` (Stooke et al. 2020, algorithm 1):
    I ← clip(I + e, 0, integral_max), ē ← s·ē_prev + (1 − s)·e,
    λ = clip(Kp·ē + Ki·I + Kd·max(0, ē − ē_prev), 0, λ_max).
    """
    error = rate - gains.target
    positional = gains.form == "positional"
    integral = _clip(state.integral + error, 0.0 if positional else -gains.integral_max, gains.integral_max)
    smoothed = gains.smoothing * state.previous_error + (1.0 - gains.smoothing) * error if positional else error
    change = smoothed - state.previous_error
    terms = PIDTerms(
        error, gains.kp * smoothed, gains.ki * integral, gains.kd * (max(0.0, change) if positional else change)
    )
    start = 0.0 if positional else state.cost_weight
    weight = _clip(start + terms.proportional + terms.integral + terms.derivative, 0.0, gains.lambda_max)
    return PIDState(weight, integral, smoothed), terms


def room_above(recent: float, expert: float, floor: float, margin: float) -> float:
    """clip((R̂ − R_E + (1 − f)·|R_E|)/(m·|R_E|), 0, 1): 0 up to the floor, 1 from `margin` above it on.

    Args:
        recent: R̂, recent mean episode return.
        expert: R_E, the expert's mean episode return. If it is 0, the result is 1 for R̂ ≥ 0, else 0.
        floor: f, as a share of the expert's return.
        margin: m, as a share of the expert's return.
    """
    size = abs(expert)
    if size == 0.0:
        return float(recent >= expert)
    return _clip((recent - expert + (1.0 - floor) * size) / (margin * size), 0.0, 1.0)


def _clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)
