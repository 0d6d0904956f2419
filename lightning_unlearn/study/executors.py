"""Start steps as processes of this machine, or as tasks of a Ray cluster.

On a cluster, models and files travel through the tracking server, which every node must reach. A task runs the step
inside Ray's own worker process, so that both end together, and Ray sees how.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn import cli
from lightning_unlearn.processes import cores, ray_runtime
from lightning_unlearn.study.jobs import (
    Job,
    command_line,
    environment,
    last_line,
    last_line_of,
    prepare,
    sending_checkpoints,
)
from lightning_unlearn.tracking.addresses import without_password
from lightning_unlearn.tracking.store import open_store

GRACE_S = 15.0
"""Seconds that an interrupted step has to record how it ended."""
LOST = 1
"""Exit code of a step whose worker is gone after Ray's last retry."""


class LocalProcess:
    """A running step as a process of this machine.

    Args:
        job: The step.
        bytecode: Folder for what Python compiles.
    """

    def __init__(self, job: Job, bytecode: Path) -> None:
        job = prepare(job)
        self._log = job.log
        with open(job.log, "wb") as log:
            self._process = subprocess.Popen(
                command_line(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(job, bytecode),
                start_new_session=True,  # a Ctrl-C on the terminal reaches the study alone, which passes it on once
            )

    def poll(self) -> int | None:
        """Return the exit code once it has ended; negative: the signal that ended it."""
        return self._process.poll()

    def last_line(self) -> str:
        """Return the last line of its output."""
        return last_line(self._log)

    def interrupt(self) -> None:
        """Ask it to end, as Ctrl-C would."""
        self._signal(signal.SIGINT)

    def wait(self) -> None:
        """Wait until it has ended; kill it after `GRACE_S`."""
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


class LocalExecutor:
    """Runs steps on this machine.

    Args:
        out: The study's folder.
    """

    def __init__(self, out: str) -> None:
        self._bytecode = Path(out, ".bytecode")

    @property
    def cores(self) -> int:
        """Cores that this process may use."""
        return cores()

    def start(self, job: Job) -> LocalProcess:
        """Start a step."""
        return LocalProcess(job, self._bytecode)


@dataclass(frozen=True)
class EndedTask:
    """Exit code and output of a step on a cluster."""

    code: int
    log: str


class RayTask:
    """A running step on a node of a cluster.

    Args:
        job: The step.
        reference: Ray's reference to the task's result.
    """

    def __init__(self, job: Job, reference: Any) -> None:
        self._job, self._reference = job, reference
        self._ended: EndedTask | None = None

    def poll(self) -> int | None:
        """Return the exit code once it has ended."""
        import ray

        if self._ended is None and ray.wait([self._reference], timeout=0)[0]:
            try:
                self._ended = ray.get(self._reference)
            except ray.exceptions.RayError as error:
                self._ended = EndedTask(LOST, f"lost: {error}")
            Path(self._job.log).parent.mkdir(parents=True, exist_ok=True)
            Path(self._job.log).write_text(self._ended.log, encoding="utf-8")
        return None if self._ended is None else self._ended.code

    def last_line(self) -> str:
        """Return the last line of its output, which is there once it has ended."""
        return "on the cluster" if self._ended is None else last_line_of(self._ended.log)

    def interrupt(self) -> None:
        """Ask it to end, as Ctrl-C would."""
        import ray

        ray.cancel(self._reference, force=False)

    def wait(self) -> None:
        """Wait until it has ended; kill it after `GRACE_S`."""
        import ray

        if not ray.wait([self._reference], timeout=GRACE_S)[0]:
            ray.cancel(self._reference, force=True)


class RayExecutor:
    """Runs steps on a Ray cluster, an existing one or one that is started here.

    Args:
        out: The study's folder, for logs and for steps that need this machine's files.
        tracking_uri: The tracking server.
        address: The cluster; None: `RAY_ADDRESS`, else a new one on this machine.
        retries: How often a step is started again whose worker or node died.

    Raises:
        ValueError: Ray is not installed, the store is no server, or there is no such cluster.
    """

    def __init__(self, out: str, tracking_uri: str, address: str | None, retries: int) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(
                "Ray is not installed: install lightning-unlearn with its extra, `lightning-unlearn[ray]`, on every "
                "node."
            ) from None
        if not tracking_uri.startswith(("http://", "https://")):
            raise ValueError(
                "--executor ray needs a tracking server that every node reaches, not --tracking_uri "
                f"{without_password(tracking_uri)}: start one with `mlflow server --host 0.0.0.0 "
                "--backend-store-uri sqlite:///mlflow.db`, and give its http address."
            )
        try:
            with ray_runtime() as runtime:
                ray.init(
                    address,
                    ignore_reinit_error=True,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=runtime,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"--ray_address {address}: no Ray cluster answers there: {error}") from error
        self._here = LocalExecutor(out)
        # A worker takes one task only: what a step leaves in its process must not reach the next one.
        self._task = ray.remote(max_calls=1, max_retries=retries)(run_in_worker)

    @property
    def cores(self) -> int:
        """Cores of the whole cluster."""
        import ray

        return int(ray.cluster_resources().get("CPU", 1))

    def start(self, job: Job) -> RayTask | LocalProcess:
        """Start a step on a node with enough free cores, or here if it needs this machine's files."""
        import ray

        if job.here:
            return self._here.start(job)
        largest_node = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
        num_cpus = max(1, min(job.workers, largest_node))
        return RayTask(job, self._task.options(num_cpus=num_cpus, name=job.name).remote(job))


def run_in_worker(job: Job) -> EndedTask:
    """Run a step in this process of a Ray worker, in a folder of its own.

    Raises:
        KeyboardInterrupt: The study was interrupted; the step's run is marked by then.
    """
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="lightning-unlearn-") as folder:
        os.chdir(folder)
        os.environ.update(job.env)
        try:
            open_store(job.tracking_uri)
            job = prepare(job)
            with sending_checkpoints(), _output_to(Path(job.log)):
                code = 0
                try:
                    cli.main(list(job.args))
                except SystemExit as ended:
                    code = ended.code if isinstance(ended.code, int) else 1
                except Exception:
                    traceback.print_exc()
                    code = 1
            return EndedTask(code, Path(job.log).read_text(encoding="utf-8", errors="replace"))
        finally:
            os.chdir(before)


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Context manager that writes all output of this process to a file, also what libraries write past Python."""
    kept = [os.dup(stream) for stream in (1, 2)]
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)
