"""What a Ray worker does with a step: files in, the command, its output back."""

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lightning_unlearn import cli
from lightning_unlearn.study.attempts import sending
from lightning_unlearn.study.jobs import Job, last_line_of, prepare
from lightning_unlearn.tracking.store import open_store


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    code: int
    log: str
    """Its output."""

    @property
    def last_line(self) -> str:
        """What it said last, or the error."""
        return last_line_of(self.log)


def work(job: Job) -> Ended:
    """Run a step in a folder of its own, in this process.

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
            with sending(), _output_to(Path(job.log)):
                code = _run(job)
            return Ended(code, Path(job.log).read_text(encoding="utf-8", errors="replace"))
        finally:
            os.chdir(before)


def _run(job: Job) -> int:
    try:
        cli.main(list(job.args))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Everything that this process prints goes into a file, also what libraries write past Python."""
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
