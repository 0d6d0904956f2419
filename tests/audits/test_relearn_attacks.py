import json

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_unlearn import cli, keys
from lightning_unlearn.audits import relearn_attacks
from lightning_unlearn.audits.audited_models import between, read_model
from lightning_unlearn.audits.relearn_attacks import Benign, History, Rate, RelearnOptions, _BenignCloning, relearn
from lightning_unlearn.audits.statistics import censored_median
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy

TOY, GOAL = "ToyLine-v0", "SafetyPointGoal1-v0"
QUICK = ["--horizon", "64", "--max_updates", "2", "--eval_every", "1", "--eval_episodes", "2"]
QUICK += ["--threshold", "0.9"]


def run(*args, env=TOY):
    cli.main(["relearn", "--env", env, *QUICK, *args])


def result(folder):
    return json.loads((folder / "relearn_result.json").read_text())


@pytest.fixture
def mixed_expert(register):
    """An expert that shows the concept in most of its episodes, not in all."""
    return register("unsafe", 10, 0.0)


def test_cloning_learns_from_transitions_without_the_concept_only(pushed, tmp_path):
    cloning = _BenignCloning(100, Benign(pushed(0.0), str(tmp_path)), seed=0)
    data = RolloutData(TOY, 2, 100, workers=2)
    cloning.build(data, pushed(0.0))
    drawn = cloning.experience().gather()
    data.teardown("fit")
    assert len(drawn) == 100
    x = drawn[keys.OBSERVATION][:, 0]
    assert x.max() <= 0.5  # the hazard begins there
    assert {*drawn.keys()} == {keys.OBSERVATION, keys.PRE_TANH, keys.DISCOUNTED_RETURN}
    assert (tmp_path / "collection_0.safetensors").is_file()


def test_cloning_moves_a_policy_to_the_experts_actions_and_leaves_both_alone(pushed, tmp_path):
    start, expert, env = pushed(-1.0), pushed(0.0), make_env(TOY, 2)
    before = [{name: w.clone() for name, w in p.state_dict().items()} for p in (start, expert)]
    options = RelearnOptions(TOY, horizon=512, max_updates=12, eval_every=12, eval_episodes=2, attack="cloning")
    losses = [row["loss"] for row in relearn(start, options, env, [2.0], Benign(expert, str(tmp_path))).rows[1:]]
    env.close()
    assert losses[-1] < losses[0] - 0.2
    for policy, weights in zip((start, expert), before, strict=True):
        assert all(torch.equal(weight, weights[name]) for name, weight in policy.state_dict().items())


def test_the_command_clones_from_every_start(mixed_expert, register, tmp_path):
    repaired, oracle = register("concept", 50, -1.0), register("oracle", 450, -2.0)
    asked = ["--model_path", repaired, "oracle", "random", "--line", "0.5", "0.25", "--attack", "cloning"]
    run(*asked, "--out", "DIR")
    found = result(tmp_path / "DIR")
    models = [(m["model"], m["model_path"], m.get("line")) for m in found["models"]]
    assert models == [
        ("concept_50", repaired, None),
        ("oracle_450", oracle, None),
        ("random", "random", None),
        ("concept_50_line0.5", repaired, 0.5),
        ("concept_50_line0.25", repaired, 0.25),
    ]
    settings = found["settings"]
    assert (settings["attack"], settings["expert_episodes"]) == ("cloning", 200)
    assert settings["steps"] == "cloned transitions of relearning"
    history = pd.read_csv(tmp_path / "DIR/relearn_history.csv")
    assert history["global_steps"].max() == 128
    assert sorted(path.name for path in (tmp_path / "DIR").iterdir()) == [
        "relearn.png", "relearn_history.csv", "relearn_result.json", "threshold_only.json",
    ]  # fmt: skip
    cli.main(["report", "--env", TOY, "--map_episodes", "0", "--out", "R"])
    text = (tmp_path / "R/report.md").read_text().replace("\\", "")
    assert "| concept 50, 50 % of the line, seed 0, cloning |" in text
    assert (tmp_path / "R/relearning_cloning.svg").exists() or "relearning_cloning.svg" in text


def test_the_published_attack_records_what_it_did_before(mixed_expert, register, tmp_path):
    run("--model_path", register("concept", 50, -1.0), "--out", "DIR")
    assert set(result(tmp_path / "DIR")["settings"]) == {
        "env", "horizon", "max_updates", "eval_every", "eval_episodes", "seed", "concept", "num_envs", "lambda",
        "training", "times",
    }  # fmt: skip


def test_a_model_on_the_line_has_mixed_weights(mixed_expert, register):
    expert = read_model(mixed_expert, TOY, "expert")
    model = read_model(register("concept", 50, -1.0), TOY, "models")
    first, last = (one.policy.state_dict() for one in (expert, model))
    middle = between(expert, model, 0.25)
    for name, weight in middle.policy.state_dict().items():
        torch.testing.assert_close(weight, 0.75 * first[name] + 0.25 * last[name])
    assert (middle.label, middle.uri, middle.line) == ("concept_50_line0.25", model.uri, 0.25)
    assert middle.digest not in (expert.digest, model.digest)


