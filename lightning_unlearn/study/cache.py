"""Cache of a study in MLflow: results by cache key, the study's own run above those of its steps, files to fetch.

A step's command makes its run itself. Tags that MLflow takes from the process's environment put it under the study's.
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
from lightning_unlearn.study.steps import StepResult, StudyStep
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import experiment_id, require_active_experiment, store_address, writing

DIGEST, RESULT, KIND, STUDY = "study.digest", "study.result", "study.step", "study.name"
SECONDS, WORK = "study/seconds", "study/env_steps"
FILES = "probes"
"""Folder, among a run's artifacts, of the files that other steps read."""
_SET_ALIASES = ("select",)
"""Stages that set aliases, which a later run may move."""
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"


def stored_digest(uri: str) -> str:
    """Return the digest of stored weights, by URI or file.

    Raises:
        ValueError: There are none.
    """
    return weights_digest(registry.load_policy(uri).policy)


class StudyStore:
    """Results of a study in the present store.

    Args:
        env_ids: The study's environments, each with an experiment.

    Raises:
        ValueError: An experiment takes no runs.
    """

    def __init__(self, env_ids: Sequence[str]) -> None:
        self._client = mlflow.MlflowClient()
        found = {env: require_active_experiment(env) for env in env_ids}
        self._experiments = {env: known for env, known in found.items() if known is not None}
        self._env_ids = env_ids

    def find(self, step: StudyStep, digest: str) -> StepResult | None:
        """Return the newest finished result of a step with this cache key, also one that no study recorded."""
        for run in self._finished(step, digest):
            models, recorded = registry.models_of_run(run.info.run_id), run.data.tags.get(RESULT)
            if not set(step.updates) <= set(models):
                continue
            if step.stage in _SET_ALIASES:
                if recorded is None:
                    continue
                name = registry.model_name(run.data.params["method"], step.env)
                seeds = map(int, run.data.tags[runs.SEEDS_TAG].split())
                if any(registry.chosen_in(name, seed) != run.info.run_id for seed in seeds):
                    continue  # a later run of `select` moved the aliases
            with suppress(ValueError):  # its weights are gone
                return StepResult(run.info.run_id, recorded or _result_digest(models, digest), models)
        return None

    def begin(self, name: str, digest: str, text: str) -> str:
        """Open the study's own run, a new one or that of an earlier attempt at the same study; return its id.

        Raises:
            ValueError: The study is running already.
        """
        with writing():
            self._experiments = {env_id: experiment_id(env_id) for env_id in self._env_ids}
            first = self._experiments[self._env_ids[0]]
            known = self._client.search_runs([first], f"tags.`{DIGEST}` = '{digest}'", max_results=1)
            if known:
                run_id, tags = str(known[0].info.run_id), known[0].data.tags
                if known[0].info.status == RUNNING and processes.lives_here(tags):
                    raise ValueError(
                        f"this study is under way already, in process {tags[processes.PROCESS]} (MLflow run {run_id}): "
                        "wait for it, or end it."
                    )
                self._client.update_run(run_id, status=RUNNING)
            else:
                tags = runs.tags_of_new_run({})
                run_id = str(self._client.create_run(first, tags=tags, run_name=f"study-{name}").info.run_id)
            for key, value in {DIGEST: digest, STUDY: name, **processes.owner()}.items():
                self._client.set_tag(run_id, key, value)
            self._client.log_text(run_id, text, "study.yaml")
        return run_id

    def end(self, parent: str, status: str, table: str) -> None:
        """Close the study's own run with a table of its steps, and the runs below it whose process is not here."""
        of_study = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and attributes.status = '{RUNNING}'"
        with writing():
            for run in self._client.search_runs([*self._experiments.values()], of_study):
                if not processes.lives_here(run.data.tags):
                    self._client.set_terminated(run.info.run_id, KILLED)
            self._client.log_text(parent, table, "steps.csv")
            self._client.set_terminated(parent, status)

    def record_result(self, step: StudyStep, digest: str, seconds: float, log: str) -> StepResult:
        """Record the result of a step that ended well in its run, and return it.

        Args:
            step: The step.
            digest: Its cache key.
            seconds: Seconds that it took.
            log: Its output.

        Raises:
            ValueError: It left no finished run, or not every save point.
        """
        found = self._finished(step, digest)
        if not found:
            raise ValueError(f"{step.name} ended well, but its run is not in {store_address()}.")
        run_id = str(found[0].info.run_id)
        models = registry.models_of_run(run_id)
        if missing := set(step.updates) - set(models):
            raise ValueError(f"{step.name} registered no model of update {min(missing)}.")
        result = _result_digest(models, digest)
        with writing():
            self._client.log_metric(run_id, SECONDS, seconds)
            self._client.log_metric(run_id, WORK, float(step.work.total))
            self._client.log_text(run_id, log, "log.txt")
            self._client.set_tag(run_id, RESULT, result)
        return StepResult(run_id, result, models)

    def pace(self, step: StudyStep) -> tuple[float, float] | None:
        """Return seconds and environment steps of the newest finished step of this kind.

        A registration of weights is no measure of a training of the same kind.
        """
        for run in self._runs(step, f"tags.`{KIND}` = '{step.kind}' and attributes.status = '{FINISHED}'"):
            metrics = run.data.metrics
            if SECONDS in metrics and bool(metrics[WORK]) == bool(step.work.total):
                return metrics[SECONDS], metrics[WORK]
        return None

    def _finished(self, step: StudyStep, digest: str) -> list[Any]:
        return self._runs(step, f"tags.`{DIGEST}` = '{digest}' and attributes.status = '{FINISHED}'")

    def _runs(self, step: StudyStep, condition: str) -> list[Any]:
        newest_first = ["attributes.start_time DESC"]
        if step.env not in self._experiments:
            return []
        return list(self._client.search_runs([self._experiments[step.env]], condition, 1, 20, newest_first))


def _result_digest(models: Mapping[int, str], digest: str) -> str:
    """Return the digest of a training's weights; the cache key of an audit."""
    if not models:
        return digest
    content = json.dumps({update: stored_digest(uri) for update, uri in sorted(models.items())})
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def step_tags(step: StudyStep, digest: str, parent: str) -> dict[str, str]:
    """Return the tags of a step's run."""
    return {MLFLOW_PARENT_RUN_ID: parent, DIGEST: digest, KIND: step.kind}


def fetch(run_id: str, path: Path) -> None:
    """Copy a file that another step made from its run to the path where it is expected."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with runs.local_file(f"runs:/{run_id}/{FILES}/{path.name}") as file:
        path.write_bytes(file.read_bytes())
