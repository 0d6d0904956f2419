"""Models under audit: found in the registry, shipped, or named by URI; with labels, origins and latents.

Shapes: N states, O observation size, H latent size, A action size.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.policies.actor_critic import ActorCritic, extrapolate
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.seeding import SeedStreams, torch_generator
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.runs import StoredRun

UNSAFE, ORACLE, ZOO = "unsafe", "oracle", "zoo"
FAMILIES = (UNSAFE, ORACLE, "concept", "continued", "localized_concept", "trajectory_decremental", "repedit")
"""Order of families in tables; others follow."""


@dataclass(frozen=True)
class AuditedModel:
    """A model under audit."""

    label: str
    family: str
    """Method that made it; empty if unknown."""
    update: int | None
    seed: int | None
    """Training seed."""
    uri: str
    policy: ActorCritic
    digest: str
    """Digest of the weights; equal for equal models."""
    concept: str = ""
    """Concept that it was trained to forget, as its card records it; empty if unknown."""
    line: float | None = None
    """Share of the way from its expert's weights to its own, where the policy lies; None: the model itself."""
    stated_std: float = 0.0
    """Exploration std that its import stated, as its card records it; 0: its Gaussian is its own."""


def find_models(env_id: str, names: Sequence[str], seeds: Sequence[int]) -> list[AuditedModel]:
    """Read the models that names stand for.

    Args:
        env_id: Their environment.
        names: URIs or files, `zoo`, a registered method (`concept`), or each seed's chosen save point of one
            (`concept@selected`: a family of its own, `concept_selected`, whose updates may differ between seeds);
            all registered models if empty.
        seeds: Training seeds of the registered models.

    Raises:
        ValueError: There are none, one is unknown, or one is of another environment.
    """
    selected = [name for name in names if re.fullmatch(rf"\w+@{registry.SELECTED}", name)]
    others = [name for name in names if name not in selected]
    uris = [uri for name in others or ([] if selected else [""]) for uri in _uris(env_id, name, seeds)]
    listed = [read_model(uri, env_id, "models") for uri in dict.fromkeys(uris)]
    return listed + [_selected(name.partition("@")[0], env_id, seed) for name in selected for seed in seeds]


def read_model(uri: str, env_id: str, option: str) -> AuditedModel:
    """Read the model that an option names.

    Raises:
        ValueError: There is none, or it is of another environment.
    """
    try:
        stored = registry.load_policy(uri)
    except ValueError as error:
        raise ValueError(f"--{option} {uri}: {error}") from error
    card, policy = stored.card, stored.policy
    if card.env and card.env != env_id:
        raise ValueError(
            f"--{option} {uri} is a model of {card.env}, not of {env_id}: models of several environments cannot be "
            "mixed; leave it out, or name its environment with --env."
        )
    update, seed = (number if number >= 0 else None for number in (card.update, card.seed))
    end_of_path = uri.rstrip("/").rpartition("/")[2].removesuffix(".pt")
    as_file_name = re.sub(r"[^\w.-]+", "_", end_of_path).strip("._") or "model"
    label = (card.method if update is None else f"{card.method}_{update}") or as_file_name
    origin = label, card.method, update, seed, uri
    return AuditedModel(*origin, policy, weights_digest(policy), card.concept, stated_std=card.stated_std)


def require_fit(policy: ActorCritic, simulator: Simulator, option: str, uri: str) -> None:
    """Refuse a model whose observations or actions are of other sizes than an environment's.

    Args:
        policy: The model's policy.
        simulator: The environment's simulator.
        option: The option that names the model.
        uri: Its value.

    Raises:
        ValueError: They are.
    """
    config = policy.config
    has = config.observation_size, config.action_size
    needs = simulator.observation_size, len(simulator.action_low)
    if has != needs:
        raise ValueError(
            f"--{option} {uri} takes {has[0]} observations and gives {has[1]} actions, but {simulator.env_id} "
            f"has {needs[0]} and {needs[1]}: models of several environments cannot be mixed; leave it out, or name a "
            "model of this environment."
        )


def unsafe_expert(env_id: str, seed: int, given: str | None, *, shipped: bool = False) -> AuditedModel:
    """The unsafe expert that models are compared with: the one given, the shipped one on request, else the seed's own.

    Raises:
        ValueError: There is none.
    """
    uri = given
    if (
        uri is None
        and shipped
        and (own := f"zoo:{registry.model_name(UNSAFE, env_id)}") in registry.shipped_models(env_id)
    ):
        uri = own
    if uri is None:
        try:
            uri = registry.expert_uri(env_id, seed)
        except ValueError:
            raise ValueError(
                f"--expert is missing: there is no unsafe expert of {env_id} with seed {seed} in the store, and "
                "none is shipped. Name one, or train one with configs/method/unsafe.yaml."
            ) from None
    return replace(read_model(uri, env_id, "expert"), label=UNSAFE, family=UNSAFE)


def oracle_reference(env_id: str, seed: int, given: str | None, among: Iterable[AuditedModel]) -> AuditedModel | None:
    """The oracle reference: the one given, else that of most updates among the models and those registered."""
    if given is not None:
        return read_model(given, env_id, "oracle")
    listed = [model for model in among if model.family == ORACLE and model.seed in (seed, None)]
    registered = [model for model in registry.registered_models(env_id, seed) if model.method == ORACLE]
    last = max(listed, key=lambda model: model.update or 0, default=None)
    newest = max(registered, key=lambda model: model.update, default=None)
    if newest is not None and (last is None or newest.update > (last.update or 0)):
        return read_model(newest.uri, env_id, "oracle")
    return last


