import json

import numpy as np
import pandas as pd
import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits.elicitation import Elicitation, budget_of, summary, worst_of
from lightning_unlearn.audits.repair_pairs import PolicyRun
from lightning_unlearn.audits.sensor_attacks import (
    GAMMA,
    ActionCritic,
    GradientActor,
    advantages,
    fit,
    is_differentiable,
    random_signs,
    reference_of,
)
from lightning_unlearn.collectors.acting import TorchActor, actor_of
from lightning_unlearn.collectors.episodes import run_episodes
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.numpy_actor import OffsetActor
from lightning_unlearn.tracking import runs

TOY = "ToyLine-v0"


def linear(weight, bias=0.0):
    """A policy whose mean is weight·x + bias for x ≥ −10."""
    made = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[1], activation="relu"))
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)
    made.trunk[0].weight.data[0, 0], made.trunk[0].bias.data[0] = 1.0, 10.0
    made.action_mean.weight.data[0, 0], made.action_mean.bias.data[0] = weight, bias - 10.0 * weight
    return made


def likes(direction):
    """A critic that prefers higher actions, or lower ones."""
    critic = ActionCritic(torch.zeros(2), torch.ones(2), 1)
    critic.network = torch.nn.Linear(3, 1)
    critic.network.weight.data.copy_(torch.tensor([[0.0, 0.0, direction]]))
    return critic


@pytest.mark.parametrize(("weight", "direction", "sign"), [(2.0, 1.0, 1), (2.0, -1.0, -1), (-2.0, 1.0, -1)])
def test_the_gradient_attack_goes_to_the_corner_that_moves_the_action(weight, direction, sign):
    actor = GradientActor(linear(weight), likes(direction), np.array([0.2, 0.1]))
    states = np.array([[0.3, 0.5], [-0.4, 0.5]])
    # the clock does not reach the mean, so that it is left alone
    np.testing.assert_allclose(actor.disturbed(states), states + np.array([0.2 * sign, 0.0]), atol=1e-12)
    np.testing.assert_allclose(actor.mean(states, 0)[:, 0], weight * (states[:, 0] + 0.2 * sign), rtol=1e-5)


def test_a_sensor_that_does_not_vary_is_not_disturbed():
    actor = GradientActor(linear(2.0), likes(1.0), np.zeros(2))
    states = np.array([[0.3, 0.5]])
    np.testing.assert_array_equal(actor.disturbed(states), states)


def test_advantages_by_hand():
    expert = linear(0.0, bias=10.0)  # always moves right by 0.25
    expert.cost_value.weight.data[0, 0], expert.cost_value.bias.data[0] = 3.0, -30.0  # V = 3x
    env = make_env(TOY, 2)
    episodes = run_episodes(env, expert, [20_000, 20_001])
    observation, action, advantage = advantages(episodes, expert)
    x = observation[:, 0]
    after = (x + 0.25).clamp(max=1.0)
    assert len(x) == 64  # two episodes of 32 steps, which time ends, so that all bootstrap
    torch.testing.assert_close(advantage, (after > 0.5).float() + GAMMA * 3.0 * after - 3.0 * x, atol=1e-4, rtol=0)
    torch.testing.assert_close(action, torch.ones(64, 1), atol=1e-6, rtol=0)


def test_a_critic_learns_what_depends_on_the_action(generator):
    observation, action = (torch.rand(16_000, n, generator=generator) * 2 - 1 for n in (2, 1))
    critic = ActionCritic(torch.zeros(2), torch.ones(2), 1)
    assert fit(critic, observation, action, observation[:, 0] * action[:, 0], generator) > 0.9
    noise = torch.randn(16_000, generator=generator)
    assert fit(ActionCritic(torch.zeros(2), torch.ones(2), 1), observation, action, noise, generator) < 0.1


def test_the_reference_is_the_experts_own(pushed):
    """Deviations by NumPy over the validation states; nothing of the global random stream is used."""
    env, expert = make_env(TOY, 3), pushed(2.0)
    torch.manual_seed(5)
    found, drawn = reference_of(env, expert), torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    states = run_episodes(env, expert, [20_000, 20_001, 20_002]).observation.reshape(-1, 2)
    np.testing.assert_allclose(found.deviation, states.std(0), rtol=1e-5)
    again = reference_of(env, expert)
    assert all(map(torch.equal, found.critic.state_dict().values(), again.critic.state_dict().values()))
    assert found.explained == again.explained


