"""Which models an audit looks at: found in the registry, in the zoo, or named; with labels and origins."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.tracking import registry

UNSAFE, ORACLE, ZOO = "unsafe", "oracle", "zoo"
FAMILIES = (UNSAFE, ORACLE, "concept", "continued", "localized_concept", "trajectory_decremental", "repedit")
"""In the order in which tables list them; others follow."""
_SELECTED = re.compile(rf"\w+@{registry.SELECTED}")
"""What names each seed's chosen save point of a method."""


@dataclass(frozen=True)
class Subject:
    """A model under audit."""

    label: str
    family: str
    """The method that made it; empty if unknown."""
    update: int | None
    seed: int | None
    """Of the training."""
    uri: str
    policy: ActorCritic
    digest: str
    """Of the weights: tells whether two models are the same."""
    concept: str = ""
    """What it was to forget, as its card records it; empty if unknown."""


def find(env_id: str, names: Sequence[str], seeds: Sequence[int]) -> list[Subject]:
    """The models asked for.

    Args:
        env_id: Their environment.
        names: URIs or files, `zoo`, a method that is in the registry (`concept`), or each seed's chosen save point of
            one (`concept@selected`, a family of its own, `concept_selected`, whose updates may differ between seeds);
            all registered ones if empty.
        seeds: Training seeds of what is looked up in the registry.

    Raises:
        ValueError: There are none, one is unknown, or one is of another environment.
    """
    selected = [name for name in names if _SELECTED.fullmatch(name)]
    others = [name for name in names if name not in selected]
    uris = [uri for name in others or ([] if selected else [""]) for uri in _uris(env_id, name, seeds)]
    listed = [read(uri, env_id, "models") for uri in dict.fromkeys(uris)]
    return listed + [_selected(name.partition("@")[0], env_id, seed) for name in selected for seed in seeds]


def read(uri: str, env_id: str, option: str) -> Subject:
    """One model, named by an option.

    Raises:
        ValueError: There is none, or it is of another environment.
    """
    try:
        stored = registry.load_policy(uri)
    except ValueError as error:
        raise ValueError(f"--{option} {uri}: {error}") from error
    card = stored.card
    if card.env and card.env != env_id:
        raise ValueError(
            f"--{option} {uri} is a model of {card.env}, not of {env_id}: models of several environments cannot be "
            "mixed; leave it out, or name its environment with --env."
        )
    update, seed = (number if number >= 0 else None for number in (card.update, card.seed))
    label = _label(card.method, update) or _from_uri(uri)
    return Subject(label, card.method, update, seed, uri, stored.policy, weights_digest(stored.policy), card.concept)


def require_fit(subject: Subject, simulator: Simulator, option: str) -> None:
    """Refuse a model, named by an option, of another environment.

    Raises:
        ValueError: Its observations or actions are of other sizes.
    """
    config = subject.policy.config
    has = config.observation_size, config.action_size
    needs = simulator.observation_size, len(simulator.action_low)
    if has != needs:
        raise ValueError(
            f"--{option} {subject.uri} takes {has[0]} observations and gives {has[1]} actions, but {simulator.env_id} "
            f"has {needs[0]} and {needs[1]}: models of several environments cannot be mixed; leave it out."
        )


def expert(env_id: str, seed: int, given: str | None, *, shipped: bool = False) -> Subject:
    """The unsafe expert that models are compared with: the one given, the shipped one if wished, else the seed's own.

    Raises:
        ValueError: There is none.
    """
    if given is not None:
        return _as_expert(read(given, env_id, "unsafe_model"))
    if shipped and (uri := f"zoo:{registry.model_name(UNSAFE, env_id)}") in registry.shipped_models(env_id):
        return _as_expert(read(uri, env_id, "unsafe_model"))
    try:
        uri = registry.expert_uri(env_id, seed)
    except ValueError:
        raise ValueError(
            f"--unsafe_model is missing: there is no unsafe expert of {env_id} with seed {seed} in the store, and none "
            "is shipped. Name one, or train one with configs/method/unsafe.yaml."
        ) from None
    return _as_expert(read(uri, env_id, "unsafe_model"))


