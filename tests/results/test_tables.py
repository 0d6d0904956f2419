"""The tables of README and of all pages say what `summary.csv` says, and each row's weights are what it names."""

import json
import re

import pandas as pd
import pytest
from recompute import RESULTS, ROOT, tables

from lightning_unlearn.tracking import registry

pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="results are in the repository only, not in its sdist")
TABLES = {table.name: table for table in tables()}
TARGETS = {"0.025": "_25", "0.02": "", "0.01": "_10"}
"""`target_cost` → what a family's name ends with in the tables."""


def markdown_tables(beginning):
    """The rows, each a list of cells, of every table of README and the pages whose header begins so."""
    for path in [ROOT / "README.md", *(ROOT / ".github").rglob("*.md"), *RESULTS.rglob("*.md")]:
        for block in re.findall(r"(?:^\|.*\|\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
            header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
            if " | ".join(header).startswith(beginning):
                yield rows


def table(beginning):
    """The rows of the one table whose header begins so."""
    (rows,) = markdown_tables(beginning)
    return rows


def of_model(name, label):
    """The rows of `summary.csv` of one family and update, over seeds: 'concept 150' or 'a 150, `target_cost` 0.01'."""
    family, update, target = re.fullmatch(r"(\w+) (\d+)(?:, `target_cost` ([\d.]+))?", label).groups()
    rows = TABLES[name].rows
    return rows[(rows["Family"] == family + TARGETS.get(target, "")) & (rows["Update"] == int(update))]


def with_interval(rows, mean, bounds):
    low, high = rows[f"{bounds}_Seeds_Low"].iloc[0], rows[f"{bounds}_Seeds_High"].iloc[0]
    return f"{rows[mean].mean():.1f} [{low:.1f}, {high:.1f}]"


def share(name, rows):
    experts = TABLES[name].rows.query("Family == 'unsafe'")
    return (
        ""
        if (rows["Family"] == "unsafe").all()
        else f"{rows['Reward'].mean() / experts['Reward'].mean():.0%}".replace("%", " %")
    )


OVER_SEEDS = {
    "headline": "model | return | share of the same seeds' experts' | episode cost | published",
    "pipeline": "model | return | share of the same seeds' experts' | episode cost | KL vs expert",
    "other_tasks/SafetyPointCircle1-v0": "SafetyPointCircle1-v0 | return | share",
    "other_tasks/SafetyCarGoal1-v0": "SafetyCarGoal1-v0 | return | share",
}


@pytest.mark.parametrize("name", OVER_SEEDS)
def test_means_and_intervals_over_seeds(name):
    for label, reward, kept, cost, *others in table(OVER_SEEDS[name]):
        rows = of_model(name, label)
        assert (reward, kept, cost) == (
            with_interval(rows, "Reward", "Reward"),
            share(name, rows),
            with_interval(rows, "Cost_Sum", "Cost"),
        ), label
        if name == "pipeline":
            assert others[0] == f"{rows['KL_vs_Unsafe'].mean():.2f}", label
        if name.startswith("other_tasks"):
            assert others[0] == f"{100 * rows['Cost_Free_Share'].mean():.0f} %", label


SHORT_TABLES = "headline"
"""Folder of `mlruns/results` whose numbers the short tables of README and of the results' page show."""


def test_the_short_tables_of_repairs():
    """Labels end with family and update in brackets: (`concept` 150)."""
    shown = list(markdown_tables("agent (method, updates) | return | kept | episode cost"))
    assert shown
    for label, reward, kept, cost in (row for rows in shown for row in rows):
        family, update = re.search(r"\(`(\w+)` (\d+)\)$", label).groups()
        rows = TABLES[SHORT_TABLES].rows.query(f"Family == '{family}' and Update == {update}")
        assert reward == with_interval(rows, "Reward", "Reward"), label
        assert kept == share(SHORT_TABLES, rows), label
        assert cost == with_interval(rows, "Cost_Sum", "Cost"), label


def test_the_headline_seed_by_seed():
    columns = ["unsafe 300", *(f"off_policy_concept 150, `target_cost` {target}" for target in TARGETS)]
    columns += ["concept_tuned 600", "localized_concept 150", "concept 150", "continued 150"]
    for seed, *cells in table("seed | unsafe | off_policy_concept"):
        for label, cell in zip(columns, cells, strict=True):
            row = of_model("headline", label).query(f"Seed == {seed}").iloc[0]
            assert cell == f"{row['Reward']:.1f} / {row['Cost_Sum']:.1f}", (seed, label)


def test_the_published_description_on_one_seed():
    for label, reward, cost, free, kl, *_ in table("model | return | episode cost | cost-free"):
        row = of_model("full", label).iloc[0]
        assert reward == f"{row['Reward']:.1f} ± {row['RewardStd']:.1f}", label
        assert cost == f"{row['Cost_Sum']:.1f} ± {row['CostStd']:.1f}", label
        assert free == f"{100 * row['Cost_Free_Share']:.0f} %", label
        assert float(kl) == round(row["KL_vs_Unsafe"], 2), label


ONE_COST = {
    "SafetyPointGoal2-v0": ("cost_hazards", "cost_vases_contact", "cost_vases_velocity"),
    "SafetyPointButton1-v0": ("cost_gremlins", "cost_hazards", "cost_buttons"),
}


@pytest.mark.parametrize("env", ONE_COST)
def test_one_cost_of_several(env):
    name = f"other_tasks/{env}/seed0"
    for label, *cells in table(f"{env} | return | **"):
        row = of_model(name, label).iloc[0]
        for column, cell in zip(("Reward", *ONE_COST[env]), cells, strict=True):
            change = f" ({row[f'{column}_Change_vs_Unsafe']:+.1f} ± {row[f'{column}_Change_SE']:.1f})".replace(
                "-", "\N{MINUS SIGN}"
            )
            assert cell == f"{row[column]:.1f}" + ("" if label.startswith("unsafe") else change), (label, column)


def depth(name):
    """The rows of a CSV file of `depth`, by the label that its tables show."""
    rows = pd.read_csv(RESULTS / "depth" / name)
    return rows.assign(label=rows["model"].str.replace(r"_(\d+)$", r" \1", regex=True)).groupby("label")


def test_depth_by_layer():
    of_model = depth("patching.csv")
    for direction in ("expert into repaired", "repaired into expert"):
        for label, *cells in table(f"{direction} | nothing"):
            rows = of_model.get_group(label).query(f"direction == '{direction}'")
            assert cells == [
                f"{cost:.1f} ({back:.2f})" for cost, back in zip(rows["cost"], rows["returned"], strict=True)
            ]


def test_distance_and_path():
    summary, points = depth("weight_path.csv"), depth("weight_path_points.csv")
    for label, distance, *cells in table("from the expert to"):
        row, line = summary.get_group(label).iloc[0], points.get_group(label)
        assert distance == f"{row['l2_distance']:.1f} ({row['l2_relative']:.2f})", label
        assert cells[:2] == [f"{row[f'{measure}_barrier']:.1f}" for measure in ("return", "cost")], label
        assert cells[2:] == [f"{r:.1f} / {c:.1f}" for r, c in zip(line["return"], line["cost"], strict=True)], label


def test_the_shipped_models():
    for task, *cells in table(" | `zoo:unsafe.<task>`"):
        for family, cell in zip(("unsafe", "concept_tuned"), cells, strict=True):
            stated = [t.rows.iloc[0] for n, t in TABLES.items() if n.startswith(f"zoo/{family}.{task}")]
            (row,) = [row for row in stated if row["Episodes"] == 200]
            assert cell == f"{row['Reward']:.1f} / {row['Cost_Sum']:.1f}", (task, family)


def test_the_experts_that_settings_were_tried_on():
    stated = {f"{r.Reward:.1f} / {r.Cost_Sum:.1f}" for r in TABLES["tuning"].rows.itertuples()}
    for seed, *cells in table("seed | weights"):
        assert cells[-1] in stated, seed


@pytest.mark.parametrize("name", TABLES)
def test_a_rows_weights_are_what_it_names(name):
    for label, row in TABLES[name].rows.iterrows():
        if row["Path"]:
            card = registry.load_policy(row["Path"]).card
            assert card.method == row["Family"], label
            assert card.seed == row["Seed"], label
            assert card.update == row.get("Update", card.update), label


def test_what_has_no_weights_is_marked():
    without = {f"{t.name} {label}" for t in TABLES.values() for label, row in t.rows.iterrows() if not row["Path"]}
    assert without == {f"pipeline repedit_{update}_seed{seed}" for update in (50, 100, 150) for seed in (2, 3, 4)}


def test_machines_are_those_of_tables():
    assert set(json.loads((RESULTS / "evaluated_on.json").read_text())) <= set(TABLES)
