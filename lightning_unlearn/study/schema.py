"""Schema of a study file. Every part is checked here, by name, before anything is planned or run."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin

import yaml

RANDOM = "random"
"""Name of the model that relearning is compared with, a fresh network."""
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Method:
    """A method to train."""

    config: str
    """`concept` for `configs/method/concept.yaml`, or a file."""
    name: str | None = None
    """Name of its stage and of the models it registers; the config's own `method` if left out."""
    source: str | None = None
    """The method whose weights it starts from, `unsafe` or `unsafe@300`, if its config leaves that open."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `fit`."""


@dataclass(frozen=True)
class Weights:
    """Stored weights that stand in for the training of a method."""

    method: str
    uri: str
    """A model URI or file; `{env}`, `{seed}`, `{method}` and `{update}` are filled in, once for each save point."""
    envs: Sequence[str] = ()
    """Environment ids they are for; all if left out."""
    seeds: Sequence[int] = ()
    """Training seeds they are for; all if left out."""


@dataclass(frozen=True)
class Probe:
    """Labelled states of a model, a probe on its latent, its direction, and the probe on other models."""

    model: str = "unsafe"
    collect: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[str] = ()
    """Models that the fitted probe is evaluated on; an edited one by its edited latent."""


@dataclass(frozen=True)
class Select:
    """Choice of each seed's save point on validation layouts; it gets the alias `seed-<s>-selected`."""

    methods: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluate:
    """The policy suite over every save point of every method and seed."""

    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Relearn:
    """Relearning tests: how fast models bring the forgotten behaviour back."""

    models: Sequence[str]
    """`concept@150`, or `random`."""
    attacks: Sequence[str] = ("ppo",)
    """How they relearn: `ppo`, `cloning` or `elsewhere`."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RepairPairs:
    """An audit of repaired models, each beside the expert that it started from."""

    models: Sequence[str]
    """`concept@150`, or `random`."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatentShift:
    """Distance of models' latents from those of the probe's model; needs the probe's states."""

    models: Sequence[str]
    raw_models: Sequence[str] = ()
    """Models that are also compared without their editor."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The report of all results."""

    options: Mapping[str, Any] = field(default_factory=dict)


AUDITS: Mapping[str, type] = {
    "probe": Probe,
    "select": Select,
    "evaluate": Evaluate,
    "relearn": Relearn,
    "elicit": RepairPairs,
    "patch": RepairPairs,
    "weight-path": RepairPairs,
    "latent-shift": LatentShift,
    "report": Report,
}
"""Name of an audit → the class of its part, in the order in which audits run."""


@dataclass(frozen=True)
class Study:
    """A study file, checked."""

    name: str
    envs: Sequence[str]
    """Names of environment configs (`point_goal1`), or files."""
    seeds: Sequence[int]
    methods: Sequence[Method]
    audits: Mapping[str, Any]
    """Name → part, of the class in `AUDITS`."""
    weights: Sequence[Weights] = ()
    overlays: Sequence[str] = ()
    """Config files that come last in every training's chain."""

    def __post_init__(self) -> None:
        """Refuse an impossible name, empty lists and repeated entries."""
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name: {self.name!r} is not possible: use letters, digits, dots, dashes and underscores.")
        for what, values in (("envs", self.envs), ("seeds", self.seeds), ("methods", self.methods)):
            if not values:
                raise ValueError(f"{what} is empty: a study needs at least one.")
        require_distinct("envs", self.envs)
        require_distinct("seeds", self.seeds)
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            raise ValueError(f"seeds: {wrong[0]} is not possible: use whole numbers from 0 to 2^32 - 1.")


def read_study(content: Mapping[str, Any]) -> Study:
    """Build a study from the parsed keys of its file.

    Raises:
        ValueError: A key, method or audit is unknown or named twice.
    """
    methods = [Method(m) if isinstance(m, str) else _read_part(Method, m, "methods") for m in content["methods"]]
    weights = [_read_part(Weights, entry, "weights") for entry in content["weights"]]
    audits: dict[str, Any] = {}
    for name, options in content["audits"].items():
        require_known("audits", name, AUDITS)
        audits[name] = _read_part(AUDITS[name], options or {}, f"audits.{name}")
    return Study(
        name=content["name"],
        envs=content["envs"],
        seeds=content["seeds"],
        methods=methods,
        audits={name: audits[name] for name in AUDITS if name in audits},
        weights=weights,
        overlays=content["overlays"],
    )


def _read_part(cls: type[_Part], content: Any, where: str) -> _Part:
    """Build one part of the file as its class.

    Raises:
        ValueError: A key is unknown or missing, or the part is no mapping.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: {content!r} is not possible: give keys and values.")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key, value in content.items():
        require_known(where, key, known)
        _require_kind(f"{where}.{key}", value, known[key].type)
    try:
        return cls(**content)
    except TypeError as error:
        raise ValueError(f"{where} is incomplete: {error}.") from error


def require_known(where: str, key: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones, and suggest the nearest."""
    names = list(known)
    if key not in names:
        near = difflib.get_close_matches(str(key), names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where}: {key!r} is unknown: use one of {', '.join(names)}.{hint}")


def require_distinct(where: str, values: Iterable[Any]) -> None:
    """Refuse values that are listed twice."""
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{where}: {value} is listed twice: leave one out.")


def require_single_keys(text: str, where: str) -> None:
    """Refuse YAML that gives a key twice in one place; YAML itself lets the last one win.

    Args:
        text: Content of a file.
        where: Name of the file.

    Raises:
        ValueError: A key is given twice.
    """
    places = [yaml.compose(text, yaml.SafeLoader)]
    while places:
        node = places.pop()
        if isinstance(node, yaml.MappingNode):
            require_distinct(where, [key.value for key, _ in node.value])
            places += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            places += node.value


def model_name(model: str) -> tuple[str, int | None]:
    """Split `concept@150` into method and update; the update is None if only the method is named.

    Raises:
        ValueError: The update is no number.
    """
    method, _, update = model.partition("@")
    if update and not update.isdigit():
        raise ValueError(f"{model!r} is no model of a study: write METHOD or METHOD@UPDATE, such as concept@150.")
    return method, int(update) if update else None


def _require_kind(where: str, value: Any, annotation: Any) -> None:
    """Refuse anything but lists, mappings and words where they belong: a bare word is a sequence of letters."""
    kind = get_origin(annotation) or annotation
    if kind not in _KINDS:
        return
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        raise ValueError(f"{where}: {value!r} is not possible: give a {_KINDS[kind]}.")
    of = get_args(annotation)[0] if kind is Sequence else object
    for element in value if kind is Sequence else ():
        if not isinstance(element, of):
            kinds = "words" if of is str else "whole numbers"
            raise ValueError(f"{where}: {element!r} is not possible: list {kinds}.")


_KINDS: Mapping[Any, str] = {
    Sequence: "list, such as [a, b]",
    Mapping: "mapping of options to values",
    str: "word",
}
