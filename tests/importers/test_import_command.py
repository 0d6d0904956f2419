"""The command, from a foreign file to a registered expert and a method that starts from it."""

import re

import gymnasium
import mlflow
import numpy as np
import pytest
import torch
from fixture_agent import SB3, sb3_actions
from tensordict import TensorDict

from lightning_unlearn import cli, keys
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.importers.critic_warm_up import regress, warm_up
from lightning_unlearn.losses.gae import explained_variance
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import open_store

SMALL = ["--warm_up_rollouts", "2", "--num_envs", "2", "--horizon", "64"]
AGENT = [str(SB3 / "agent.zip"), "--normalizer", str(SB3 / "vecnormalize.pkl")]
URI = "models:/unsafe.SafetyPointGoal1-v0/1"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_an_agent_becomes_an_expert_that_a_method_starts_from(store, capsys):
    cli.main(["import", "sb3", *AGENT, *SMALL])
    printed = capsys.readouterr().out
    assert float(re.search(r"difference.*: (\S+)", printed)[1]) < 1e-4
    assert "--tracking_uri" not in printed
    assert URI in printed
    stored = registry.load_policy(URI)
    assert stored.card.method == "unsafe"
    assert stored.card.note == "imported from Stable-Baselines3 2.9.2 (PPO), file agent.zip"
    states, expected = sb3_actions()
    torch.testing.assert_close(stored.policy.act(states), expected, rtol=0, atol=1e-5)
    (run,) = mlflow.search_runs(experiment_names=["SafetyPointGoal1-v0"], output_format="list")
    assert run.data.metrics["import/largest_action_difference"] < 1e-4
    chain = [part for file in ("base", "env/point_goal1", "method/concept") for part in ("-c", f"{file}.yaml")]
    cli.main(["fit", *chain, "--updates", "1", "--save_points", "1", "--horizon", "32", "--unsafe_updates", "0"])
    printed = capsys.readouterr().out
    assert f"Starting from {URI}" in printed
    assert registry.load_policy("models:/concept.SafetyPointGoal1-v0@update-1").policy.config == stored.policy.config


