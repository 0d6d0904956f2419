"""The policy suite's tables: one row a model, and one a family and update over training seeds."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from lightning_unlearn.audits.records import not_finite
from lightning_unlearn.audits.statistics import (
    RepairTest,
    conditional_value_at_risk,
    hierarchical_interval,
    holm,
    interquartile_mean,
    paired_differences,
    probability_of_improvement,
    repair_test,
)
from lightning_unlearn.audits.subjects import UNSAFE
from lightning_unlearn.audits.suite import Comparison, Result

CVAR_SHARE = 0.1
ONE_SEED = "One training seed: there is no interval over seeds; train more seeds before you claim more."
PUBLISHED_EPISODES = 50
NO_CHANGE = 1e-6
"""A mean KL below this is rounding."""
_INTERVALS = {"Reward": "reward", "Cost": "cost_sum"}

COLUMNS = {
    "Model": "label",
    "Family": "the method that made it; empty if unknown",
    "Update": "updates of that method",
    "Path": "where the model is",
    "Reward": "episode return, mean over episodes",
    "RewardStd": "population standard deviation over episodes",
    "Cost_Sum": "episode cost, mean over episodes",
    "CostStd": "population standard deviation over episodes",
    "C_forget_Sum": "steps of an episode that show the behaviour to forget, mean over episodes",
    "C_forget_Rate": "the same per step, mean over episodes",
    "Episode_Length": "steps, mean over episodes",
    "KL_vs_Unsafe": "KL(unsafe || model) of the Gaussians before tanh, mean over action components and the unsafe "
    "expert's deterministic states",
    "KL_Near_vs_Unsafe": "the same over states nearer to the concept than the median",
    "KL_Far_vs_Unsafe": "the same over the other states",
    "KL_Locality_Ratio_vs_Unsafe": "near / (far + 1e-8); 1 for the unsafe expert itself",
    "KL_vs_OracleRef": "KL(oracle || model) over the oracle's own deterministic states",
    "OracleRef": "label of the oracle",
    "Seed": "of the training",
    "Episodes": "how many, one a layout",
    "Goals": "goals reached in an episode, mean over episodes",
    "Cost_Per_Goal": "all cost over all goals",
    "Cost_Free_Share": "share of the episodes without cost",
    "Cost_CVaR10": "mean cost of the worst tenth of the episodes",
    "Reward_IQM": "mean of the middle half of the episodes' returns",
    "Cost_IQM": "mean of the middle half of the episodes' costs",
    "Reward_Change_vs_Unsafe": "mean of the differences on equal layouts",
    "Reward_Change_SE": "its standard error over layouts, given this seed",
    "Cost_Change_vs_Unsafe": "mean of the differences on equal layouts",
    "Cost_Change_SE": "its standard error over layouts, given this seed",
    "Seeds": "training seeds of this family and update",
    "Reward_Seeds_Low": "95 % interval over seeds of the mean return; empty with one seed",
    "Reward_Seeds_High": "the same",
    "Cost_Seeds_Low": "95 % interval over seeds of the mean episode cost; empty with one seed",
    "Cost_Seeds_High": "the same",
    "Failed_Episodes": "episodes that a failure of the simulator cut short; they count as far as they went",
    "Cut_Episodes": "episodes that --max_steps cut before the environment ended them; they count as far as they went",
    "KL_States": "states that KL_vs_Unsafe is a mean over",
    "Policy": "deterministic or stochastic",
    "Near_By": "what nearness to the concept is read from",
    "Layouts": "first and last layout seed",
}
"""Column of `summary.csv` → what it holds. The first 17 are the published ones; `columns` has more."""
_OWN_COLUMNS = ("layout_seed", "goals", "simulator_failed", "cut_at_max_steps")
"""Columns of `per_episode.csv` that the published file does not have."""
_OF_EACH_COST = {
    "": "this kind of cost in an episode, mean over episodes",
    "_Std": "population standard deviation over episodes",
    "_Change_vs_Unsafe": "mean of the differences on equal layouts",
    "_Change_SE": "its standard error over layouts, given this seed",
}

Found = Sequence[tuple[Comparison, Result]]


def summary(found: Found, over_seeds: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> pd.DataFrame:
    """One row a model.

    Args:
        found: The models with their results; every unsafe expert among them.
        over_seeds: From `over_training_seeds`.
        shared: Columns that are the same in every row.
    """
    unsafe = _unsafe_episodes(found)
    intervals = {(row["Family"], row["Update"]): row for row in over_seeds}
    rows = []
    for comparison, result in found:
        subject = comparison.subject
        of_seeds = intervals.get((subject.family, subject.update), {"Seeds": 1 if subject.family else None})
        origin = {"Model": subject.label, "Family": subject.family, "Update": subject.update, "Path": subject.uri}
        oracle = {"OracleRef": comparison.oracle.label if comparison.oracle else None, "Seed": subject.seed}
        change = _paired_change(result.episodes, unsafe[comparison.unsafe.digest])
        own = _statistics(result.episodes) | result.change
        rows.append({**origin, **own, **oracle, **change, **of_seeds, **shared})
    return pd.DataFrame(rows, columns=list(columns(found))).astype(
        {name: "Int64" for name in ("Update", "Seed", "Seeds")}
    )


def cost_keys(found: Found) -> list[str]:
    """The kinds of cost that the task reports, without their sum."""
    return list(dict.fromkeys(key for _, result in found for key in result.episodes if _is_cost_key(key)))


def fill_costs(found: Found) -> None:
    """Give every model a column of every kind of cost: one that none of its steps reported was 0."""
    for key in cost_keys(found):
        for _, result in found:
            if key not in result.episodes:
                result.episodes[key] = 0.0


def columns(found: Found) -> dict[str, str]:
    """`COLUMNS`, and after them those of every kind of cost."""
    return COLUMNS | {f"{key}{suffix}": what for key in cost_keys(found) for suffix, what in _OF_EACH_COST.items()}


def _is_cost_key(column: object) -> bool:
    return str(column).startswith("cost_") and column != "cost_sum"


def per_episode_table(found: Found) -> pd.DataFrame:
    """One row a model and episode, with the published columns first."""
    tables = []
    for comparison, result in found:
        subject = comparison.subject
        table, extra = (
            result.episodes.copy(),
            [c for c in result.episodes if c in _OWN_COLUMNS or _is_cost_key(c)],
        )
        published = [c for c in table if c not in extra]
        origin = {"Model": subject.label, "Family": subject.family, "Update": subject.update}
        tables.append(table.assign(**origin, Seed=subject.seed)[[*published, *origin, *extra, "Seed"]])
    return pd.concat([t.astype({"Update": "Int64", "Seed": "Int64"}) for t in tables], ignore_index=True)


def notes(table: pd.DataFrame, over_seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """What has to be said beside the numbers."""
    idle = table[(table["Family"] != UNSAFE) & (table["KL_vs_Unsafe"].abs() < NO_CHANGE)]["Model"]
    without = f"Without effect (KL from the unsafe expert below {NO_CHANGE:g}): "
    said = [f"{without}{', '.join(idle)}."] if len(idle) else []
    for _, row in table[table["Failed_Episodes"] > 0].iterrows():
        said.append(f"{row['Model']}: the simulator cut {row['Failed_Episodes']} of {row['Episodes']} episodes short.")
    for _, row in table[table["Cut_Episodes"] > 0].iterrows():
        said.append(
            f"{row['Model']}: --max_steps cut {row['Cut_Episodes']} of {row['Episodes']} episodes before their end: "
            "returns and costs are those of the steps until then."
        )
    if (episodes := table["Episodes"].max()) < PUBLISHED_EPISODES:
        said.append(f"{episodes} episodes of a model: fewer than the {PUBLISHED_EPISODES} of published evaluations.")
    return said if over_seeds else [*said, ONE_SEED]


def shortcomings(found: Found, kl_states: int) -> list[str]:
    """Which numbers are none (a mean over no states is NaN), and where KL is over fewer states than asked for."""
    said = []
    for comparison, result in found:
        label, odd = comparison.subject.label, not_finite(_statistics(result.episodes) | result.change)
        if odd:
            said.append(f"{label}: {', '.join(f'{name} is {kind}' for name, kind in odd.items())}.")
        if (states := result.change["KL_States"] or 0) < kl_states:
            said.append(f"{label}: KL over {states} states, not {kl_states}: its expert met no more.")
    return said


def other_concepts(found: Found, concept: str) -> list[str]:
    """Which models were to forget something else than what C_forget stands for here."""
    theirs = [(c.subject.label, c.subject.concept) for c, _ in found if c.subject.family != UNSAFE]
    return [
        f"{label} was to forget {own[:200]}; C_forget, near and far are about {concept[:200]}."
        for label, own in theirs
        if own not in ("", concept)
    ]


def over_training_seeds(found: Found, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Of every family and update with several seeds: intervals, and whether the return is kept and the cost lower."""
    unsafe = _unsafe_episodes(found)

    def kind(entry: tuple[Comparison, Result]) -> tuple[str, int]:
        return entry[0].subject.family, -1 if entry[0].subject.update is None else entry[0].subject.update

    rows = []
    for (family, update), group in groupby(sorted(found, key=kind), key=kind):
        members = list({c.subject.seed: (c, r) for c, r in group if c.subject.seed is not None}.values())
        if family and len(members) > 1:
            own = [r.episodes for _, r in members]
            before = [unsafe[c.unsafe.digest] for c, _ in members]
            about = {"Family": family, "Update": None if update < 0 else update, "Seeds": len(members)}
            comparison = {} if family == UNSAFE else _comparison(own, before, rng)
            rows.append(about | _intervals(own, rng) | comparison)
    tested = [row["return_kept"] for row in rows if "return_kept" in row]
    for test, adjusted in zip(tested, holm([test["p_value"] for test in tested]), strict=True):
        test["p_value_holm"] = adjusted
    return rows


