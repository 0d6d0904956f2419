"""The `models` command: list what is registered, compare two models, delete versions with their files."""

from collections.abc import Sequence

from lightning_unlearn.housekeeping import models_compare, models_delete, models_list
from lightning_unlearn.options import choose

_SUBCOMMANDS = {"list": models_list.main, "compare": models_compare.main, "delete": models_delete.main}


def main(args: Sequence[str]) -> None:
    """Run a subcommand."""
    name, options = choose("models", list(_SUBCOMMANDS), args)
    _SUBCOMMANDS[name](options)
