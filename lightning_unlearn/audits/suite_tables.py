"""Tables of the policy suite: one row a model, one row an episode, and intervals over training seeds."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from lightning_unlearn.audits import headline
from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.outputs import not_finite
from lightning_unlearn.audits.policy_comparison import Comparison, Result
from lightning_unlearn.audits.statistics import (
    conditional_value_at_risk,
    hierarchical_interval,
    holm,
    interquartile_mean,
    paired_differences,
    probability_of_improvement,
    repair_test,
)

CVAR_SHARE = 0.1
ONE_SEED = "One training seed: there is no interval over seeds; train more seeds before you claim more."
PUBLISHED_EPISODES = 50
NO_CHANGE = 1e-6
"""A mean KL below this is rounding."""
_INTERVALS = {"Reward": "reward", "Cost": "cost_sum"}
_PRINTED = ["Model", "Reward", "RewardStd", "Cost_Sum", "CostStd", "Cost_Free_Share", "Cost_CVaR10", "KL_vs_Unsafe"]
_PRINTED += ["KL_Near_vs_Unsafe", "KL_Far_vs_Unsafe", "KL_Locality_Ratio_vs_Unsafe", "KL_vs_OracleRef"]
_PRINTED += ["Above_Limit_Share", "Still_Share", "Longest_Stay"]

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
"""Column of `summary.csv` → meaning. The first 17 are the published ones; see `columns` for the rest."""
_STATED = (
    "KL columns: {} has no Gaussian that is the same in every state. Its std, {:g} before actions are squashed, was "
    "stated at its import, and each KL from it counts with that."
)
_OWN_COLUMNS = ("layout_seed", "goals", "simulator_failed", "cut_at_max_steps")
"""Columns of `per_episode.csv` that the published file does not have."""
_COST_COLUMNS = {
    "": "this kind of cost in an episode, mean over episodes",
    "_Std": "population standard deviation over episodes",
    "_Change_vs_Unsafe": "mean of the differences on equal layouts",
    "_Change_SE": "its standard error over layouts, given this seed",
}

Results = Sequence[tuple[Comparison, Result]]


def summary(
    results: Results,
    over_seeds: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any],
    limits: Mapping[str, headline.Limit],
) -> pd.DataFrame:
    """One row a model.

    Args:
        results: The models with their results; every unsafe expert among them.
        over_seeds: From `over_training_seeds`.
        shared: Columns that are the same in every row.
        limits: URI of a model → limit of an episode.
    """
    unsafe = _unsafe_episodes(results)
    intervals = {(row["Family"], row["Update"]): row for row in over_seeds}
    rows = []
    for comparison, result in results:
        model = comparison.model
        of_seeds = intervals.get((model.family, model.update), {"Seeds": 1 if model.family else None})
        origin = {"Model": model.label, "Family": model.family, "Update": model.update, "Path": model.uri}
        oracle = {"OracleRef": comparison.oracle.label if comparison.oracle else None, "Seed": model.seed}
        change = _paired_change(result.episodes, unsafe[comparison.unsafe.digest])
        own = _statistics(result.episodes) | result.change
        limit = limits[model.uri]
        on = {"Cost_Limit": limit.most, "Limit_On": "cost" if limit.column == "cost_sum" else "C_forget"}
        rows.append({**origin, **own, **oracle, **change, **of_seeds, **shared, **on})
    return pd.DataFrame(rows, columns=list(columns(results))).astype(
        {name: "Int64" for name in ("Update", "Seed", "Seeds")}
    )


def cost_keys(results: Results) -> list[str]:
    """Kinds of cost that the task reports, without their sum."""
    return list(dict.fromkeys(key for _, result in results for key in result.episodes if _is_cost_key(key)))


def fill_costs(results: Results) -> None:
    """Give every model a column of every kind of cost: 0 for one that none of its steps reported."""
    for key in cost_keys(results):
        for _, result in results:
            if key not in result.episodes:
                result.episodes[key] = 0.0


def fill_headline(results: Results, limits: Mapping[str, headline.Limit]) -> None:
    """Add to every model's episodes whether they are above its limit, by URI, and whether they stand still."""
    unsafe = _unsafe_episodes(results)
    for comparison, result in results:
        headline.fill(result.episodes, unsafe[comparison.unsafe.digest], limits[comparison.model.uri])


