"""The MLflow store: opened, shared by many processes, and honest about runs whose process is gone."""

import fcntl
import os
import shlex
import sqlite3
import sys
import tempfile
import threading
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
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from lightning_unlearn import processes
from lightning_unlearn.tracking import database_schema
from lightning_unlearn.tracking.addresses import sign_in, sqlite_uri, without_password
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
_T = TypeVar("_T")


def resolve_tracking_uri(given: str | None = None) -> str:
    """Return the store to use: the given one, the one that MLflow was pointed at, or the one in `./mlruns`.

    MLflow is pointed at a store by `mlflow.set_tracking_uri`, or else by the variable MLFLOW_TRACKING_URI.
    """
    if given is not None:
        return given
    return tracking_uri() if mlflow.is_tracking_uri_set() else DEFAULT_TRACKING_URI


def open_store(given: str | None = None) -> str:
    """Make MLflow use a store from here on; a SQLite store is made at first use.

    Runs of this machine whose process has ended without saying so are marked KILLED.

    Args:
        given: URI of the store; None: see `resolve_tracking_uri`.

    Returns:
        The option that names this store in a command, with a space before it; empty if a command without one opens it.

    Raises:
        ValueError: The URI names no store, the store cannot be written, or a variable asks for what is not possible.
    """
    plain, tracking_uri = _absolute(resolve_tracking_uri()), resolve_tracking_uri(given)
    if not tracking_uri.startswith(_STORES):
        source = "" if given is not None else " (from MLFLOW_TRACKING_URI or mlflow.set_tracking_uri)"
        raise ValueError(
            f"tracking_uri={without_password(tracking_uri)!r}{source} names no store: use sqlite:///FOLDER/mlflow.db, "
            "or the http:// address of an MLflow server."
        )
    _require_no_other_place(tracking_uri)
    if tracking_uri.startswith(_SQLITE):
        if "?" in tracking_uri:
            raise ValueError(
                f"tracking_uri={tracking_uri} has a question mark, which begins the options of a database URI: write "
                "%3F for one that is part of the path, and leave options out."
            )
        name = make_url(tracking_uri).database or ""
        if name in ("", ":memory:"):
            raise ValueError(f"tracking_uri={tracking_uri} names no file: use sqlite:///FOLDER/mlflow.db.")
        database = Path(name).resolve()
        _require_writable(database)
        database_schema.require_current(database)
        tracking_uri = sqlite_uri(database)  # MLflow keeps a connection per URI, wherever the process moves to
    _point_mlflow_at(tracking_uri)
    try:
        with writing():
            _make()
            if (file := database_file()) is not None:
                relocate(file)
            _mark_killed()
    except (MlflowException, SQLAlchemyError) as error:
        told = without_password(str(error))
        raise ValueError(f"tracking_uri={store_address()} cannot be opened: {told}") from error
    return "" if without_password(plain) == store_address() else f" --tracking_uri {shlex.quote(store_address())}"


def _absolute(tracking_uri: str) -> str:
    """The URI of a store that stays the same wherever the process moves to."""
    if not tracking_uri.startswith(_SQLITE):
        return tracking_uri
    return sqlite_uri(Path(make_url(tracking_uri).database or "").resolve())


def use_existing_store(given: str | None = None) -> None:
    """Make MLflow look things up in a store that exists. In one that was copied or moved, paths are rewritten first.

    Args:
        given: URI of the store; None: wherever MLflow points, its model registry included, or else `./mlruns`.

    Raises:
        ValueError: There is no such store, or its paths have to be rewritten and cannot be.
    """
    tracking_uri = resolve_tracking_uri(given)
    if tracking_uri.startswith(_SQLITE):
        database = Path(make_url(tracking_uri).database or "").resolve()
        if not database.is_file():
            raise ValueError(
                f"tracking_uri={tracking_uri} was not found: name the store by tracking_uri=, by "
                "mlflow.set_tracking_uri or by the variable MLFLOW_TRACKING_URI."
            )
        tracking_uri = sqlite_uri(database)
    if given is not None or not mlflow.is_tracking_uri_set():
        _point_mlflow_at(tracking_uri)
    if (file := database_file()) is not None and needs_relocation(file.resolve()):
        database_schema.require_current(file.resolve())
        _require_writable(file)
        with writing():
            relocate(file.resolve())


