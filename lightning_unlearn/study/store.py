"""What a study reads from and writes to MLflow: results by digest, its own run above its steps', files to fetch.

A step's command makes its run itself; tags that MLflow takes from the process's environment put it under the study's.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lightning_unlearn import processes
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.study.steps import Result, Step
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import experiment_id, require_active_experiment, store_address, writing

DIGEST, RESULT, KIND, STUDY = "study.digest", "study.result", "study.step", "study.name"
SECONDS, WORK = "study/seconds", "study/env_steps"
FILES = "probes"
"""Folder, among a run's artifacts, of the files that other steps read."""
_GOES_ON = ("select",)
"""Stages whose command still does something when its run is finished."""
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


def stored_digest(uri: str) -> str:
    """The digest of stored weights, by URI or file.

    Raises:
        ValueError: There are none.
    """
    return weights_digest(registry.load_policy(uri).policy)


class StudyStore:
    """The present store, as a study sees it.

    Args:
        env_ids: The study's environments; an experiment each.

    Raises:
        ValueError: An experiment takes no runs.
    """

    def __init__(self, env_ids: Sequence[str]) -> None:
        self._client = mlflow.MlflowClient()
        found = {env: require_active_experiment(env) for env in env_ids}
        self._experiments = {env: known for env, known in found.items() if known is not None}
        self._env_ids = env_ids

    def find(self, step: Step, digest: str) -> Result | None:
        """The finished result of a step of this digest, the newest one; also of one that was never settled."""
        for run in self._finished(step, digest):
            models, settled = self._models(run.info.run_id), run.data.tags.get(RESULT)
            if not set(step.updates) <= set(models):
                continue
            if step.stage in _GOES_ON and (settled is None or not self._still_chosen(step, run)):
                continue
            with suppress(ValueError):  # its weights are gone
                return Result(run.info.run_id, settled or _result_digest(models, digest), models)
        return None

    def _still_chosen(self, step: Step, run: mlflow.entities.Run) -> bool:
        """Whether the models that a run of `select` named still have the names: a later one may have moved them."""
        name = registry.model_name(run.data.params["method"], step.env)
        seeds = map(int, run.data.tags[runs.SEEDS_TAG].split())
        return all(registry.chosen_in(name, seed) == run.info.run_id for seed in seeds)

    def begin(self, name: str, digest: str, text: str) -> str:
        """The study's own run, a new one or that of the same study begun before; returns its id.

        Raises:
            ValueError: That one is still under way.
        """
        with writing():
            return self._begin(name, digest, text)

    def _begin(self, name: str, digest: str, text: str) -> str:
        self._experiments = {env_id: experiment_id(env_id) for env_id in self._env_ids}
        first = self._experiments[self._env_ids[0]]
        known = self._client.search_runs([first], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
        if known:
            run_id = str(known[0].info.run_id)
            _require_over(known[0])
            self._client.update_run(run_id, status=RUNNING)
        else:
            tags = runs.tags_of_new_run({})
            run_id = str(self._client.create_run(first, tags=tags, run_name=f"study-{name}").info.run_id)
        for key, value in {DIGEST: digest, STUDY: name, **processes.owner()}.items():
            self._client.set_tag(run_id, key, value)
        self._client.log_text(run_id, text, "study.yaml")
        return run_id

    def end(self, parent: str, status: str, table: str) -> None:
        """Close the study's own run, with a table of its steps, and what runs below it, unless it lives on here."""
        of_study = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and attributes.status = '{RUNNING}'"
        with writing():
            for run in self._client.search_runs([*self._experiments.values()], of_study):
                if not processes.lives_here(run.data.tags):
                    self._client.set_terminated(run.info.run_id, KILLED)
            self._client.log_text(parent, table, "steps.csv")
            self._client.set_terminated(parent, status)

    def settle(self, step: Step, digest: str, seconds: float, log: str) -> Result:
        """Mark what a finished step left, and return it.

        Raises:
            ValueError: It left no finished run, or not every save point.
        """
        found = self._finished(step, digest)
        if not found:
            raise ValueError(f"{step.name} ended well, but its run is not in {store_address()}.")
        run_id = str(found[0].info.run_id)
        models = self._models(run_id)
        if missing := set(step.updates) - set(models):
            raise ValueError(f"{step.name} registered no model of update {min(missing)}.")
        result = _result_digest(models, digest)
        with writing():
            self._client.log_metric(run_id, SECONDS, seconds)
            self._client.log_metric(run_id, WORK, float(step.work.total))
            self._client.log_text(run_id, log, "log.txt")
            self._client.set_tag(run_id, RESULT, result)
        return Result(run_id, result, models)

    def pace(self, step: Step) -> tuple[float, float] | None:
        """Seconds and environment steps of the newest finished step of this kind.

        Weights that were only registered say nothing of a training, though it would have their name.
        """
        for run in self._runs(step, f"tags.`{KIND}` = '{step.kind}' and attributes.status = '{FINISHED}'"):
            metrics = run.data.metrics
            if SECONDS in metrics and bool(metrics[WORK]) == bool(step.work.total):
                return metrics[SECONDS], metrics[WORK]
        return None

    def _finished(self, step: Step, digest: str) -> list[Any]:
        return self._runs(step, f"tags.`{DIGEST}` = '{digest}' and attributes.status = '{FINISHED}'")

    def _runs(self, step: Step, condition: str) -> list[Any]:
        newest = ["attributes.start_time DESC"]
        if step.env not in self._experiments:
            return []
        return list(self._client.search_runs([self._experiments[step.env]], condition, 1, 20, newest))

    def _models(self, run_id: str) -> dict[int, str]:
        versions = self._client.search_model_versions(f"run_id = '{run_id}'")
        return {int(v.tags["update"]): f"models:/{v.name}/{v.version}" for v in versions if "update" in v.tags}


def _result_digest(models: Mapping[int, str], digest: str) -> str:
    """Of what came out: the weights of a training, the step's own digest of an audit."""
    if not models:
        return digest
    content = json.dumps({update: stored_digest(uri) for update, uri in sorted(models.items())})
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _require_over(run: mlflow.entities.Run) -> None:
    if run.info.status == RUNNING and processes.lives_here(run.data.tags):
        raise ValueError(
            f"this study is under way already, in process {run.data.tags[processes.PROCESS]} (MLflow run "
            f"{run.info.run_id}): wait for it, or end it."
        )


def context(step: Step, digest: str, parent: str) -> dict[str, str]:
    """The tags of a step's run."""
    return {MLFLOW_PARENT_RUN_ID: parent, DIGEST: digest, KIND: step.kind}


def fetch(run_id: str, path: Path) -> None:
    """Copy a file that another step made from its run to where it is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with runs.local_file(f"runs:/{run_id}/{FILES}/{path.name}") as file:
        path.write_bytes(file.read_bytes())
