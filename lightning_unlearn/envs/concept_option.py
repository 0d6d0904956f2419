"""How a concept is given to a command: `auto` or an info key as it is, or a class, which jsonargparse builds."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type

from lightning_unlearn.envs.concept import Concept
from lightning_unlearn.envs.concepts import AUTO, READY, recorded_as
from lightning_unlearn.envs.working_directory import working_directory_importable

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
    """The option `--concept` of a tool's parser; a class's arguments follow as `--concept.<name>`."""
    what = f"the behaviour to forget: auto, an info key or a class{also}"
    parser.add_argument("--concept", type=Concept | CostKey, default=AUTO, help=what)


def parse_with_concept(parser: Any, args: Sequence[str]) -> tuple[Any, str | Concept]:
    """A tool's options, with the concept in them as it is recorded; and the concept itself."""
    with working_directory_importable():
        options = parser.parse_args(args)
        concept = parser.instantiate(options).concept
    options.concept = recorded_as(concept)
    return options, concept


def classes_of_their_own(recorded: Any) -> set[str]:
    """Class paths in a recorded concept, or in a stored config's, that are none of the ready ones'.

    Args:
        recorded: A nest of dicts, lists and plain values. Only class paths have dots.
    """
    if isinstance(recorded, dict):
        return classes_of_their_own(list(recorded.values()))
    if isinstance(recorded, list):
        return {path for value in recorded for path in classes_of_their_own(value)}
    ready = {f"{cls.__module__}.{cls.__qualname__}" for cls in READY}
    return {recorded} - ready if isinstance(recorded, str) and "." in recorded else set()
