"""The MLflow store: which one is used, opening it, its folders, writing to it, and waiting for its server."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking._model_registry import utils as registry_utils
from mlflow.tracking._tracking_service import utils as tracking_utils
from mlflow.tracking.fluent import _ACTIVE_MODEL_CONTEXT
from mlflow.utils import autologging_utils
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lightning_unlearn import processes
from lightning_unlearn.tracking import database
from lightning_unlearn.tracking.addresses import sign_in, sqlite_uri, without_password
from lightning_unlearn.tracking.experiment_page import KIND, key_figures_page, page_tags
from lightning_unlearn.tracking.relocation import ARTIFACTS, CHECKPOINTS, needs_relocation, relocate

DEFAULT_TRACKING_URI = "sqlite:///mlruns/mlflow.db"
TRACKING_URI_HELP = "MLflow store; default: MLFLOW_TRACKING_URI, else ./mlruns"
ANSWER_S, RETRY_S = 10.0, 5.0
"""Seconds that a server has to answer, and between two attempts while it does not."""
_SQLITE, _SERVER = "sqlite:///", ("http://", "https://")
_DATABASES = ("postgresql", "mysql", "mssql")
_STORES = (_SQLITE, *_SERVER, *_DATABASES, "databricks")
_DRIVERS = {"MySQLdb": "mysqlclient", "psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
"""Module of a database driver → the package that has it, where the names differ."""
_REGISTRY = "MLFLOW_REGISTRY_URI"
_PORT = "5000"
"""Port of the MLflow UI."""
_LOCK = database.WriteLock()
_T = TypeVar("_T")


def tracking_uri() -> str:
    """Return the address of the present store."""
    return str(mlflow.get_tracking_uri())


def store_address() -> str:
    """Return the address of the present store without a password, to be printed and recorded."""
    return without_password(tracking_uri())


def resolve_tracking_uri(given: str | None = None) -> str:
    """Return the store to use: the given one, the one that MLflow was pointed at, or the one in `./mlruns`.

    MLflow is pointed at a store by `mlflow.set_tracking_uri`, or else by the variable MLFLOW_TRACKING_URI.
    """
    if given is not None:
        return given
    return tracking_uri() if mlflow.is_tracking_uri_set() else DEFAULT_TRACKING_URI


def open_store(given: str | None = None) -> str:
    """Make MLflow use a store from here on; a SQLite store is created at first use.

    Runs of this machine whose process has ended without a final status are marked KILLED.

    Args:
        given: URI of the store; None: see `resolve_tracking_uri`.

    Returns:
        The option that names this store in a command, with a space before it; empty if a command without one opens it.

    Raises:
        ValueError: The URI names no store, the store cannot be written, or a variable asks for what is not possible.
    """
    default, uri = _absolute(resolve_tracking_uri()), resolve_tracking_uri(given)
    if not uri.startswith(_STORES):
        source = "" if given is not None else " (from MLFLOW_TRACKING_URI or mlflow.set_tracking_uri)"
        raise ValueError(
            f"tracking_uri={without_password(uri)!r}{source} names no store: use sqlite:///FOLDER/mlflow.db, "
            "or the http:// address of an MLflow server."
        )
    _require_no_other_place(uri)
    if uri.startswith(_SQLITE):
        uri = _checked_sqlite(uri)
    _point_mlflow_at(uri)
    try:
        with writing():
            file = database_file()
            if file is not None and not file.exists():
                database.create(file)
            mlflow.MlflowClient().search_experiments(max_results=1)
            if file is not None:
                relocate(file)
            _mark_killed()
    except (MlflowException, SQLAlchemyError) as error:
        message = without_password(str(error))
        raise ValueError(f"tracking_uri={store_address()} cannot be opened: {message}") from error
    return "" if without_password(default) == store_address() else f" --tracking_uri {shlex.quote(store_address())}"


def use_existing_store(given: str | None = None) -> None:
    """Make MLflow look things up in a store that exists. In one that was copied or moved, paths are rewritten first.

    Args:
        given: URI of the store; None: wherever MLflow points, its model registry included, or else `./mlruns`.

    Raises:
        ValueError: There is no such store, or its paths have to be rewritten and cannot be.
    """
    uri = _absolute(resolve_tracking_uri(given))
    if uri.startswith(_SQLITE) and not Path(make_url(uri).database or "").is_file():
        raise ValueError(
            f"tracking_uri={resolve_tracking_uri(given)} was not found: name the store by tracking_uri=, by "
            "mlflow.set_tracking_uri or by the variable MLFLOW_TRACKING_URI."
        )
    if given is not None or not mlflow.is_tracking_uri_set():
        _point_mlflow_at(uri)
    if (file := database_file()) is not None and needs_relocation(file.resolve()):
        database.require_current_schema(file.resolve())
        database.require_writable(file)
        with writing():
            relocate(file.resolve())


def _absolute(uri: str) -> str:
    """The URI of a store that stays the same wherever the process moves to."""
    if not uri.startswith(_SQLITE):
        return uri
    return sqlite_uri(Path(make_url(uri).database or "").resolve())


def _require_no_other_place(uri: str) -> None:
    """Refuse MLflow's variables that ask for another registry or another experiment."""
    if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        raise ValueError(
            f"MLFLOW_EXPERIMENT_NAME={experiment} is not possible: every environment has one experiment, named after "
            "it. Unset the variable."
        )
    registry_uri = os.environ.get(_REGISTRY)
    if registry_uri not in (None, "", tracking_uri(), uri):
        raise ValueError(
            f"{_REGISTRY}={registry_uri} (or mlflow.set_registry_uri) is not possible: models are registered "
            "in the store of their runs. Unset it."
        )