def _point_mlflow_at(tracking_uri: str) -> None:
    if tracking_uri.startswith(_SERVER):
        tracking_uri = sign_in(tracking_uri)
    elif tracking_uri.startswith(_DATABASES):
        _require_driver(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    os.environ.pop(_REGISTRY, None)  # MLflow sets it; a registry follows its store, and what is set is the user's
    if silence := _silence():
        raise ValueError(f"tracking_uri={store_address()} does not answer ({silence}): {_remedy(silence)}.")


def _require_driver(tracking_uri: str) -> None:
    address = f"tracking_uri={without_password(tracking_uri)}"
    try:
        make_url(tracking_uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise ValueError(
            f"{address} needs a database driver that is not installed, the Python module {error.name}: install it "
            f"(pip install '{_DRIVERS.get(str(error.name), error.name)}'), or name another store."
        ) from error
    except SQLAlchemyError as error:
        raise ValueError(f"{address} names no store: {without_password(str(error))}") from error


def answers() -> bool:
    """Whether the present store is there to be asked; MLflow alone would try for minutes. Files always are."""
    return not _silence()


def _silence() -> str:
    """Why the present server does not answer MLflow's client, with all its variables; empty if it does."""
    uri = tracking_uri()
    if not uri.startswith(_SERVER):
        return ""
    once = {"max_retries": 0, "raise_on_status": False, "timeout": ANSWER_S}
    try:
        status = http_request(get_default_host_creds(uri), "/health", "GET", **once).status_code
    except MlflowException as error:
        return _root(error)
    return f"HTTP status {status}" if status >= 500 else ""  # it has no such page, or wants a password: it is there


def _root(error: BaseException) -> str:
    """The first error of a chain, which says what happened; the others say who passed it on."""
    while error.__context__ is not None:
        error = error.__context__
    return without_password(str(error)) or type(error).__name__


def _remedy(silence: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in silence:
        return "name the file of the certificates to trust by MLFLOW_TRACKING_SERVER_CERT_PATH, or name another store"
    return "start the server (`mlflow server`), or name another store"


def patiently(write: Callable[[], _T], what: str) -> _T:
    """Write to the store; while its server does not answer, wait for it.

    Args:
        write: Writes; may be called again after it failed.
        what: Named in the message.
    """
    while True:
        try:
            return write()
        except (MlflowException, OSError):
            if answers():
                raise
        print(f"The server {store_address()} does not answer: {what} is kept, and tried again.", flush=True)
        while not answers():
            time.sleep(RETRY_S)


def tracking_uri() -> str:
    """The present store."""
    return str(mlflow.get_tracking_uri())


def store_address() -> str:
    """The present store as it is printed and recorded: without a password."""
    return without_password(tracking_uri())


def artifact_location() -> str | None:
    """Where a new experiment keeps its artifacts: beside a SQLite database; elsewhere the server decides."""
    folder = store_folder()
    return None if folder is None else (folder / ARTIFACTS).as_uri()


def checkpoints_root() -> Path:
    """Where runs keep what they resume from: beside a SQLite database; of a remote store under `mlruns/remote/` here.

    These are apart, so that every folder belongs to the runs of one store.
    """
    folder = store_folder()
    return (Path("mlruns/remote").resolve() if folder is None else folder) / CHECKPOINTS


def checkpoint_folder(run_id: str) -> Path:
    """Where one run does."""
    return checkpoints_root() / run_id


def database_file() -> Path | None:
    """The file of a SQLite store; None where a server keeps it."""
    uri = tracking_uri()
    return Path(make_url(uri).database or "") if uri.startswith(_SQLITE) else None


def store_folder() -> Path | None:
    """The folder of a SQLite database and of the files beside it; None where a server keeps them."""
    database = database_file()
    return None if database is None else database.parent


def ui_command() -> str:
    """How the present store is seen in the MLflow UI: the address of a server, or the shell command that starts one."""
    uri = store_address()
    if uri.startswith(_SERVER):
        return uri
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", "5000", "--workers", "1"]
    return shlex.join(command)


def experiment_id(name: str) -> str:
    """Id of an experiment, which is made if need be, by whichever process comes first.

    Raises:
        ValueError: It was deleted.
    """
    with writing():
        known = require_recordable(name)
        return known or str(mlflow.MlflowClient().create_experiment(name, artifact_location=artifact_location()))


def require_recordable(name: str) -> str | None:
    """Refuse an experiment that takes no runs; commands that record at their end call it before any work.

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


class _Lock:
    """One lock for all processes that write to a SQLite store; the thread that holds it may take it again."""

    def __init__(self) -> None:
        self._threads, self._depth = threading.RLock(), 0

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        with self._threads:
            self._depth += 1
            try:
                if self._depth > 1:
                    yield
                    return
                with path.open("ab") as file:  # closing it gives the lock back, and so does the kernel after a kill
                    fcntl.flock(file, fcntl.LOCK_EX)
                    yield
            finally:
                self._depth -= 1


_LOCK = _Lock()


@contextmanager
def writing() -> Iterator[None]:
    """Hold the store's write lock, and write without the program's active model.

    SQLite lets writers wait for each other, but a reader that turns writer is refused at once, and two processes that
    look for the highest version number find the same one. A server takes care of that by itself.
    """
    database = database_file()
    lock = nullcontext() if database is None else _LOCK.held(database.with_name(f"{database.name}.lock"))
    with lock, _no_active_model():
        yield


@contextmanager
def _no_active_model() -> Iterator[None]:
    """Log metrics of this thread to a run only.

    MLflow adds the active model (`mlflow.set_active_model`, MLFLOW_ACTIVE_MODEL_ID) to every metric that names none:
    another model than ours, maybe of another store. The environment variables stay as they are, for other threads.
    """
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


def _make() -> None:
    """Make a new SQLite store under another name: MLflow cannot go on with one whose making was cut short."""
    database = database_file()
    if database is not None and not database.exists():
        unfinished = database.with_name(f"{database.name}.part")
        unfinished.unlink(missing_ok=True)
        with _not_waiting_for_the_disk():
            mlflow.MlflowClient(sqlite_uri(unfinished)).search_experiments(max_results=1)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, database)
    mlflow.MlflowClient().search_experiments(max_results=1)


@contextmanager
def _not_waiting_for_the_disk() -> Iterator[None]:
    """SQLite connections of this thread that are opened inside the block leave writing to the operating system.

    MLflow makes a store in some 80 transactions, each of which waits for the disk several times otherwise.
    """
    thread = threading.get_ident()

    def leave_it(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection) and threading.get_ident() == thread:
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", leave_it)
    try:
        yield
    finally:
        event.remove(Engine, "connect", leave_it)


def _mark_killed() -> None:
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    own = f"attributes.status = 'RUNNING' and tags.`{processes.HOST}` = '{processes.host()}'"
    for run in client.search_runs(experiments, own):
        if processes.is_gone(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")


def _require_no_other_place(tracking_uri: str) -> None:
    """Refuse MLflow's variables that ask for another registry or another experiment."""
    if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
        raise ValueError(
            f"MLFLOW_EXPERIMENT_NAME={experiment} is not possible: every environment has one experiment, named after "
            "it. Unset the variable."
        )
    registry_uri = os.environ.get(_REGISTRY)
    if registry_uri not in (None, "", mlflow.get_tracking_uri(), tracking_uri):
        raise ValueError(
            f"{_REGISTRY}={registry_uri} (or mlflow.set_registry_uri) is not possible: models are registered "
            "in the store of their runs. Unset it."
        )


def _require_writable(database: Path) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=database.parent) as probe:
            probe.write(b"\0" * 65536)
        if database.exists():
            with database.open("ab"):
                pass
    except OSError as error:
        raise ValueError(
            f"The store at {database.parent} cannot be written ({error.strerror}): free some space or "
            "change its permissions, or choose another with --tracking_uri sqlite:///FOLDER/mlflow.db."
        ) from error
