"""MLflow's model registry: save points become versions of registered models, and models are found again.

A model is named by one of

- `models:/concept.SafetyPointGoal1-v0@update-150`, `models:/<name>/<version>` or `models:/<name>/latest`,
- `runs:/<run id>/update-150`,
- `zoo:unsafe.SafetyPointGoal1-v0`, a model shipped with the package,
- a path: a folder with `policy.safetensors` and `policy.json`, or a `.pt` file of the published layout.
"""

import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.types import Schema, TensorSpec

from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import ModelCard, StoredPolicy, save_policy
from lightning_unlearn.policies.files import load_policy as load_policy_files
from lightning_unlearn.policies.published_format import as_file_name, origin
from lightning_unlearn.tracking import model_page
from lightning_unlearn.tracking.model_files import LOADER, POLICY, digest_tag, fetched_policy
from lightning_unlearn.tracking.store import pages, writing

SELECTED = "selected"
"""The alias of a chosen save point; of one seed's choice `seed-<s>-selected`."""
ZOO = Path(__file__).parent.parent / "zoo"
_SHIPPED = "zoo:"


def model_name(method: str, env_id: str) -> str:
    """Return the name of a registered model."""
    return f"{method}.{as_file_name(env_id)}"


def save_point_aliases(seed: object, update: object) -> tuple[str, str]:
    """Return the aliases that a version gets when it is registered."""
    return f"update-{update}", f"seed-{seed}-update-{update}"


def load_policy(uri: str) -> StoredPolicy:
    """Read a policy from wherever it is; executes nothing that comes with it.

    Raises:
        ValueError: Nothing is there, or it is not a policy.
    """
    try:
        if is_shipped(uri):
            return load_policy_files(zoo_folder(uri))
        if uri.startswith(("models:", "runs:")):
            with fetched_policy(uri) as folder:
                return load_policy_files(folder)
        stored = load_policy_files(Path(uri))
    except FileNotFoundError as error:
        raise ValueError(f"model {uri} was not found: {error}") from error
    if stored.card == ModelCard() and (named := origin(Path(uri).name)) is not None:  # a file of the published layout
        method, env, update = named
        return StoredPolicy(stored.policy, ModelCard(method, env, update=update))
    return stored


def is_shipped(uri: str) -> bool:
    """Return whether a URI names a model that the package ships, which belongs to no seed of the store."""
    return uri.startswith(_SHIPPED)


def shipped_models(env_id: str) -> list[str]:
    """Return the URIs of the models of an environment that the package ships."""
    return [f"zoo:{folder.name}" for folder in sorted(ZOO.glob(model_name("*", env_id))) if folder.is_dir()]


def zoo_folder(uri: str) -> Path:
    """Return the folder of a shipped model.

    Raises:
        ValueError: There is no such model.
    """
    name = uri.removeprefix(_SHIPPED)
    shipped = sorted(folder.name for folder in ZOO.iterdir() if folder.is_dir())
    if name not in shipped:
        raise ValueError(f"model {uri} was not found: the package ships {', '.join(shipped)}.")
    return ZOO / name


def register_policy(policy: ActorCritic, card: ModelCard, run_id: str) -> str:
    """Store a run's save point as the next version of `<method>.<env>`; returns the version.

    The version carries the tags method, env, seed and update, and the aliases `update-<n>` and `seed-<s>-update-<n>`.
    It becomes visible when all its files are there, and with its tags. A run has one version of each update: what an
    earlier attempt left unfinished is finished or removed.
    """
    name, client = model_name(card.method, card.env), mlflow.MlflowClient()
    own = f"name='{name}' and run_id='{run_id}' and tags.update='{card.update}'"
    if found := client.search_model_versions(own):
        version = str(found[0].version)
    else:
        _remove_unregistered(card, run_id)
        version = _register(name, _log_model(policy, card, run_id), card, run_id)
    for alias in save_point_aliases(card.seed, card.update):
        with writing():
            newest = client.get_registered_model(name).aliases.get(alias)
            if newest is None or int(newest) < int(version):
                client.set_registered_model_alias(name, alias, version)
    return version


def _log_model(policy: ActorCritic, card: ModelCard, run_id: str) -> str:
    """Write a model's files and return its id; it is not yet a version of a registered model."""
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        folder = Path(scratch) / Path(POLICY).name
        save_policy(folder, policy, card)
        for chatter in (".*An input example was not provided", ".*Any type hint is inferred"):
            warnings.filterwarnings("ignore", chatter)
        with writing():
            try:
                experiment = client.get_run(run_id).info.experiment_id  # `Model.log` alone would use the default one
                info = Model.log(
                    artifact_path=None,
                    model_id=str(client.create_logged_model(experiment, _label(card), run_id).model_id),
                    flavor=_FLAVOR,
                    run_id=run_id,
                    step=card.env_steps,
                    loader_module=LOADER,
                    data_path=str(folder),
                    signature=_signature(policy),
                    input_example=np.zeros((1, policy.config.observation_size), _observation_type(policy)),
                    validate_serving_input=False,  # which would import a web server into the training
                    pip_requirements=["lightning-unlearn"],
                )
            except Exception:
                with suppress(MlflowException, OSError):  # the error that stopped the save is the one to report
                    _remove_unregistered(card, run_id)
                raise
    return str(info.model_id)


