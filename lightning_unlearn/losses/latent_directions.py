"""Edits of a latent along a unit direction: directions, threshold τ and strength α of a gated edit, LEACE erasure.

Shapes: N latents (states), H latent size, E environments, T steps of each.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch

FEWEST_POSITIVES = 32
"""With fewer states that show the concept, τ is a quantile of all states' scores."""
TAU_QUANTILES = tuple(0.3 + 0.05 * i for i in range(13))
"""Quantiles of the near scores that the sweep of τ tries: 0.3, 0.35, … 0.9."""
ALPHA_MAX = 50.0
LOW_PERCENTILE = 0.01
"""Quantile of the far scores that the mean edited near score is brought to."""


class ProbeDirection(NamedTuple):
    """A linear probe in raw latent space: it predicts the concept where z·vector > tau."""

    vector: torch.Tensor
    """Unit length. Shape: (H,), float32."""
    tau: float


class Strength(NamedTuple):
    """Strength α and threshold τ of a gated edit."""

    alpha: float
    tau: float


class FarScores(NamedTuple):
    """Median and standard deviation of the scores of far states."""

    median: float
    std: float


def unit(vector: torch.Tensor) -> torch.Tensor:
    """Divide a vector by its length. Shape: (H,) → (H,), float32.

    Raises:
        ValueError: It is all zeros or not finite.
    """
    length = float(vector.double().norm())
    if vector.ndim != 1 or not 0.0 < length < float("inf"):
        raise ValueError(f"a vector of shape {tuple(vector.shape)} and length {length} gives no direction.")
    return (vector.double() / length).float()


