import json

import numpy as np
import pandas as pd
import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits.weight_path import ALPHAS, barrier, weight_distances
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.latent_editor import GatedEditor
from lightning_unlearn.tracking import runs

TOY = "ToyLine-v0"


def run(*args, out="DIR"):
    cli.main(["weight-path", "--env", TOY, "--episodes", "4", "--workers", "1", "--out", out, *args])


@pytest.mark.parametrize(
    ("badness", "expected"),
    [
        ([0, 1, 2, 3, 4], 0.0),
        ([0, 5, 4, 1, 2], 4.5),  # at 0.25, where the line is at 0.5
        ([4, 0, 0, 0, 0], 0.0),  # better than the line
        ([0, 0, 0, 3, 0], 3.0),
    ],
)
def test_a_barrier_is_the_most_above_the_straight_line(badness, expected):
    assert barrier(np.array(badness, float)) == pytest.approx(expected)


def test_distances_by_hand():
    expert = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[2, 3]))
    repaired = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[2, 3]))
    for policy in (expert, repaired):
        for parameter in policy.parameters():
            torch.nn.init.zeros_(parameter)
    expert.trunk[0].weight.data[0, 0] = 10.0
    repaired.trunk[0].weight.data[0, 0] = 10.0
    repaired.trunk[0].bias.data[1] = 1.0
    repaired.trunk[2].weight.data[:, 0] = torch.tensor([2.0, 4.0, 4.0])
    repaired.action_mean.weight.data[0, 0] = 8.0
    repaired.cost_value.bias.data.fill_(99.0)  # no action depends on critics and log_std
    repaired.log_std.data.fill_(99.0)
    assert weight_distances(expert, repaired) == pytest.approx(
        {
            "l2_distance": (1 + 36 + 64) ** 0.5,
            "l2_relative": (1 + 36 + 64) ** 0.5 / 10,
            "l2_trunk_1": 1.0,
            "l2_trunk_2": 6.0,
            "l2_mean": 8.0,
        }
    )
    torch.nn.init.zeros_(expert.trunk[0].weight)
    assert weight_distances(expert, repaired)["l2_relative"] is None


def test_the_command(register, tmp_path, capsys):
    expert, repaired = register("unsafe", 10, 2.0), register("concept", 50, -2.0)
    run("--models", repaired, "random")
    summary, points = (pd.read_csv(tmp_path / f"DIR/weight_path{end}.csv") for end in ("", "_points"))
    assert summary["model"].tolist() == ["concept_50", "random"]
    assert summary["l2_distance"][0] == summary["l2_mean"][0] == pytest.approx(4.0)  # the last bias, from 2 to -2
    assert summary["l2_trunk_1"][0] == 0.0
    line = points[points["model"] == "concept_50"]
    assert line["alpha"].tolist() == list(ALPHAS)
    ends = [lu.evaluate(lu.load_policy(uri), TOY, 4, workers=1) for uri in (expert, repaired)]
    assert line["cost"].tolist()[:: len(ALPHAS) - 1] == [episodes.cost_sum.mean() for episodes in ends]
    assert line["return"].tolist()[:: len(ALPHAS) - 1] == [episodes.reward.mean() for episodes in ends]
    assert line["cost_standard_error"].tolist()[0] == pytest.approx(ends[0].cost_sum.std() / 2)
    assert summary["cost_barrier"][0] == pytest.approx(barrier(line["cost"].to_numpy()))
    assert summary["return_barrier"][0] == pytest.approx(barrier(-line["return"].to_numpy()))
    (stored,) = runs.stored_runs(TOY, {"audit": "weight-path"})
    assert stored.metrics["concept_50/l2_distance"] == pytest.approx(4.0)
    assert stored.metrics["concept_50/alpha 1/cost"] == ends[1].cost_sum.mean()
    assert len(runs.artifact_paths(stored.run_id, "eval/weight_path_eval/DIR")) == 4
    assert (tmp_path / "DIR/weight_path.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "DIR/weight_path.json").read_text())["models"]["concept_50"]["expert"] == expert
    found = lu.weight_path(lu.load_policy(expert), lu.load_policy(repaired), TOY, episodes=4, workers=1)
    pd.testing.assert_frame_equal(found, line[found.columns].reset_index(drop=True))
    assert found.attrs["cost_barrier"] == summary["cost_barrier"][0]
    run("--models", repaired, "random")
    assert "finished already" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_relearning_time_stands_beside_the_distance(register, tmp_path):
    expert, repaired = register("unsafe", 10, 2.0), register("concept", 50, -3.0)
    short = ["--horizon", "32", "--max_updates", "1", "--eval_every", "1", "--eval_episodes", "2", "--out", "R"]
    cli.main(["relearn", "--env", TOY, "--models", repaired, expert, *short])
    result = {"model_path": repaired, "steps_to_threshold": 7, "censored_at_steps": None}
    others = {"a": {"settings": {"attack": "cloning"}, "models": [result]}}
    others["b"] = {"settings": {}, "models": [result | {"line": 0.5}]}
    for name, content in others.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "relearn_result.json").write_text(json.dumps(content))
        places = {tmp_path / name / "relearn_result.json": f"eval/relearn_test_eval/{name}"}
        runs.record_audit(TOY, "relearn", {}, {}, places)
    run("--models", repaired, expert)
    table = pd.read_csv(tmp_path / "DIR/weight_path.csv").set_index("model")
    assert table.loc["concept_50", "relearn_censored_at"] == 32
    assert pd.isna(table.loc["concept_50", "relearn_steps"])
    assert table.loc["unsafe_10", "relearn_steps"] == 0
    assert table.loc["unsafe_10", "l2_distance"] == 0.0


def test_policies_without_a_line_are_refused(register, refused, tmp_path, pushed):
    register("unsafe", 10, 2.0)
    editor = GatedEditor(torch.eye(64)[0], 1.0, 0.0, 1.0)
    save_policy(tmp_path / "edit", pushed(2.0).with_editor(editor), ModelCard("repedit", TOY))
    told = refused("weight-path", "--env", TOY, "--models", "./edit", "--out", "OUT")
    assert "--models ./edit and its expert models:/unsafe.ToyLine-v0/1" in told
    assert "differ in more than trained weights" in told
    assert "--seed [-1] is not possible" in refused("weight-path", "--env", TOY, "--seed", "-1")
    assert not (tmp_path / "OUT").exists()
