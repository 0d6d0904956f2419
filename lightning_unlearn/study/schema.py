"""What a study file may say. Every part is checked here, by name, before anything is planned or run."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_args, get_origin

import yaml

RANDOM = "random"
"""The model that relearning is compared with: a fresh network."""
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Method:
    """A method to train."""

    config: str
    """`concept` for `configs/method/concept.yaml`, or a file."""
    name: str | None = None
    """Of its stage and of the models it registers; the config's own `method` when left out."""
    source: str | None = None
    """The method whose weights it starts from, `unsafe` or `unsafe@300`, where its config leaves that open."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Overrides, by the names that `fit` knows."""


@dataclass(frozen=True)
class Weights:
    """Stored weights that stand in for the training of a method."""

    method: str
    uri: str
    """A model URI or file; `{env}`, `{seed}`, `{method}` and `{update}` are filled in, once for each save point."""
    envs: Sequence[str] = ()
    """Environment ids they are for; all when left out."""
    seeds: Sequence[int] = ()
    """Training seeds they are for; all when left out."""


@dataclass(frozen=True)
class Probe:
    """Labelled states of a model, a probe on its latent, its direction, and the probe on other models."""

    model: str = "unsafe"
    collect: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[str] = ()
    """Those that the fitted probe is tried on; an edited one by its edited latent."""


@dataclass(frozen=True)
class Select:
    """Each seed's choice of a save point on validation layouts; it gets the alias `seed-<s>-selected`."""

    methods: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluate:
    """The policy suite over every save point of every method and seed."""

    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Relearn:
    """How fast models bring the forgotten behaviour back."""

    models: Sequence[str]
    """`concept@150`, or `random`."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LatentShift:
    """How far models' latents are from the probe's model; needs the probe's states."""

    models: Sequence[str]
    raw_models: Sequence[str] = ()
    """Those compared without their editor, too."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The page that shows it all."""

    options: Mapping[str, Any] = field(default_factory=dict)


AUDITS: Mapping[str, type] = {
    "probe": Probe,
    "select": Select,
    "evaluate": Evaluate,
    "relearn": Relearn,
    "latent-shift": LatentShift,
    "report": Report,
}
"""Name of an audit → what may be said of it, in the order in which they run."""


@dataclass(frozen=True)
class Study:
    """A study file, checked."""

    name: str
    envs: Sequence[str]
    """Names of environment configs (`point_goal1`), or files."""
    seeds: Sequence[int]
    methods: Sequence[Method]
    audits: Mapping[str, Any]
    """Name → its part, of the class in `AUDITS`."""
    weights: Sequence[Weights] = ()
    overlays: Sequence[str] = ()
    """Config files that come last in every training's chain."""

    def __post_init__(self) -> None:
        """Refuse what is named twice, or not at all."""
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
    """The parsed keys of a study file as a study.

    Raises:
        ValueError: A key, method or audit is unknown or named twice.
    """
    methods = [_method(entry) for entry in content["methods"]]
    weights = [part(Weights, entry, "weights") for entry in content["weights"]]
    audits: dict[str, Any] = {
        name: part(_audit(name), said or {}, f"audits.{name}") for name, said in content["audits"].items()
    }
    return Study(
        name=content["name"],
        envs=content["envs"],
        seeds=content["seeds"],
        methods=methods,
        audits={name: audits[name] for name in AUDITS if name in audits},
        weights=weights,
        overlays=content["overlays"],
    )


def part(cls: type[_Part], said: Any, where: str) -> _Part:
    """One part of the file as its class.

    Raises:
        ValueError: A key is unknown or missing, or the part is no mapping.
    """
    if not isinstance(said, Mapping):
        raise ValueError(f"{where}: {said!r} is not possible: give keys and values.")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key, value in said.items():
        require_known(where, key, known)
        _require_kind(f"{where}.{key}", value, known[key].type)
    try:
        return cls(**said)
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
    """Refuse YAML that gives a key twice in one place; YAML itself would let the last one win.

    Args:
        text: Of a file.
        where: Its name.

    Raises:
        ValueError: It does.
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
    """`concept@150` → its method and update; without an update, the last save point.

    Raises:
        ValueError: What follows the @ is no number.
    """
    method, _, update = model.partition("@")
    if update and not update.isdigit():
        raise ValueError(f"{model!r} is no model of a study: write METHOD or METHOD@UPDATE, such as concept@150.")
    return method, int(update) if update else None


def _method(entry: Any) -> Method:
    return Method(entry) if isinstance(entry, str) else part(Method, entry, "methods")


def _audit(name: str) -> type:
    require_known("audits", name, AUDITS)
    return AUDITS[name]


def _require_kind(where: str, value: Any, annotation: Any) -> None:
    """Lists where lists belong, mappings where mappings do: a bare word would be taken for its letters."""
    wanted = get_origin(annotation) or annotation
    if wanted not in _WORDS:
        return
    if not isinstance(value, wanted) or (wanted is Sequence and isinstance(value, str)):
        raise ValueError(f"{where}: {value!r} is not possible: give a {_WORDS[wanted]}.")
    of = get_args(annotation)[0] if wanted is Sequence else object
    for element in value if wanted is Sequence else ():
        if not isinstance(element, of):
            kind = "words" if of is str else "whole numbers"
            raise ValueError(f"{where}: {element!r} is not possible: list {kind}.")


_WORDS: Mapping[Any, str] = {
    Sequence: "list, such as [a, b]",
    Mapping: "mapping of options to values",
    str: "word",
}
