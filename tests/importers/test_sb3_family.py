"""Agents of Stable-Baselines3 beside PPO, and of sb3-contrib, trained by these: they act the same here, and learn."""

import io
import re
import zipfile

import mlflow
import numpy as np
import pytest
import torch
from fixture_agent import SB3
from hostile_files import Bomb
from off_policy import SMALL, imported_and_repaired, require_recorded

from lightning_unlearn import cli
from lightning_unlearn.exporters.agent_zip import save_into
from lightning_unlearn.importers.import_command import require_same_actions
from lightning_unlearn.importers.sb3 import StableBaselines3
from lightning_unlearn.tracking import registry

FIXTURES = SB3.parent
FAMILY, ZOO = FIXTURES / "sb3_family", FIXTURES / "rl_zoo3" / "sac" / "PushLine-v0_1"
RAW = ["--normalizer", "none"]
SB3_AGENTS = {"sac": "SAC", "td3": "TD3", "ddpg": "DDPG", "tqc": "TQC", "a2c": "A2C", "normalised": "SAC"}


def sb3_agent(name, path=None):
    statistics = str(FAMILY / "normalised.pkl") if name == "normalised" else "none"
    return StableBaselines3(path or FAMILY / f"{name}.zip", statistics)


def recorded(name):
    """States (64, 4), and the actions (64, 2) that the library's own `predict` took in them, as the task clips them."""
    content = np.load(FAMILY / "actions.npz")
    actions = torch.from_numpy(content[name])
    return torch.from_numpy(content["states"]), actions


@pytest.mark.parametrize("name", SB3_AGENTS)
def test_the_policy_does_what_stable_baselines3_did(push, name):
    reader = sb3_agent(name)
    policy = require_recorded(reader, push, *recorded(name))
    assert re.fullmatch(rf"Stable-Baselines3 2\.\d+\.\d+ \({SB3_AGENTS[name]}\)", reader.library)
    if name != "a2c":
        assert policy.config.squash == "tanh"
        torch.testing.assert_close(policy.std, torch.full((2,), 0.5))


def test_a_folder_that_rl_zoo3_left_does_what_stable_baselines3_did(push):
    content, reader = np.load(FIXTURES / "rl_zoo3" / "actions.npz"), StableBaselines3(ZOO)
    assert (reader.path.name, reader.statistics) == ("PushLine-v0.zip", ZOO / "PushLine-v0" / "vecnormalize.pkl")
    policy = require_recorded(reader, push, *(torch.from_numpy(content[key]) for key in ("states", "actions")))
    assert policy.config.normalise_observation
    best = StableBaselines3(ZOO / "best_model.zip")
    assert (best.path.name, best.statistics) == ("best_model.zip", reader.statistics)
    assert require_same_actions(best.reference(push), best.policy(push, torch.Generator()), torch.randn(9, 4)) < 1e-5


def test_shapes_and_activations_are_the_agents(push):
    found = {name: sb3_agent(name).policy(push, torch.Generator()).config for name in ("sac", "td3", "ddpg", "tqc")}
    assert {name: (c.hidden_sizes, c.activation) for name, c in found.items()} == {
        "sac": ([24, 16], "relu"),
        "td3": ([24, 16], "tanh"),
        "ddpg": ([16], "relu"),
        "tqc": ([16, 16], "elu"),
    }


def test_the_stated_std_is_the_policys(push):
    reader = StableBaselines3(FAMILY / "td3.zip", "none", exploration_std=0.2)
    torch.testing.assert_close(reader.policy(push, torch.Generator()).std, torch.full((2,), 0.2))


REPAIRS = {
    "sac": ("off_policy_concept", ["--model.critic_steps", "2", "--model.steps", "4"]),
    "td3": ("concept", []),
    "ddpg": ("localized_concept", []),
    "tqc": ("off_policy_concept", ["--model.critic_steps", "2", "--model.steps", "4"]),
    "a2c": ("concept", []),
}


OF_EACH_KIND = ("a2c", "sac")
"""One with a Gaussian of its own, and one without: the others are tested with the slow tests."""


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "name", [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in REPAIRS]
)
def test_each_agent_is_imported_and_repaired(store, capsys, push_line, name):
    agent = FAMILY / f"{name}.zip"
    printed, before, after = imported_and_repaired("sb3", [agent, *RAW], push_line, *REPAIRS[name], capsys)
    assert ("stated standard deviation 0.5 (--exploration_std)" in printed) == (name != "a2c")
    assert before.card.stated_std == (0.0 if name == "a2c" else 0.5)
    states = recorded(name)[0]
    assert (after.policy.act(states) - before.policy.act(states)).abs().max() > 1e-4
    assert after.policy.config == before.policy.config


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_agent_in_a_folder_of_rl_zoo3_is_imported_and_repaired(store, capsys, push_line):
    printed, before, after = imported_and_repaired("sb3", [ZOO], push_line, "concept", [], capsys)
    assert f"Found {ZOO / 'PushLine-v0.zip'} with {ZOO / 'PushLine-v0' / 'vecnormalize.pkl'}" in printed
    states = torch.from_numpy(np.load(FIXTURES / "rl_zoo3" / "actions.npz")["states"])
    assert (after.policy.act(states) - before.policy.act(states)).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_kl_columns_say_that_the_std_was_stated(store, capsys, push_line):
    options = ["--env", push_line, "--exploration_std", "0.25", *SMALL]
    cli.main(["import", "sb3", str(FAMILY / "sac.zip"), *RAW, *options])
    uri = f"models:/unsafe.{push_line}/1"
    assert registry.load_policy(uri).card.note.endswith("with the stated exploration std 0.25")
    assert "stated exploration" in mlflow.MlflowClient().get_model_version(f"unsafe.{push_line}", 1).description
    cli.main(["evaluate", "--env", push_line, "--models", "unsafe", "--episodes", "2", "--workers", "1", "--out", "o"])
    note = f"KL columns: {uri} has no Gaussian that is the same in every state. Its std, 0.25"
    assert note in capsys.readouterr().out