def _checked_sqlite(uri: str) -> str:
    """The absolute URI of a SQLite store that can be written and has the present schema, or none yet."""
    if "?" in uri:
        raise ValueError(
            f"tracking_uri={uri} has a question mark, which begins the options of a database URI: write "
            "%3F for one that is part of the path, and leave options out."
        )
    name = make_url(uri).database or ""
    if name in ("", ":memory:"):
        raise ValueError(f"tracking_uri={uri} names no file: use sqlite:///FOLDER/mlflow.db.")
    file = Path(name).resolve()
    database.require_writable(file)
    database.require_current_schema(file)
    return sqlite_uri(file)  # MLflow keeps a connection per URI, wherever the process moves to


def _point_mlflow_at(uri: str) -> None:
    if uri.startswith(_SERVER):
        uri = sign_in(uri)
    elif uri.startswith(_DATABASES):
        address = f"tracking_uri={without_password(uri)}"
        try:
            make_url(uri).get_dialect().import_dbapi()
        except ImportError as error:
            raise ValueError(
                f"{address} needs a database driver that is not installed, the Python module {error.name}: install it "
                f"(pip install '{_DRIVERS.get(str(error.name), error.name)}'), or name another store."
            ) from error
        except SQLAlchemyError as error:
            raise ValueError(f"{address} names no store: {without_password(str(error))}") from error
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    os.environ.pop(_REGISTRY, None)  # MLflow sets it; a registry follows its store, and what is set is the user's
    if reason := _unreachable():
        remedy = "start the server (`mlflow server`)"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            remedy = "name the file of the certificates to trust by MLFLOW_TRACKING_SERVER_CERT_PATH"
        raise ValueError(f"tracking_uri={store_address()} does not answer ({reason}): {remedy}, or name another store.")


