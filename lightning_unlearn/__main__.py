"""`python -m lightning_unlearn` and the console script."""

import gc
import signal

from lightning_unlearn.cli import main


def run() -> None:
    """Run the command of this process; a request to end is an interruption, as Ctrl-C is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    finally:
        gc.freeze()  # an interrupted run must end at once: the interpreter's last collections alone take 2 s otherwise


if __name__ == "__main__":
    run()
