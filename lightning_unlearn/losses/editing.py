"""How strong a gated edit is and from where on: τ, α and the loss that refines both, all functions of scores.

Shapes: N states, E environments, T steps of each.
"""

from typing import NamedTuple

import torch

FEWEST_POSITIVES = 32
"""With fewer states that show the concept, τ is a quantile of all states' scores."""
TAU_QUANTILES = tuple(0.3 + 0.05 * i for i in range(13))
"""What the sweep tries: 0.3, 0.35, … 0.9."""
ALPHA_MAX = 50.0
LOW_PERCENTILE = 0.01
"""The edit is to bring the mean near score down to this quantile of the far scores."""


class Strength(NamedTuple):
    """The two numbers of a gated edit that can be solved for."""

    alpha: float
    tau: float


class FarScores(NamedTuple):
    """Where the scores of far states lie."""

    median: float
    std: float


def gate(score: torch.Tensor, tau: float | torch.Tensor, beta: float) -> torch.Tensor:
    """The gate g = sigmoid(β(s − τ)). Shape: (N,) → (N,)."""
    return (beta * (score - tau)).sigmoid()


def unit_suppression(score: torch.Tensor, tau: float | torch.Tensor, beta: float) -> torch.Tensor:
    """What an edit with α = 1 takes off the score, g·relu(s − τ). Shape: (N,) → (N,)."""
    return gate(score, tau, beta) * (score - tau).relu()


def quantile_tau(scores: torch.Tensor, positive: torch.Tensor, quantile: float) -> float:
    """The `quantile` of the scores of states that show the concept; of all states if those are fewer than 32.

    Shapes: (N,), (N,) bool.
    """
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores and positive must be (N,), got {tuple(scores.shape)} and {tuple(positive.shape)}.")
    enough = int(positive.sum()) >= FEWEST_POSITIVES
    return float((scores[positive] if enough else scores).double().quantile(quantile))