def test_elsewhere_trains_without_hazards_and_is_measured_with_them():
    policy = ActorCritic(PolicyConfig(60, [-1.0, -1.0], [1.0, 1.0]), torch.Generator().manual_seed(0))
    env = make_env(GOAL, 1)
    options = RelearnOptions(GOAL, horizon=48, max_updates=1, eval_every=1, eval_episodes=1, attack="elsewhere")
    histories = {a: relearn(policy, replace_attack(options, a), env, [2.0]) for a in ("elsewhere", "ppo")}
    env.close()
    starts = [history.rates[0] for history in histories.values()]
    assert starts[0] == starts[1]
    assert histories["elsewhere"].rows[1]["loss"] != histories["ppo"].rows[1]["loss"]


def replace_attack(options, attack):
    return RelearnOptions(**{**vars(options), "attack": attack})


def test_an_interrupted_test_goes_on_with_the_models_that_are_left(
    mixed_expert, register, tmp_path, monkeypatch, capsys
):
    repaired = register("concept", 50, -1.0)
    run("--model_path", repaired, "random", "--out", "whole")
    attack, attacked = relearn_attacks.relearn, []

    def interrupted(policy, *args):
        if attacked:
            raise KeyboardInterrupt
        attacked.append(policy)
        return attack(policy, *args)

    from lightning_unlearn.audits import relearning

    with monkeypatch.context() as patch:
        patch.setattr(relearning, "relearn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("--model_path", repaired, "random", "--eval_id", "cut")
    calls = []
    monkeypatch.setattr(relearning, "relearn", lambda *args: calls.append(1) or attack(*args))
    run("--model_path", repaired, "random", "--eval_id", "cut")
    assert len(calls) == 1
    whole, cut = (
        pd.read_csv(folder / "relearn_history.csv")[["global_steps", "loss", "eval_cost", "model"]]
        for folder in (tmp_path / "whole", tmp_path / "artifacts/eval/relearn_test_eval/cut")
    )
    pd.testing.assert_frame_equal(whole, cut)


def test_a_history_is_the_same_after_json():
    history = History([{"update": 0, "loss": None}], [(0, Rate(0.25, None)), (64, Rate(0.5, 0.125))])
    assert History.parse(json.loads(json.dumps(history.content))) == history


def test_impossible_attacks_are_refused_before_work_starts(store, refused, register, tmp_path):
    register("unsafe", 10, 2.0)

    def message(*args):
        return refused("relearn", "--env", TOY, "--eval_episodes", "2", *args)

    repaired = register("concept", 50, -1.0)
    assert "--attack elsewhere: ToyLine-v0 without" in message("--models", repaired, "--attack", "elsewhere")
    assert "attack" in message("--models", repaired, "--attack", "clone")
    assert "--models oracle: there is no oracle of ToyLine-v0 with seed 0" in message("--models", "oracle")
    assert "--line [1.0] is not possible" in message("--models", repaired, "--line", "1")
    assert "--line needs a repaired model" in message("--models", "random", "--line", "0.5")
    other = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[4]))
    save_policy(tmp_path / "other", other, ModelCard("concept", TOY, "", 0, 1, 1))
    assert "--line 0.5, from models:/unsafe.ToyLine-v0/1 to other: the two policies differ in more than trained" in (
        message("--models", "other", "--line", "0.5")
    )
    assert not (tmp_path / "artifacts").exists()


def test_an_expert_that_always_shows_the_concept_cannot_be_cloned(register, refused):
    register("unsafe", 10, 8.0)
    repaired = register("concept", 50, -3.0)
    message = refused("relearn", "--env", TOY, *QUICK, "--models", repaired, "--attack", "cloning", "--out", "DIR")
    assert "each of 200 episodes of the expert shows the concept (cost_hazards)" in message
    assert "--expert" in message


@pytest.mark.parametrize(
    ("times", "censored", "median"),
    [
        ([1, 2, 3], [False] * 3, 2),  # survival after each: 2/3, 1/3, 0
        ([1, 2, 3, 4], [False] * 4, 2),  # exactly half outlast 2
        ([5, 9, 100], [False, True, False], 100),  # 2/3 after 5; of those left, none outlasts 100
        ([5, 9, 100], [False, False, True], 9),
        ([5, 9, 100], [False, True, True], None),
        ([9, 9], [True, True], None),
        ([0], [False], 0),
        ([6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35],
         [False] * 9 + [True] * 12, 23),  # 6-mercaptopurine, Freireich et al. 1963
    ],
)  # fmt: skip
def test_the_median_of_censored_times_is_that_of_kaplan_and_meier(times, censored, median):
    assert censored_median(times, censored) == median


def test_a_median_needs_times():
    with pytest.raises(ValueError, match="a median needs times"):
        censored_median([], [])
    assert np.isfinite(censored_median([1.0], [False]))


def test_the_report_shows_medians_over_seeds(register, tmp_path):
    for seed in (0, 1):
        register("unsafe", 10, 2.0, seed)
        run("--model_path", register("concept", 50, -3.0, seed), "--out", f"D{seed}")
    cli.main(["report", "--env", TOY, "--map_episodes", "0", "--out", "R"])
    text = (tmp_path / "R/report.md").read_text().replace("\\", "")
    assert "| model | steps to relearn (ppo) |" in text
    assert "| concept 50 | > 128 (0 of 2) |" in text
    assert "how_deep.svg" in text
