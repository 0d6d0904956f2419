"""The `select` command: choose a save point of each training seed on validation layouts, and name it `selected`.

The cost limit comes first, then the return. Layouts are none of those that results are reported on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lightning_unlearn.audits import outputs
from lightning_unlearn.audits.audited_models import read_model, require_fit
from lightning_unlearn.audits.policy_comparison import evaluate_in, per_episode
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.seeding import VALIDATION_BANK, validation_layouts
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.registry import RegisteredModel

KIND = "save_point_selection"
FILES = TABLE, PER_EPISODE, SELECTION = "validation.csv", "per_episode.csv", "selection.json"
RULE = (
    "of the save points whose mean C_forget of an episode is within the limit, the one of highest mean return; "
    "if none is, the one of lowest mean C_forget"
)
_PRINTED = ["Seed", "Update", "Reward", "RewardStd", "Cost_Sum", "CostStd", "Cost_Free_Share", "C_forget_Sum"]
_PRINTED += ["Within_Limit", "Selected"]


@dataclass(frozen=True)
class Validated:
    """A save point with its episodes on the validation layouts.

    Means leave out the episodes that the simulator failed, which are shorter and so cost less.
    """

    model: RegisteredModel
    episodes: pd.DataFrame
    """One row a layout, from `policy_comparison.per_episode`."""

    @property
    def whole(self) -> pd.DataFrame:
        """The episodes that the simulator did not fail."""
        return self.episodes[~self.episodes["simulator_failed"].astype(bool)]

    @property
    def mean_return(self) -> float:
        """Sum of rewards of an episode, mean over layouts."""
        return float(self.whole["reward"].mean())

    @property
    def mean_cost(self) -> float:
        """C_forget of an episode, which the limit is on, mean over layouts; infinite if every episode failed."""
        return float(self.whole["cforget_sum"].mean()) if len(self.whole) else math.inf

    @property
    def in_numbers(self) -> str:
        """Return and C_forget, for people."""
        return f"return {self.mean_return:.2f}, C_forget {self.mean_cost:.2f} an episode"

    def row(self, cost_limit: float) -> dict[str, Any]:
        """Row of the table; standard deviations are of the population of episodes."""
        reward, cost, shown = (self.whole[name] for name in ("reward", "cost_sum", "cforget_sum"))
        return {
            "Method": self.model.method,
            "Seed": self.model.seed,
            "Update": self.model.update,
            "Path": self.model.uri,
            "Run": self.model.run_id,
            "Reward": self.mean_return,
            "RewardStd": float(reward.std(ddof=0)),
            "Cost_Sum": float(cost.mean()),
            "CostStd": float(cost.std(ddof=0)),
            "Cost_Free_Share": float((cost == 0).mean()),
            "Failed_Episodes": int(self.episodes["simulator_failed"].sum()),
            "Cut_Episodes": int(self.episodes["cut_at_max_steps"].sum()),
            "C_forget_Sum": float(shown.mean()),
            "Within_Limit": self.mean_cost <= cost_limit,
        }


def main(args: Sequence[str]) -> None:
    """Validate the save points that the options name, choose, and record the choice with its settings."""
    options, concept, layouts = read_options(args)
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    outputs.open_audit_store(options.tracking_uri, options.env)
    models = [model for seed in dict.fromkeys(options.seed) for model in _candidates(options, seed)]
    if unused := set(options.run) - {model.run_id for model in models}:
        raise ValueError(f"--run {min(unused)} has no save point of {options.method} with these seeds: leave it out.")
    folder = outputs.results_folder(options.out, KIND, None)
    env = make_env(options.env, len(layouts), concept, workers=min(options.workers, len(layouts)))
    try:
        found = validate(env, models, layouts, options.max_steps)
    finally:
        env.close()
    chosen = choices_of_seeds(found, options.cost_limit)
    settings = {name: options[name] for name in ("cost_limit", "concept", "max_steps")}
    settings |= {"layouts": f"{layouts[0]} to {layouts[-1]}"}
    write_files(folder, found, chosen, settings)
    validation = table(found, chosen, options.cost_limit)
    place = f"eval/{KIND}/{folder.name}"
    files = {folder / name: place for name in FILES}
    rows = {f"seed_{row['Seed']}/update_{row['Update']}": row for row in validation.to_dict("records")}
    run_id = runs.record_audit(
        options.env, "select", vars(options), outputs.flat_numbers(rows), files, seeds=options.seed
    )
    _print(validation, found, chosen, options.cost_limit)
    name_chosen(registry.model_name(options.method, options.env), chosen, settings, run_id)
    print(f"  {folder.resolve()}\nMLflow run: {run_id}")


def read_options(args: Sequence[str]) -> tuple[Any, str | Concept, list[int]]:
    """The command's options, the concept, and the validation layouts.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options, concept = parse_with_concept(_parser(), args)
    require_at_least(1, workers=options.workers, max_steps=options.max_steps)
    if not math.isfinite(options.cost_limit) or options.cost_limit < 0:
        raise ValueError(f"--cost_limit {options.cost_limit} is not possible: use an episode cost of 0 or more.")
    if min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    return options, concept, validation_layouts(options.episodes, options.first_layout)


def choose(found: Sequence[Validated], cost_limit: float) -> Validated:
    """Choose by `RULE`; of equals, the one of lower cost and higher return, then the earliest."""
    within = [one for one in found if one.mean_cost <= cost_limit]
    if within:
        return min(within, key=lambda one: (-one.mean_return, one.mean_cost, one.model.update))
    return min(found, key=lambda one: (one.mean_cost, -one.mean_return, one.model.update))


