"""Whether what a plan is told is possible: asked of audits and environments themselves, before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_unlearn.audits import (
    latent_shift,
    model_selection,
    policy_suite,
    probe_collection,
    probe_commands,
    relearning,
)
from lightning_unlearn.audits.top_view import has_map
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import RECORDED, add_concept_option, parse_with_concept
from lightning_unlearn.options import CommandParser
from lightning_unlearn.report import command as report
from lightning_unlearn.study.steps import Step
from lightning_unlearn.study.trainings import Training

_READERS: dict[tuple[str, ...], Callable[[Sequence[str]], Any]] = {
    ("select",): model_selection.read_options,
    ("evaluate",): policy_suite.read_options,
    ("relearn",): relearning.read_options,
    ("latent-shift",): latent_shift.read_options,
    ("report",): report.read_options,
    ("probe", "collect"): probe_collection.read_options,
    ("probe", "fit"): probe_commands.read_fit_options,
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


def require_known_there(trainings: Mapping[str, Sequence[Training]], steps: Sequence[Step]) -> None:
    """Refuse a behaviour to forget that an environment does not report, and videos where there is no map to draw.

    Raises:
        ValueError: An audit or a method asks for one.
    """
    asked = {(env, t.concept): f"methods: {t.name}" for env, of_env in trainings.items() for t in of_env}
    for step in steps:
        if (concept := _concept_of(step)) is not None:
            asked.setdefault((step.env, concept), f"audits.{step.stage}")
    filmed = {step.env: step.stage for step in steps if "--record_videos" in step.args}
    for (env_id, concept), where in asked.items():
        env = _environment(env_id, concept, where)
        try:
            if env_id in filmed and not has_map(env.simulator.top_view()):
                raise ValueError(f"audits.{filmed[env_id]}: record_videos: {env_id} has no map to draw: leave it out.")
        finally:
            env.close()


def _concept_of(step: Step) -> str | None:
    """What an audit is told to judge by, as its option has it."""
    if "--concept" not in step.args:
        return None
    concept = str(step.args[step.args.index("--concept") + 1])
    return None if concept == RECORDED else concept


def _environment(env_id: str, concept: str, where: str) -> BatchedEnv:
    parser = CommandParser(prog="lightning-unlearn study")
    add_concept_option(parser)
    try:
        return make_env(env_id, 1, parse_with_concept(parser, ["--concept", concept])[1])
    except ValueError as error:
        raise ValueError(f"{where} in {env_id}: {error}") from error


def _ask(read: Callable[[Sequence[str]], Any], args: Sequence[str], where: str) -> None:
    try:
        read(args)
    except ValueError as error:
        raise ValueError(f"audits.{where}: {error}") from error
