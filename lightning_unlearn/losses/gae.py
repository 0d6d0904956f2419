"""Generalised advantage estimation, normalisation, and the combination of reward and cost advantages."""

from typing import Literal

import torch
from torch.nn import functional as F

AdvantageForm = Literal["sum", "convex", "penalty"]


def generalised_advantage(
    signal: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    *,
    bootstrap: torch.Tensor,
    done: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute GAE of one or several signals at once.

    δ_t = signal_t + γ·bootstrap_t·V(s'_t) − V(s_t), where s'_t is the true next observation (the final one at an
    episode's end); A_t = δ_t + d_t·A_{t+1} with d_t = γλ·(1 − done_t). The recursion is evaluated in
    log₂ T passes: A_t starts as δ_t, and while it is the sum of the first n terms, a pass adds the next n by
    A_t ← A_t + d_t⋯d_{t+n−1}·A_{t+n}.

    Args:
        signal: Rewards or C_forget. Shape: (E, T, K) for K signals.
        value: Values of the observations. Shape: (E, T, K).
        next_value: Values of the true next observations. Shape: (E, T, K).
        bootstrap: False if the episode terminated or the simulator failed. Shape: (E, T, 1), bool.
        done: True where an episode ended, terminated or truncated. Shape: (E, T, 1), bool.
        gamma: Discount per step.
        gae_lambda: λ of GAE.

    Returns:
        Advantages, and value targets (advantage + value). Shape of each: (E, T, K).

    Source: Schulman et al. 2016, equation 16; time limits after Pardo et al. 2018.
    """
    _require_same_shape(signal=signal, value=value, next_value=next_value)
    _require_same_shape(bootstrap=bootstrap, done=done, signal=signal[..., :1])
    delta = signal + gamma * bootstrap * next_value - value
    advantage, decay = delta, gamma * gae_lambda * (~done).to(signal.dtype)
    terms = 1
    while terms < signal.shape[1]:
        later = F.pad(advantage[:, terms:], (0, 0, 0, terms))
        advantage = torch.addcmul(advantage, decay, later)
        decay = decay * F.pad(decay[:, terms:], (0, 0, 0, terms))
        terms *= 2
    return advantage, advantage + value


def normalise(advantage: torch.Tensor) -> torch.Tensor:
    """(A − mean) / std over the whole batch; A − mean if std < 1e-8. Any shape."""
    return _centred(advantage, scale=advantage)


def deviation(target: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each signal over the batch, 1 if it is below 1e-6. Shape: (..., K) → (K,)."""
    std = target.flatten(0, -2).std(0, correction=0)
    return torch.where(std < 1e-6, torch.ones_like(std), std)


def explained_variance(value: torch.Tensor, target: torch.Tensor) -> float:
    """Compute 1 − Var(target − value)/Var(target), or 0 if the targets do not vary. Any equal shapes."""
    variance = target.var(correction=0)
    return 0.0 if variance < 1e-12 else float(1.0 - (target - value).var(correction=0) / variance)


def combine(
    reward_advantage: torch.Tensor, cost_advantage: torch.Tensor, cost_weight: float, form: AdvantageForm
) -> torch.Tensor:
    """Combine two advantages; λ is `cost_weight`, and n is `normalise`. Any equal shapes.

    `sum`: n(A_r) − λ·n(A_c). `convex`: (n(A_r) − λ·n(A_c))/(1 + λ), OmniSafe's form. `penalty`: (A − mean(A))/std(A_r)
    with A = A_r − λ·A_c, the advantage of the reward r − λ·c. The penalty's λ is a price in units of reward, however
    rare costs are. In the other forms, the rarer costs are, the more each counts.
    """
    _require_same_shape(reward_advantage=reward_advantage, cost_advantage=cost_advantage)
    if form == "penalty":
        return _centred(reward_advantage - cost_weight * cost_advantage, scale=reward_advantage)
    difference = normalise(reward_advantage) - cost_weight * normalise(cost_advantage)
    return difference if form == "sum" else difference / (1.0 + cost_weight)


def _centred(advantage: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    centred, std = advantage - advantage.mean(), scale.std(correction=0)
    return centred if std < 1e-8 else centred / std


def _require_same_shape(**tensors: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ, and silent broadcasting is refused: {shapes}")
