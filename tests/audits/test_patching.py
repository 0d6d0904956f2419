import copy
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits import patching, repair_pairs
from lightning_unlearn.audits.patching import (
    EDITED,
    INTO_EXPERT,
    INTO_REPAIRED,
    MEAN,
    NOTHING,
    action_distance,
    patched,
    returned,
    shared_layers,
)
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.latent_editor import GatedEditor
from lightning_unlearn.tracking import runs

TOY = "ToyLine-v0"
LAYERS = [NOTHING, "trunk 1", "trunk 2", MEAN]


def chain(*factors):
    """A policy of relu layers with one unit each: for x > 0 its mean is x times the product of its factors."""
    made = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[1] * (len(factors) - 1), activation="relu"))
    for parameter in made.parameters():
        torch.nn.init.zeros_(parameter)
    for layer, factor in zip([*made.trunk[::2], made.action_mean], factors, strict=True):
        layer.weight.data[0, 0] = factor
    return made


def any_policy(seed, **options):
    """A random policy, with a random normaliser if it has one."""
    generator = torch.Generator().manual_seed(seed)
    made = ActorCritic(PolicyConfig(2, [-1.0], [1.0], **{"hidden_sizes": [16, 8], **options}), generator)
    if made.normaliser is not None:
        made.normaliser.mean.uniform_(-1, 1, generator=generator)
        made.normaliser.variance.uniform_(0.5, 2, generator=generator)
    return made


def edited(policy, alpha=0.7):
    direction = torch.nn.functional.normalize(torch.ones(policy.config.latent_size), dim=0)
    return policy.with_editor(GatedEditor(direction, alpha, -0.5, 4.0))


def test_patched_means_worked_out_by_hand():
    expert, repaired, x = chain(2.0, 3.0, 1.0), chain(5.0, 7.0, 11.0), torch.tensor([[1.0, 0.0]])

    def means(host, donor):
        return [patched(host, donor, layer).mean(x).item() for layer in LAYERS]

    assert means(repaired, expert) == [5 * 7 * 11, 2 * 7 * 11, 2 * 3 * 11, 2 * 3 * 1]
    assert means(expert, repaired) == [2 * 3 * 1, 5 * 3 * 1, 5 * 7 * 1, 5 * 7 * 11]


def test_both_policies_stay_as_they_were():
    host, donor = any_policy(0), any_policy(1)
    before = [weight.clone() for weight in (*host.parameters(), *donor.parameters())]
    with torch.no_grad():
        for layer in LAYERS:
            for weight in patched(host, donor, layer).parameters():
                weight.add_(1.0)
    assert all(map(torch.equal, before, (*host.parameters(), *donor.parameters())))


def through_a_hook(host, donor, layer, states):
    """Means of the host while a hook puts the donor's activation in place of its own: an independent way to patch."""
    place = {"trunk 1": 1, "trunk 2": 3}
    if layer in place:
        of_host, activation = host.trunk[place[layer]], donor.trunk[: place[layer] + 1](donor._normalised(states))
    else:
        of_host = host.action_mean if layer == MEAN else host.trunk
        activation = donor.mean(states) if layer == MEAN else donor.operative_latent(states)
        host = host.without_editor() if layer == EDITED else host
        of_host = host.trunk if layer == EDITED else of_host
    handle = of_host.register_forward_hook(lambda *_: activation)
    try:
        return host.mean(states)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["plain", "normalised", "edited"])