def columns(results: Results) -> dict[str, str]:
    """`COLUMNS`, followed by those of every kind of cost and by the headline quantities."""
    costs = {f"{key}{suffix}": what for key in cost_keys(results) for suffix, what in _COST_COLUMNS.items()}
    return COLUMNS | costs | headline.COLUMNS


def per_episode_table(results: Results) -> pd.DataFrame:
    """One row a model and episode, with the published columns first."""
    tables = []
    for comparison, result in results:
        model, episodes = comparison.model, result.episodes
        extra = [column for column in episodes if column in _OWN_COLUMNS or _is_cost_key(column)]
        own = (*extra, *headline.EPISODE_COLUMNS)
        published = [column for column in episodes if column not in own]
        origin = {"Model": model.label, "Family": model.family, "Update": model.update}
        ordered = [*published, *origin, *extra, "Seed", *headline.EPISODE_COLUMNS]
        table = episodes.assign(**origin, Seed=model.seed)[ordered]
        tables.append(table.astype({"Update": "Int64", "Seed": "Int64"}))
    return pd.concat(tables, ignore_index=True)


def notes(
    results: Results, table: pd.DataFrame, over_seeds: Sequence[Mapping[str, Any]], kl_states: int, concept: str
) -> list[str]:
    """Cautions that belong beside the numbers.

    Args:
        results: The models with their results.
        table: From `summary`.
        over_seeds: From `over_training_seeds`.
        kl_states: Number of states asked for.
        concept: The concept that C_forget shows.
    """
    found = [note for comparison, result in results for note in _missing_numbers(comparison, result, kl_states)]
    for model in (comparison.model for comparison, _ in results):
        if model.family != UNSAFE and model.concept not in ("", concept):
            found.append(
                f"{model.label} was to forget {model.concept[:200]}; C_forget, near and far are about {concept[:200]}."
            )
    found += sorted({_STATED.format(c.unsafe.uri, c.unsafe.stated_std) for c, _ in results if c.unsafe.stated_std})
    idle = table[(table["Family"] != UNSAFE) & (table["KL_vs_Unsafe"].abs() < NO_CHANGE)]["Model"]
    if len(idle):
        found.append(f"Without effect (KL from the unsafe expert below {NO_CHANGE:g}): {', '.join(idle)}.")
    for _, row in table[table["Failed_Episodes"] > 0].iterrows():
        found.append(f"{row['Model']}: the simulator cut {row['Failed_Episodes']} of {row['Episodes']} episodes short.")
    for _, row in table[table["Cut_Episodes"] > 0].iterrows():
        found.append(
            f"{row['Model']}: --max_steps cut {row['Cut_Episodes']} of {row['Episodes']} episodes before their end: "
            "returns and costs are those of the steps until then."
        )
    if (episodes := table["Episodes"].max()) < PUBLISHED_EPISODES:
        found.append(f"{episodes} episodes of a model: fewer than the {PUBLISHED_EPISODES} of published evaluations.")
    return found if over_seeds else [*found, ONE_SEED]


def _missing_numbers(comparison: Comparison, result: Result, kl_states: int) -> list[str]:
    """Numbers that are not finite (a mean over no states is NaN), and a KL over fewer states than asked for."""
    label, odd = comparison.model.label, not_finite(_statistics(result.episodes) | result.change)
    found = [f"{label}: {', '.join(f'{name} is {kind}' for name, kind in odd.items())}."] if odd else []
    if (states := result.change["KL_States"] or 0) < kl_states:
        found.append(f"{label}: KL over {states} states, not {kl_states}: its expert met no more.")
    return found


