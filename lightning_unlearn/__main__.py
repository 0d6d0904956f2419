"""`python -m lightning_unlearn` and the console script."""

from lightning_unlearn.cli import main


def run() -> None:
    """Run the command of this process."""
    main()


if __name__ == "__main__":
    run()
