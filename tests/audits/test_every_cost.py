"""A task with several costs: each of them is told, before and after."""

import json

import numpy as np
import pandas as pd
import pytest

from lightning_unlearn import cli
from lightning_unlearn.envs.toy import ToySimulator


@pytest.fixture
def second_cost(monkeypatch):
    """The toy with a cost of 1 for every step to x < 0, beside its own."""
    original = ToySimulator.step

    def step(self, actions):
        made = original(self, actions)
        left = (made.observation[:, 0] < 0).astype(float)
        made.costs |= {"cost_left": left, "cost_sum": np.maximum(made.costs["cost_hazards"], left)}
        return made

    monkeypatch.setattr(ToySimulator, "step", step)
    monkeypatch.setattr(ToySimulator, "cost_keys", ("cost_hazards", "cost_left", "cost_sum"))


def test_every_kind_of_cost_is_told_before_and_after(register, second_cost, tmp_path, capsys):
    register("unsafe", 10, 2.0)  # pushed right, into the hazard
    register("oracle", 300, -2.0)  # pushed left, away from it
    asked = ["--episodes", "3", "--kl_states", "60", "--out", "DIR", "--concept", "cost_left"]
    cli.main(["evaluate", "--env", "ToyLine-v0", *asked])
    episodes = pd.read_csv(tmp_path / "DIR/per_episode.csv")
    table = pd.read_csv(tmp_path / "DIR/summary.csv").set_index("Model")
    by_model = episodes.groupby("Model")
    for kind in ("cost_hazards", "cost_left"):
        pd.testing.assert_series_equal(by_model[kind].mean(), table[kind].sort_index(), check_names=False)
        change = table[kind] - table.loc["unsafe", kind]
        pd.testing.assert_series_equal(change, table[f"{kind}_Change_vs_Unsafe"], check_names=False)
    assert table.loc["unsafe", "cost_hazards"] > 20 > table.loc["unsafe", "cost_left"]
    assert table.loc["oracle_300", "cost_left"] > 20 > table.loc["oracle_300", "cost_hazards"] == 0
    np.testing.assert_allclose(table["cost_hazards"] + table["cost_left"], table["Cost_Sum"])  # never both in a step
    np.testing.assert_allclose(table["cost_left"], table["C_forget_Sum"])
    printed = capsys.readouterr().out
    assert "Every kind of cost, mean of an episode" in printed
    assert f"{table.loc['oracle_300', 'cost_left']:.2f} (+" in printed
    cli.main(["report", "--env", "ToyLine-v0", "--map_episodes", "2", "--out", "R"])
    shown = (tmp_path / "R/report.md").read_text()
    row = next(line for line in shown.splitlines() if line.startswith("| oracle") and "(+" in line)
    assert f"{table.loc['oracle_300', 'cost_left']:.1f} (+" in row
    columns = json.loads((tmp_path / "DIR/metadata.json").read_text())["columns"]
    assert columns["cost_left"] == "this kind of cost in an episode, mean over episodes"
    assert list(columns) == pd.read_csv(tmp_path / "DIR/summary.csv").columns.tolist()
