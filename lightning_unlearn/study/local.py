"""Steps as processes of this machine."""

import os
import signal
import subprocess
from pathlib import Path

from lightning_unlearn.study.jobs import Job, command, environment, last_line, prepare

GRACE_S = 15.0
"""Seconds that an interrupted step has to write its end."""


class LocalProcess:
    """A running step.

    Args:
        job: The step.
        bytecode: Folder for what Python compiles.
    """

    def __init__(self, job: Job, bytecode: Path) -> None:
        job = prepare(job)
        self._log = job.log
        with open(job.log, "wb") as log:
            self._process = subprocess.Popen(
                command(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(job, bytecode),
                start_new_session=True,  # a Ctrl-C on the terminal reaches the study alone, which passes it on once
            )

    def poll(self) -> int | None:
        """The exit code once it has ended; negative: the signal that ended it."""
        return self._process.poll()

    def says(self) -> str:
        """The last line of its output."""
        return last_line(self._log)

    def interrupt(self) -> None:
        """Ask it to end, as Ctrl-C would."""
        self._signal(signal.SIGINT)

    def wait(self) -> None:
        """Until it has ended, by force in the end."""
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
        """Of this machine, as far as it is given to this process."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def start(self, job: Job) -> LocalProcess:
        """Start a step."""
        return LocalProcess(job, self._bytecode)