def latest_oracle(env_id: str, seed: int, given: str | None, among: Iterable[Subject]) -> Subject | None:
    """The oracle reference: the one given, else that of most updates among the models and those registered."""
    if given is not None:
        return read(given, env_id, "oracle_ref_path")
    listed = [subject for subject in among if subject.family == ORACLE and subject.seed in (seed, None)]
    registered = [model for model in registry.registered_models(env_id, seed) if model.method == ORACLE]
    last = max(listed, key=lambda s: s.update or 0, default=None)
    newest = max(registered, key=lambda m: m.update, default=None)
    if newest is not None and (last is None or newest.update > (last.update or 0)):
        return read(newest.uri, env_id, "oracle_ref_path")
    return last


def arrange(subjects: Iterable[Subject]) -> list[Subject]:
    """Without repeats, family by family, with labels that differ: the seed is added where there are several."""
    unique = list({(subject.uri, subject.digest): subject for subject in subjects}.values())
    ordered = sorted(unique, key=_order)
    if len({subject.seed for subject in ordered} - {None}) > 1:
        ordered = [replace(s, label=f"{s.label}_seed{s.seed}") if s.seed is not None else s for s in ordered]
    return _distinct(ordered)


def _uris(env_id: str, name: str, seeds: Sequence[int]) -> list[str]:
    if name == ZOO:
        return registry.shipped_models(env_id) or _none_found(f"--models zoo: the package ships no model of {env_id}")
    if name and (not re.fullmatch(r"[a-z]\w*", name) or Path(name).exists()):
        return [name]
    registered = [model for seed in seeds for model in registry.registered_models(env_id, seed)]
    chosen = [model.uri for model in registered if name in ("", model.method)]
    if not chosen and name:
        known = ", ".join(sorted({model.method for model in registered})) or "nothing"
        _none_found(
            f"--models {name}: there is no such method of {env_id} with --seed {_words(seeds)} ({known} is there)"
        )
    return chosen or _none_found(f"no model of {env_id} with --seed {_words(seeds)} was found in the store")


def _selected(method: str, env_id: str, seed: int) -> Subject:
    subject = read(registry.selected_uri(method, env_id, seed), env_id, "models")
    if subject.family in (UNSAFE, ORACLE):  # what others are compared with stays that
        return subject
    family = f"{subject.family or method}_{registry.SELECTED}"
    return replace(subject, label=family, family=family, update=None)


def _none_found(what: str) -> list[str]:
    raise ValueError(f"{what}: train one with `lightning-unlearn fit`, or name models by URI or file with --models.")


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _as_expert(subject: Subject) -> Subject:
    return replace(subject, label=UNSAFE, family=UNSAFE)


def _label(method: str, update: int | None) -> str:
    return method if update is None else f"{method}_{update}"


def _from_uri(uri: str) -> str:
    """A name that can be part of a file name, from the end of a path."""
    tail = uri.rstrip("/").rpartition("/")[2].removesuffix(".pt")
    return re.sub(r"[^\w.-]+", "_", tail).strip("._") or "model"


def _order(subject: Subject) -> tuple[int, str, int, int]:
    known = FAMILIES.index(subject.family) if subject.family in FAMILIES else len(FAMILIES)
    first = -1 if subject.label == UNSAFE else subject.update or 0
    return known, subject.family, first, -1 if subject.seed is None else subject.seed


def _distinct(subjects: list[Subject]) -> list[Subject]:
    seen: Counter[str] = Counter()
    result = []
    for subject in subjects:
        seen[subject.label] += 1
        count = seen[subject.label]
        result.append(subject if count == 1 else replace(subject, label=f"{subject.label}_{count}"))
    return result