def _label(card: ModelCard) -> str:
    return f"update-{card.update}"


def _remove_unregistered(card: ModelCard, run_id: str) -> None:
    """Remove the models of a save point that were begun and never became a version."""
    client = mlflow.MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    own = f"source_run_id = '{run_id}' AND name = '{_label(card)}'"
    for model in client.search_logged_models([experiment], own):
        client.delete_logged_model(model.model_id)


def _register(name: str, model_id: str, card: ModelCard, run_id: str) -> str:
    """Make a logged model the next version, tags and description included."""
    client = mlflow.MlflowClient()
    files = client.get_logged_model(model_id).artifact_location
    tags = {key: str(getattr(card, key)) for key in ("method", "env", "seed", "update")} | digest_tag(files)
    with writing():
        version = str(mlflow.register_model(f"models:/{model_id}", name, tags=tags).version)
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, model_page.model_description(card, f"models:/{name}/latest"))
        client.update_model_version(
            name, version, model_page.version_description(card, f"models:/{name}/{version}", run_id)
        )
    return version


def _save_model(validate_serving_input: bool, **options: Any) -> None:
    """Save MLflow's generic model; `Model.log` alone reads the first option, and passes it on."""
    del validate_serving_input
    mlflow.pyfunc.save_model(**options)


_FLAVOR = SimpleNamespace(__name__="mlflow.pyfunc", save_model=_save_model)


def _observation_type(policy: ActorCritic) -> np.dtype:
    """The type that the policy reads, which the signature names: MLflow refuses float64 for float32."""
    return np.dtype(np.float64 if policy.observation_dtype == torch.float64 else np.float32)


def _signature(policy: ActorCritic) -> ModelSignature:
    observations = TensorSpec(_observation_type(policy), (-1, policy.config.observation_size))
    actions = TensorSpec(np.dtype(np.float32), (-1, policy.config.action_size))
    return ModelSignature(inputs=Schema([observations]), outputs=Schema([actions]))


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    with writing():
        for key, value in tags.items():
            mlflow.MlflowClient().set_model_version_tag(name, version, key, value)


def delete_version(name: str, version: str) -> None:
    """Delete a version, but not its files; a registered model without versions is deleted, too.

    The version's aliases as a save point go to the newest other version of the same save point.
    """
    client = mlflow.MlflowClient()
    with writing():
        doomed = client.get_model_version(name, version)
        client.delete_model_version(name, version)
        rest = list(client.search_model_versions(f"name='{name}'"))
        if not rest:
            client.delete_registered_model(name)
        for alias in doomed.aliases:
            heirs = [
                int(v.version) for v in rest if alias in save_point_aliases(v.tags.get("seed"), v.tags.get("update"))
            ]
            if heirs:
                client.set_registered_model_alias(name, alias, str(max(heirs)))


def select_version(name: str, seed: int, version: str, chosen_by: Mapping[str, str]) -> str:
    """Point `seed-<s>-selected` to a version and tag it with what it was chosen by; returns the alias.

    The tags are `selected.<key>`; the version that the alias pointed to before loses them.
    """
    client, alias = mlflow.MlflowClient(), _seeds_choice(seed)
    with writing():
        before = client.get_registered_model(name).aliases.get(alias)
        if before is not None and str(before) != version:
            for key in client.get_model_version(name, str(before)).tags:
                if key.startswith(f"{SELECTED}."):
                    client.delete_model_version_tag(name, str(before), key)
        for key, value in chosen_by.items():
            client.set_model_version_tag(name, version, f"{SELECTED}.{key}", value)
        client.set_registered_model_alias(name, alias, version)
    return alias


def point_selected(name: str, version: str) -> None:
    """Point `selected` to a version, one of the seeds' choices."""
    with writing():
        mlflow.MlflowClient().set_registered_model_alias(name, SELECTED, version)


def chosen_in(name: str, seed: int) -> str | None:
    """Return the run of `select` in which a seed's save point was chosen; None if none was."""
    try:
        version = mlflow.MlflowClient().get_model_version_by_alias(name, _seeds_choice(seed))
    except MlflowException:
        return None
    return version.tags.get(f"{SELECTED}.run")