class FarLine(gymnasium.Env):
    """What `offset.zip` of the fixtures was trained in, with a cost."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state + 1e6, {}

    def step(self, action):
        self.state[1] = 0.9 * self.state[1] + 0.1 * float(action[0])
        self.state[0] += 0.1 * self.state[1]
        return self.state + 1e6, -abs(self.state[0]), False, False, {"cost": float(self.state[0] > 0.5)}


@pytest.fixture
def far_line():
    gymnasium.register("FarLine-v0", FarLine, max_episode_steps=50)
    yield "FarLine-v0"
    del gymnasium.registry["FarLine-v0"]


def test_an_rl_zoo_folder_with_observations_far_from_zero(store, capsys, tmp_path, far_line):
    """It is found as rl-zoo3 leaves it, and compared on observations as the environment computes them."""
    settings, inner = SB3.parent / "sb3_settings", tmp_path / far_line
    inner.mkdir()
    (tmp_path / "best_model.zip").write_bytes((settings / "offset.zip").read_bytes())
    (inner / "vecnormalize.pkl").write_bytes((settings / "offset.pkl").read_bytes())
    cli.main(["import", "sb3", str(tmp_path), "--env", far_line, *SMALL])
    printed = capsys.readouterr().out
    assert "best_model.zip with" in printed
    assert float(re.search(r"difference.*: (\S+)", printed)[1]) < 1e-5
    policy = registry.load_policy(f"models:/unsafe.{far_line}/1").policy
    recorded = np.load(settings / "actions.npz")
    actions = policy.act(torch.from_numpy(recorded["states"] + 1e6))
    np.testing.assert_allclose(actions.detach().numpy(), recorded["offset"], atol=1e-5)
    served = mlflow.pyfunc.load_model(f"models:/unsafe.{far_line}/1")
    np.testing.assert_allclose(served.predict(recorded["states"] + 1e6), recorded["offset"], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "variable", "printed"),
    [
        (None, None, None),
        ("sqlite:///mlruns/mlflow.db", None, None),
        ("sqlite:///other/mlruns/mlflow.db", None, "other"),
        (None, "sqlite:///other/mlflow.db", None),
        ("sqlite:///mlruns/mlflow.db", "sqlite:///other/mlflow.db", "."),
    ],
)
def test_the_printed_command_names_the_store_where_a_plain_one_opens_another(
    store, tmp_path, template_store, monkeypatch, given, variable, printed
):
    for folder in ("other", "other/mlruns"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mlflow.db").write_bytes(template_store.read_bytes())
    mlflow.set_tracking_uri(None)
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    uri = f"sqlite:///{(tmp_path / (printed or '.')).resolve()}/mlruns/mlflow.db"
    assert open_store(given) == (f" --tracking_uri {uri}" if printed else "")


@pytest.mark.parametrize("critics", ["shared", "separate"])
def test_the_warm_up_teaches_the_critics_and_leaves_the_policy(generator, critics):
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[16, 16], critics=critics), generator)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    data = RolloutData("ToyLine-v0", 8, 512)
    warmth = warm_up(policy, data, 6)
    data.teardown("fit")
    assert warmth.after.cost > warmth.before.cost + 0.05
    assert warmth.after.reward > warmth.before.reward + 0.1
    changed = {n.split(".")[0] for n, value in policy.state_dict().items() if not torch.equal(value, before[n])}
    own_trunk = {"critic_trunk"} if critics == "separate" else set()
    assert changed == {"reward_value", "cost_value"} | own_trunk
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_reward_critic_survives_costs_that_vary_a_thousand_times_as_much(generator):
    """Both critics read one trunk of four units, which costs alone would bend to their shape."""
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[4], critics="separate"), generator)
    state = torch.randn(1, 2048, 2, generator=generator)
    reward, cost = 0.1 * state[..., :1], 100.0 * state[..., 1:].sin()
    batch = TensorDict({keys.OBSERVATION: state, keys.REWARD_TARGET: reward, keys.COST_TARGET: cost}, [1, 2048])
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for _ in range(5):
        regress(policy, optimizer, batch, generator)
    assert explained_variance(policy(state).reward_value.detach(), reward[..., 0]) > 0.9


def test_explained_variance():
    target = torch.tensor([0.0, 2.0, 4.0])
    assert explained_variance(target + 1.0, target) == 1.0  # an offset is no variance
    assert explained_variance(torch.zeros(3), target) == 0.0
    assert explained_variance(torch.ones(3), torch.ones(3)) == 0.0


BAD = {
    "no such library": (["sb4", "agent.zip"], "Did you mean sb3"),
    "no such agent": (["sb3", "nowhere.zip", "--normalizer", "none"], "nowhere.zip .*was not found"),
    "no normaliser": (["sb3", AGENT[0]], "--normalizer"),
    "no such normaliser": (["sb3", AGENT[0], "--normalizer", "nowhere.pkl"], "nowhere.pkl was not found"),
    "no such environment": (["sb3", *AGENT, "--env", "SafetyPointGaol1-v0"], "SafetyPointGoal1-v0"),
    "another environment": (["sb3", *AGENT, "--env", "SafetyPointCircle1-v0"], "takes 60 observations.*--env"),
    "too short a warm-up": (["sb3", *AGENT, "--warm_up_rollouts", "1"], "at least 2"),
    "an std of 0": (["sb3", *AGENT, "--exploration_std", "0"], "use a number above 0"),
    "nan as std": (["sb3", *AGENT, "--exploration_std", "nan"], "--exploration_std nan is not possible: use a number"),
    "an infinite std": (["sb3", *AGENT, "--exploration_std", "inf"], "--exploration_std inf is not possible: use a"),
    "YAML's infinite std": (["sb3", *AGENT, "--exploration_std", ".inf"], "use a number above 0"),
    "a negative std": (["sb3", *AGENT, "--exploration_std", "-1"], "--exploration_std -1.0 .* use a number above 0"),
    "an std for a Gaussian": (["sb3", *AGENT, "--exploration_std", "0.2"], "Gaussian of its own.*leave the option out"),
    "a normaliser for omnisafe": (["omnisafe", "run", *AGENT[1:]], "leave --normalizer out"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_anything_is_stored(store, capsys, given, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["import", *given])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert mlflow.MlflowClient().search_registered_models() == []
