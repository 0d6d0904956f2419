"""How a run's save point becomes a version of a registered model: whole and once, or not at all."""

import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.description import as_file_name
from lightning_unlearn.policies.storage import ModelCard, save_policy
from lightning_unlearn.tracking.model_files import LOADER, POLICY, digest_tag
from lightning_unlearn.tracking.store import writing

SELECTED = "selected"
"""The alias of a chosen save point; of one seed's choice `seed-<s>-selected`."""

HOW_TO_RUN = (
    "MLflow cannot build an environment for this model: no package index has lightning-unlearn. Where it is installed, "
    "name `--env-manager local`, and the store by MLFLOW_TRACKING_URI:\n\n"
    "    mlflow models predict --env-manager local -m models:/{name}/latest -i observations.json\n"
    "    mlflow models serve --env-manager local -m models:/{name}/latest -p 5001\n\n"
    'The input is JSON, `{{"inputs": [[0.1, 0.2]]}}`: one row of float32 numbers an observation.'
)
"""Description of every registered model and version."""


def model_name(method: str, env_id: str) -> str:
    """Name of a registered model."""
    return f"{method}.{as_file_name(env_id)}"


def register_policy(policy: ActorCritic, card: ModelCard, run_id: str) -> str:
    """Store a run's save point as the next version of `<method>.<env>`; returns the version.

    The version carries the tags method, env, seed and update, and the aliases `update-<n>` and `seed-<s>-update-<n>`.
    It becomes visible when all its files are there, and with its tags. A run has one version of each update: what an
    earlier attempt left unfinished is finished or removed.
    """
    name = model_name(card.method, card.env)
    version = _registered(name, card, run_id)
    if version is None:
        _remove_unregistered(card, run_id)
        version = _register(name, _log_model(policy, card, run_id), card)
    for alias in save_point_aliases(card.seed, card.update):
        _point(name, alias, version)
    return version


def select_version(name: str, seed: int, version: str, chosen_by: Mapping[str, str]) -> str:
    """Point `seed-<s>-selected` to a version and tag it with what it was chosen by; returns the alias.

    The tags are `selected.<key>`; the version that the alias pointed to before loses them.
    """
    client, alias = mlflow.MlflowClient(), f"seed-{seed}-{SELECTED}"
    with writing():
        before = client.get_registered_model(name).aliases.get(alias)
        if before is not None and str(before) != version:
            _unmark(name, str(before))
        for key, value in chosen_by.items():
            client.set_model_version_tag(name, version, f"{SELECTED}.{key}", value)
        client.set_registered_model_alias(name, alias, version)
    return alias


def tag_version(name: str, version: str, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    with writing():
        for key, value in tags.items():
            mlflow.MlflowClient().set_model_version_tag(name, version, key, value)


def chosen_in(name: str, seed: int) -> str | None:
    """The run of `select` in which a seed's save point was chosen; None if none is."""
    try:
        version = mlflow.MlflowClient().get_model_version_by_alias(name, f"seed-{seed}-{SELECTED}")
    except MlflowException:
        return None
    return version.tags.get(f"{SELECTED}.run")


def point_selected(name: str, version: str) -> None:
    """Point `selected` to a version, one of the seeds' choices."""
    with writing():
        mlflow.MlflowClient().set_registered_model_alias(name, SELECTED, version)


def delete_version(name: str, version: str) -> None:
    """Delete a version, but not its files. Its aliases as a save point go to the newest other version that has a claim.

    A registered model without versions goes, too.
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


def save_point_aliases(seed: object, update: object) -> tuple[str, str]:
    """The aliases that a version gets when it is registered."""
    return f"update-{update}", f"seed-{seed}-update-{update}"


def _unmark(name: str, version: str) -> None:
    client = mlflow.MlflowClient()
    for key in client.get_model_version(name, version).tags:
        if key.startswith(f"{SELECTED}."):
            client.delete_model_version_tag(name, version, key)


def _registered(name: str, card: ModelCard, run_id: str) -> str | None:
    found = mlflow.MlflowClient().search_model_versions(
        f"name='{name}' and run_id='{run_id}' and tags.update='{card.update}'"
    )
    return str(found[0].version) if found else None


def _log_model(policy: ActorCritic, card: ModelCard, run_id: str) -> str:
    """Write a model's files; returns its id. It is no version of anything yet."""
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        folder = Path(scratch) / Path(POLICY).name
        save_policy(folder, policy, card)
        for chatter in (".*An input example was not provided", ".*Any type hint is inferred"):
            warnings.filterwarnings("ignore", chatter)
        with writing():
            try:
                info = Model.log(
                    artifact_path=None,
                    model_id=_new_model(card, run_id),
                    flavor=mlflow.pyfunc,
                    run_id=run_id,
                    step=card.env_steps,
                    loader_module=LOADER,
                    data_path=str(folder),
                    signature=_signature(policy),
                    pip_requirements=["lightning-unlearn"],
                )
            except Exception:
                with suppress(MlflowException, OSError):  # the error that stopped the save is the one to tell
                    _remove_unregistered(card, run_id)
                raise
    return str(info.model_id)


def _new_model(card: ModelCard, run_id: str) -> str:
    """An empty logged model in the run's own experiment; `Model.log` alone would put it into the default one."""
    client = mlflow.MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    return str(client.create_logged_model(experiment, _model_label(card), run_id).model_id)


def _model_label(card: ModelCard) -> str:
    return f"update-{card.update}"


def _remove_unregistered(card: ModelCard, run_id: str) -> None:
    """Remove the models of a save point that were begun and never became a version."""
    client = mlflow.MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    own = f"source_run_id = '{run_id}' AND name = '{_model_label(card)}'"
    for model in client.search_logged_models([experiment], own):
        client.delete_logged_model(model.model_id)


def _register(name: str, model_id: str, card: ModelCard) -> str:
    """Make a logged model the next version, tags included."""
    files = mlflow.MlflowClient().get_logged_model(model_id).artifact_location
    tags = {key: str(getattr(card, key)) for key in ("method", "env", "seed", "update")} | digest_tag(files)
    with writing():
        version = str(mlflow.register_model(f"models:/{model_id}", name, tags=tags).version)
        client, how_to_run = mlflow.MlflowClient(), HOW_TO_RUN.format(name=name)
        if version == "1":
            client.update_registered_model(name, how_to_run)
        client.update_model_version(name, version, how_to_run)
    return version


def _point(name: str, alias: str, version: str) -> None:
    """Point an alias to a version, unless it points to a newer one already."""
    client = mlflow.MlflowClient()
    with writing():
        at = client.get_registered_model(name).aliases.get(alias)
        if at is None or int(at) < int(version):
            client.set_registered_model_alias(name, alias, version)


def _signature(policy: ActorCritic) -> ModelSignature:
    """The observations' dtype is what the policy reads: MLflow refuses float64 for float32, which would round it."""
    wide = policy.observation_dtype == torch.float64
    observations = TensorSpec(np.dtype(np.float64 if wide else np.float32), (-1, policy.config.observation_size))
    actions = TensorSpec(np.dtype(np.float32), (-1, policy.config.action_size))
    return ModelSignature(inputs=Schema([observations]), outputs=Schema([actions]))