def selected_uri(method: str, env_id: str, seed: int) -> str:
    """Return the save point of a training seed that `select` chose.

    Raises:
        ValueError: None is chosen.
    """
    name, alias = model_name(method, env_id), _seeds_choice(seed)
    try:
        mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException:
        raise ValueError(
            f"no save point of {method} with seed {seed} is selected in {env_id}: choose one with "
            f"`lightning-unlearn select --env {env_id} --method {method} --seed {seed}`."
        ) from None
    return f"models:/{name}@{alias}"


def _seeds_choice(seed: int) -> str:
    return f"seed-{seed}-{SELECTED}"


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model, by its tags."""

    uri: str
    method: str
    seed: int
    update: int
    run_id: str

    @property
    def version(self) -> str:
        """Its number among the versions of the registered model."""
        return self.uri.rpartition("/")[2]


def registered_models(env_id: str, seed: int, run_id: str | None = None) -> list[RegisteredModel]:
    """Return the newest version of every method and update of an environment and seed (and run).

    They are sorted by method and update.
    """
    own = f"tags.env='{env_id}' and tags.seed='{seed}'" + (f" and run_id='{run_id}'" if run_id is not None else "")
    client = mlflow.MlflowClient()
    found: dict[tuple[str, int], RegisteredModel] = {}
    versions = pages(lambda token: client.search_model_versions(own, 200, page_token=token))
    for entry in filter(None, map(_entry, versions)):
        key = entry.method, entry.update
        found[key] = max(entry, found.get(key, entry), key=lambda e: int(e.version))
    return [found[key] for key in sorted(found)]


def _entry(version: Any) -> RegisteredModel | None:
    """A version by its tags; None if they are not those of a save point: it was cut off, or is not ours."""
    tags = version.tags
    try:
        card = ModelCard(tags["method"], tags["env"], seed=int(tags["seed"]), update=int(tags["update"]))
    except (KeyError, ValueError):
        return None
    uri = f"models:/{version.name}/{version.version}"
    return RegisteredModel(uri, card.method, card.seed, card.update, version.run_id)


def models_of_run(run_id: str) -> dict[int, str]:
    """Return update → URI of the save points that a run registered."""
    versions = mlflow.MlflowClient().search_model_versions(f"run_id='{run_id}'")
    return {int(v.tags["update"]): f"models:/{v.name}/{v.version}" for v in versions if "update" in v.tags}


def registered_version(uri: str) -> Any:
    """Return MLflow's entry of the version that a `models:` or `runs:` URI names.

    Raises:
        ValueError: There is none.
    """
    client = mlflow.MlflowClient()
    try:
        if uri.startswith("runs:"):
            run_id, _, name = uri.removeprefix("runs:").lstrip("/").partition("/")
            versions = client.search_model_versions(f"run_id='{run_id}'")
            return max((v for v in versions if f"update-{v.tags.get('update')}" == name), key=lambda v: int(v.version))
        return client.get_model_version(*get_model_name_and_version(client, uri))
    except (MlflowException, TypeError, ValueError) as error:
        raise ValueError(f"model {uri} was not found: it is no version of a registered model.") from error


def expert_uri(env_id: str, seed: int) -> str:
    """Return the unsafe expert that a method starts from by default: the store's of this seed, else the shipped one.

    Raises:
        ValueError: There is neither.
    """
    name = model_name("unsafe", env_id)
    if newest := _newest(f"name='{name}' and tags.seed='{seed}'"):
        return f"models:/{name}/{newest}"
    if (ZOO / name).is_dir():
        return f"zoo:{name}"
    raise ValueError(
        f"There is no unsafe expert of {env_id} with seed {seed} in the store, and none is shipped. "
        "Train one with configs/method/unsafe.yaml, or name a model with --model.source."
    )


def pinned(uri: str) -> str:
    """Return a model's URI with the number of its version, in place of an alias or `latest`, which may move.

    Raises:
        ValueError: There is no such model.
    """
    if not uri.startswith("models:/"):
        return uri
    name, at, alias = uri.removeprefix("models:/").partition("@")
    named = name.removesuffix("/latest")
    if not at and named == name:
        return uri
    try:
        client = mlflow.MlflowClient()
        version = client.get_model_version_by_alias(name, alias).version if at else _newest(f"name='{named}'")
    except MlflowException as error:
        raise ValueError(f"model {uri} was not found: {error}") from error
    if version is None:
        raise ValueError(f"model {uri} was not found: there is no version of {named}")
    return f"models:/{named}/{version}"


def _newest(condition: str) -> int | None:
    """The number of the newest version that meets a condition of MLflow's search; None if there is none."""
    versions = mlflow.MlflowClient().search_model_versions(condition)
    return max((int(v.version) for v in versions), default=None)
