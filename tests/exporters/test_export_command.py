"""Models in formats of other libraries act as they do here."""

import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_unlearn import cli
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.importers.normaliser import read_normaliser
from lightning_unlearn.importers.sb3 import StableBaselines3
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor

SB3 = Path(__file__).parent.parent / "fixtures" / "sb3"
AGENT, STATISTICS = str(SB3 / "agent.zip"), str(SB3 / "vecnormalize.pkl")
ENV = "SafetyPointGoal1-v0"


def generator():
    return torch.Generator().manual_seed(0)


def states():
    known = read_normaliser(SB3 / "vecnormalize.pkl")
    return (known.mean + known.variance.sqrt() * torch.randn(256, 60, generator=generator())).float()


@pytest.fixture(scope="module")
def repaired():
    """The imported agent, all of whose weights have moved."""
    env = make_env(ENV, 1)
    policy = StableBaselines3(SB3 / "agent.zip", STATISTICS).policy(env.simulator, generator())
    env.close()
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator())
    return policy


def gated(size):
    return GatedEditor(torch.nn.functional.one_hot(torch.tensor(3), size).float(), 1.5, -0.5, 10.0)


def affine(size):
    return AffineEditor(
        torch.eye(size) + 0.1 * torch.randn(size, size, generator=generator()), torch.full((size,), 0.2)
    )


def saved(policy, folder):
    save_policy(folder, policy, ModelCard("concept", ENV))
    return str(folder)


CONFIGS = [
    PolicyConfig(5, [-1.0, 0.0], [1.0, 4.0]),
    PolicyConfig(5, [-2.0], [1.0], squash="scale", activation="relu", critics="separate"),
    PolicyConfig(5, [-0.1], [0.1], squash="none", normalise_observation=True, normaliser_clip=1.0),
    PolicyConfig(5, [-1.0], [1.0], normalise_observation=True, normaliser_dtype="float64", observation_dtype="float64"),
]


def moved(config, editor):
    """A policy with statistics and an editor of its own."""
    policy = ActorCritic(config, generator())
    if policy.normaliser is not None:
        policy.normaliser.mean.fill_(0.3)
        policy.normaliser.variance.fill_(4.0)
    return policy if editor is None else policy.with_editor(editor(config.latent_size))


def batches(policy):
    for rows in (1, 2, 64):
        yield 2 * torch.randn(rows, 5, generator=generator(), dtype=policy.observation_dtype)


@pytest.mark.parametrize(("config", "editor"), [*zip(CONFIGS, (None, gated, affine, None), strict=True)])
def test_a_program_gives_the_models_actions_for_any_number_of_rows(config, editor, tmp_path):
    policy = moved(config, editor)
    cli.main(["export", "pt2", saved(policy, tmp_path / "model"), "--out", str(tmp_path / "a.pt2")])
    act = torch.export.load(tmp_path / "a.pt2").module()
    for observation in batches(policy):
        torch.testing.assert_close(act(observation), policy.act(observation), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("config", "editor"), [(CONFIGS[1], gated), (CONFIGS[3], affine)])
