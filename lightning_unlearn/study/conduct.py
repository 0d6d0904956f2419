"""Between the plan and the machine: what starting a step means, and what is kept when it has ended."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mlflow.exceptions import MlflowException

from lightning_unlearn.policies.files import save_policy
from lightning_unlearn.study.execute import Doing, Executor, Progress, Running
from lightning_unlearn.study.jobs import log_file, make_job
from lightning_unlearn.study.steps import Result, Step, step_digest
from lightning_unlearn.study.store import StudyStore, context
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import tracking_uri, with_retries

_T = TypeVar("_T")


class Conduct:
    """One run of a study.

    Args:
        store: Where its results are.
        results: Of the steps that are done; grows.
        executor: Starts processes.
        name: Of the study.
        out: Its folder.
        workers: Processes for the environments of each step.
    """

    def __init__(
        self, store: StudyStore, results: dict[str, Result], executor: Executor, name: str, out: str, workers: int
    ) -> None:
        self._store, self._results, self._executor = store, results, executor
        self._name, self._out, self._workers = name, out, workers
        self._digests: dict[str, str] = {}
        self.parent = ""

    def begin(self, text: str) -> None:
        """Open the study's run."""
        Path(self._out).mkdir(parents=True, exist_ok=True)
        self.parent = self._store.begin(self._name, hashlib.sha256(text.encode()).hexdigest()[:32], text)

    def doing(self, show: Callable[[Progress], None], jobs: int, retries: int) -> Doing:
        """What the loop over steps calls."""
        return Doing(self._start, self._settle, show, jobs, retries)

    def _start(self, step: Step) -> Running:
        return _refused(lambda: with_retries(lambda: self._started(step), step.name))

    def _settle(self, step: Step, seconds: float) -> Result:
        return _refused(lambda: self._settled(step, seconds))

    def _started(self, step: Step) -> Running:
        digest = self._digests[step.name] = step_digest(step, self._results)
        tags = context(step, digest, self.parent)
        uri = tracking_uri()
        return self._executor.start(make_job(step, digest, self._results, tags, uri, self._out, self._workers))

    def _settled(self, step: Step, seconds: float) -> Result:
        log = Path(log_file(self._out, step)).read_text(encoding="utf-8", errors="replace")
        result = with_retries(lambda: self._store.settle(step, self._digests[step.name], seconds, log), step.name)
        for update, uri in result.models.items():
            stored = registry.load_policy(uri)
            folder = Path(self._out, *step.name.split("/")[:-1], "weights", f"{step.stage}-{update}")
            save_policy(folder, stored.policy, stored.card)
        return result


def _refused(act: Callable[[], _T]) -> _T:
    """What the store refuses is the one step's failure, not the study's end."""
    try:
        return act()
    except MlflowException as error:
        raise ValueError(f"the store refused it: {error}") from error
