import json
import math

import mlflow
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from lightning_unlearn import cli
from lightning_unlearn.audits.audited_models import AuditedModel, trained_limits
from lightning_unlearn.audits.headline import COLUMNS, Limit, fill, intervals, limits, longest_run, means
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.runs import stored_runs

TOY = "ToyLine-v0"


def model(uri):
    return AuditedModel(uri, "concept", 1, 0, uri, None, uri)


def episodes(reward, cost, c_forget, stay):
    return pd.DataFrame({"reward": reward, "cost_sum": cost, "cforget_sum": c_forget, "longest_stay": stay})


def test_the_longest_run_is_that_of_groupby():
    shown = np.array([[0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1], [1] * 6, [0, 1, 0, 1, 0, 0]]) > 0
    assert longest_run(shown).tolist() == [0, 3, 3, 6, 1]
    rng = np.random.default_rng(0)
    random = rng.random((20, 50)) < 0.7
    expected = [max(map(len, "".join("x" if s else " " for s in row).split()), default=0) for row in random]
    assert longest_run(random).tolist() == expected


def test_the_quantities_are_those_worked_out_by_hand():
    expert = episodes([20.0, 30.0], [0.0, 0.0], [0.0, 0.0], [0, 0])  # its mean return is 25, so 10 is the border
    own = episodes([9.9, 10.0, 30.0, np.nan], [30.0, 25.0, 26.0, 0.0], [1.0, 2.0, 4.0, 3.0], [1, 2, 3, 0])
    fill(own, expert, Limit(25.0, "cost_sum"))
    assert own["above_limit"].tolist() == [1, 0, 1, 0]
    assert own["stands_still"].tolist() == [1, 0, 0, 1]
    assert means(own) == {"Above_Limit_Share": 0.5, "Still_Share": 0.5, "Longest_Stay": 1.5}
    fill(own, expert, Limit(2.0, "cforget_sum"))
    assert own["above_limit"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("of_expert", [0.0, -5.0])
def test_standing_still_is_undefined_beside_an_expert_that_earns_nothing(of_expert):
    own = episodes([1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0, 0])
    fill(own, episodes([of_expert] * 2, [0.0] * 2, [0.0] * 2, [0, 0]), Limit(25.0, "cost_sum"))
    assert means(own)["Still_Share"] is None
    bounds = intervals([own, own], np.random.default_rng(0))
    assert (bounds["Still_Share_Seeds_Low"], bounds["Still_Share_Seeds_High"]) == (None, None)
    assert bounds["Longest_Stay_Seeds_Low"] == 0.0


def test_a_models_own_limit_goes_before_the_shared_one_and_that_before_the_usual_one():
    three = [model("a"), model("b"), model("c")]
    usual = Limit(25.0, "cost_sum")
    assert limits(three, {}) == {"a": usual, "b": usual, "c": usual}
    assert set(limits(three, {"a": 5.0}).values()) == {Limit(5.0, "cforget_sum")}
    found = limits(three, {"a": 5.0, "b": 7.0})
    assert found == {"a": Limit(5.0, "cforget_sum"), "b": Limit(7.0, "cforget_sum"), "c": usual}


def test_an_interval_over_seeds_is_students_and_stays_within_what_is_possible():
    tables = []
    for share in (0.2, 0.4, 0.9):  # constant within a seed: only the seeds vary
        one = episodes([1.0] * 10, [0.0] * 10, [0.0] * 10, [100 * share] * 10)
        tables.append(one.assign(above_limit=share, stands_still=share))
    bounds = intervals(tables, np.random.default_rng(0))
    assert (bounds["Above_Limit_Share_Seeds_Low"], bounds["Still_Share_Seeds_High"]) == (0.0, 1.0)
    values = np.array([20.0, 40.0, 90.0])
    reach = student.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
    assert bounds["Longest_Stay_Seeds_High"] == pytest.approx(values.mean() + reach, rel=0.05)
    assert set(intervals(tables[:1], np.random.default_rng(0)).values()) == {None}


def test_summary_has_the_columns_last_and_they_are_those_of_the_episodes(register, tmp_path):
    """The toy's expert stays in its hazard; a policy that is pushed left earns less than nothing."""
    for seed in (0, 1):
        register("unsafe", 10, 2.0, seed)
        uri = register("concept", 50, -1.0, seed)
        mlflow.MlflowClient().log_param(registry.registered_version(uri).run_id, "pid.init_args.cost_limit", "3.0")
    trainings = {run.run_id: run for run in stored_runs(TOY)}
    assert trained_limits([uri, "zoo:unsafe.ToyLine-v0", "models:/no/1"], trainings) == {uri: 3.0}
    asked = ["--episodes", "4", "--kl_states", "20", "--seed", "0", "1", "--out", "DIR"]
    cli.main(["evaluate", "--env", TOY, *asked])
    table = pd.read_csv(tmp_path / "DIR/summary.csv")
    assert table.columns.tolist()[-len(COLUMNS) :] == list(COLUMNS)
    assert set(zip(table["Cost_Limit"], table["Limit_On"], strict=True)) == {(3.0, "C_forget")}
    unsafe, repaired = table[table["Family"] == "unsafe"], table[table["Family"] == "concept"]
    assert unsafe["Above_Limit_Share"].tolist() == repaired["Still_Share"].tolist() == [1, 1]
    assert unsafe["Still_Share"].tolist() == repaired["Above_Limit_Share"].tolist() == [0, 0]
    assert repaired["Longest_Stay"].tolist() == [0, 0]
    each = pd.read_csv(tmp_path / "DIR/per_episode.csv")
    assert each.columns.tolist()[-3:] == ["above_limit", "stands_still", "longest_stay"]
    # in the toy, the expert enters the hazard once and stays: its longest stay is all of its C_forget
    own = each[each["Family"] == "unsafe"]
    assert own["longest_stay"].tolist() == own["cforget_sum"].tolist()
    assert unsafe["Longest_Stay"].mean() == own["longest_stay"].mean()
    rows = json.loads((tmp_path / "DIR/summary.json").read_text())["over_seeds"]
    (row,) = (row for row in rows if row["Family"] == "unsafe")
    assert row["Longest_Stay_Seeds_Low"] <= own["longest_stay"].mean() <= row["Longest_Stay_Seeds_High"]
    assert unsafe["Longest_Stay_Seeds_Low"].tolist() == [row["Longest_Stay_Seeds_Low"]] * 2


def test_the_reports_first_table_has_them_with_intervals(register, tmp_path):
    for seed in (0, 1):
        register("unsafe", 10, 2.0, seed)
        register("concept", 50, -1.0, seed)
    cli.main(["evaluate", "--env", TOY, "--episodes", "3", "--kl_states", "20", "--seed", "0", "1", "--eval_id", "e"])
    cli.main(["report", "--env", TOY, "--map_episodes", "0", "--out", "R"])
    lines = (tmp_path / "R/report.md").read_text().replace("\\", "").splitlines()
    header, _, unsafe, concept = [line for line in lines if line.startswith("|")][:4]
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "model", "return", "of the expert's", "episode cost", "episodes above 25", "stand still", "longest stay",
        "goals", "cost a goal", "worst tenth",
    ]  # fmt: skip
    cells = [cell.strip() for cell in concept.strip("|").split("|")]
    assert cells[4:7] == ["0 % [0 %, 0 %]", "100 % [100 %, 100 %]", "0.0 [0.0, 0.0]"]
    assert "[" in unsafe.split("|")[7]
