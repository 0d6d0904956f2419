"""`python -m lightning_unlearn` and the console script."""

import gc

from lightning_unlearn.cli import main


def run() -> None:
    """Run the command of this process."""
    try:
        main()
    finally:
        gc.freeze()  # an interrupted run must end at once: the interpreter's last collections alone take 2 s otherwise


if __name__ == "__main__":
    run()