def random_direction(latent_size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw a direction uniformly from the unit sphere. Shape: (H,)."""
    return unit(torch.randn(latent_size, generator=generator, dtype=torch.float32))


def mean_difference(latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Direction from the mean of the other latents to that of the concept's. Shapes: (N, H), (N,) bool → (H,)."""
    require_both_classes(latents, labels)
    return unit(latents[labels].double().mean(0) - latents[~labels].double().mean(0))


def probe_direction(latents: torch.Tensor, labels: torch.Tensor) -> ProbeDirection:
    """Fit a logistic regression to standardised latents, with balanced classes. Shapes: (N, H), (N,) bool."""
    from sklearn.linear_model import LogisticRegression  # 11 MB, which no other method needs
    from sklearn.preprocessing import StandardScaler

    require_both_classes(latents, labels)
    scaler, regression = StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")
    regression.fit(scaler.fit_transform(latents.double().numpy()), labels.numpy())
    return from_standardised(regression.coef_[0], float(regression.intercept_[0]), scaler.mean_, scaler.scale_)


def from_standardised(coefficient: np.ndarray, intercept: float, mean: np.ndarray, scale: np.ndarray) -> ProbeDirection:
    """Convert a probe of standardised latents, c·(z − m)/σ + b > 0, to raw latents and a unit direction.

    With w = c/σ it predicts the concept where z·(w/‖w‖) > (m·w − b)/‖w‖. Shapes: (H,).
    """
    weight = np.asarray(coefficient, np.float64) / scale
    vector = unit(torch.from_numpy(weight))
    return ProbeDirection(vector, (float(mean @ weight) - intercept) / float(np.linalg.norm(weight)))


def require_both_classes(latents: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse labels that do not match the latents, or that are all equal. Shapes: (N, H), (N,) bool.

    Raises:
        ValueError: No direction can be fitted to them.
    """
    if labels.shape != latents.shape[:1] or labels.dtype != torch.bool:
        raise ValueError(f"labels must be bool of shape ({len(latents)},), got {labels.dtype} {tuple(labels.shape)}.")
    positives = int(labels.sum())
    if positives in (0, len(labels)):
        raise ValueError(f"{positives} of {len(labels)} states show the concept: a direction needs some of each kind.")


def leace(latents: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the affine map M z + b nearest to the identity after which no linear probe beats chance.

    Shapes: (N, H), (N,) → (H, H), (H,), float64. Source: Belrose et al. 2023, theorem 4.3, by `concept-erasure`.

    Raises:
        ValueError: `concept-erasure` is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # importing it scripts a function with torch.jit
            from concept_erasure import LeaceEraser
    except ImportError as error:
        raise ValueError("LEACE needs concept-erasure: install lightning-unlearn[leace].") from error
    # its default tolerance, an absolute 0.01, would leave a rare concept where it is
    eraser = LeaceEraser.fit(latents.double(), labels.double(), svd_tol=1e-9)
    matrix = eraser.P
    return matrix, (torch.eye(len(matrix), dtype=torch.float64) - matrix) @ eraser.bias


def near_far(c_forget: torch.Tensor, done: torch.Tensor, window: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the states that are near the concept and those that are far from it; some are neither.

    Near: a C_forget at this step or within the next `window` steps of the same episode. Far: none within `window`
    steps before or after, in the same episode. Steps outside the rollout count as not showing the concept.

    Args:
        c_forget: 1 (or True) where the step shows the concept. Shape: (E, T).
        done: True where the step ends its episode. Shape: (E, T), bool.
        window: In steps.

    Returns:
        near and far. Shape of each: (E, T), bool.
    """
    if c_forget.shape != done.shape or c_forget.ndim != 2:
        raise ValueError(f"c_forget and done must be (E, T), got {tuple(c_forget.shape)} and {tuple(done.shape)}.")
    shows, episode = c_forget.bool(), done.long().cumsum(1) - done.long()
    ahead = _steps_to_next(shows, episode)
    behind = _steps_to_next(shows.flip(1), episode.flip(1)).flip(1)
    return ahead <= window, torch.minimum(ahead, behind) > window


def _steps_to_next(shows: torch.Tensor, episode: torch.Tensor) -> torch.Tensor:
    """Steps to the next True in the same episode, 0 if it is this one; a very large number if there is none.

    Shapes: (E, T) bool, (E, T) → (E, T).
    """
    steps, never = shows.shape[1], torch.iinfo(torch.int64).max
    index = torch.arange(steps, device=shows.device).expand_as(shows)
    following = torch.where(shows, index, steps).flip(1).cummin(1).values.flip(1)  # (E, T), `steps` if none
    same = episode.gather(1, following.clamp(max=steps - 1)) == episode
    return torch.where((following < steps) & same, following - index, never)


def quantile_tau(scores: torch.Tensor, positive: torch.Tensor, quantile: float) -> float:
    """The `quantile` of the scores of states that show the concept; of all states if those are fewer than 32.

    Shapes: (N,), (N,) bool.
    """
    if scores.shape != positive.shape or scores.ndim != 1:
        raise ValueError(f"scores and positive must be (N,), got {tuple(scores.shape)} and {tuple(positive.shape)}.")
    enough = int(positive.sum()) >= FEWEST_POSITIVES
    return float((scores[positive] if enough else scores).double().quantile(quantile))


def gate(score: torch.Tensor, tau: float | torch.Tensor, beta: float) -> torch.Tensor:
    """The gate g = sigmoid(β(s − τ)). Shape: (N,) → (N,)."""
    return (beta * (score - tau)).sigmoid()


def unit_suppression(score: torch.Tensor, tau: float | torch.Tensor, beta: float) -> torch.Tensor:
    """Suppression of the score by an edit with α = 1, g·relu(s − τ). Shape: (N,) → (N,)."""
    return gate(score, tau, beta) * (score - tau).relu()


def sweep_tau(near: torch.Tensor, far: torch.Tensor, beta: float) -> float:
    """Return the τ with the largest ratio of mean near to mean far suppression, among 13 quantiles of the near scores.

    α cancels out of the ratio. Shapes: (N_near,), (N_far,), scores.
    """
    near, far = near.double(), far.double()

    def ratio(tau: float) -> float:
        near_mean, far_mean = (float(unit_suppression(scores, tau, beta).mean()) for scores in (near, far))
        return near_mean / (far_mean + 1e-8)

    return max(near.quantile(torch.tensor(TAU_QUANTILES, dtype=torch.float64)).tolist(), key=ratio)


def closed_form_alpha(near: torch.Tensor, far: torch.Tensor, tau: float, beta: float) -> float:
    """Return the α whose mean edited near score is the 1st percentile of the far scores.

    mean(s − α·g·relu(s − τ)) = q solves to α = (mean near s − q) / mean near g·relu(s − τ), clipped to [0, 50].
    Shapes: (N_near,), (N_far,), scores.
    """
    goal = float(far.double().quantile(LOW_PERCENTILE))
    per_alpha = float(unit_suppression(near.double(), tau, beta).mean())
    return min(max((float(near.double().mean()) - goal) / max(per_alpha, 1e-12), 0.0), ALPHA_MAX)


def refine_loss(
    near: torch.Tensor, far: torch.Tensor, alpha: torch.Tensor, tau: torch.Tensor, beta: float, typical: FarScores
) -> torch.Tensor:
    """((mean post-edit near score − median)/std)² + 1·mean far gate + ½·mean far suppression/std.

    Median and std are those of far scores, the gate is sigmoid(β(s − τ)), suppression is α·gate·relu(s − τ), and a
    post-edit score is s less its suppression. The square is 0 where an edited near state scores like a far one. The
    published sum has no minimum: it falls for ever as τ does, which opens the gate everywhere.

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
    """Minimise `refine_loss` by Adam from `start`: α at 5e-3, kept in [0, 50], τ at 1e-3, gradient norm at most 2.

    A batch is one half near scores and one half far scores, whatever their shares. Median and std are those of all far
    scores.

    Raises:
        ValueError: All far scores are equal.
    """
    typical = FarScores(float(far.double().quantile(0.5)), float(far.double().std(correction=0)))
    if not typical.std > 0.0:
        raise ValueError(f"all {len(far)} far scores are {typical.median:.4g}: they have no spread to measure by.")
    alpha, tau = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in start)
    optimizer = torch.optim.Adam([{"params": [alpha], "lr": 5e-3}, {"params": [tau], "lr": 1e-3}])
    both, half = (near.double(), far.double()), (batch_size // 2,)
    for _ in range(steps):
        some_near, some_far = (s[torch.randint(len(s), half, generator=generator)] for s in both)
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