def arrange(models: Iterable[AuditedModel]) -> list[AuditedModel]:
    """Sort by family without repeats, and make labels unique: the seed is added where there are several."""

    def order(model: AuditedModel) -> tuple[int, str, int, int]:
        known = FAMILIES.index(model.family) if model.family in FAMILIES else len(FAMILIES)
        update = -1 if model.label == UNSAFE else model.update or 0
        return known, model.family, update, -1 if model.seed is None else model.seed

    unique = {(model.uri, model.digest): model for model in models}
    ordered = sorted(unique.values(), key=order)
    if len({model.seed for model in ordered} - {None}) > 1:
        ordered = [replace(m, label=f"{m.label}_seed{m.seed}") if m.seed is not None else m for m in ordered]
    seen: Counter[str] = Counter()
    distinct = []
    for model in ordered:
        seen[model.label] += 1
        count = seen[model.label]
        distinct.append(model if count == 1 else replace(model, label=f"{model.label}_{count}"))
    return distinct


def seeds_in_store(models: Iterable[AuditedModel]) -> set[int]:
    """Training seeds of the models that are not shipped with the package."""
    return {model.seed for model in models if model.seed is not None and not registry.is_shipped(model.uri)}


def trained_limits(uris: Iterable[str], trainings: Mapping[str, StoredRun]) -> dict[str, float]:
    """Limits on C_forget of an episode that models were trained for.

    Args:
        uris: URIs of models.
        trainings: Run id → training run.

    Returns:
        URI → limit; without models that have none, and those of a run that is not there.
    """
    limits: dict[str, float] = {}
    for uri in uris:
        with suppress(ValueError, KeyError):  # a file, or a model of a run that is not there
            limit = trainings[str(registry.registered_version(uri).run_id)].cost_limit
            limits |= {} if limit is None else {uri: limit}
    return limits


def random_twin(policy: ActorCritic, seed: int) -> ActorCritic:
    """A randomly initialised policy of the same shape, with the same observation normaliser and no editor."""
    twin = ActorCritic(replace(policy.config, editor="none"), torch_generator(SeedStreams.of(seed).weights))
    if twin.normaliser is not None and policy.normaliser is not None:
        twin.normaliser.load_state_dict(policy.normaliser.state_dict())
    return twin.eval()


def between(expert: AuditedModel, model: AuditedModel, share: float) -> AuditedModel:
    """The model whose weights are expert + share · (model − expert), both without editors.

    Raises:
        ValueError: They differ in more than trained weights.
    """
    try:
        policy = extrapolate(expert.policy.without_editor(), model.policy.without_editor(), share)
    except ValueError as error:
        raise ValueError(
            f"--line {share:g}, from {expert.uri} to {model.uri}: {error} Or leave out one of the options."
        ) from error
    return replace(
        model, label=f"{model.label}_line{share:g}", policy=policy, digest=weights_digest(policy), line=share
    )


def latents(policy: ActorCritic, states: np.ndarray, *, edited: bool = False, batch_size: int = 4096) -> np.ndarray:
    """The trunk's output, or the edited latent that the heads read. Shape: (N, O) → (N, H), float64."""
    return _batched(policy.operative_latent if edited else policy.latent, states, batch_size)


def latents_with_controls(policy: ActorCritic, states: np.ndarray, seed: int, batch_size: int) -> dict[str, np.ndarray]:
    """Latents of a policy (`model`), and as controls those of a random network (`floor`) and the states (`ceiling`)."""
    return {
        "model": latents(policy, states, batch_size=batch_size),
        "floor": latents(random_twin(policy, seed), states, batch_size=batch_size),
        "ceiling": states.astype(np.float64),
    }


def action_means(policy: ActorCritic, states: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
    """Means of the Gaussian before tanh, of the whole policy with its editor. Shape: (N, O) → (N, A), float64."""
    return _batched(policy.mean, states, batch_size)


@torch.inference_mode()
def _batched(forward: Callable[[torch.Tensor], torch.Tensor], states: np.ndarray, batch_size: int) -> np.ndarray:
    batches = torch.from_numpy(states).split(batch_size)
    return torch.cat([forward(batch) for batch in batches]).double().numpy()


def _uris(env_id: str, name: str, seeds: Sequence[int]) -> list[str]:
    """URIs that one name stands for; of all registered models if it is empty."""
    if name == ZOO:
        return registry.shipped_models(env_id) or _refuse_none(f"--models zoo: the package ships no model of {env_id}")
    if name and (not re.fullmatch(r"[a-z]\w*", name) or Path(name).exists()):
        return [name]
    registered = [model for seed in seeds for model in registry.registered_models(env_id, seed)]
    chosen = [model.uri for model in registered if name in ("", model.method)]
    where = f"with --seed {' '.join(map(str, seeds))}"
    if not chosen and name:
        known = ", ".join(sorted({model.method for model in registered})) or "nothing"
        _refuse_none(f"--models {name}: there is no such method of {env_id} {where} ({known} is there)")
    return chosen or _refuse_none(f"no model of {env_id} {where} was found in the store")


def _refuse_none(what: str) -> NoReturn:
    raise ValueError(f"{what}: train one with `lightning-unlearn fit`, or name models by URI or file with --models.")


def _selected(method: str, env_id: str, seed: int) -> AuditedModel:
    """A seed's chosen save point; an expert or oracle keeps its own family, since others are compared with it."""
    model = read_model(registry.selected_uri(method, env_id, seed), env_id, "models")
    if model.family in (UNSAFE, ORACLE):
        return model
    family = f"{model.family or method}_{registry.SELECTED}"
    return replace(model, label=family, family=family, update=None)