def test_onnx_runtime_gives_the_models_actions_for_any_number_of_rows(config, editor, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    policy = moved(config, editor)
    cli.main(["export", "onnx", saved(policy, tmp_path / "model"), "--out", str(tmp_path / "a.onnx")])
    printed = capsys.readouterr()
    assert "largest difference of an action" in printed.out
    assert not printed.err
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    for observation in batches(policy):
        (actions,) = session.run(None, {"observation": observation.numpy()})
        torch.testing.assert_close(torch.from_numpy(actions), policy.act(observation), rtol=0, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["a.onnx"]


def test_onnx_without_its_extra_is_refused_by_name(refused, monkeypatch, tmp_path):
    model = saved(ActorCritic(CONFIGS[0], generator()), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "with its extra `onnx`" in refused("export", "onnx", model, "--out", str(tmp_path / "a.onnx"))
    assert not (tmp_path / "a.onnx").exists()


def test_a_model_of_the_store_is_found(register, tmp_path, capsys):
    cli.main(["export", "pt2", register("concept", 50, 0.3), "--out", "a.pt2"])
    assert (tmp_path / "a.pt2").is_file()
    assert "takes (rows, 2) float32 and gives (rows, 1) float32" in capsys.readouterr().out


def into_zip(policy, folder, *options):
    new = folder / "new" / "agent.zip"
    given = options or ("--into", AGENT, "--normalizer", STATISTICS)
    cli.main(["export", "sb3", saved(policy, folder / "model"), *given, "--out", str(new)])
    return new


@pytest.mark.parametrize("editor", [None, affine])
def test_a_repair_is_read_back_from_the_agents_zip(repaired, editor, tmp_path, capsys):
    policy = repaired if editor is None else repaired.with_editor(editor(24))
    new = into_zip(policy, tmp_path)
    env = make_env(ENV, 1)
    back = StableBaselines3(new, STATISTICS).policy(env.simulator, generator())
    env.close()
    original = StableBaselines3(SB3 / "agent.zip", STATISTICS)
    assert (policy.act(states()) - original.reference(env.simulator)(states())).abs().max() > 0.1
    torch.testing.assert_close(back.act(states()), policy.act(states()), rtol=0, atol=1e-4)
    torch.testing.assert_close(back.std, policy.std)
    torch.testing.assert_close(back(states()).reward_value, repaired(states()).reward_value)
    with zipfile.ZipFile(AGENT) as before, zipfile.ZipFile(new) as after:
        assert before.namelist() == after.namelist()
        assert all(before.read(n) == after.read(n) for n in before.namelist() if n != "policy.pth")
    assert "vecnormalize.pkl" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves the zip open
def test_stable_baselines3_itself_predicts_the_repaired_actions(repaired, tmp_path):
    sb3 = pytest.importorskip("stable_baselines3", reason="the extra `sb3` is not installed")
    known = read_normaliser(SB3 / "vecnormalize.pkl")
    seen = (states().double() - known.mean) / (known.variance + known.epsilon).sqrt()
    unread = {"clip_range": 0.2, "lr_schedule": float}  # pickles that another version of the library may not know
    agent = sb3.PPO.load(into_zip(repaired, tmp_path), device="cpu", custom_objects=unread)
    actions, _ = agent.predict(seen.clamp(-known.clip, known.clip).float().numpy(), deterministic=True)
    torch.testing.assert_close(torch.from_numpy(actions), repaired.act(states()).detach(), rtol=0, atol=1e-5)


def test_what_the_agent_cannot_express_is_refused_by_name(repaired, refused, tmp_path):
    def message(policy, *options):
        model = saved(policy, tmp_path / "model")
        return refused("export", "sb3", model, "--into", AGENT, "--out", str(tmp_path / "n.zip"), *options)

    own = ("--normalizer", STATISTICS)
    assert "gated editor" in message(repaired.with_editor(gated(24)), *own)
    assert "trained behind a VecNormalize" in message(repaired)
    assert "normalise_observation=True" in message(repaired, "--normalizer", "none")
    other = ActorCritic(PolicyConfig(60, [-1.0, -1.0], [1.0, 1.0]), generator())
    assert "hidden_sizes=[64, 64], but --into has [32, 24]" in message(other, *own)
    assert not (tmp_path / "n.zip").exists()


def test_impossible_files_are_refused(repaired, refused, tmp_path):
    model = saved(repaired, tmp_path / "model")
    assert "ends with .pt2" in refused("export", "pt2", model, "--out", "a.zip")
    assert "exists already" in refused("export", "sb3", model, "--into", AGENT, "--out", AGENT)
    assert "was not found" in refused("export", "pt2", "nowhere", "--out", "a.pt2")
    assert "no archive" in refused("export", "sb3", model, "--into", STATISTICS, "--out", "a.zip")
    assert "Use lightning-unlearn export sb3|pt2|onnx|folder" in refused("export", "tf", model)
