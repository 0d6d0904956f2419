"""The one command, `lightning-unlearn`. Libraries are imported only by the command that needs them."""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

COMMANDS = {
    "quickstart": ("lightning_unlearn.quickstart", "repair the shipped unsafe expert and show before and after"),
    "fit": ("lightning_unlearn.training", "train one method from a chain of config files"),
    "import": ("lightning_unlearn.foreign.command", "take in an agent of Stable-Baselines3, OmniSafe or CleanRL"),
    "probe": ("lightning_unlearn.audits.probe_commands", "probe a latent: collect states, fit, export, evaluate"),
    "export-hazard-direction": ("lightning_unlearn.audits.export_direction", "the same as probe export"),
    "action-control": ("lightning_unlearn.audits.action_control", "how well the latent tells the action"),
    "latent-shift": ("lightning_unlearn.audits.latent_shift", "how far two models' latents are apart"),
    "evaluate": ("lightning_unlearn.audits.evaluate", "models on equal layouts: return, cost, where they changed"),
    "select": ("lightning_unlearn.audits.select", "choose a save point on validation layouts: cost limit, then return"),
    "relearn": ("lightning_unlearn.audits.relearn", "how fast models learn the forgotten behaviour again"),
    "report": ("lightning_unlearn.audits.report.command", "one HTML file of all that the store shows of a task"),
    "reproduce": ("lightning_unlearn.reproduce", "make a run again from its stored config, and compare all bits"),
    "verify": ("lightning_unlearn.verify", "whether a model's files are those that were stored"),
    "models": ("lightning_unlearn.housekeeping.models", "list, compare or delete registered models"),
    "runs": ("lightning_unlearn.housekeeping.runs_list", "list runs, with what they take on the disk"),
    "gc": ("lightning_unlearn.housekeeping.clear", "show, and delete with --yes, what nothing in the store points to"),
    "export-artifacts": ("lightning_unlearn.audits.export", "write the published tree of artifacts from the store"),
    "register": ("lightning_unlearn.study.stored", "put stored weights into the store as a method's save points"),
    "study": ("lightning_unlearn.study.command", "a whole study from one file: methods, seeds, audits, report"),
    "bench": ("lightning_unlearn.bench.command", "time everything beside the machine's limit and its peers"),
}
"""Name → the module whose `main(args)` runs it, and what it does."""

HELP_FLAGS = ("-h", "--help")


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; a bad option ends with a message and exit code 2.

    Args:
        args: The command and its options; the process's own when left out.
    """
    command, *options = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    if command in HELP_FLAGS:
        print(usage())
        return
    if command not in COMMANDS:
        _fail(f"unknown command {command!r}.\n\n{usage()}")
    logging.getLogger().addFilter(_is_no_plugin_news)
    module = importlib.import_module(COMMANDS[command][0])
    _quieten()
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


def _is_explained(error: Exception) -> bool:
    """Whether an error's message says all: what was asked for is impossible, or the disk, the store or numbers failed.

    Errors of libraries go by their names, so that the libraries need not be imported for that.
    """
    ours = isinstance(error, ValueError | OSError | FloatingPointError)
    return ours or type(error).__name__ in ("MisconfigurationException", "MlflowException")


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def usage() -> str:
    """The top-level help."""
    rows = "\n".join(f"  {name:<24} {what}" for name, (_, what) in COMMANDS.items())
    return (
        "usage: lightning-unlearn COMMAND [options]\n\n"
        "Targeted unlearning for control agents: repair a trained policy, then prove what it forgot.\n\n"
        f"commands:\n{rows}\n\n"
        "lightning-unlearn COMMAND --help lists the options of a command."
    )


def _is_no_plugin_news(record: logging.LogRecord) -> bool:
    """Gymnasium loads every plugin it finds, and gymnasium-robotics then speaks of its own environments."""
    return "AdroitHand" not in record.getMessage()


def _quieten() -> None:
    """Libraries' news about themselves would bury this program's own."""
    os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    for name in ("mlflow", "lightning.pytorch", "lightning.fabric", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _fail(message: str) -> None:
    print(f"lightning-unlearn: error: {message}", file=sys.stderr)
    raise SystemExit(2)
