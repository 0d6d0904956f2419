"""Concepts in options, config files and stored models: named by `auto`, by an info key, or by a class with arguments.

Models record a concept as text: an info key as it is, any other concept as JSON of its class and arguments. A stored
text builds only the classes of `READY_CONCEPTS`; a class of the user's own is imported only if the user names it.
"""

import inspect
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type

from lightning_unlearn.envs.concepts import (
    AUTO,
    COST_SUM,
    HAZARDS,
    READY_CONCEPTS,
    Concept,
    InfoKey,
    concept_class,
)
from lightning_unlearn.processes import working_directory_importable
from lightning_unlearn.safe_files import parse_json

RECORDED = "recorded"
"""Value of `--concept` that stands for the concept that the models record."""
_MAX_LENGTH = 1 << 16
_READY = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in READY_CONCEPTS}

if TYPE_CHECKING:
    CostKey = str
else:

    class CostKey:
        """`auto` or an info key: a word, so that a class path or JSON with a mistake in it is not taken for one."""


def _is_word(value: object, _: object = None) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w-]+", value) is not None


def _word(value: object) -> object:
    if not _is_word(value):
        raise ValueError("it is neither auto nor an info key")
    return value


register_type(CostKey, serializer=str, deserializer=_word, type_check=_is_word)


def add_concept_option(parser: Any, also: str = "") -> None:
    """Add the option `--concept` to a command's parser; a class's arguments follow as `--concept.<name>`."""
    what = f"the behaviour to forget: auto, an info key or a class{also}"
    parser.add_argument("--concept", type=Concept | CostKey, default=AUTO, help=what)


def parse_with_concept(parser: Any, args: Sequence[str]) -> tuple[Any, str | Concept]:
    """Parse a command's options.

    Returns:
        The options, with the concept as text, and the concept itself.
    """
    with working_directory_importable():
        options = parser.parse_args(args)
        concept = parser.instantiate(options).concept
    options.concept = concept_to_json(concept)
    return options, concept


def as_concept(concept: str | Concept, cost_keys: Sequence[str]) -> Concept:
    """Return the concept of a name.

    Args:
        concept: `auto` (`cost_hazards` if the environment reports it, else the whole cost of a step), an info key, or
            a concept, which is returned as it is.
        cost_keys: Costs that the environment reports.
    """
    if isinstance(concept, Concept):
        return concept
    if concept == AUTO:
        return InfoKey(HAZARDS if HAZARDS in cost_keys else COST_SUM)
    return InfoKey(concept)


def resolve_concept(concept: str | Concept, recorded: Iterable[str]) -> str | Concept:
    """Replace `recorded` by the concept that the models agree on; return any other value of the option as it is.

    Args:
        concept: The option's value.
        recorded: The concepts that the models record, as text; empty texts count for nothing.

    Raises:
        ValueError: The models record different concepts, or one that cannot be built.
    """
    if concept != RECORDED:
        return concept
    named = sorted({text for text in recorded if text})
    if len(named) > 1:
        listed = ", ".join(text[:200] for text in named)
        raise ValueError(f"--concept {RECORDED}: the models record different concepts ({listed}): name one of them.")
    return concept_from_json(named[0]) if named else AUTO


def concept_to_json(concept: str | Concept) -> str:
    """Return a concept as runs and models record it: an info key as it is, any other concept as one line of JSON.

    Equal concepts have equal lines.

    Raises:
        ValueError: An argument was not kept under its own name, or is no plain value.
    """
    if isinstance(concept, str):
        return concept
    return concept.key if isinstance(concept, InfoKey) else json.dumps(concept_to_dict(concept), sort_keys=True)


def concept_to_dict(concept: Concept) -> dict[str, Any]:
    """Return class path and arguments, as a config file has them.

    Raises:
        ValueError: An argument was not kept under its own name, or is no plain value.
    """
    cls = type(concept)
    arguments = {}
    for name in inspect.signature(cls).parameters:
        if not hasattr(concept, name):
            raise ValueError(
                f"{concept_class(concept)} does not keep its argument {name!r}: set self.{name}, for runs to record it."
            )
        arguments[name] = _plain(concept, name, getattr(concept, name))
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def _plain(concept: Concept, name: str, value: Any) -> Any:
    if isinstance(value, Concept):
        return concept_to_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(concept, name, entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{concept_class(concept)} has {name}={value!r}: use numbers, words, lists or other concepts, for runs to "
        "record it."
    )


def concept_from_json(text: str) -> str | Concept:
    """Read what `concept_to_json` wrote; no class but the ready ones is built.

    Raises:
        ValueError: The text names another class, or is no concept.
    """
    if not text.startswith("{"):
        return text
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"--concept {RECORDED}: the models record a concept of more than {_MAX_LENGTH} letters.")
    data = parse_json(text)
    try:
        custom = sorted(custom_classes(data))
        if not custom:
            return _build(data)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"--concept {RECORDED}: the models record {text[:200]}, which is no concept.") from error
    raise ValueError(
        f"--concept {RECORDED}: the models record {', '.join(custom)[:200]}, none of this package's concepts: if you "
        "know the class and have it here, name it by --concept."
    )


def _build(data: Any) -> Concept:
    cls, arguments = _READY[data["class_path"]], dict(data["init_args"])
    if "concepts" in arguments:
        arguments["concepts"] = [_build(one) for one in arguments["concepts"]]
    return cls(**arguments)


def custom_classes(recorded: Any) -> set[str]:
    """Find the class paths in a stored concept or config that do not name a ready class.

    Args:
        recorded: A nest of dicts, lists and plain values. Only class paths have dots.
    """
    if isinstance(recorded, dict):
        return custom_classes(list(recorded.values()))
    if isinstance(recorded, list):
        return {path for value in recorded for path in custom_classes(value)}
    return {recorded} - _READY.keys() if isinstance(recorded, str) and "." in recorded else set()
