"""The concept that stored models record, built from their cards: of ready classes only; nothing foreign is run."""

from collections.abc import Iterable
from typing import Any

from lightning_unlearn.envs.concept_option import classes_of_their_own
from lightning_unlearn.envs.concepts import AUTO, READY, Concept
from lightning_unlearn.safe_files import parse_json

RECORDED = "recorded"
"""The value of `--concept` that asks for it."""
_MAX_LENGTH = 1 << 16
_READY = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in READY}


def asked_for(concept: str | Concept, cards: Iterable[str]) -> str | Concept:
    """The concept of an option: as given, or, for `recorded`, the one that the models' cards agree on.

    Args:
        concept: The option.
        cards: What the models record; empty where nothing is.

    Raises:
        ValueError: The models record different concepts, or one that cannot be built.
    """
    if concept != RECORDED:
        return concept
    named = sorted({card for card in cards if card})
    if len(named) > 1:
        told = ", ".join(card[:200] for card in named)
        raise ValueError(f"--concept {RECORDED}: the models record different concepts ({told}): name one of them.")
    return built(named[0]) if named else AUTO


def built(card: str) -> str | Concept:
    """An info key as it is, and everything else as the ready class that it names.

    Raises:
        ValueError: It names another class, or is no concept.
    """
    if not card.startswith("{"):
        return card
    if len(card) > _MAX_LENGTH:
        raise ValueError(f"--concept {RECORDED}: the models record a concept of more than {_MAX_LENGTH} letters.")
    data = parse_json(card)
    try:
        own = sorted(classes_of_their_own(data))
        if not own:
            return _ready(data)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"--concept {RECORDED}: the models record {card[:200]}, which is no concept.") from error
    raise ValueError(
        f"--concept {RECORDED}: the models record {', '.join(own)[:200]}, none of this package's concepts: if you know "
        "the class and have it here, name it by --concept."
    )


def _ready(data: Any) -> Concept:
    cls, arguments = _READY[data["class_path"]], dict(data["init_args"])
    if "concepts" in arguments:
        arguments["concepts"] = [_ready(one) for one in arguments["concepts"]]
    return cls(**arguments)