@pytest.mark.parametrize("kind", [actor_of, TorchActor])
def test_offsets_are_those_of_each_environment(policy, kind):
    offset, states = np.arange(12.0).reshape(6, 2) / 10, np.linspace(-1, 1, 8).reshape(4, 2)
    actor = OffsetActor(kind(policy), offset)
    found = actor.mean(states, 2)
    np.testing.assert_allclose(found, kind(policy).mean(states + offset[2:6], 2), rtol=1e-6)
    np.testing.assert_array_equal(actor.squash(found), kind(policy).squash(found))
    assert actor.portable == kind(policy).portable


def test_even_candidates_draw_one_sign_a_sensor_and_all_are_repeatable():
    sensors = {"lidar": slice(0, 4), "speed": slice(4, 6)}
    even, odd = (random_signs(sensors, 6, 50, candidate) for candidate in (0, 1))
    assert set(np.unique(even)) == set(np.unique(odd)) == {-1.0, 1.0}
    assert (even[:, :4] == even[:, :1]).all()
    assert (even[:, 4] == even[:, 5]).all()
    assert not (odd[:, :4] == odd[:, :1]).all()
    assert (even[:, 0] != even[:, 4]).any()
    np.testing.assert_array_equal(even, random_signs(sensors, 6, 50, 0))
    alone = random_signs({"observation": slice(0, 6)}, 6, 50, 0)
    assert not (alone == alone[:, :1]).all()


class Rounded(torch.nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.round(x.detach().numpy(), 1))


def test_differentiable_policies_are_told_from_others(policy):
    states = torch.tensor([[0.3, 0.5]])
    assert is_differentiable(policy, states)
    policy.trunk.insert(0, Rounded())
    assert not is_differentiable(policy, states)
    assert not is_differentiable(linear(0.0), states)


def run_of(costs, earned=2.0):
    episodes = pd.DataFrame({"reward": earned, "cost_sum": np.array(costs, float), "cforget_sum": 1.0})
    return PolicyRun(episodes, torch.zeros(0))


def test_the_worst_run_of_each_layout_by_hand():
    worst = worst_of([run_of([5, 0, 1], 1.0), run_of([4, 3, 1], 2.0), run_of([4, 3, 0], 3.0)], "cost")
    assert worst.episodes["cost_sum"].tolist() == [5, 3, 1]
    assert worst.episodes["reward"].tolist() == [1, 2, 1]  # the first of equals


def test_a_summary_by_hand():
    calm, expert = run_of(range(20)), run_of(range(20, 40))
    found = summary(run_of(range(5, 25)), expert, calm, "cost")
    assert (found["return"], found["cost"], found["c_forget"]) == (2.0, 14.5, 1.0)
    assert (found["cost_worst_tenth"], found["cost_worst"]) == (23.5, 24.0)  # (23 + 24)/2
    assert found["returned"] == pytest.approx(0.25)
    assert summary(expert, expert, expert, "cost")["returned"] is None


def test_budgets():
    assert budget_of([0.2, 0.0, 0.05, 0.2], 3) == {"epsilons": [0.05, 0.2], "candidates": 3}
    for epsilons in ([], [0.0], [-0.1], [float("inf")], [float("nan")]):
        with pytest.raises(ValueError, match="name numbers above 0"):
            budget_of(epsilons, 3)
    with pytest.raises(ValueError, match="candidates=0 is not possible"):
        budget_of([0.1], 0)


@pytest.fixture
def models(register):
    """An expert that drives into the hazard, its repair, and an oracle."""
    return register("unsafe", 10, 2.0), register("concept", 50, -0.02), register("oracle", 450, -2.0)


def run(*args, out="DIR"):
    given = ["--episodes", "4", "--workers", "1", "--candidates", "2", "--epsilons", "0.5", "3.0", "--out", out]
    cli.main(["elicit", "--env", TOY, *given, *args])


def test_the_command_writes_a_row_a_model_attack_and_epsilon(models, tmp_path, capsys):
    run("--models", models[1])
    table = pd.read_csv(tmp_path / "DIR/elicitation.csv", keep_default_na=False, na_values=[""])
    assert table["model"].unique().tolist() == ["unsafe", "oracle_450", "concept_50"]
    of_each = table.groupby("model")[["attack", "epsilon"]].apply(lambda rows: rows.to_numpy().tolist())
    cells = [["none", 0.0], ["gradient", 0.5], ["random", 0.5], ["gradient", 3.0], ["random", 3.0]]
    assert all(rows == cells for rows in of_each)
    calm = table[table["attack"] == "none"].set_index("model")
    for label, uri in zip(["unsafe", "concept_50", "oracle_450"], models, strict=True):
        alone = lu.evaluate(lu.load_policy(uri), TOY, 4, workers=1)
        assert calm.loc[label, "cost"] == alone.cost_sum.mean()
        assert calm.loc[label, "cost_worst"] == alone.cost_sum.max()
    searched = table[table["attack"] == "random"]
    assert (searched["cost"].to_numpy() >= calm.loc[searched["model"], "cost"].to_numpy()).all()
    (stored,) = runs.stored_runs(TOY, {"audit": "elicit"})
    assert stored.metrics["unsafe/none/0/cost"] == calm.loc["unsafe", "cost"]
    names = {path.rpartition("/")[2] for path in runs.artifact_paths(stored.run_id, "eval/elicitation_eval/DIR")}
    assert names == {"elicitation.csv", "elicitation.json", "elicitation.png"}
    assert json.loads((tmp_path / "DIR/elicitation.json").read_text())["models"]["concept_50"]["expert"] == models[0]
    assert "cost_worst_tenth" in capsys.readouterr().out


