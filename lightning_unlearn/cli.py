"""The one command, `lightning-unlearn`. Libraries are imported only by the command that needs them."""

import gc
import importlib
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from io import TextIOWrapper
from opcode import opmap
from pathlib import Path
from types import FrameType, ModuleType

from lightning_unlearn.global_state import quieten, set_variables
from lightning_unlearn.tracking.addresses import without_password

COMMANDS = {
    "quickstart": ("lightning_unlearn.quickstart", "repair the shipped unsafe expert and show before and after"),
    "fit": ("lightning_unlearn.fit", "train one method from a chain of config files"),
    "import": (
        "lightning_unlearn.importers.import_command",
        "take in an agent of Stable-Baselines3, OmniSafe or CleanRL",
    ),
    "probe": ("lightning_unlearn.audits.probe_commands", "probe a latent: collect states, fit, export, evaluate"),
    "export-hazard-direction": ("lightning_unlearn.audits.export_direction", "the same as probe export"),
    "action-control": ("lightning_unlearn.audits.action_control", "how well the latent tells the action"),
    "latent-shift": ("lightning_unlearn.audits.latent_shift", "how far two models' latents are apart"),
    "evaluate": ("lightning_unlearn.audits.evaluate", "models on equal layouts: return, cost, where they changed"),
    "select": ("lightning_unlearn.audits.select", "choose a save point on validation layouts: cost limit, then return"),
    "relearn": ("lightning_unlearn.audits.relearn", "how fast models learn the forgotten behaviour again"),
    "report": ("lightning_unlearn.report.command", "one HTML file of all that the store shows of a task"),
    "reproduce": ("lightning_unlearn.reproduce", "make a run again from its stored config, and compare all bits"),
    "verify": ("lightning_unlearn.tracking.verify", "whether a model's files are those that were stored"),
    "models": ("lightning_unlearn.housekeeping.models", "list, compare or delete registered models"),
    "runs": ("lightning_unlearn.housekeeping.runs_list", "list runs, with what they take on the disk"),
    "gc": ("lightning_unlearn.housekeeping.clear", "show, and delete with --yes, what nothing in the store points to"),
    "export-artifacts": ("lightning_unlearn.audits.export", "write the published tree of artifacts from the store"),
    "register": ("lightning_unlearn.study.stored", "put stored weights into the store as a method's save points"),
    "study": ("lightning_unlearn.study.command", "a whole study from one file: methods, seeds, audits, report"),
    "bench": ("lightning_unlearn.benchmark.bench_command", "time everything beside the machine's limit and its peers"),
}
"""Name → the module whose `main(args)` runs it, and what it does."""

HELP_FLAGS = ("-h", "--help")
HELP_TEXTS = Path(__file__).parent / "help"
"""What each command's own parser prints; `tests/help_texts.py` writes the files, and a test compares them."""

_OURS = "lightning_unlearn"
_CHECK_OPTIONS = sys.stdlib_module_names | {"jsonargparse", "lightning", "mlflow"}
"""Whose errors are about what was given."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; a bad option ends with a message and exit code 2.

    Args:
        args: The command and its options; the process's own when left out.
    """
    _escape_unprintable()
    command, *options = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    if command in HELP_FLAGS:
        print(usage())
        return
    if command not in COMMANDS:
        _fail(f"unknown command {command!r}.\n\n{usage()}")
    if options and options[-1] in HELP_FLAGS and (text := help_text(command, *options[:-1])):
        print(text, end="")
        raise SystemExit(0)  # as a parser does
    logging.getLogger().addFilter(_is_no_plugin_news)
    set_variables()
    module = _import(COMMANDS[command][0])
    quieten()
    try:
        module.main(options)
    except SystemExit as stop:
        for note in _notes(stop):
            print(f"\n{note}", file=sys.stderr)
        raise
    except Exception as error:
        if not _is_explained(error):
            raise
        _fail("\n".join([str(error), *_notes(error)]))


def _import(name: str) -> ModuleType:
    """Import a module with Python's garbage collection off: a search of a million new objects, which are all used."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def _is_explained(error: Exception) -> bool:
    """Whether an error's message says all: what was asked for is impossible, or the disk, the store or numbers failed.

    What comes out of somebody else's code (an environment, a concept, a callback), also as the cause, keeps its
    traceback, and so does a mistake of this package. Errors of libraries go by their names, so that the libraries need
    not be imported for that.
    """
    if isinstance(error, BrokenPipeError):  # of standard output: not an error
        return False
    if any(_is_foreign(link) for link in _chain(error)):
        return False
    if isinstance(error, OSError) or type(error).__name__ in ("MisconfigurationException", "MlflowException"):
        return True
    return isinstance(error, ValueError | FloatingPointError) and _is_deliberate(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_foreign(error: BaseException) -> bool:
    """Whether an error comes out of code that is neither this package's nor that of Python or a library below it."""
    owners = (_owner(frame) for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]))
    return next((owner for owner in owners if owner not in _libraries()), _OURS) != _OURS


@cache
def _libraries() -> set[str]:
    """Modules of Python, of this package's dependencies and of theirs, which call what a user wrote."""
    found, new = set(), {"lightning-unlearn"}
    while new:
        found |= new
        new = {name for distribution in new for name in _dependencies(distribution)} - found
    found.discard("lightning-unlearn")
    modules = metadata.packages_distributions()
    return {*sys.stdlib_module_names} | {m for m, names in modules.items() if found & {*map(_canonical, names)}}


def _dependencies(distribution: str) -> Iterator[str]:
    """Names of the distributions that one requires, for its extras too; none if it is not installed."""
    try:
        required = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in required:
        yield _canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_deliberate(error: BaseException) -> bool:
    """Whether this package's own `raise`, or a library's check of options, made an error."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or (owner := _owner(last.tb_frame)) != _OURS:
        return last is None or owner in _CHECK_OPTIONS
    return last.tb_frame.f_code.co_code[last.tb_lasti] == opmap["RAISE_VARARGS"]


def _owner(frame: FrameType) -> str:
    """The top-level package of a frame's code."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def help_text(*words: str) -> str:
    """The stored help of a command or subcommand, for which nothing has to be imported; empty if there is none."""
    file = HELP_TEXTS / f"{' '.join(words)}.txt".replace("/", "")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def usage() -> str:
    """The top-level help."""
    rows = "\n".join(f"  {name:<24} {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: lightning-unlearn COMMAND [options]\n\n"
        "Targeted unlearning for control agents: repair a trained policy, then prove what it forgot.\n\n"
        f"commands:\n{rows}\n\n"
        "lightning-unlearn COMMAND --help lists the options of a command."
    )


def _escape_unprintable() -> None:
    """Print an escape sequence in place of a character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_no_plugin_news(record: logging.LogRecord) -> bool:
    """Gymnasium loads every plugin it finds, and gymnasium-robotics then speaks of its own environments."""
    return "AdroitHand" not in record.getMessage()


def _fail(message: str) -> None:
    print(f"lightning-unlearn: error: {without_password(message)}", file=sys.stderr)
    raise SystemExit(2)
