"""Earlier attempts at a step, and the checkpoint they left: on this machine, or in the store for another one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lightning_unlearn import processes
from lightning_unlearn.study.store import DIGEST, KILLED, RUNNING
from lightning_unlearn.tracking import checkpoints, store

SENT = "checkpoints"
"""Folder, among a run's artifacts, of its checkpoint: the file's name in the first line, then its content."""
_FILE = "newest"
EVERY_S = 30.0
_LOOK_S = 2.0


def resume_options(env: str, digest: str, parent: str) -> list[str]:
    """`--resume <run>`, if an earlier attempt at the step left a checkpoint here or in the store; else nothing.

    An attempt of the same study that says that it runs, elsewhere, is dead: the study would know of it otherwise.

    Raises:
        ValueError: It runs on this machine: what started it was killed, and left it behind.
    """
    for run in _attempts(env, digest):
        run_id, mine = str(run.info.run_id), run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent
        if run.info.status == RUNNING and mine:
            _require_dead(run)
            mlflow.MlflowClient().set_terminated(run_id, KILLED)
        elif run.info.status not in (KILLED, "FAILED"):
            continue
        folder = store.checkpoint_folder(run_id)
        if checkpoints.newest(folder) is not None or _receive(run_id, folder):
            return ["--resume", run_id]
    return []


@contextmanager
def sending() -> Iterator[None]:
    """While it lasts, new checkpoints go to the store, so that another machine can go on."""
    over = Event()
    courier = Thread(target=_send_until, args=(over,), daemon=True)
    courier.start()
    try:
        yield
    finally:
        over.set()
        courier.join()


def _attempts(env: str, digest: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(env)
    if experiment is None:
        return []
    newest = ["attributes.start_time DESC"]
    return list(client.search_runs([experiment.experiment_id], f"tags.`{DIGEST}` = '{digest}'", order_by=newest))


def _require_dead(run: mlflow.entities.Run) -> None:
    tags = run.data.tags
    if processes.lives_here(tags):
        raise ValueError(
            f"run {run.info.run_id} of this step is still under way in process {tags[processes.PROCESS]}, left behind "
            "by a study that was killed: wait for it, or end it."
        )


def _send_until(over: Event) -> None:
    sent, last, folder = None, -EVERY_S, store.checkpoints_root()
    while not over.wait(_LOOK_S):
        newest = max(folder.glob("*/*.ckpt"), key=checkpoints.update_of, default=None)
        if newest is not None and newest != sent and time.monotonic() - last >= EVERY_S:
            sent, last = newest if _send(newest) else sent, time.monotonic()


def _send(checkpoint: Path) -> bool:
    """False where it was replaced meanwhile, or the server does not answer: that is a later round's business."""
    try:
        content = f"{checkpoint.name}\n".encode() + checkpoint.read_bytes()
        letter = checkpoint.parent / _FILE
        letter.write_bytes(content)
        mlflow.MlflowClient().log_artifact(checkpoint.parent.name, str(letter), SENT)
    except (OSError, MlflowException):
        return False
    return True


def _receive(run_id: str, folder: Path) -> bool:
    """Put the checkpoint that another machine sent where it is looked for; False if there is none."""
    try:
        letter = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{SENT}/{_FILE}"))
    except (MlflowException, OSError):
        return False
    name, _, content = letter.read_bytes().partition(b"\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / Path(name.decode()).name).write_bytes(content)
    return checkpoints.newest(folder) is not None
