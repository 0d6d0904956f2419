"""Steps as tasks of a Ray cluster. Models and files travel through the tracking server, which every node must reach.

A task runs the step inside Ray's own worker process, so that whatever ends the one ends the other, and Ray sees it.
"""

from pathlib import Path
from typing import Any

from lightning_unlearn.processes import ray_runtime
from lightning_unlearn.study.jobs import Job
from lightning_unlearn.study.local import GRACE_S, LocalExecutor, LocalProcess
from lightning_unlearn.study.ray_worker import Ended, work
from lightning_unlearn.tracking.addresses import without_password

LOST = 1
"""Exit code of a step whose worker is gone for good: Ray has tried it again as often as it should be."""


class RayTask:
    """A step on some node.

    Args:
        job: The step.
        reference: Of the task's result.
    """

    def __init__(self, job: Job, reference: Any) -> None:
        self._job, self._reference = job, reference
        self._ended: Ended | None = None

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        import ray

        if self._ended is None and ray.wait([self._reference], timeout=0)[0]:
            self._ended = self._result()
            Path(self._job.log).parent.mkdir(parents=True, exist_ok=True)
            Path(self._job.log).write_text(self._ended.log, encoding="utf-8")
        return None if self._ended is None else self._ended.code

    def says(self) -> str:
        """Where it runs; its output comes with its end."""
        return "on the cluster" if self._ended is None else self._ended.last_line

    def interrupt(self) -> None:
        """Ask it to end, as Ctrl-C would."""
        import ray

        ray.cancel(self._reference, force=False)

    def wait(self) -> None:
        """Until it has ended, by force in the end."""
        import ray

        if not ray.wait([self._reference], timeout=GRACE_S)[0]:
            ray.cancel(self._reference, force=True)

    def _result(self) -> Ended:
        import ray

        try:
            return ray.get(self._reference)
        except ray.exceptions.RayError as error:
            return Ended(LOST, f"lost: {error}")


class RayExecutor:
    """Runs steps on a Ray cluster, an existing one or one that is started here.

    Args:
        out: The study's folder, for logs and for steps that need this machine's files.
        tracking_uri: Of the server.
        address: Of the cluster; None: `RAY_ADDRESS`, else a new one on this machine.
        retries: How often a step is started again whose worker or node died.

    Raises:
        ValueError: Ray is not installed, the store is no server, or there is no such cluster.
    """

    def __init__(self, out: str, tracking_uri: str, address: str | None, retries: int) -> None:
        ray = require_ray()
        if not tracking_uri.startswith(("http://", "https://")):
            raise ValueError(
                "--executor ray needs a tracking server that every node reaches, not --tracking_uri "
                f"{without_password(tracking_uri)}: start one with `mlflow server --host 0.0.0.0 "
                "--backend-store-uri sqlite:///mlflow.db`, and give its http address."
            )
        try:
            with ray_runtime() as runtime:
                ray.init(
                    address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR", runtime_env=runtime
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"--ray_address {address}: no Ray cluster answers there: {error}") from error
        self._here = LocalExecutor(out)
        # A worker takes one task only: what a step leaves in its process must not reach the next one.
        self._task = ray.remote(max_calls=1, max_retries=retries)(work)

    @property
    def cores(self) -> int:
        """Of the whole cluster."""
        import ray

        return int(ray.cluster_resources().get("CPU", 1))

    @property
    def widest(self) -> int:
        """Cores of its largest node: no step can have more."""
        import ray

        return max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)

    def start(self, job: Job) -> RayTask | LocalProcess:
        """Start a step, where there is room."""
        if job.here:
            return self._here.start(job)
        cores = max(1, min(job.workers, self.widest))
        return RayTask(job, self._task.options(num_cpus=cores, name=job.name).remote(job))


def require_ray() -> Any:
    """The `ray` module.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            "Ray is not installed: install lightning-unlearn with its extra, `lightning-unlearn[ray]`, on every node."
        ) from None
    return ray
