"""A policy behind an action filter, which keeps it away from what its sensors show to be near.

The weights behind the filter stay as they are: it hides a behaviour, and removes none.
Shapes: B observations, O observation size, A action size, N readings of a sensor.
"""

import math

import torch

from lightning_unlearn.policies.actor_critic import ActorCritic


class FilteredPolicy(ActorCritic):
    """A policy whose means are shifted by −relu(observation − threshold) · push.

    Args:
        policy: The policy behind the filter. It is copied.
        push: Shift of the means for each reading above the threshold. Shape: (O, A).
        threshold: Reading from which on the filter acts.
    """

    push: torch.Tensor
    threshold: torch.Tensor

    def __init__(self, policy: ActorCritic, push: torch.Tensor, threshold: float) -> None:
        super().__init__(policy.config)
        self.load_state_dict(policy.state_dict())
        self.register_buffer("push", push.detach().clone().float())
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))
        self.eval()

    def mean(self, observation: torch.Tensor) -> torch.Tensor:
        """Compute the filtered mean before squashing. Shape: (B, O) → (B, A)."""
        return super().mean(observation) - (observation.float() - self.threshold).relu() @ self.push

    def without_editor(self) -> ActorCritic:
        """Return a copy of the policy behind the filter, whose heads read the latent itself."""
        plain = ActorCritic(self.config)
        plain.load_state_dict({name: self.state_dict()[name] for name in plain.state_dict()})
        return plain.eval().without_editor()


def repulsion(sensor: slice, size: int, actions: int, ahead: float, aside: float) -> torch.Tensor:
    """Return the `push` that drives a robot away from the near side of a ring of N distance sensors.

    Reading i looks to (i + ½)·2π/N from straight ahead, to the left. A single reading looks ahead.

    Args:
        sensor: Place of the readings in an observation.
        size: O.
        actions: A. The first action drives ahead and the second one, if there is any, turns left.
        ahead: Strength of the push along the heading.
        aside: Strength of the turn away.
    """
    count = sensor.stop - sensor.start
    angles = (torch.arange(count) + 0.5 * (count > 1)) * (2.0 * math.pi / count)
    push = torch.zeros(size, actions)
    push[sensor, 0] = ahead * angles.cos()
    push[sensor, 1:2] = aside * angles.sin()[:, None]
    return push
