"""Run the steps of a study side by side, the most urgent first, and record their results.

A step that fails takes only the steps with it that need it.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from mlflow.exceptions import MlflowException

from lightning_unlearn.policies.files import save_policy
from lightning_unlearn.study.cache import StudyStore, step_tags
from lightning_unlearn.study.jobs import Job, log_file, make_job
from lightning_unlearn.study.steps import StepResult, StudyStep, step_digest
from lightning_unlearn.study.study_progress import RunningStep, State, StudyProgress
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import tracking_uri, with_retries

POLL_S = 0.2
_T = TypeVar("_T")


class Executor(Protocol):
    """Starts steps on this machine or on a cluster."""

    @property
    def cores(self) -> int:
        """Number of cores that steps share."""

    def start(self, job: Job) -> RunningStep:
        """Start a step."""


@dataclass(frozen=True)
class StepHooks:
    """Functions that `run_steps` calls for each step."""

    start: Callable[[StudyStep], RunningStep]
    """Start a step whose needs are done."""
    finish: Callable[[StudyStep, float], StepResult]
    """Record the result of a step that ended well, after so many seconds."""
    show: Callable[[StudyProgress], None]
    """Show the progress."""


def run_steps(
    progress: StudyProgress, results: dict[str, StepResult], hooks: StepHooks, jobs: int, retries: int
) -> None:
    """Run every step that is waiting. `progress` and `results` are up to date after an error, too.

    Args:
        progress: States of the steps; is changed.
        results: Results of the steps that are done; grows.
        hooks: How steps start and finish.
        jobs: Steps side by side.
        retries: How often a step whose process was killed is started again.

    Raises:
        KeyboardInterrupt: It was interrupted; the steps that ran have ended.
    """
    left = {step.name: retries for step in progress.steps}
    try:
        while progress.running or progress.ready():
            for step in progress.ready()[: jobs - len(progress.running)]:
                _start(step, progress, hooks)
            hooks.show(progress)
            time.sleep(POLL_S)
            for step in [s for s in progress.steps if s.name in progress.running]:
                code = progress.running[step.name].poll()
                if code is None:
                    continue
                last_line = progress.running.pop(step.name).last_line()
                if code < 0 and left[step.name] > 0:
                    left[step.name] -= 1
                    progress.states[step.name] = State.WAITING
                else:
                    _end(step, code, last_line, progress, results, hooks)
    finally:
        for running in progress.running.values():
            running.interrupt()
        for name, running in progress.running.items():
            running.wait()
            progress.states[name], progress.reasons[name] = State.FAILED, "interrupted"
        progress.running.clear()
        hooks.show(progress)


def _start(step: StudyStep, progress: StudyProgress, hooks: StepHooks) -> None:
    progress.started[step.name] = time.perf_counter()
    try:
        progress.running[step.name] = hooks.start(step)
        progress.states[step.name] = State.RUNNING
    except (ValueError, OSError) as error:
        progress.fail(step.name, f"could not start: {error}")


def _end(
    step: StudyStep,
    code: int,
    last_line: str,
    progress: StudyProgress,
    results: dict[str, StepResult],
    hooks: StepHooks,
) -> None:
    seconds = progress.seconds[step.name] = time.perf_counter() - progress.started[step.name]
    if code != 0:
        progress.fail(step.name, f"exit code {code}: {last_line}" if code > 0 else f"killed by signal {-code}")
        return
    try:
        results[step.name] = hooks.finish(step, seconds)
        progress.states[step.name] = State.DONE
    except (ValueError, OSError) as error:
        progress.fail(step.name, str(error))


class StudyRunner:
    """Starts the steps of one run of a study, and records their results.

    Args:
        store: Where the results are.
        results: Results of the steps that are done; grows.
        executor: Starts processes.
        name: Name of the study.
        out: Folder of the study's files.
        workers: Processes for the environments of each step.
    """

    def __init__(
        self, store: StudyStore, results: dict[str, StepResult], executor: Executor, name: str, out: str, workers: int
    ) -> None:
        self._store, self._results, self._executor = store, results, executor
        self._name, self._out, self._workers = name, out, workers
        self._digests: dict[str, str] = {}
        self.run_id = ""
        """The study's own MLflow run."""

    def begin(self, text: str) -> None:
        """Open the study's run.

        Args:
            text: The whole study as YAML.
        """
        Path(self._out).mkdir(parents=True, exist_ok=True)
        self.run_id = self._store.begin(self._name, hashlib.sha256(text.encode()).hexdigest()[:32], text)

    def run(self, progress: StudyProgress, show: Callable[[StudyProgress], None], jobs: int, retries: int) -> None:
        """Run every step that is waiting, see `run_steps`."""
        run_steps(progress, self._results, StepHooks(self.start, self.finish, show), jobs, retries)

    def start(self, step: StudyStep) -> RunningStep:
        """Start a step whose needs are done.

        Raises:
            ValueError: The store refused it.
        """

        def start() -> RunningStep:
            digest = self._digests[step.name] = step_digest(step, self._results)
            tags = step_tags(step, digest, self.run_id)
            uri = tracking_uri()
            return self._executor.start(make_job(step, digest, self._results, tags, uri, self._out, self._workers))

        return _store_errors_as_values(lambda: with_retries(start, step.name))

    def finish(self, step: StudyStep, seconds: float) -> StepResult:
        """Record the result of a step, and save its models as files in the study's folder.

        Raises:
            ValueError: The step left no result, or the store refused it.
        """

        def finish() -> StepResult:
            log = Path(log_file(self._out, step)).read_text(encoding="utf-8", errors="replace")
            digest = self._digests[step.name]
            result = with_retries(lambda: self._store.record_result(step, digest, seconds, log), step.name)
            for update, uri in result.models.items():
                stored = registry.load_policy(uri)
                folder = Path(self._out, *step.name.split("/")[:-1], "weights", f"{step.stage}-{update}")
                save_policy(folder, stored.policy, stored.card)
            return result

        return _store_errors_as_values(finish)


def _store_errors_as_values(act: Callable[[], _T]) -> _T:
    """Turn an error of the store into the failure of one step, which does not end the study."""
    try:
        return act()
    except MlflowException as error:
        raise ValueError(f"the store refused it: {error}") from error
