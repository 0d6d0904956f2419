"""Whether what a plan's audits are told is possible: asked of the audits themselves, before anything runs."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning_unlearn.audits import evaluate, latent_shift, probe_commands, probe_fit, relearn, select
from lightning_unlearn.audits.report import command as report
from lightning_unlearn.study.steps import Step

_READERS: dict[tuple[str, ...], Callable[[Sequence[str]], Any]] = {
    ("select",): select.read_options,
    ("evaluate",): evaluate.read_options,
    ("relearn",): relearn.read_options,
    ("latent-shift",): latent_shift.read_options,
    ("report",): report.read_options,
    ("probe", "collect"): probe_commands.read_collect_options,
    ("probe", "fit"): probe_fit.read_fit_options,
}


def require_possible(steps: Sequence[Step]) -> None:
    """Refuse an option that an audit's command does not know or cannot use.

    Raises:
        ValueError: There is one.
    """
    checked = set()
    for step in steps:
        words = [arg if isinstance(arg, str) else "from-the-study" for arg in step.args]
        for command, read in _READERS.items():
            if tuple(words[: len(command)]) == command and (step.env, *words) not in checked:
                checked.add((step.env, *words))
                _ask(read, words[len(command) :], ".".join(command))


def _ask(read: Callable[[Sequence[str]], Any], args: Sequence[str], where: str) -> None:
    try:
        read(args)
    except ValueError as error:
        raise ValueError(f"audits.{where}: {error}") from error
