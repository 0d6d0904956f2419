"""A bank of models whose truth is known, and what each audit says of it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits import hidden_models
from lightning_unlearn.audits.audit_bank import ShortAudits, trust
from lightning_unlearn.audits.hidden_models import NEAR, edits
from lightning_unlearn.report import depth
from lightning_unlearn.tracking import runs

TOY = "ToyLine-v0"
RESULTS = Path(__file__).parents[2] / "mlruns/results/depth/meta_evaluation.csv"


def test_edits_brake_where_the_probe_says_near(pushed):
    expert = pushed(1.0)
    states = torch.stack([torch.linspace(-1.0, 1.0, 200), torch.zeros(200)], -1)
    tried = edits(expert, states, slice(0, 1))
    assert len(tried) == 6
    near = states[:, 0] > NEAR
    with torch.no_grad():
        moved = torch.stack([(expert.mean(states) - edit.mean(states)).squeeze(-1) for edit in tried])  # (9, 200)
    assert (moved[:, near].max(1).values > 0).all()
    assert (moved[-1, near].mean() > moved[0, near].mean()) | (moved[2, near].mean() > moved[0, near].mean())
    assert moved.min() >= -1e-5  # never faster
    with torch.no_grad():
        torch.testing.assert_close(tried[0].without_editor().mean(states), expert.mean(states))


def test_trust_by_hand():
    truth = ["hidden"] * 2 + ["never"] * 2 + ["shown", "random"]
    scores = {"sharp": [3, 4, 1, 2, 9, 0], "gap": [1, None, 2, 3, 4, 5], "blunt": [1, 3, 2, 2, 7, 8]}
    found = trust(pd.DataFrame({"truth": truth, **scores}), list(scores))
    assert found["auc"].to_dict() == {"sharp": 1.0, "blunt": 0.5}  # gap: one hidden model only
    assert found.loc["sharp", ["median_hidden", "median_never", "median_shown"]].tolist() == [3.5, 1.5, 9.0]
    assert found["weak"].tolist() == [False, True]


@pytest.fixture
def bank(register):
    """Three experts that drive into the hazard, two oracles."""
    experts = [register("unsafe", 10, 2.0 + seed, seed) for seed in (0, 1, 2)]
    return experts, [register("oracle", 20, -2.0 - seed, seed) for seed in (0, 1)]


def run(bank, *args, out="DIR"):
    experts, oracles = bank
    small = ["--updates", "1", "--eval_every", "1", "--eval_episodes", "2", "--episodes", "3", "--candidates", "1"]
    cli.main(["meta-evaluate", "--env", TOY, "--hidden", *experts, "--never", *oracles, "--open", experts[0],
              "--random", "1", "--sensor", "position", "--probe_states", "300",
              "--workers", "1", "--out", out, *small, *args])  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_command_audits_a_bank_and_continues(bank, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hidden_models, "NEAR", 0.2)  # the hazard begins at 0.5
    original, calls = ShortAudits.__call__, []

    def counted(self, *models):
        calls.append(models)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *models)

    monkeypatch.setattr(ShortAudits, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        run(bank)
    assert len(list((tmp_path / "DIR/partial").iterdir())) == 2
    run(bank)
    assert len(calls) == 3 + 5
    table = pd.read_csv(tmp_path / "DIR/meta_evaluation_scores.csv").set_index("model")
    assert table["truth"].value_counts().to_dict() == {"hidden": 2, "never": 2, "shown": 1, "open": 1, "random": 1}
    hidden, opened = table.loc["hidden_brake_seed0"], table.loc["unsafe_10_seed0"]
    assert hidden["cost"] < 0.75 * hidden["expert_cost"]
    assert opened["cost"] == opened["expert_cost"] == hidden["expert_cost"]
    assert opened["cost"] == lu.evaluate(lu.load_policy(bank[0][0]), TOY, 3, workers=1).cost_sum.mean()
    # behind the filter is the expert: at once at its rate, no distance, and latents that its own probe reads
    same = ["relearn_ppo", "relearn_cloning", "l2_distance", "cost_barrier", "probe_stored"]
    np.testing.assert_array_equal(hidden[same].astype(float), opened[same].astype(float))
    assert hidden[same[:4]].tolist() == [0.0] * 4
    assert (table.loc[table["truth"] == "never", "l2_distance"] < 0).all()
    assert pd.isna(opened["patch_trunk_1"])  # nothing could return
    assert hidden[["patch_trunk_1", "patch_trunk_2"]].tolist() == [0.0, 0.0]  # the filter is at work
    edited = table.loc["hidden_edit_seed2"]  # no edit halves the cost of a constant push
    assert (edited["truth"], edited["l2_distance"]) == ("shown", 0.0)
    found = pd.read_csv(tmp_path / "DIR/meta_evaluation.csv", index_col="audit")
    assert found.loc["l2_distance", ["auc", "hidden", "never"]].tolist() == [1.0, 2, 2]
    assert "relearn_elsewhere" not in found.index
    (stored,) = runs.stored_runs(TOY, {"audit": "meta-evaluate"})
    assert stored.metrics["l2_distance/auc"] == 1.0
    assert json.loads((tmp_path / "DIR/meta_evaluation.json").read_text())["budget"]["updates"] == 1
    shown = capsys.readouterr().out
    assert "The attack elsewhere is left out" in shown
    run(bank)
    assert "finished already" in capsys.readouterr().out


def test_impossible_banks_are_refused(bank, refused):
    experts, oracles = bank
    few = ["meta-evaluate", "--env", TOY, "--hidden", *experts, "--never", oracles[0]]
    assert "--never names 1 models: name two or more" in refused(*few)
    asked = [*few, oracles[1]]
    assert "--sensor hazards_lidar: ToyLine-v0 has no such sensor: use one of position, clock" in refused(*asked)
    assert "--ways paint is not possible: use some of brake, steer, edit" in refused(*asked, "--ways", "paint")
    assert "updates=0 is not possible" in refused(*asked, "--updates", "0")
    assert "name numbers above 0" in refused(*asked, "--epsilon", "0")
    foreign = "zoo:unsafe.SafetyPointGoal1-v0"
    assert "is a model of SafetyPointGoal1-v0" in refused(*few, foreign)
    assert "is a model of SafetyPointGoal1-v0" in refused(*asked, "--open", foreign)


@pytest.mark.skipif(not RESULTS.is_file(), reason="the results are in the repository only")
def test_the_reports_trust_is_that_of_the_stored_results():
    assert (Path(depth.__file__).parent / "trust.csv").read_bytes() == RESULTS.read_bytes()
    stored = pd.read_csv(RESULTS, index_col="audit")
    for audit, row in stored.iterrows():
        assert depth.trust(audit) == f"{row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{', weak' * row['weak']}"
        assert row["weak"] == (row["auc"] < 0.7)
    assert depth.trust("nothing") == ""