def near_far(c_forget: torch.Tensor, done: torch.Tensor, window: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Which states are near the concept, and which are far from it; some are neither.

    Near: a C_forget at this step or within the next `window` steps of the same episode. Far: none within `window`
    steps before or after, in the same episode. What lies outside the block is not known and counts as none.

    Args:
        c_forget: 1 (or True) where the step shows the concept. Shape: (E, T).
        done: True where the step ends its episode. Shape: (E, T), bool.
        window: In steps.

    Returns:
        near and far. Shape of each: (E, T), bool.
    """
    if c_forget.shape != done.shape or c_forget.ndim != 2:
        raise ValueError(f"c_forget and done must be (E, T), got {tuple(c_forget.shape)} and {tuple(done.shape)}.")
    ahead = _steps_to_next(c_forget.bool(), _episode(done))
    backwards = (c_forget.bool().flip(1), _episode(done).flip(1))
    behind = _steps_to_next(*backwards).flip(1)
    return ahead <= window, torch.minimum(ahead, behind) > window


def sweep_tau(near: torch.Tensor, far: torch.Tensor, beta: float) -> float:
    """The τ with the largest ratio of mean near to mean far suppression, among 13 quantiles of the near scores.

    α cancels out of the ratio. Shapes: (N_near,), (N_far,), scores.
    """
    taus = near.double().quantile(torch.tensor(TAU_QUANTILES, dtype=torch.float64)).tolist()
    return max(taus, key=lambda tau: _ratio(near.double(), far.double(), tau, beta))


def closed_form_alpha(near: torch.Tensor, far: torch.Tensor, tau: float, beta: float) -> float:
    """The α whose mean edited near score is the 1st percentile of the far scores.

    mean(s − α·g·relu(s − τ)) = q solves to α = (mean near s − q) / mean near g·relu(s − τ), clipped to [0, 50].
    Shapes: (N_near,), (N_far,), scores.
    """
    goal = float(far.double().quantile(LOW_PERCENTILE))
    per_alpha = float(unit_suppression(near.double(), tau, beta).mean())
    return min(max((float(near.double().mean()) - goal) / max(per_alpha, 1e-12), 0.0), ALPHA_MAX)


def refine_loss(
    near: torch.Tensor,
    far: torch.Tensor,
    alpha: torch.Tensor,
    tau: torch.Tensor,
    beta: float,
    typical: FarScores,
) -> torch.Tensor:
    """((mean post-edit near score − median)/std)² + 1·mean far gate + ½·mean far suppression/std.

    Median and std are those of far scores, the gate is sigmoid(β(s − τ)), suppression is α·gate·relu(s − τ), and a
    post-edit score is s less its suppression. The square has its minimum where an edited near state scores like a far
    one. The published sum has none: it falls for ever as τ does, which opens the gate everywhere.

    Shapes: (N_near,), (N_far,), scores; α and τ (); the result ().
    """
    near_suppression, far_suppression = (alpha * unit_suppression(s, tau, beta) for s in (near, far))
    distance = ((near - near_suppression).mean() - typical.median) / typical.std
    return distance.square() + gate(far, tau, beta).mean() + 0.5 * far_suppression.mean() / typical.std


def refine(
    near: torch.Tensor,
    far: torch.Tensor,
    start: Strength,
    beta: float,
    generator: torch.Generator,
    *,
    steps: int = 500,
    batch_size: int = 512,
) -> Strength:
    """Descend `refine_loss` by Adam from `start`: α at 5e-3, kept in [0, 50], τ at 1e-3, gradient norm at most 2.

    Every step draws half a batch of near scores and half of far ones, so that both means exist whatever their shares;
    median and std are those of all far scores.

    Raises:
        ValueError: All far scores are equal.
    """
    typical = FarScores(float(far.double().quantile(0.5)), float(far.double().std(correction=0)))
    if not typical.std > 0.0:
        raise ValueError(f"all {len(far)} far scores are {typical.median:.4g}: they have no spread to measure by.")
    alpha, tau = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in start)
    optimizer = torch.optim.Adam([{"params": [alpha], "lr": 5e-3}, {"params": [tau], "lr": 1e-3}])
    for _ in range(steps):
        some_near, some_far = (_draw(scores.double(), batch_size // 2, generator) for scores in (near, far))
        optimizer.zero_grad()
        refine_loss(some_near, some_far, alpha, tau, beta, typical).backward()
        torch.nn.utils.clip_grad_norm_([alpha, tau], 2.0)
        optimizer.step()
        with torch.no_grad():
            alpha.clamp_(0.0, ALPHA_MAX)
    return Strength(alpha.item(), tau.item())


def solve_strength(near: torch.Tensor, far: torch.Tensor, beta: float, generator: torch.Generator) -> Strength:
    """Sweep τ, solve α in closed form, refine both. Shapes: (N_near,), (N_far,), scores."""
    tau = sweep_tau(near, far, beta)
    return refine(near, far, Strength(closed_form_alpha(near, far, tau, beta), tau), beta, generator)


def _ratio(near: torch.Tensor, far: torch.Tensor, tau: float, beta: float) -> float:
    near_mean, far_mean = (float(unit_suppression(scores, tau, beta).mean()) for scores in (near, far))
    return near_mean / (far_mean + 1e-8)


def _draw(scores: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    return scores[torch.randint(len(scores), (size,), generator=generator)]


def _episode(done: torch.Tensor) -> torch.Tensor:
    """Number of the episode each step belongs to: one more after every end. Shape: (E, T) → (E, T)."""
    return done.long().cumsum(1) - done.long()


def _steps_to_next(shows: torch.Tensor, episode: torch.Tensor) -> torch.Tensor:
    """Steps to the next True in the same episode, 0 if it is this one; a very large number if there is none.

    Shapes: (E, T) bool, (E, T) → (E, T).
    """
    steps, never = shows.shape[1], torch.iinfo(torch.int64).max
    index = torch.arange(steps, device=shows.device).expand_as(shows)
    following = torch.where(shows, index, steps).flip(1).cummin(1).values.flip(1)  # (E, T), `steps` if none
    same = episode.gather(1, following.clamp(max=steps - 1)) == episode
    return torch.where((following < steps) & same, following - index, never)
