"""All that the present store knows of: runs, models and versions, the deleted ones among them."""

import re
import sqlite3
from contextlib import closing
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, Run, ViewType
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lightning_unlearn import processes
from lightning_unlearn.tracking.store import database_file, pages

_PAGE = 1000
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")


def all_runs(env_id: str | None = None) -> list[Run]:
    """Every run of every experiment, or of an environment's, oldest first; deleted ones too."""
    experiments = [e.experiment_id for e in all_experiments() if env_id in (None, e.name)]
    if not experiments:
        return []

    def page(token: str | None) -> Any:
        by_age = ["attributes.start_time ASC"]
        return mlflow.MlflowClient().search_runs(experiments, "", ViewType.ALL, _PAGE, by_age, token)

    return list(pages(page))


def find_run(run_id: str) -> Run | None:
    """A run, a deleted one too; None if the store does not know it."""
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except MlflowException:
        return None


def all_versions() -> list[ModelVersion]:
    """Every version of every registered model, by name and number, with its aliases."""

    def page(token: str | None) -> Any:
        return mlflow.MlflowClient().search_model_versions(None, _PAGE, page_token=token)

    versions = sorted(pages(page), key=lambda version: (version.name, int(version.version)))
    aliases = {name: mlflow.MlflowClient().get_registered_model(name).aliases for name in {v.name for v in versions}}
    for version in versions:  # a search leaves them out
        own = aliases[version.name].items()
        version.aliases = [alias for alias, number in own if str(number) == str(version.version)]
    return versions


def all_models() -> list[LoggedModel]:
    """Every stored model, whether or not it became a version; no deleted ones."""
    experiments = [experiment.experiment_id for experiment in all_experiments()]

    def page(token: str | None) -> Any:
        return mlflow.MlflowClient().search_logged_models(experiments, max_results=50, page_token=token)

    return list(pages(page))


def deleted_models() -> set[str]:
    """Ids of the deleted models of a SQLite store, which no search of MLflow finds; none of another store."""
    database = database_file()
    if database is None:
        return set()
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT model_id FROM logged_models WHERE lifecycle_stage = 'deleted'")
        return {model_id for (model_id,) in rows}


def all_experiments() -> list[Any]:
    """Every experiment, deleted ones too."""
    return list(pages(lambda token: mlflow.MlflowClient().search_experiments(ViewType.ALL, page_token=token)))


def is_deleted(run: Run) -> bool:
    """Whether a run was deleted; MLflow keeps its files until they are cleared up."""
    return bool(run.info.lifecycle_stage == LifecycleStage.DELETED)


def is_at_work(run: Run) -> bool:
    """Whether a run may still write; a process that cannot be seen from here counts as alive."""
    return run.info.status in ("RUNNING", "SCHEDULED") and not processes.is_gone(run.data.tags)


def model_id(version: ModelVersion) -> str | None:
    """The id of a version's model, by which its files are found; None if it has none."""
    found = _MODEL_ID.search(f"{version.model_id} {version.source}")
    return found and found[0]
