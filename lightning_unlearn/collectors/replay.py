"""Replay buffer of macro-actions (ring buffer, uniform sampling), and the macro-transitions of a rollout.

A macro-action is an action and the steps that it is repeated for. A macro-transition holds the observations before and
after it, and the discounted sums of its rewards and of C_forget. The buffer is ours because a resumed run must draw the
same minibatches, bit for bit. Shapes: E environments, T steps, B macro-transitions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict

from lightning_unlearn import keys


class ReplayBuffer:
    """A ring buffer of macro-transitions.

    Args:
        capacity: Most macro-transitions that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: dict[str, torch.Tensor] = {}
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    @property
    def observations(self) -> torch.Tensor:
        """Observations before all macro-transitions that are kept. Shape: (len, O)."""
        return self._rows[keys.OBSERVATION][: len(self)]

    def add(self, rows: Mapping[str, torch.Tensor]) -> None:
        """Add macro-transitions in place of the oldest ones. Shape of each key: (B, ·) or (B,)."""
        count = len(rows[keys.REWARD])
        if not self._rows:
            self._rows = {key: row.new_empty((self.capacity, *row.shape[1:])) for key, row in rows.items()}
        where = torch.arange(self._added, self._added + count) % self.capacity
        for key, row in rows.items():
            self._rows[key][where] = row
        self._added += count

    def draw(self, count: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Draw macro-transitions with replacement. Shape of each key: (count, ·) or (count,)."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        return {key: row.index_select(0, chosen) for key, row in self._rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept."""
        return {"added": self._added, "rows": {key: row[: len(self)].clone() for key, row in self._rows.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._rows, self._added = {}, 0
        if state_dict["rows"]:
            self.add(state_dict["rows"])
        self._added = state_dict["added"]


def macro_transitions(batch: TensorDict, action_repeat: int, gamma: float) -> dict[str, torch.Tensor]:
    """Compute the macro-transitions of a rollout; those at the ends of episodes are shorter.

    For a macro-action of n steps, `reward` is Σ_i γ^i·r_i and `C_forget` is Σ_i γ^i·c_i over i < n, and `discount` is
    γ^n, or 0 if the episode ended by itself. With `action_repeat` 1, a macro-transition is a transition.

    Args:
        batch: Rollout. Batch shape: (E, T).
        action_repeat: Steps that an action was repeated for.
        gamma: γ, per step.
    """
    following = batch[keys.NEXT]
    done = following[keys.DONE]
    steps = torch.arange(batch.shape[1])[None, :, None]
    last = done | (steps % action_repeat == action_repeat - 1)  # (E, T, 1)
    first = torch.cat([torch.ones_like(last[:, :1]), last[:, :-1]], 1)
    comes_after = ~(following[keys.TERMINATED] | following[keys.FAILED])
    signal = torch.cat([following[keys.REWARD], following[keys.C_FORGET]], -1)  # (E, T, 2)
    last[:, -1] = True
    total, discount, end = signal, gamma * comes_after.to(signal.dtype), steps.expand_as(last)
    for _ in range(action_repeat - 1):  # adds one more step to each sum
        total = signal + ~last * gamma * total.roll(-1, 1)
        discount = torch.where(last, discount, gamma * discount.roll(-1, 1))
        end = torch.where(last, end, end.roll(-1, 1))
    begins = first.squeeze(-1)
    after = following[keys.OBSERVATION].gather(1, end.expand_as(following[keys.OBSERVATION]))
    return {
        keys.OBSERVATION: batch[keys.OBSERVATION][begins],
        keys.ACTION: batch[keys.ACTION][begins],
        keys.NEXT_OBSERVATION: after[begins],
        keys.REWARD: total[begins][:, 0],
        keys.C_FORGET: total[begins][:, 1],
        keys.DISCOUNT: discount[begins][:, 0],
    }
