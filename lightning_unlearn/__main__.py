"""`python -m lightning_unlearn` and the console script."""

import gc
import os
import select
import signal
import sys

from lightning_unlearn.cli import main

_OUTPUT = (1, 2)
"""Descriptors of standard output and standard error."""


def run() -> None:
    """Run the command of this process. A request to end it (SIGTERM) is an interruption, like Ctrl-C.

    When the reader of its output, such as `head`, has ended, the command ends too, without a message.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in _OUTPUT:  # Python flushes both once more at its end
            os.dup2(nowhere, descriptor)
        sys.exit(128 + signal.SIGPIPE)
    finally:
        gc.freeze()  # an interrupted run must end at once: the interpreter's last collections alone take 2 s otherwise


def _reader_is_gone() -> bool:
    """Return whether standard output or standard error is a pipe whose reader has ended."""
    poll = select.poll()
    for descriptor in _OUTPUT:
        poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    run()