def exported(name, push, path):
    """Move all weights of an imported agent, write it into the agent's zip, and return the policy."""
    reader = sb3_agent(name)
    policy = reader.policy(push, torch.Generator().manual_seed(0)).requires_grad_(False)
    for weight in policy.parameters():
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    assert save_into(policy, reader, path) < 1e-5
    return policy


@pytest.mark.parametrize("name", ["sac", "td3", "tqc", "ddpg"])
def test_a_repair_goes_back_into_the_agents_zip(push, tmp_path, name):
    states, new = recorded(name)[0], tmp_path / "new.zip"
    policy = exported(name, push, new)
    assert (policy.act(states) - recorded(name)[1].clamp(policy.action_low, policy.action_high)).abs().max() > 0.02
    torch.testing.assert_close(sb3_agent(name, new).policy(push, torch.Generator()).act(states), policy.act(states))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves the zip open
@pytest.mark.parametrize("name", SB3_AGENTS)
def test_the_library_itself_predicts_the_repaired_actions(push, tmp_path, name):
    package = "sb3_contrib" if name == "tqc" else "stable_baselines3"
    library = pytest.importorskip(package, reason=f"{package} is not installed")
    states, policy = recorded(name)[0], exported(name, push, tmp_path / "new.zip")
    unread = {"clip_range": 0.2, "lr_schedule": float}  # pickles that another version of the library may not know
    agent = getattr(library, SB3_AGENTS[name]).load(tmp_path / "new.zip", device="cpu", custom_objects=unread)
    seen = states.numpy()
    if (known := sb3_agent(name).normaliser) is not None:
        scaled = (states.double() - known.mean) / (known.variance + known.epsilon).sqrt()
        seen = scaled.clamp(-known.clip, known.clip).float().numpy()
    actions = torch.from_numpy(agent.predict(seen, deterministic=True)[0]).clamp(policy.action_low, policy.action_high)
    torch.testing.assert_close(actions, policy.act(states), rtol=0, atol=1e-5)


def drop(prefix):
    return lambda content: [content.pop(name) for name in list(content) if name.startswith(prefix)]


def put(**values):
    return lambda content: content.update(values)


def space(field, kind):
    return lambda data: data[field].update({":type:": f"<class 'gymnasium.spaces.{kind}'>"})


UNSUPPORTED = {
    "CnnPolicy": ({"change_weights": put(**{"actor.features_extractor.cnn.0.weight": torch.zeros(2)})}, "pictures"),
    "MultiInputPolicy": ({"change_data": space("observation_space", "dict.Dict")}, "several observations"),
    "discrete actions": ({"change_data": space("action_space", "discrete.Discrete")}, "actions are discrete"),
    "another algorithm": ({"change_data": drop("target_entropy")}, "another algorithm than PPO, A2C, TQC, SAC, TD3"),
    "CrossQ": ({"change_data": put(policy_delay=3)}, "another algorithm"),
    "gSDE": ({"change_data": put(use_sde=True)}, "gSDE"),
    "a policy of one's own": ({"change_data": lambda d: d["policy_class"].update(__module__="mine")}, "of its own"),
    "no actor": ({"change_weights": drop("actor.mu")}, "actor.mu is no linear layer"),
    "not finite": ({"change_weights": lambda w: w["actor.mu.bias"].fill_(float("inf"))}, "actor.mu.bias"),
    "a version to come": ({"other_parts": {"_stable_baselines3_version": b"3.0.1"}}, "'3.0.1'.*release below 3"),
    "another option": ({"change_data": lambda d: d["policy_kwargs"].update(action_scale=2)}, "action_scale"),
}


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_not_supported_is_refused_and_the_supported_named(push, rewritten, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        sb3_agent("sac", rewritten(agent=FAMILY / "sac.zip", **changes)).policy(push, torch.Generator())
    assert "supported are PPO, A2C, SAC, TD3 and DDPG agents of Stable-Baselines3 and TQC" in str(refused.value)


def test_an_agent_of_another_task_is_refused(toy, goal):
    for simulator, message in ((toy, "gives 2 actions, but ToyLine-v0 takes 1"), (goal, "low bounds .*--env")):
        with pytest.raises(ValueError, match=message):
            sb3_agent("td3").agent(simulator)


@pytest.mark.parametrize("name", ["normalised", "td3"])
def test_whether_observations_are_normalised_has_to_be_said(push, name):
    """Off-policy agents keep the last observations in the same way behind a VecNormalize and without one."""
    with pytest.raises(ValueError, match=r"does not tell if it was trained behind a VecNormalize.*--normalizer none"):
        StableBaselines3(FAMILY / f"{name}.zip").agent(push)


def test_an_archive_of_another_library_is_refused(push, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("parameters", b"")  # as Stable-Baselines 2 writes it
    with pytest.raises(ValueError, match=r"no data, policy\.pth"):
        StableBaselines3(tmp_path / "model.zip").agent(push)


def test_nothing_in_an_agent_is_run(push, rewritten, tmp_path):
    buffer = io.BytesIO()
    torch.save({"actor.mu.weight": Bomb(tmp_path / "sprung")}, buffer)
    path = rewritten(agent=FAMILY / "sac.zip", other_parts={"policy.pth": buffer.getvalue()})
    with pytest.raises(ValueError, match="cannot be read safely"):
        StableBaselines3(path).agent(push)
    assert not (tmp_path / "sprung").exists()