def over_training_seeds(results: Results, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Intervals over seeds, and tests of the repair, for every family and update that has several seeds."""
    unsafe, (own_rng,) = _unsafe_episodes(results), rng.spawn(1)  # the other draws stay those of earlier releases

    def kind(entry: tuple[Comparison, Result]) -> tuple[str, int]:
        return entry[0].model.family, -1 if entry[0].model.update is None else entry[0].model.update

    rows = []
    for (family, update), group in groupby(sorted(results, key=kind), key=kind):
        members = list({c.model.seed: (c, r) for c, r in group if c.model.seed is not None}.values())
        if family and len(members) > 1:
            own = [result.episodes for _, result in members]
            before = [unsafe[comparison.unsafe.digest] for comparison, _ in members]
            origin = {"Family": family, "Update": None if update < 0 else update, "Seeds": len(members)}
            tests = {} if family == UNSAFE else _tests(own, before, rng)
            rows.append(origin | _intervals(own, rng) | tests | headline.intervals(own, own_rng))
    repairs = [row["return_kept"] for row in rows if "return_kept" in row]
    for test, adjusted in zip(repairs, holm([test["p_value"] for test in repairs]), strict=True):
        test["p_value_holm"] = adjusted
    return rows


def print_tables(
    table: pd.DataFrame, kinds: Sequence[str], over_seeds: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> None:
    """Print the main columns, every kind of cost where there are several, intervals over seeds, and notes."""
    cut = [name for name in ("Failed_Episodes", "Cut_Episodes") if table[name].any()]
    _print_rows(table[_PRINTED + cut].rename(columns=lambda name: name.removesuffix("_vs_Unsafe").replace("_Sum", "")))
    if len(kinds) > 1:
        print("Every kind of cost, mean of an episode, and its change from the unsafe expert ± standard error:")
        rows = [{"Model": row["Model"]} | {k: _cost_with_change(row, k) for k in kinds} for _, row in table.iterrows()]
        _print_rows(pd.DataFrame(rows))
    for row in over_seeds:
        low, high = row["Cost_Seeds_Low"], row["Cost_Seeds_High"]
        print(
            f"{row['Family']} {row['Update']}, {row['Seeds']} seeds: 95 % interval of the cost {low:.1f} to {high:.1f}"
        )
    print("\n".join(notes))


def _print_rows(table: pd.DataFrame) -> None:
    with pd.option_context("display.width", 200):
        print(f"\n{table.to_string(index=False, na_rep='-', float_format='{:.3f}'.format)}\n")


def _cost_with_change(row: pd.Series, kind: str) -> str:
    change, error = row[f"{kind}_Change_vs_Unsafe"], row[f"{kind}_Change_SE"]
    return f"{row[kind]:.2f} ({change:+.2f}" + ("" if pd.isna(error) else f" ± {error:.2f}") + ")"


def _is_cost_key(column: object) -> bool:
    return str(column).startswith("cost_") and column != "cost_sum"


def _unsafe_episodes(results: Results) -> dict[str, pd.DataFrame]:
    """Digest → episodes of each unsafe expert."""
    experts = {c.unsafe.digest for c, _ in results}
    return {c.model.digest: r.episodes for c, r in results if c.model.digest in experts}


def _statistics(episodes: pd.DataFrame) -> dict[str, float | None]:
    reward, cost, goals = (episodes[name].to_numpy(float) for name in ("reward", "cost_sum", "goals"))
    kinds = {str(key): episodes[key].to_numpy(float) for key in episodes if _is_cost_key(key)}
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
        **{key: cost.mean() for key, cost in kinds.items()},
        **{f"{key}_Std": cost.std() for key, cost in kinds.items()},
        **headline.means(episodes),
    }


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


def _tests(own: Sequence[pd.DataFrame], before: Sequence[pd.DataFrame], rng: np.random.Generator) -> dict[str, Any]:
    """Tests of repaired models against their own experts, seed by seed."""
    paid, paid_before = (_column(tables, "cost_sum") for tables in (own, before))
    test = repair_test(_column(own, "reward"), _column(before, "reward"), paid, paid_before, rng)
    costs, costs_before = (np.array([seed.mean() for seed in seeds]) for seeds in (paid, paid_before))
    return {
        "return_kept": vars(test) | {"non_inferior": test.non_inferior, "superior": test.superior, "both": test.both},
        "probability_that_a_seed_costs_less": probability_of_improvement(costs_before, costs),
    }


def _column(seeds: Sequence[pd.DataFrame], name: str) -> list[np.ndarray]:
    return [seed[name].to_numpy(float) for seed in seeds]
