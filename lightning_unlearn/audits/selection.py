"""Which save point is chosen: the cost limit comes first, then the return."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from lightning_unlearn.audits.policy_suite import evaluate_in, per_episode
from lightning_unlearn.audits.records import write_json
from lightning_unlearn.audits.subjects import read, require_fit
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.registry import RegisteredModel

FILES = TABLE, PER_EPISODE, SELECTION = "validation.csv", "per_episode.csv", "selection.json"
Counted = Literal["cost_sum", "cforget_sum"]
RULE = (
    "of the save points whose mean episode cost is within the limit, the one of highest mean return; "
    "if none is, the one of lowest mean episode cost"
)


@dataclass(frozen=True)
class Validated:
    """A save point with its episodes on the validation layouts."""

    model: RegisteredModel
    episodes: pd.DataFrame
    """One row a layout, as from `policy_suite.per_episode`."""
    counted: Counted = "cost_sum"
    """What the limit is on: the whole cost, or the concept where one is named."""

    @property
    def mean_return(self) -> float:
        """Sum of rewards of an episode, mean over layouts."""
        return float(self.episodes["reward"].mean())

    @property
    def mean_cost(self) -> float:
        """Sum over an episode of what is counted, mean over layouts."""
        return float(self.episodes[self.counted].mean())

    def row(self, cost_limit: float) -> dict[str, Any]:
        """Its row of the table; standard deviations are of the population of episodes."""
        reward, cost, shown = (self.episodes[name] for name in ("reward", "cost_sum", "cforget_sum"))
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


def require_possible(cost_limit: float) -> None:
    """Refuse a limit that no cost can be compared with.

    Raises:
        ValueError: It is negative, infinite or not a number.
    """
    if not math.isfinite(cost_limit) or cost_limit < 0:
        raise ValueError(f"--cost_limit {cost_limit} is not possible: use an episode cost of 0 or more.")


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
    """Why one was chosen among a seed's save points."""
    within = sum(one.mean_cost <= cost_limit for one in among)
    what = f"seed {chosen.model.seed}: update {chosen.model.update} is selected"
    numbers = f"return {chosen.mean_return:.2f}, {chosen.counted} {chosen.mean_cost:.2f} an episode"
    if within:
        return f"{what} ({numbers}): the highest return of {within} within the cost limit {cost_limit:g}."
    return f"{what} ({numbers}): NONE of {len(among)} is within the cost limit {cost_limit:g}; it costs least."


def chosen_by(chosen: Validated, settings: Mapping[str, Any], run_id: str) -> dict[str, str]:
    """Tags of a chosen version: the rule, what it was applied to, and the numbers that it saw."""
    return {
        "rule": RULE,
        **{key: str(value) for key, value in settings.items()},
        "within_limit": str(chosen.mean_cost <= settings["cost_limit"]).lower(),
        "mean_return": f"{chosen.mean_return:.6g}",
        "mean_cost": f"{chosen.mean_cost:.6g}",
        "run": run_id,
    }


def counted_for(concept: str | Concept) -> Counted:
    """What a limit is on: the whole cost, or the concept where one is named."""
    return "cost_sum" if concept == AUTO else "cforget_sum"


def validate(
    env: BatchedEnv, models: Sequence[RegisteredModel], layouts: Sequence[int], counted: Counted, max_steps: int
) -> list[Validated]:
    """Run each model's deterministic policy once on every layout; prints a line a model.

    Raises:
        ValueError: A model is not there, or it is of another environment.
    """
    found = []
    for number, model in enumerate(models, start=1):
        subject = read(model.uri, env.simulator.env_id, "method")
        require_fit(subject, env.simulator, "method")
        label = f"{number}/{len(models)}  seed {model.seed}, update {model.update}"
        evaluation = evaluate_in(env, subject.policy, layouts, max_steps=max_steps, label=label)
        found.append(one := Validated(model, per_episode(evaluation.episodes), counted))
        print(f"{label}: return {one.mean_return:.2f}, {counted} {one.mean_cost:.2f} an episode", flush=True)
    return found


def table(found: Sequence[Validated], chosen: Mapping[int, Validated], cost_limit: float) -> pd.DataFrame:
    """One row a save point."""
    return pd.DataFrame([one.row(cost_limit) | {"Selected": chosen[one.model.seed] is one} for one in found])


def write_files(
    folder: Path, found: Sequence[Validated], chosen: Mapping[int, Validated], settings: Mapping[str, Any]
) -> None:
    """Write `FILES`: the table, the episodes, and what was chosen by what."""
    table(found, chosen, settings["cost_limit"]).to_csv(folder / TABLE, index=False)
    episodes = [one.episodes.assign(Seed=one.model.seed, Update=one.model.update) for one in found]
    pd.concat(episodes).to_csv(folder / PER_EPISODE, index=False)
    selected = {str(seed): one.row(settings["cost_limit"]) for seed, one in chosen.items()}
    content = {"rule": RULE, **settings, "policy": "deterministic", "selected_of_seed": selected}
    write_json(folder / SELECTION, content)


def name_chosen(name: str, chosen: Mapping[int, Validated], settings: Mapping[str, Any], run_id: str) -> None:
    """Set the aliases: of each seed's choice, and of the best of them by the same rule; prints them.

    Args:
        name: Of the registered model.
        chosen: Seed → its choice.
        settings: What they were chosen by.
        run_id: The run that has the files.
    """
    for seed, one in chosen.items():
        why = chosen_by(one, settings, run_id)
        print(f"  models:/{name}@{registry.select_version(name, seed, one.model.version, why)}")
    best = choose(list(chosen.values()), settings["cost_limit"])
    registry.point_selected(name, best.model.version)
    which = f" is that of seed {best.model.seed}, by the same rule" if len(chosen) > 1 else ""
    print(f"  models:/{name}@{registry.SELECTED}{which}")
