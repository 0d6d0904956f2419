"""The one command, `lightning-unlearn`. Libraries are imported only by the command that needs them."""

import gc
import importlib
import linecache
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from lightning_unlearn.global_state import quieten, set_variables
from lightning_unlearn.tracking.addresses import without_password

COMMANDS = {
    "quickstart": ("lightning_unlearn.quickstart", "repair the shipped unsafe expert and show before and after"),
    "fit": ("lightning_unlearn.fit", "train one method from a chain of config files"),
    "import": (
        "lightning_unlearn.importers.import_command",
        "import an agent of Stable-Baselines3, OmniSafe or CleanRL",
    ),
    "probe": ("lightning_unlearn.audits.probe_commands", "probe a latent: collect states, fit, export, evaluate"),
    "export-hazard-direction": (
        "lightning_unlearn.audits.probe_commands:export_hazard_direction",
        "the same as probe export",
    ),
    "action-control": ("lightning_unlearn.audits.action_control", "measure how well the latent predicts the action"),
    "latent-shift": ("lightning_unlearn.audits.latent_shift", "measure how far the latents of two models differ"),
    "evaluate": (
        "lightning_unlearn.audits.policy_suite",
        "compare models on equal layouts: return, cost, where they changed",
    ),
    "select": (
        "lightning_unlearn.audits.model_selection",
        "select a save point on validation layouts: cost limit, then return",
    ),
    "patch": ("lightning_unlearn.audits.patching", "measure how deep a repair goes, by patching one layer at a time"),
    "weight-path": (
        "lightning_unlearn.audits.weight_path",
        "measure how far a repair is from its expert, and what lies on the line between",
    ),
    "elicit": (
        "lightning_unlearn.audits.elicitation",
        "measure how much of the behaviour comes back when sensors are disturbed",
    ),
    "relearn": ("lightning_unlearn.audits.relearning", "measure how fast models relearn the forgotten behaviour"),
    "meta-evaluate": (
        "lightning_unlearn.audits.audit_bank",
        "measure how far each audit can be trusted, on models whose truth is known",
    ),
    "report": (
        "lightning_unlearn.report.report_command",
        "write one HTML file of all that the store holds about a task",
    ),
    "reproduce": ("lightning_unlearn.reproduce", "train a run again from its stored config and compare it bit by bit"),
    "verify": ("lightning_unlearn.tracking.verify", "check that a model's files are those that were stored"),
    "envs": ("lightning_unlearn.envs.envs_command", "list tasks: their costs, how they are stepped, which are refused"),
    "models": ("lightning_unlearn.tracking.models_command", "list, compare or delete registered models"),
    "runs": ("lightning_unlearn.tracking.runs_command", "list runs, with their size on the disk"),
    "gc": (
        "lightning_unlearn.tracking.housekeeping",
        "show files that nothing in the store refers to, and delete them with --yes",
    ),
    "export": (
        "lightning_unlearn.exporters.export_command",
        "write a model for torch.export, ONNX or Stable-Baselines3, or as a folder to publish",
    ),
    "export-artifacts": (
        "lightning_unlearn.exporters.published_tree",
        "write the published tree of artifacts from the store",
    ),
    "register": ("lightning_unlearn.study.register", "register stored weights as save points of a method"),
    "study": (
        "lightning_unlearn.study.study_command",
        "run a whole study from one file: methods, seeds, audits, report",
    ),
    "bench": (
        "lightning_unlearn.benchmark.bench_command",
        "measure speed, beside the limit of the physics and other libraries",
    ),
}
"""Name → the module whose `main(args)`, or the function that, runs the command, and its description."""

HELP_FLAGS = ("-h", "--help")
HELP_TEXTS = Path(__file__).parent / "help"
"""Help of each command, as its parser prints it. `tests/help_texts.py` writes the files, and a test compares them."""

_OURS = "lightning_unlearn"
_CHECK_OPTIONS = sys.stdlib_module_names | {"jsonargparse", "lightning", "mlflow"}
"""Modules whose ValueErrors are about the options."""


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
    run = entry_point(command)
    quieten()
    try:
        run(options)
    except SystemExit as stop:
        for note in _notes(stop):
            print(f"\n{note}", file=sys.stderr)
        raise
    except Exception as error:
        if not _is_explained(error):
            raise
        _fail("\n".join([str(error), *_notes(error)]))


def entry_point(command: str) -> Callable[[Sequence[str]], None]:
    """Import a command's function without garbage collection, which would search a million new objects, all in use."""
    module, _, function = COMMANDS[command][0].partition(":")
    gc.disable()
    try:
        return getattr(importlib.import_module(module), function or "main")
    finally:
        gc.freeze()
        gc.enable()


def _is_explained(error: Exception) -> bool:
    """Return whether an error's message is enough: a request is impossible, or the disk, the store or numbers failed.

    Errors raised by somebody else's code (an environment, a concept, a callback), also as the cause, keep their
    traceback, and so do mistakes of this package. Errors of libraries are known by their names, so that the libraries
    need not be imported.
    """
    if isinstance(error, BrokenPipeError):  # the reader of standard output has ended, which is no error
        return False
    link: BaseException | None = error
    while link is not None:
        if _is_foreign(link):
            return False
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if isinstance(error, OSError) or type(error).__name__ in ("MisconfigurationException", "MlflowException"):
        return True
    return isinstance(error, ValueError | FloatingPointError) and _is_deliberate(error)


def _is_foreign(error: BaseException) -> bool:
    """Return whether the innermost frame outside of libraries is not this package's."""
    owners = (_owner(frame) for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]))
    return next((owner for owner in owners if owner not in _libraries()), _OURS) != _OURS


def _is_deliberate(error: BaseException) -> bool:
    """Return whether a `raise` of this package, or a library's check of options, made an error."""
    frames = [*traceback.walk_tb(error.__traceback__)]
    if not frames:
        return True
    frame, line = frames[-1]
    if (owner := _owner(frame)) != _OURS:
        return owner in _CHECK_OPTIONS
    return linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")


def _owner(frame: FrameType) -> str:
    """Return the top-level package of a frame's code."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


@cache
def _libraries() -> set[str]:
    """Return the modules of Python, of this package's dependencies and of theirs, which call a user's code."""
    found, new = set(), {"lightning-unlearn"}
    while new:
        found |= new
        new = {requirement for distribution in new for requirement in _requirements(distribution)} - found
    found.discard("lightning-unlearn")
    modules = metadata.packages_distributions()
    return {*sys.stdlib_module_names} | {m for m, names in modules.items() if found & {*map(_canonical, names)}}


def _requirements(distribution: str) -> list[str]:
    """Return the distributions that one requires, those of its extras included; none if it is not installed."""
    try:
        required = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    return [_canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in required]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def help_text(*words: str) -> str:
    """Return the stored help of a command or subcommand, without importing anything; empty if there is none."""
    file = HELP_TEXTS / f"{' '.join(words)}.txt".replace("/", "")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def usage() -> str:
    """Return the top-level help."""
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
    """Filter out messages of gymnasium-robotics about its own environments; Gymnasium loads every plugin it finds."""
    return "AdroitHand" not in record.getMessage()


def _fail(message: str) -> None:
    print(f"lightning-unlearn: error: {without_password(message)}", file=sys.stderr)
    raise SystemExit(2)
