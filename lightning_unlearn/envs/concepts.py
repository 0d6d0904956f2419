"""Which transition shows the behaviour to forget."""

import numpy as np

AUTO = "auto"
HAZARDS = "cost_hazards"
COST_SUM = "cost_sum"


def concept_key(concept: str, cost_keys: tuple[str, ...]) -> str:
    """The info key whose positive values mark the concept.

    Args:
        concept: `auto` (`cost_hazards` where the task reports it, else the step's whole cost), or a key by name.
        cost_keys: The keys the task reports.

    Raises:
        ValueError: The named key is never reported by the task.
    """
    if concept == AUTO:
        return HAZARDS if HAZARDS in cost_keys else COST_SUM
    if concept not in cost_keys:
        raise ValueError(
            f"concept={concept!r} is never reported by this environment. "
            f"Choose one of {', '.join(cost_keys)}, or {AUTO!r}."
        )
    return concept


def concept_signal(key: str, costs: dict[str, np.ndarray]) -> np.ndarray:
    """C_forget of each transition: 1 where `costs[key]` > 0, else 0. Shape: (E,), float64."""
    return (costs[key] > 0).astype(np.float64)