def test_python_gives_the_commands_rows(models, tmp_path):
    run("--models", models[1])
    table = pd.read_csv(tmp_path / "DIR/elicitation.csv", keep_default_na=False, na_values=[""])
    expert, repaired, oracle = map(lu.load_policy, models)
    small = {"epsilons": [3.0, 0.5], "episodes": 4, "candidates": 2, "workers": 1}
    for label, policy in (("unsafe", expert), ("oracle_450", oracle), ("concept_50", repaired)):
        found = lu.elicit(expert, policy, TOY, **small)
        rows = table.loc[table["model"] == label, found.columns].reset_index(drop=True)
        pd.testing.assert_frame_equal(found.astype(rows.dtypes.to_dict()), rows)


def test_both_attacks_drive_a_policy_that_stops_before_the_hazard_into_it():
    """It settles at x = 0.3; a sensor that reads less than 0.1 and more makes it settle beyond 0.5."""
    expert = linear(0.0, bias=1.0)
    expert.cost_value.weight.data[0, 0], expert.cost_value.bias.data[0] = 3.0, -30.0  # V = 3x
    found = lu.elicit(expert, linear(-4.0, bias=1.2), TOY, epsilons=[3.0], episodes=6, candidates=3, workers=1)
    assert found["attack"].tolist() == ["none", "gradient", "random"]
    calm, gradient, random = found["cost"]
    assert calm == 0.0
    assert gradient > 25.0
    assert random > 15.0
    assert found["returned"][1] == pytest.approx(gradient / lu.evaluate(expert, TOY, 6, workers=1).cost_sum.mean())


def test_an_interrupted_audit_continues_with_equal_results(models, tmp_path, monkeypatch, capsys):
    run("--models", models[1], out="whole")
    original, calls = Elicitation.__call__, []

    def counted(self, *pair):
        calls.append(pair)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *pair)

    monkeypatch.setattr(Elicitation, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        run("--models", models[1])
    assert [path.name for path in (tmp_path / "DIR/partial").iterdir()] == ["unsafe.json"]
    run("--models", models[1])
    assert len(calls) == 4  # the third is the oracle again
    for name in ("elicitation.csv", "elicitation.png"):
        assert (tmp_path / "DIR" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "DIR/partial").exists()
    run("--models", models[1])
    assert "finished already" in capsys.readouterr().out
    assert len(runs.stored_runs(TOY, {"audit": "elicit"})) == 2
    with pytest.raises(SystemExit):
        run("--models", models[1], "--candidates", "3")
    assert "finished audit of other models or with other options" in capsys.readouterr().err


def test_bad_input_is_refused(models, refused, tmp_path):
    asked = ["elicit", "--env", TOY, "--models", models[1], "--out", "OUT"]
    assert "episodes=0 is not possible" in refused(*asked, "--episodes", "0")
    assert "candidates=0 is not possible" in refused(*asked, "--candidates", "0")
    assert "name numbers above 0" in refused(*asked, "--epsilons", "0")
    assert "there is no such method" in refused(*asked[:3], "--models", "nothing")
    foreign = "zoo:unsafe.SafetyPointGoal1-v0"
    assert "is a model of SafetyPointGoal1-v0, not of ToyLine-v0" in refused(*asked, "--expert", foreign)
    assert "is a model of SafetyPointGoal1-v0, not of ToyLine-v0" in refused(*asked, "--oracle", foreign)
    assert "cost_vases" in refused(*asked, "--concept", "cost_vases")
    save_policy(tmp_path / "wide", ActorCritic(PolicyConfig(3, [-1.0], [1.0])), ModelCard("concept"))
    assert "takes 3 observations" in refused(*asked[:3], "--models", "wide")
    assert "--expert is missing" in refused("elicit", "--env", "SafetyPointPush1-v0", "--models", "random")
    assert not (tmp_path / "OUT").exists()
    told = refused(*asked, "--expert", models[2], "--episodes", "2")
    assert "there is no behaviour that could come back" in told
