"""What the policy suite prints."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

_SHOWN = ["Model", "Reward", "RewardStd", "Cost_Sum", "CostStd", "Cost_Free_Share", "Cost_CVaR10", "KL_vs_Unsafe"]
_SHOWN += ["KL_Near_vs_Unsafe", "KL_Far_vs_Unsafe", "KL_Locality_Ratio_vs_Unsafe", "KL_vs_OracleRef"]


def print_tables(
    table: pd.DataFrame, kinds: Sequence[str], over_seeds: Sequence[Mapping[str, Any]], said: Sequence[str]
) -> None:
    """Print the main columns, every kind of cost where there are several, intervals over seeds, and notes.

    Args:
        table: From `suite_table.summary`.
        kinds: From `suite_table.cost_keys`.
        over_seeds: From `suite_table.over_training_seeds`.
        said: Notes.
    """
    cut = [name for name in ("Failed_Episodes", "Cut_Episodes") if table[name].any()]
    shown = table[_SHOWN + cut].rename(columns=lambda name: name.removesuffix("_vs_Unsafe").replace("_Sum", ""))
    _print_rows(shown)
    if len(kinds) > 1:
        print("Every kind of cost, mean of an episode, and its change from the unsafe expert ± standard error:")
        _print_rows(_costs(table, kinds))
    for row in over_seeds:
        low, high = row["Cost_Seeds_Low"], row["Cost_Seeds_High"]
        print(
            f"{row['Family']} {row['Update']}, {row['Seeds']} seeds: 95 % interval of the cost {low:.1f} to {high:.1f}"
        )
    print("\n".join(said))


def _costs(table: pd.DataFrame, kinds: Sequence[str]) -> pd.DataFrame:
    """One row a model, one column a kind of cost."""
    rows = [{"Model": row["Model"]} | {kind: _cost(row, kind) for kind in kinds} for _, row in table.iterrows()]
    return pd.DataFrame(rows)


def _cost(row: pd.Series, kind: str) -> str:
    change, error = row[f"{kind}_Change_vs_Unsafe"], row[f"{kind}_Change_SE"]
    return f"{row[kind]:.2f} ({change:+.2f}" + ("" if pd.isna(error) else f" ± {error:.2f}") + ")"


def _print_rows(table: pd.DataFrame) -> None:
    with pd.option_context("display.width", 200):
        print(f"\n{table.to_string(index=False, na_rep='-', float_format='{:.3f}'.format)}\n")
