"""Write the help of every command, as its own parser prints it, to files of the package, or to those of a folder."""

import contextlib
import io
import os
import sys
from pathlib import Path

from lightning_unlearn import cli

SUBCOMMANDS = {
    "envs": ("list",),
    "export": ("sb3", "pt2", "onnx", "folder"),
    "import": ("sb3", "omnisafe", "cleanrl", "torchrl"),
    "models": ("list", "compare", "delete"),
    "probe": ("collect", "fit", "export", "eval"),
    "runs": ("list",),
}


def names():
    """Every command, and every subcommand."""
    for command in cli.COMMANDS:
        yield from ((command,), *((command, subcommand) for subcommand in SUBCOMMANDS.get(command, ())))


def printed(command, *options):
    """What the command's parser prints."""
    main = cli.entry_point(command)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*options, "--help"])
    return out.getvalue()


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else cli.HELP_TEXTS
    for words in names():
        (folder / f"{' '.join(words)}.txt").write_text(printed(*words), encoding="utf-8")
