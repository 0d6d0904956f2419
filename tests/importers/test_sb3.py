"""Reading agents of Stable-Baselines3, the shipped one and what becomes of it when it is changed."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixture_agent import SB3, sb3_actions

from lightning_unlearn.importers.agent import as_policy
from lightning_unlearn.importers.import_command import require_same_actions
from lightning_unlearn.importers.sb3 import StableBaselines3

STATISTICS = str(SB3 / "vecnormalize.pkl")


def imported(path, simulator):
    return StableBaselines3(path, STATISTICS).policy(simulator, torch.Generator().manual_seed(0))


def test_the_policy_does_what_stable_baselines3_did(goal):
    """`actions.npy` was written by Stable-Baselines3 itself."""
    states, expected = sb3_actions()
    reader = StableBaselines3(SB3 / "agent.zip", STATISTICS)
    policy, reference = reader.policy(goal, torch.Generator()), reader.reference(goal)
    assert (expected.abs() < 1).float().mean() > 0.5
    torch.testing.assert_close(policy.act(states), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(reference(states.double()).float(), expected, rtol=0, atol=1e-5)


def test_shape_normaliser_and_critic_are_the_agents(goal):
    reader = StableBaselines3(SB3 / "agent.zip", STATISTICS)
    policy = reader.policy(goal, torch.Generator())
    config = policy.config
    assert (config.hidden_sizes, config.critic_hidden_sizes, config.activation) == ([32, 24], [24, 16], "relu")
    assert (config.squash, config.critics, config.normaliser_clip) == ("none", "separate", 5.0)
    assert reader.library == "Stable-Baselines3 2.9.2 (PPO)"
    torch.testing.assert_close(policy.reward_value.weight, reader.agent(goal).critic[-1].weight)
    assert torch.equal(policy(torch.randn(3, 60)).cost_value, torch.zeros(3))


SETTINGS = SB3.parent / "sb3_settings"
OFFSET = 1e6
"""Of the observations that `offset.zip` was trained on; float32 has steps of 0.06 there."""


def with_settings(name, simulator, monkeypatch):
    """An agent of the fixtures, its reference, states (64, 2) and the actions of Stable-Baselines3 2.1.0 in them."""
    low, high, shift = {"squash_output": (0.0, 4.0, 0.0), "offset": (-2.0, 2.0, OFFSET)}[name]
    monkeypatch.setattr(simulator, "action_low", np.array([low]))
    monkeypatch.setattr(simulator, "action_high", np.array([high]))
    statistics = str(SETTINGS / "offset.pkl") if name == "offset" else None
    reader = StableBaselines3(SETTINGS / f"{name}.zip", statistics)
    recorded = np.load(SETTINGS / "actions.npz")
    states, actions = (torch.from_numpy(recorded[key]) for key in ("states", name))
    actions = actions.clamp(low, high)  # as the environment does
    return reader.agent(simulator), reader.reference(simulator), states + shift, actions


@pytest.mark.parametrize("name", ["squash_output", "offset"])
def test_what_is_not_in_the_weights_is_part_of_the_policy(toy, monkeypatch, name):
    agent, reference, states, expected = with_settings(name, toy, monkeypatch)
    assert expected.std() > 0.3
    policy = as_policy(agent, toy, torch.Generator())
    torch.testing.assert_close(policy.act(states), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(reference(states).float(), expected, rtol=0, atol=1e-5)
    assert require_same_actions(reference, policy, states) < 1e-5


OVERLOOKED = {
    "squash_output": lambda agent: replace(agent, squash="none"),
    "offset": lambda agent: replace(agent, normaliser=replace(agent.normaliser, observation_dtype="float32")),
}


@pytest.mark.parametrize("name", OVERLOOKED)
def test_a_setting_that_the_importer_overlooks_shows_as_a_difference(toy, monkeypatch, name):
    agent, reference, states, _ = with_settings(name, toy, monkeypatch)
    policy = as_policy(OVERLOOKED[name](agent), toy, torch.Generator())
    with pytest.raises(ValueError, match="off the agent's: nothing was stored"):
        require_same_actions(reference, policy, states)


def test_observations_are_rounded_where_stable_baselines3_rounds_them(goal):
    assert imported(SB3 / "agent.zip", goal).config.observation_dtype == "float32"  # its space is


def move_to_shared(weights):
    """As before release 1.8, with all hidden layers shared."""
    for name in [name for name in weights if ".value_net." in name]:
        del weights[name]
    for name in [name for name in weights if ".policy_net." in name]:
        weights[name.replace("policy_net", "shared_net")] = weights.pop(name)
    weights["value_net.weight"] = torch.randn(1, 24)


def test_shared_networks_of_older_releases(goal, rewritten):
    plain, shared = imported(SB3 / "agent.zip", goal), imported(rewritten(change_weights=move_to_shared), goal)
    states = torch.randn(5, 60)
    assert shared.config.critics == "shared"
    assert torch.equal(plain.act(states), shared.act(states))


def test_the_default_activation_is_tanh(goal, rewritten):
    path = rewritten(lambda data: data.update(policy_kwargs={"net_arch": [64, 64]}))
    assert imported(path, goal).config.activation == "tanh"


def test_a_wide_log_std_is_kept(goal, rewritten):
    policy = imported(rewritten(change_weights=lambda w: w["log_std"].fill_(-7.0)), goal)
    torch.testing.assert_close(policy.std, torch.full((2,), -7.0).exp())


def drop(prefix):
    def change(weights):
        for name in [name for name in weights if name.startswith(prefix)]:
            del weights[name]

    return change


def put(name, value):
    return lambda weights: weights.update({name: value})


def kind(field, text):
    return lambda data: data[field].update({":type:": text})


UNSUPPORTED = {
    "recurrent": ({"change_weights": put("lstm_actor.weight_ih_l0", torch.zeros(2))}, "recurrent"),
    "pictures": ({"change_weights": put("features_extractor.cnn.0.weight", torch.zeros(2))}, "pictures"),
    "dict observations": (
        {"change_data": kind("observation_space", "<class 'gymnasium.spaces.dict.Dict'>")},
        "several",
    ),
    "discrete": ({"change_data": kind("action_space", "<class 'gymnasium.spaces.discrete.Discrete'>")}, "discrete"),
    "another algorithm": ({"change_data": lambda d: d.pop("clip_range")}, "another algorithm than PPO"),
    "no mean": ({"change_weights": drop("action_net")}, "action_net is no linear layer"),
    "gSDE": ({"change_data": lambda d: d.update(use_sde=True)}, "gSDE"),
    "own class": ({"change_data": lambda d: d["policy_class"].update(__module__="mine")}, "class of its own"),
    "own extractor": (
        {"change_data": lambda d: d["policy_kwargs"].update(features_extractor_class="<class 'mine.FlattenAndScale'>")},
        "feature extractor of its own",
    ),
    "own option": ({"change_data": lambda d: d["policy_kwargs"].update(action_scale="2.0")}, "action_scale"),
    "odd squashing": ({"change_data": lambda d: d["policy_kwargs"].update(squash_output="maybe")}, "maybe"),
    "one-hot": ({"change_data": kind("observation_space", "<class 'gymnasium.spaces.discrete.Discrete'>")}, "vector"),
    "own activation": (
        {"change_data": lambda d: d["policy_kwargs"].update(activation_fn="<class 'mine.Act'>")},
        "mine.Act",
    ),
    "other bounds": ({"change_data": lambda d: d["action_space"].update(high="[2. 2.]")}, "bounds"),
    "other actions": ({"change_data": lambda d: d["action_space"].update(low="[-1.]")}, "gives 1 actions"),
    "not finite": ({"change_weights": lambda w: w["log_std"].fill_(float("nan"))}, "log_std"),
}


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_not_supported_is_refused_and_the_supported_named(goal, rewritten, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        imported(rewritten(**changes), goal)
    assert "supported are PPO, A2C, SAC" in str(refused.value)
    assert "MlpPolicy" in str(refused.value)


def test_a_missing_vecnormalize_is_noticed(goal):
    with pytest.raises(ValueError, match=r"trained behind a VecNormalize.*--normalizer"):
        StableBaselines3(SB3 / "agent.zip").agent(goal)
    assert StableBaselines3(SB3 / "agent.zip", "none").agent(goal).normaliser is None


def test_an_agent_of_another_task_is_refused(toy):
    with pytest.raises(ValueError, match="--env"):
        imported(SB3 / "agent.zip", toy)


def test_a_network_of_another_observation_is_refused(goal, rewritten):
    def narrow(weights):
        weights["mlp_extractor.policy_net.0.weight"] = torch.zeros(32, 59)

    with pytest.raises(ValueError, match="takes 59 observations"):
        imported(rewritten(change_weights=narrow), goal)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and nothing", b"\x80\x04."])
def test_what_is_no_zip_is_refused(goal, tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="no archive"):
        imported(tmp_path / "a.zip", goal)


def test_a_zip_bomb_is_not_unpacked(goal, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(1 << 20))
    with pytest.raises(ValueError, match="compressed members"):
        imported(tmp_path / "a.zip", goal)


find = StableBaselines3.find


ARGS = "!!python/object/apply:collections.OrderedDict\n- - - algo\n    - ppo\n  - - env\n    - Line-v0\n"
CONFIG = "!!python/object/apply:collections.OrderedDict\n- - - n_steps\n    - 256\n  - - normalize\n    - true\n"


@pytest.fixture
def folder(tmp_path):
    """As `rl_zoo3.train` leaves it."""
    inner = tmp_path / "Line-v0_1" / "Line-v0"
    inner.mkdir(parents=True)
    for file in ("Line-v0.zip", "best_model.zip", "0.monitor.csv", "evaluations.npz", "Line-v0/vecnormalize.pkl"):
        (inner.parent / file).touch()
    (inner / "args.yml").write_text(ARGS)
    (inner / "config.yml").write_text(CONFIG)
    return inner.parent


def test_the_final_agent_of_a_folder_and_its_statistics_are_found(folder):
    expected = folder / "Line-v0.zip", folder / "Line-v0" / "vecnormalize.pkl"
    assert find(folder) == find(folder / "Line-v0.zip") == expected
    assert find(folder / "best_model") == (folder / "best_model.zip", expected[1])


@pytest.mark.parametrize("inner", ["args.yml", "config.yml", "vecnormalize.pkl"])
def test_the_best_agent_of_a_folder_without_a_final_one(folder, inner):
    (folder / "Line-v0.zip").unlink()
    for file in (folder / "Line-v0").iterdir():
        if file.name != inner:
            file.unlink()
    statistics = folder / "Line-v0" / "vecnormalize.pkl" if inner == "vecnormalize.pkl" else None
    assert find(folder) == (folder / "best_model.zip", statistics)


def test_an_ending_may_be_left_out(tmp_path):
    (tmp_path / "ppo.v1.zip").touch()
    (tmp_path / "vecnormalize.pkl").touch()
    assert find(tmp_path / "ppo.v1") == (tmp_path / "ppo.v1.zip", None)
    assert find(tmp_path / "ppo.v2") == (tmp_path / "ppo.v2", None)
    assert find(tmp_path) == (tmp_path / "ppo.v1.zip", tmp_path / "vecnormalize.pkl")


WRAPPERS = {
    "env_wrapper": "rl_zoo3.wrappers.TimeFeatureWrapper",
    "frame_stack": "4",
    "vec_env_wrapper": "{mine.Wrapper: {scale: 2.0}}",
}


@pytest.mark.parametrize(("name", "value"), WRAPPERS.items())
def test_an_agent_behind_a_wrapper_is_refused_by_name(folder, name, value):
    (folder / "Line-v0" / "config.yml").write_text(f"{CONFIG}  - - {name}\n    - {value}\n")
    with pytest.raises(ValueError, match=f"config.yml has {name}"):
        find(folder)


@pytest.mark.parametrize("content", ["[1, 2", "text", "- 1", "!!python/object/apply:os.system [touch sprung]"])
def test_another_configuration_is_refused_and_nothing_of_it_is_run(folder, content, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "Line-v0" / "config.yml").write_text(content)
    with pytest.raises(ValueError, match="no configuration of rl-zoo3"):
        find(folder)
    assert not (folder / "sprung").exists()


def test_a_folder_as_rl_zoo3_puts_it_on_the_hub(tmp_path):
    (tmp_path / "sac-Line-v0").mkdir()
    for file in ("sac-Line-v0.zip", "train_eval_metrics.zip", "vec_normalize.pkl", "replay.mp4"):
        (tmp_path / file).touch()
    (tmp_path / "args.yml").write_text(ARGS)
    (tmp_path / "config.yml").write_text(CONFIG)
    expected = tmp_path / "sac-Line-v0.zip", tmp_path / "vec_normalize.pkl"
    assert find(tmp_path) == find(tmp_path / "sac-Line-v0.zip") == expected
    (tmp_path / "config.yml").write_text(f"{CONFIG}  - - frame_stack\n    - 4\n")
    with pytest.raises(ValueError, match="frame_stack"):
        find(tmp_path / "sac-Line-v0.zip")


@pytest.mark.parametrize("agents", [[], ["a.zip", "b.zip"]])
def test_a_folder_with_none_or_several_agents_is_refused(tmp_path, agents):
    for agent in agents:
        (tmp_path / agent).touch()
    with pytest.raises(ValueError, match=f"holds {len(agents)} agents"):
        find(tmp_path)
