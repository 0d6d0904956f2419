"""Tasks without the objects of a concept: they are taken out of the scene, and their sensors read nothing (zeros)."""

from collections.abc import Collection

from lightning_unlearn.envs import toy
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concept_config import as_concept, concept_to_json
from lightning_unlearn.envs.concepts import AUTO, COST_SUM, AnyOf, Concept, InfoKey

_OBJECTS = {
    "cost_hazards": "hazards",
    "cost_vases_contact": "vases",
    "cost_vases_velocity": "vases",
    "cost_pillars": "pillars",
    "cost_gremlins": "gremlins",
}
"""Cost → the objects that it comes from; a task is the same one without them."""


def make_env_without(env_id: str, num_envs: int, concept: str | Concept = AUTO) -> BatchedEnv:
    """Make E copies of a task without the objects of a concept, stepped by this process.

    Observations keep their size: what senses these objects reads zeros. The objects stand in nothing's way, and their
    costs are reported as 0.

    Args:
        env_id: A Safety-Gymnasium navigation task.
        num_envs: E.
        concept: The behaviour to forget, see `make_env`.

    Raises:
        ValueError: See `objects_of`.
    """
    from lightning_unlearn.envs.navigation import NavigationSimulator  # MuJoCo waits until a task needs it

    return BatchedEnv(NavigationSimulator(env_id, num_envs, objects_of(env_id, concept)), concept)


def objects_of(env_id: str, concept: str | Concept = AUTO) -> list[str]:
    """Groups of objects that a concept is about, which a task can do without.

    Raises:
        ValueError: The task is unknown or no navigation task, or the concept is not about such objects.
    """
    from lightning_unlearn.envs.compat import make_task, registered_spec
    from lightning_unlearn.envs.gymnasium_simulator import is_supported

    constrained: list[str] = []
    if env_id != toy.ENV_ID and not is_supported(env_id):
        registered_spec(env_id)
        constrained = [obstacle.name for obstacle in make_task(env_id)._obstacles if obstacle.is_constrained]
    resolved = as_concept(concept, [cost for cost, name in _OBJECTS.items() if name in constrained])
    found = _named(resolved, constrained)
    if found is None:
        possible = sorted(set(_OBJECTS.values()) & set(constrained))
        without = f"it can do without {', '.join(possible)} only" if possible else "it has none to take out"
        raise ValueError(
            f"{env_id} without the objects of {concept_to_json(resolved)[:200]} is not possible: {without}. Name "
            "another attack, or a concept that is the cost of such objects."
        )
    return sorted(found)


def _named(concept: Concept, constrained: Collection[str]) -> set[str] | None:
    """Objects that a concept is about; None if there are none, or the task needs them."""
    if isinstance(concept, AnyOf):
        parts = [_named(part, constrained) for part in concept.concepts]
        return None if None in parts else {name for part in parts if part for name in part}
    if not isinstance(concept, InfoKey):
        return None
    if concept.key == COST_SUM:
        return set(constrained) if constrained and set(constrained) <= set(_OBJECTS.values()) else None
    name = _OBJECTS.get(concept.key)
    return None if name is None or name not in constrained else {name}