def choices_of_seeds(found: Sequence[Validated], cost_limit: float) -> dict[int, Validated]:
    """Every training seed's choice among its own save points."""
    by_seed: dict[int, list[Validated]] = {}
    for one in found:
        by_seed.setdefault(one.model.seed, []).append(one)
    return {seed: choose(own, cost_limit) for seed, own in sorted(by_seed.items())}


def in_words(chosen: Validated, among: Sequence[Validated], cost_limit: float) -> str:
    """Explain why one was chosen among a seed's save points."""
    within = sum(one.mean_cost <= cost_limit for one in among)
    what = f"seed {chosen.model.seed}: update {chosen.model.update} is selected"
    if within:
        return f"{what} ({chosen.in_numbers}): the highest return of {within} within the cost limit {cost_limit:g}."
    return (
        f"{what} ({chosen.in_numbers}): NONE of {len(among)} is within the cost limit {cost_limit:g}; it costs least."
    )


def validate(
    env: BatchedEnv, models: Sequence[RegisteredModel], layouts: Sequence[int], max_steps: int
) -> list[Validated]:
    """Run each model's deterministic policy once on every layout; prints a line a model.

    Raises:
        ValueError: A model is not there, or it is of another environment.
    """
    found = []
    for number, model in enumerate(models, start=1):
        policy = read_model(model.uri, env.simulator.env_id, "method").policy
        require_fit(policy, env.simulator, "method", model.uri)
        label = f"{number}/{len(models)}  seed {model.seed}, update {model.update}"
        evaluation = evaluate_in(env, policy, layouts, max_steps=max_steps, label=label)
        found.append(one := Validated(model, per_episode(evaluation.episodes)))
        failed = len(one.episodes) - len(one.whole)
        left_out = f"; {failed} episodes that the simulator failed are left out" if failed else ""
        print(f"{label}: {one.in_numbers}{left_out}", flush=True)
    return found


def table(found: Sequence[Validated], chosen: Mapping[int, Validated], cost_limit: float) -> pd.DataFrame:
    """One row a save point."""
    return pd.DataFrame([one.row(cost_limit) | {"Selected": chosen[one.model.seed] is one} for one in found])


def write_files(
    folder: Path, found: Sequence[Validated], chosen: Mapping[int, Validated], settings: Mapping[str, Any]
) -> None:
    """Write `FILES`: the table, the episodes, and the choices with their settings."""
    table(found, chosen, settings["cost_limit"]).to_csv(folder / TABLE, index=False)
    episodes = [one.episodes.assign(Seed=one.model.seed, Update=one.model.update) for one in found]
    pd.concat(episodes).to_csv(folder / PER_EPISODE, index=False)
    selected = {str(seed): one.row(settings["cost_limit"]) for seed, one in chosen.items()}
    content = {"rule": RULE, **settings, "policy": "deterministic", "selected_of_seed": selected}
    outputs.write_json(folder / SELECTION, content)


def name_chosen(name: str, chosen: Mapping[int, Validated], settings: Mapping[str, Any], run_id: str) -> None:
    """Set and print the aliases of each seed's choice, and of the best of them by the same rule.

    Args:
        name: Name of the registered model.
        chosen: Seed → its choice.
        settings: Limit, concept, layouts and steps that they were chosen by.
        run_id: Run that holds the files.
    """
    for seed, one in chosen.items():
        tags = {"rule": RULE, **{key: str(value) for key, value in settings.items()}}
        tags["within_limit"] = str(one.mean_cost <= settings["cost_limit"]).lower()
        tags |= {"mean_return": f"{one.mean_return:.6g}", "mean_cost": f"{one.mean_cost:.6g}", "run": run_id}
        print(f"  models:/{name}@{registry.select_version(name, seed, one.model.version, tags)}")
    best = choose(list(chosen.values()), settings["cost_limit"])
    registry.point_selected(name, best.model.version)
    which = f" is that of seed {best.model.seed}, by the same rule" if len(chosen) > 1 else ""
    print(f"  models:/{name}@{registry.SELECTED}{which}")


def _candidates(options: Any, seed: int) -> list[RegisteredModel]:
    """A seed's save points: the newest of each update, or those of the named run."""
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


def _print(table: pd.DataFrame, found: Sequence[Validated], chosen: Mapping[int, Validated], cost_limit: float) -> None:
    with pd.option_context("display.width", 200):
        print(f"\n{table[_PRINTED].to_string(index=False, float_format='{:.3f}'.format)}\n")
    for seed, one in chosen.items():
        print(in_words(one, [other for other in found if other.model.seed == seed], cost_limit))
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
    add("--cost_limit", type=float, default=25.0, help="mean C_forget of an episode that is still within the limit")
    add_concept_option(parser, "; the limit is on its C_forget")
    add("--episodes", type=int, default=50, help="validation layouts, one episode each")
    first_help = "the first one; never one that results are reported on"
    add("--first_layout", type=int, default=VALIDATION_BANK, help=first_help)
    add("--max_steps", type=int, default=2000, help="episodes are cut here at the latest")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--out", type=str | None, default=None, help=f"folder of the files; default: artifacts/eval/{KIND}/<time>")
    outputs.add_store_option(parser)
    return parser
