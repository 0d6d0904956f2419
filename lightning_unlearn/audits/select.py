"""The `select` command: choose a save point of each training seed on validation layouts, and name it `selected`.

The cost limit comes first, then the return. Layouts are none of those that results are reported on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lightning_unlearn.audits import selection
from lightning_unlearn.audits.places import results_folder
from lightning_unlearn.audits.records import flat_numbers, require_at_least
from lightning_unlearn.audits.selection import Validated
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.options import CommandParser
from lightning_unlearn.seeding import VALIDATION_BANK, validation_layouts
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.registry import RegisteredModel
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment

KIND = "save_point_selection"
_SHOWN = ["Seed", "Update", "Reward", "RewardStd", "Cost_Sum", "CostStd", "Cost_Free_Share", "C_forget_Sum"]
_SHOWN += ["Within_Limit", "Selected"]


def main(args: Sequence[str]) -> None:
    """Validate the save points that the options name, choose, and record what was chosen and by what."""
    options, concept, layouts = read_options(args)
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    open_store(options.tracking_uri)
    require_active_experiment(options.env)
    models = [model for seed in dict.fromkeys(options.seed) for model in _candidates(options, seed)]
    if unused := set(options.run) - {model.run_id for model in models}:
        raise ValueError(f"--run {min(unused)} has no save point of {options.method} with these seeds: leave it out.")
    folder = results_folder(options.out, KIND, None)
    found = _validated(options, concept, models, layouts)
    chosen = selection.choices_of_seeds(found, options.cost_limit)
    table = selection.table(found, chosen, options.cost_limit)
    settings = _settings(options, layouts)
    selection.write_files(folder, found, chosen, settings)
    run_id = _record(options, folder, table)
    _print(table, found, chosen, options.cost_limit)
    selection.name_chosen(registry.model_name(options.method, options.env), chosen, settings, run_id)
    print(f"  {folder.resolve()}\nMLflow run: {run_id}")


def read_options(args: Sequence[str]) -> tuple[Any, str | Concept, list[int]]:
    """The command's options, what C_forget is, and the validation layouts.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options, concept = parse_with_concept(_parser(), args)
    require_at_least(1, workers=options.workers, max_steps=options.max_steps)
    selection.require_possible(options.cost_limit)
    if min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    return options, concept, validation_layouts(options.episodes, options.first_layout)


def _candidates(options: Any, seed: int) -> list[RegisteredModel]:
    """A seed's save points: of each update the newest, or those of the run that is named."""
    runs_named = dict.fromkeys(options.run or [None])
    registered = [model for run in runs_named for model in registry.registered_models(options.env, seed, run)]
    models = [model for model in registered if model.method == options.method]
    if not models:
        known = ", ".join(sorted({model.method for model in registered})) or "nothing"
        where = f" in --run {' '.join(options.run)}" if options.run else ""
        raise ValueError(
            f"--method {options.method}: there is no save point of it in {options.env} with --seed {seed}{where} "
            f"({known} is there): train one with `lightning-unlearn fit`, or name another seed, method or run."
        )
    if len(made_by := {model.run_id for model in models}) > 1:
        if options.run:
            raise ValueError(f"--run {' '.join(sorted(made_by))} are all of seed {seed}: name one run a seed.")
        print(f"seed {seed}: the newest save point of each update, from {len(made_by)} runs; --run names one of them.")
    return models


def _validated(
    options: Any, concept: str | Concept, models: Sequence[RegisteredModel], layouts: list[int]
) -> list[Validated]:
    env = make_env(options.env, len(layouts), concept, workers=min(options.workers, len(layouts)))
    try:
        return selection.validate(env, models, layouts, selection.counted_for(options.concept), options.max_steps)
    finally:
        env.close()


def _settings(options: Any, layouts: Sequence[int]) -> dict[str, Any]:
    asked = {name: options[name] for name in ("cost_limit", "concept", "max_steps")}
    return asked | {"layouts": f"{layouts[0]} to {layouts[-1]}"}


def _record(options: Any, folder: Path, table: pd.DataFrame) -> str:
    place = f"eval/{KIND}/{folder.name}"
    files = {folder / name: place for name in selection.FILES}
    numbers = flat_numbers({f"seed_{row['Seed']}/update_{row['Update']}": row for row in table.to_dict("records")})
    return runs.record_audit(options.env, "select", vars(options), numbers, files, seeds=options.seed)


def _print(table: pd.DataFrame, found: Sequence[Validated], chosen: Mapping[int, Validated], cost_limit: float) -> None:
    with pd.option_context("display.width", 200):
        print(f"\n{table[_SHOWN].to_string(index=False, float_format='{:.3f}'.format)}\n")
    for seed, one in chosen.items():
        print(selection.in_words(one, [other for other in found if other.model.seed == seed], cost_limit))
    if failed := int(table["Failed_Episodes"].sum()):
        print(f"The simulator cut {failed} episodes short: they cost less than whole ones.")
    if cut := int(table["Cut_Episodes"].sum()):
        print(f"--max_steps cut {cut} episodes before their end: they cost less than whole ones.")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn select", description=__doc__)
    add = parser.add_argument
    add("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    add("--method", type=str, required=True, help="the method whose save points are chosen from, such as concept")
    add("--seed", type=int, nargs="+", default=[0], help="training seeds; one save point of each is chosen")
    runs_help = "only save points of these runs, one a seed; default: the newest of each update"
    add("--run", type=str, nargs="+", default=[], help=runs_help)
    add("--cost_limit", type=float, default=25.0, help="mean cost of an episode that is still within the limit")
    add_concept_option(parser, "; the limit is on a named one, in place of the cost")
    add("--episodes", type=int, default=50, help="validation layouts, one episode each")
    add(
        "--first_layout",
        type=int,
        default=VALIDATION_BANK,
        help="the first one; never one that results are reported on",
    )
    add("--max_steps", type=int, default=2000, help="episodes are cut here at the latest")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--out", type=str | None, default=None, help=f"folder of the files; default: artifacts/eval/{KIND}/<time>")
    add("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