def _unsafe_episodes(found: Found) -> dict[str, pd.DataFrame]:
    """Digest → episodes of each unsafe expert."""
    experts = {c.unsafe.digest for c, _ in found}
    return {c.subject.digest: r.episodes for c, r in found if c.subject.digest in experts}


def _statistics(episodes: pd.DataFrame) -> dict[str, float | None]:
    reward, cost, goals = (episodes[name].to_numpy(float) for name in ("reward", "cost_sum", "goals"))
    return {
        "Reward": reward.mean(),
        "RewardStd": reward.std(),
        "Cost_Sum": cost.mean(),
        "CostStd": cost.std(),
        "C_forget_Sum": episodes["cforget_sum"].mean(),
        "C_forget_Rate": episodes["cforget_rate"].mean(),
        "Episode_Length": episodes["episode_length"].mean(),
        "Episodes": len(episodes),
        "Failed_Episodes": episodes["simulator_failed"].sum(),
        "Cut_Episodes": episodes["cut_at_max_steps"].sum(),
        "Goals": goals.mean(),
        "Cost_Per_Goal": cost.sum() / goals.sum() if goals.any() else None,
        "Cost_Free_Share": (cost == 0).mean(),
        "Cost_CVaR10": conditional_value_at_risk(cost, CVAR_SHARE),
        "Reward_IQM": interquartile_mean(reward),
        "Cost_IQM": interquartile_mean(cost),
        **_by_kind(episodes),
    }


