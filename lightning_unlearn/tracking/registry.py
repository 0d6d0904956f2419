"""Where models are stored and found: MLflow's model registry, its runs and artifacts, files, and the shipped zoo.

With `versions`, which writes it, the only file that knows MLflow's model registry; what a model's files are is in
`model_files`, runs and their artifacts are in `runs`. A model is asked for by one of

- `models:/concept.SafetyPointGoal1-v0@update-150`, `models:/<name>/<version>` or `models:/<name>/latest`,
- `runs:/<run id>/update-150`,
- `zoo:unsafe.SafetyPointGoal1-v0`, a model shipped with the package,
- a path: a folder with `policy.safetensors` and `policy.json`, or a `.pt` file of the published layout.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException

from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.published import origin
from lightning_unlearn.policies.storage import ModelCard, StoredPolicy
from lightning_unlearn.policies.storage import load_policy as load_policy_files
from lightning_unlearn.torch_modes import ordinary_modes
from lightning_unlearn.tracking.addresses import sqlite_uri as sqlite_uri
from lightning_unlearn.tracking.model_files import fetched_policy
from lightning_unlearn.tracking.model_versions import SELECTED as SELECTED
from lightning_unlearn.tracking.model_versions import chosen_in as chosen_in
from lightning_unlearn.tracking.model_versions import model_name as model_name
from lightning_unlearn.tracking.model_versions import point_selected as point_selected
from lightning_unlearn.tracking.model_versions import register_policy as register_policy
from lightning_unlearn.tracking.model_versions import select_version as select_version
from lightning_unlearn.tracking.model_versions import tag_version as tag_version
from lightning_unlearn.tracking.store import DEFAULT_TRACKING_URI as DEFAULT_TRACKING_URI
from lightning_unlearn.tracking.store import TRACKING_URI_HELP as TRACKING_URI_HELP
from lightning_unlearn.tracking.store import artifact_location as artifact_location
from lightning_unlearn.tracking.store import open_store as open_store
from lightning_unlearn.tracking.store import require_recordable as require_recordable
from lightning_unlearn.tracking.store import store_address as store_address
from lightning_unlearn.tracking.store import tracking_uri as tracking_uri
from lightning_unlearn.tracking.store import ui_command as ui_command
from lightning_unlearn.tracking.store import use_existing_store as use_existing_store

ZOO = Path(__file__).parent.parent / "zoo"
_SHIPPED = "zoo:"


def expert_uri(env_id: str, seed: int) -> str:
    """The unsafe expert that a method starts from by default: the store's of this seed, else the shipped one.

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
        return _with_origin(load_policy_files(Path(uri)), Path(uri).name)
    except FileNotFoundError as error:
        raise ValueError(f"model {uri} was not found: {error}") from error


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
    """The newest version of every method and update of an environment and seed (and run), by method and update."""
    own = f"tags.env='{env_id}' and tags.seed='{seed}'" + (f" and run_id='{run_id}'" if run_id is not None else "")
    client, token = mlflow.MlflowClient(), None
    found: dict[tuple[str, int], RegisteredModel] = {}
    while True:
        page = client.search_model_versions(own, 200, page_token=token)
        for entry in filter(None, map(_entry, page)):
            key = entry.method, entry.update
            found[key] = max(entry, found.get(key, entry), key=lambda e: int(e.version))
        token = page.token
        if not token:
            return [found[key] for key in sorted(found)]


def selected_uri(method: str, env_id: str, seed: int) -> str:
    """The save point of a training seed that `select` chose.

    Raises:
        ValueError: None is chosen.
    """
    name, alias = model_name(method, env_id), f"seed-{seed}-{SELECTED}"
    try:
        mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException:
        raise ValueError(
            f"no save point of {method} with seed {seed} is selected in {env_id}: choose one with "
            f"`lightning-unlearn select --env {env_id} --method {method} --seed {seed}`."
        ) from None
    return f"models:/{name}@{alias}"


def pinned(uri: str) -> str:
    """The same model by its version's number, where an alias or `latest` names it now and another one tomorrow.

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
    """Number of the newest version that meets a condition of MLflow's search; None if there is none."""
    versions = mlflow.MlflowClient().search_model_versions(condition)
    return max((int(v.version) for v in versions), default=None)


def is_shipped(uri: str) -> bool:
    """Whether a URI names a model that the package ships, which belongs to no seed of the store."""
    return uri.startswith(_SHIPPED)


def shipped_models(env_id: str) -> list[str]:
    """URIs of the models of an environment that the package ships."""
    return [f"zoo:{folder.name}" for folder in sorted(ZOO.glob(model_name("*", env_id))) if folder.is_dir()]


class PyfuncPolicy:
    """The deterministic policy as MLflow's generic model: observations (N, O) in, actions (N, A) out."""

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy

    @ordinary_modes()
    def predict(self, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Deterministic actions, inside the environment's bounds. Shape: (N, O) → (N, A)."""
        with torch.inference_mode():
            return self._policy.act(torch.as_tensor(model_input)).numpy()


@ordinary_modes()
def _load_pyfunc(path: str) -> PyfuncPolicy:
    """Called by `mlflow.pyfunc.load_model`, with the folder that `register_policy` stored."""
    return PyfuncPolicy(load_policy_files(Path(path)).policy)


def _entry(version: Any) -> RegisteredModel | None:
    """A version by its tags; None where they are none of a save point: its registration was cut off, or is not ours."""
    tags = version.tags
    try:
        card = ModelCard(tags["method"], tags["env"], seed=int(tags["seed"]), update=int(tags["update"]))
    except (KeyError, ValueError):
        return None
    uri = f"models:/{version.name}/{version.version}"
    return RegisteredModel(uri, card.method, card.seed, card.update, version.run_id)


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A path to a file: one of a run (`runs:/<run id>/probes/hazard_direction.pt`), or one that is on disk already.

    Raises:
        ValueError: The run has no such file.
    """
    if not uri.startswith("runs:"):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=scratch)
        except (MlflowException, OSError) as error:
            raise ValueError(f"file {uri} was not found: {error}") from error
        yield Path(path)


def _with_origin(stored: StoredPolicy, file_name: str) -> StoredPolicy:
    """A file of the published layout knows where it comes from only by its name."""
    told = origin(file_name) if stored.card == ModelCard() else None
    if told is None:
        return stored
    method, env, update = told
    return StoredPolicy(stored.policy, ModelCard(method, env, update=update))


def zoo_folder(uri: str) -> Path:
    """Where a shipped model is.

    Raises:
        ValueError: There is no such model.
    """
    name = uri.removeprefix(_SHIPPED)
    shipped = sorted(folder.name for folder in ZOO.iterdir() if folder.is_dir())
    if name not in shipped:
        raise ValueError(f"model {uri} was not found: the package ships {', '.join(shipped)}.")
    return ZOO / name