@pytest.mark.parametrize("direction", [False, True])
def test_patching_is_what_a_hook_on_the_layer_does(kind, direction):
    host, donor = any_policy(0), any_policy(1)
    if kind == "normalised":
        host, donor = any_policy(0), any_policy(1, normalise_observation=True, normaliser_clip=1.5)
    if kind == "edited":
        host = edited(host)
    host, donor = (donor, host) if direction else (host, donor)
    states = torch.randn(200, 2, generator=torch.Generator().manual_seed(2))
    layers = shared_layers(host, donor)
    assert (EDITED in layers) == (kind == "edited")
    for layer in layers:
        torch.testing.assert_close(patched(host, donor, layer).mean(states), through_a_hook(host, donor, layer, states))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_ends_are_the_two_policies_to_the_bit(normalised):
    host, donor = any_policy(0), edited(any_policy(1, normalise_observation=normalised))
    states = torch.randn(100, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(patched(host, donor, NOTHING).act(states), host.act(states))
    assert torch.equal(patched(host, donor, MEAN).act(states), donor.act(states))


def test_an_edit_is_undone_at_the_edited_latent_alone():
    expert = any_policy(0)
    repaired = edited(expert, alpha=5.0)
    states = torch.randn(100, 2, generator=torch.Generator().manual_seed(2))
    assert shared_layers(expert, repaired) == ["trunk 1", "trunk 2", EDITED, MEAN]
    moved = [
        action_distance(patched(repaired, expert, layer), repaired, states) for layer in shared_layers(expert, repaired)
    ]
    assert moved[:2] == [0.0, 0.0]
    assert moved[2] == moved[3] == action_distance(expert, repaired, states) > 0.0


def test_other_architectures_share_the_layers_of_equal_width():
    wide, narrow = any_policy(0, hidden_sizes=[16, 8]), any_policy(1, hidden_sizes=[16, 4])
    assert shared_layers(wide, narrow) == ["trunk 1", MEAN]
    deep = any_policy(1, hidden_sizes=[4, 8, 6])
    assert shared_layers(wide, deep) == ["trunk 2", MEAN]
    states = torch.randn(10, 2)
    expected = deep.action_mean(deep.trunk[4:](wide.trunk(states)))
    assert torch.equal(patched(deep, wide, "trunk 2").mean(states), expected)


def test_policies_that_share_no_layer_are_refused():
    with pytest.raises(ValueError, match="trunk 1 has 16 and 4 units, trunk 2 has 8 and none units"):
        shared_layers(any_policy(0), any_policy(1, hidden_sizes=[4]))
    with pytest.raises(ValueError, match="non-linearities are tanh and relu"):
        shared_layers(any_policy(0), any_policy(1, activation="relu"))
    with pytest.raises(ValueError, match="squashes actions by 'tanh' and the other by 'none'"):
        shared_layers(any_policy(0), any_policy(1, squash="none"))
    wrapped = any_policy(1)
    wrapped.trunk = torch.nn.Linear(2, 8)
    with pytest.raises(ValueError, match="trunk 1 has 16 and none units"):
        shared_layers(any_policy(0), wrapped)


def test_the_returned_share_by_hand():
    # above the repaired policy's costs (0, 2): the expert's by (4, 0), the patched ones by (1, 0)
    found = returned(np.array([1.0, 2.0]), np.array([4.0, 2.0]), np.array([0.0, 2.0]))
    assert list(found.values()) == pytest.approx([0.25, 0.25, 0.25])
    wide = returned(np.array([2.0, 2.0]), np.array([4.0, 2.0]), np.array([0.0, 0.0]))
    # back (2, 2), gap (4, 2): 2/3; residuals (2 − 8/3, 2 − 4/3) / 3 = ∓2/9, t of one degree of freedom 12.706
    assert wide["returned"] == pytest.approx(2 / 3)
    assert wide["returned_high"] - 2 / 3 == pytest.approx(12.7062 * (2 / 9 * 2**0.5) / 2**0.5, rel=1e-4)
    one = returned(np.array([1.0]), np.array([4.0]), np.array([0.0]))
    assert one == {"returned": 0.25, "returned_low": None, "returned_high": None}
    same = np.array([1.0, 2.0])
    assert set(returned(same, same, same).values()) == {None}


def test_actions_move_by_halves_of_the_range():
    half = ActorCritic(PolicyConfig(2, [-2.0, 0.0], [2.0, 1.0], hidden_sizes=[1], squash="none"))
    for parameter in half.parameters():
        torch.nn.init.zeros_(parameter)
    other = copy.deepcopy(half)
    other.action_mean.bias.data.copy_(torch.tensor([1.2, 0.8]))  # 1.2 of 2, and 0.8 of a half range of 0.5
    assert action_distance(half, other, torch.zeros(3, 2)) == pytest.approx((0.6**2 + 1.6**2) ** 0.5)


@pytest.fixture
def pair(register):
    """An expert that drives into the hazard, and a repair that differs from it in the last bias alone."""
    return register("unsafe", 10, 2.0), register("concept", 50, -3.0)


def run(*args, out="DIR"):
    cli.main(["patch", "--env", TOY, "--episodes", "4", "--workers", "1", "--out", out, *args])


def test_a_repair_of_the_last_layer_returns_with_it_alone(pair, tmp_path, capsys):
    run("--models", pair[1], "random")
    table = pd.read_csv(tmp_path / "DIR/patching.csv")
    into_repaired, into_expert = (
        table[(table["direction"] == direction) & (table["model"] == "concept_50")]
        for direction in (INTO_REPAIRED, INTO_EXPERT)
    )
    assert into_repaired["layer"].tolist() == LAYERS
    assert into_repaired["returned"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert into_expert["returned"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert into_repaired["action_change_share"].tolist() == [0.0, 0.0, 0.0, 1.0]
    ends = lu.evaluate(lu.load_policy(pair[0]), TOY, 4, workers=1), lu.evaluate(lu.load_policy(pair[1]), TOY, 4)
    assert into_repaired["cost"].tolist()[-1] == into_expert["cost"].tolist()[0] == ends[0].cost_sum.mean() > 0
    assert into_repaired["return"].tolist()[0] == into_expert["return"].tolist()[-1] == ends[1].reward.mean()
    assert table["model"].unique().tolist() == ["concept_50", "random"]
    about = json.loads((tmp_path / "DIR/patching.json").read_text())["models"]
    assert about["concept_50"]["expert"] == pair[0]
    assert about["concept_50"]["mean_scale"] == 1.0
    (stored,) = runs.stored_runs(TOY, {"audit": "patch"})
    assert stored.metrics[f"concept_50/{INTO_REPAIRED}/mean/returned"] == 1.0
    assert {path.rpartition("/")[2] for path in runs.artifact_paths(stored.run_id, "eval/patching_eval/DIR")} == {
        "patching.csv",
        "patching.json",
        "patching.png",
    }
    assert "action_change_share" in capsys.readouterr().out


def test_python_gives_the_commands_rows(pair, tmp_path):
    run("--models", pair[1])
    table = pd.read_csv(tmp_path / "DIR/patching.csv")
    found = lu.patch(lu.load_policy(pair[0]), lu.load_policy(pair[1]), TOY, episodes=4, workers=1)
    pd.testing.assert_frame_equal(found, table[found.columns])


def test_an_interrupted_audit_continues_with_equal_results(pair, tmp_path, monkeypatch, capsys):
    models = ["--models", pair[1], "random"]
    run(*models, out="whole")
    original, calls = patching.patch_layers, []

    def counted(bank, expert, repaired, signal):
        calls.append(repaired)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(bank, expert, repaired, signal)

    monkeypatch.setattr(patching, "patch_layers", counted)
    with pytest.raises(KeyboardInterrupt):
        run(*models)
    assert [path.name for path in (tmp_path / "DIR/partial").iterdir()] == ["concept_50.json"]
    run(*models)
    assert len(calls) == 3  # the third is `random` again
    assert (tmp_path / "DIR/patching.csv").read_bytes() == (tmp_path / "whole/patching.csv").read_bytes()
    assert not (tmp_path / "DIR/partial").exists()
    run(*models)
    assert "finished already" in capsys.readouterr().out
    stored = runs.stored_runs(TOY, {"audit": "patch"})
    assert sorted(run.params["out"] for run in stored) == ["DIR", "whole"]
    for recorded in stored:
        mlflow.MlflowClient().delete_run(recorded.run_id)
    run(*models)  # files are there, but this store does not know them
    assert [run.params["out"] for run in runs.stored_runs(TOY, {"audit": "patch"})] == ["DIR"]


def test_bad_input_is_refused(pair, register, refused, tmp_path):
    run("--models", "random", out="done")
    assert "finished audit of other models" in refused("patch", "--env", TOY, "--models", pair[1], "--out", "done")
    asked = ["patch", "--env", TOY, "--models", pair[1], "--out", "OUT"]
    assert "episodes=0 is not possible" in refused(*asked, "--episodes", "0")
    assert "--mean_scale -1.0 is not possible" in refused(*asked, "--mean_scale", "-1")
    assert "there is no such method" in refused(*asked[:3], "--models", "nothing")
    narrow = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[4]), torch.Generator().manual_seed(0))
    save_policy(tmp_path / "narrow", narrow, ModelCard("concept", TOY))
    told = refused(*asked[:3], "--models", "narrow")
    assert "--models narrow cannot be patched with its expert" in told
    assert "trunk 1 has 64 and 4 units" in told
    foreign = "zoo:unsafe.SafetyPointGoal1-v0"
    assert "is a model of SafetyPointGoal1-v0, not of ToyLine-v0" in refused(*asked, "--expert", foreign)
    wide = ActorCritic(PolicyConfig(3, [-1.0], [1.0]))
    save_policy(tmp_path / "wide", wide, ModelCard("concept"))
    assert "takes 3 observations" in refused(*asked[:3], "--models", "wide")
    assert not (tmp_path / "OUT").exists()
    unknown = ["patch", "--env", "SafetyPointPush1-v0", "--models", "random"]
    assert "--expert is missing" in refused(*unknown)


def constant(mean):
    made = ActorCritic(PolicyConfig(2, [-1.0], [1.0]), torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(made.action_mean.weight)
    made.action_mean.bias.data.fill_(mean)
    return made


def test_the_expert_of_an_off_policy_repair_is_scaled(store, tmp_path):
    """A root mean square of 3 becomes 1.5; a method that scales nothing, or a number given, is left as it is."""
    save_policy(tmp_path / "expert", constant(3.0), ModelCard("unsafe", TOY))
    for method in ("off_policy_concept", "concept"):
        save_policy(tmp_path / method, constant(-3.0), ModelCard(method, TOY, update=5))
    run("--models", "./off_policy_concept", "./concept", "--expert", "expert")
    table = pd.read_csv(tmp_path / "DIR/patching.csv").groupby("method")["mean_scale"].first()
    assert table.to_dict() == {"concept": 1.0, "off_policy_concept": 0.5}
    measured = lu.patch(constant(3.0), constant(-3.0), TOY, 2, workers=1, mean_scale=None)
    # open loop, from tanh(-3) to tanh(1.5)
    last = measured[measured["layer"] == MEAN].iloc[0]
    assert last["action_change"] == pytest.approx(np.tanh(1.5) + np.tanh(3.0), rel=1e-5)
    run("--models", "./off_policy_concept", "--expert", "expert", "--mean_scale", "0.25", out="given")
    assert pd.read_csv(tmp_path / "given/patching.csv")["mean_scale"].unique().tolist() == [0.25]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_expert_and_scale_are_those_of_the_models_run(register, tmp_path):
    """Not the newest expert of the store, and not a measured scale, where the run records both."""
    first, _ = register("unsafe", 10, 2.0), register("unsafe", 20, 2.5)
    small = ["--n_envs", "2", "--horizon", "64", "--data.workers", "1", "--updates", "2", "--model.steps", "2"]
    short = ["--model.critic_steps", "2", "--save_points", "null", "--keep_best", "null"]
    files = [part for name in ("env/point_goal1.yaml", "method/off_policy_concept.yaml") for part in ("-c", name)]
    cli.main(["fit", *files, "--env", TOY, *small, *short, "--model.source", first, "--model.mean_scale", "0.4"])
    options = repair_pairs.read_options(patching.CommandParser(), ["--env", TOY, "--models", "off_policy_concept"])[0]
    (pair,) = repair_pairs.gather(options)
    assert (pair.expert.uri, pair.mean_scale) == (first, 0.4)