def _mark_killed() -> None:
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    own = f"attributes.status = 'RUNNING' and tags.`{processes.HOST}` = '{processes.host()}'"
    for run in client.search_runs(experiments, own):
        if processes.is_gone(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")


def is_reachable() -> bool:
    """Return whether the present store can be asked; MLflow alone would try for minutes. Files always can."""
    return not _unreachable()


def _unreachable() -> str:
    """The reason why the present server does not answer MLflow's client, with all its variables; empty if it does."""
    uri = tracking_uri()
    if not uri.startswith(_SERVER):
        return ""
    once = {"max_retries": 0, "raise_on_status": False, "timeout": ANSWER_S}
    try:
        status = http_request(get_default_host_creds(uri), "/health", "GET", **once).status_code
    except MlflowException as error:
        first: BaseException = error  # of the chain: it names the cause, and the others who passed it on
        while first.__context__ is not None:
            first = first.__context__
        return without_password(str(first)) or type(first).__name__
    return f"HTTP status {status}" if status >= 500 else ""  # it has no such page, or wants a password: it is there


def with_retries(write: Callable[[], _T], what: str) -> _T:
    """Write to the store; while its server does not answer, wait and try again.

    Args:
        write: Writes; may be called again after it failed.
        what: Names what is written, in the message.
    """
    while True:
        try:
            return write()
        except (MlflowException, OSError):
            if is_reachable():
                raise
        print(f"The server {store_address()} does not answer: {what} is kept, and tried again.", flush=True)
        while not is_reachable():
            time.sleep(RETRY_S)


def database_file() -> Path | None:
    """Return the file of a SQLite store; None if a server keeps the store."""
    uri = tracking_uri()
    return Path(make_url(uri).database or "") if uri.startswith(_SQLITE) else None


def store_folder() -> Path | None:
    """Return the folder of a SQLite database and of the files beside it; None if a server keeps them."""
    file = database_file()
    return None if file is None else file.parent


def artifact_location() -> str | None:
    """Return where a new experiment keeps its artifacts: beside a SQLite database; None if the server decides."""
    folder = store_folder()
    return None if folder is None else (folder / ARTIFACTS).as_uri()


def checkpoints_root() -> Path:
    """Return the folder of checkpoints: beside a SQLite database; of any other store `mlruns/remote/` here.

    The two are apart, so that every folder belongs to the runs of one store.
    """
    folder = store_folder()
    return (Path("mlruns/remote").resolve() if folder is None else folder) / CHECKPOINTS


def checkpoint_folder(run_id: str) -> Path:
    """Return the folder of a run's checkpoints."""
    return checkpoints_root() / run_id


def ui_command() -> str:
    """Return the address of the store's server, or the shell command that starts the MLflow UI on its file."""
    uri = store_address()
    if uri.startswith(_SERVER):
        return uri
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", _PORT, "--workers", "1"]
    return shlex.join(command)


def key_figures_address(experiment: str) -> str:
    """Return the address of the page with the key figures of an experiment's runs, once the UI is started."""
    uri = store_address()
    return key_figures_page(uri if uri.startswith(_SERVER) else f"http://localhost:{_PORT}", experiment)


def experiment_id(name: str) -> str:
    """Return the id of an experiment, which the first process that asks for it creates.

    One that an earlier version created gets the tags that MLflow's UI goes by.

    Raises:
        ValueError: It was deleted.
    """
    client = mlflow.MlflowClient()
    with writing():
        known = require_active_experiment(name)
        if known is None:
            return str(client.create_experiment(name, artifact_location=artifact_location(), tags=page_tags()))
        if KIND not in client.get_experiment(known).tags:
            for key, value in page_tags().items():
                client.set_experiment_tag(known, key, value)
        return known


def require_active_experiment(name: str) -> str | None:
    """Refuse a deleted experiment, which takes no runs; commands that record at their end call it before any work.

    Returns:
        The experiment's id; None if there is none yet.

    Raises:
        ValueError: It was deleted.
    """
    found = mlflow.MlflowClient().get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise ValueError(
            f"The experiment {name} of {store_address()} was deleted, so that it takes no runs. Bring it back, or name "
            "another store with --tracking_uri:\n"
            f"  MLFLOW_TRACKING_URI={shlex.quote(store_address())} {sys.executable} -m mlflow experiments restore "
            f"--experiment-id {found.experiment_id}"
        )
    return None if found is None else str(found.experiment_id)


def pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """Iterate over all entries of a search of MLflow, which returns them page by page.

    Args:
        search: Page token → page.
    """
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def writing() -> Iterator[None]:
    """Hold the store's write lock, and log metrics of this thread to a run only. A server needs no lock.

    MLflow adds the active model (`mlflow.set_active_model`, MLFLOW_ACTIVE_MODEL_ID) to every metric that names none:
    another model than ours, maybe of another store. The environment variables stay as they are, for other threads.
    """
    file = database_file()
    with nullcontext() if file is None else _LOCK.held(file):
        before = _ACTIVE_MODEL_CONTEXT.get()
        _ACTIVE_MODEL_CONTEXT.set(SimpleNamespace(model_id=None, set_by_user=False))
        try:
            yield
        finally:
            _ACTIVE_MODEL_CONTEXT.set(before)


@contextmanager
def not_autologged() -> Iterator[None]:
    """Log nothing by `mlflow.autolog` and its like inside the block: that would write to the program's run.

    MLflow's own `disable_autologging` ends with autologging on, also inside another one.
    """
    before = autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED
    autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED = True
    try:
        yield
    finally:
        autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED = before


@contextmanager
def same_store() -> Iterator[None]:
    """Point MLflow, after the block, to the store and the registry that it was pointed to before."""
    before = tracking_utils._tracking_uri, registry_utils._registry_uri
    try:
        yield
    finally:
        tracking_utils.set_tracking_uri(before[0])  # type: ignore[arg-type]
        registry_utils.set_registry_uri(before[1])  # type: ignore[arg-type]