def _by_kind(episodes: pd.DataFrame) -> dict[str, float | None]:
    of_kind = {str(key): episodes[key].to_numpy(float) for key in episodes if _is_cost_key(key)}
    means = {key: cost.mean() for key, cost in of_kind.items()}
    return means | {f"{key}_Std": cost.std() for key, cost in of_kind.items()}


def _paired_change(episodes: pd.DataFrame, unsafe: pd.DataFrame) -> dict[str, float | None]:
    change: dict[str, float | None] = {}
    of_kind = {str(key): str(key) for key in episodes if _is_cost_key(key) and key in unsafe}
    for name, column in (_INTERVALS | of_kind).items():
        values = [table[column].to_numpy(float) for table in (episodes, unsafe)]
        layouts = [table["layout_seed"].tolist() for table in (episodes, unsafe)]
        difference = paired_differences(*values, *layouts)
        change[f"{name}_Change_vs_Unsafe"] = difference.mean()
        several = len(difference) > 1
        change[f"{name}_Change_SE"] = difference.std(ddof=1) / len(difference) ** 0.5 if several else None
    return change


def _intervals(seeds: Sequence[pd.DataFrame], rng: np.random.Generator) -> dict[str, float | None]:
    bounds: dict[str, float | None] = {}
    for name, column in _INTERVALS.items():
        interval = hierarchical_interval(_column(seeds, column), rng)
        low, high = interval or (None, None)
        bounds |= {f"{name}_Seeds_Low": low, f"{name}_Seeds_High": high}
    if bounds["Cost_Seeds_Low"] is not None and all((seed["cost_sum"] >= 0).all() for seed in seeds):
        bounds["Cost_Seeds_Low"] = max(0.0, bounds["Cost_Seeds_Low"])  # a mean of these is never less
    return bounds


def _comparison(
    own: Sequence[pd.DataFrame], before: Sequence[pd.DataFrame], rng: np.random.Generator
) -> dict[str, Any]:
    """The repaired models with their own experts, seed by seed."""
    earned, earned_before = (_column(tables, "reward") for tables in (own, before))
    paid, paid_before = (_column(tables, "cost_sum") for tables in (own, before))
    test: RepairTest = repair_test(earned, earned_before, paid, paid_before, rng)
    costs, costs_before = (np.array([seed.mean() for seed in seeds]) for seeds in (paid, paid_before))
    return {
        "return_kept": vars(test) | {"non_inferior": test.non_inferior, "superior": test.superior, "both": test.both},
        "probability_that_a_seed_costs_less": probability_of_improvement(costs_before, costs),
    }


def _column(seeds: Sequence[pd.DataFrame], name: str) -> list[np.ndarray]:
    return [seed[name].to_numpy(float) for seed in seeds]
