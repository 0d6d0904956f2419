"""Environments of the user's own: costs that appear late, failures of their code, ids with a module or a namespace."""

import re
import sys

import gymnasium
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from lightning_unlearn import cli, keys
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.gymnasium_simulator import GymnasiumSimulator
from lightning_unlearn.envs.parallel import is_portable
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard, load_policy, save_policy
from lightning_unlearn.tracking import registry

MODULE = """
import gymnasium
import numpy as np


class Line(gymnasium.Env):
    low, high = [-1.0], [1.0]
    wall = 110  # steps of all episodes before the wall's cost is reported at all

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(np.array(self.low, np.float32), np.array(self.high, np.float32))
        self.steps = 0

    def seen(self):
        return np.array([self.x, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-1, 1), 0
        return self.seen(), {}

    def step(self, action):
        self.x, self.t, self.steps = self.x + 0.1 * float(action[0]), self.t + 1, self.steps + 1
        return self.seen(), -abs(self.x), False, False, self.info()

    def info(self):
        late = {"cost_wall": 1.0} if self.steps >= self.wall else {}
        return {"cost": float(self.x > 0), **late}


class Parity(Line):  # a late cost, another one in every second environment
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.kind = "even" if seed % 2 == 0 else "odd"
        return super().reset(seed=seed)

    def info(self):
        return {"cost": 1.0, f"cost_{self.kind}": 1.0} if self.steps >= self.wall else {"cost": 0.0}


class Silent(Line):  # says nothing of a cost until there is one
    def info(self):
        return {"cost": 1.0, "cost_far": np.array([True]), "cost_kind": "far"} if self.x > 0.5 else {}


class Overlooked(Line):
    def info(self):
        return {"cost": 1.0, **({"cost_hazards": 1.0} if self.steps >= 110 else {})}


class Buggy(Line):
    def step(self, action):
        if self.steps == 104:
            np.zeros(2)[:] = np.zeros(3)  # the mistake
        return super().step(action)


class NaNs(Line):
    def seen(self):
        return np.array([self.x, np.nan if self.t == 3 else self.t], np.float32)


class NaNCost(Line):
    def info(self):
        return {"cost": np.nan}


class Short(Line):
    def seen(self):
        return np.array([self.x], np.float32)


class LateShort(Line):
    def seen(self):
        return np.array([self.x] if self.steps == 104 else [self.x, 0.0], np.float32)


class OldReset(Line):
    def reset(self, **options):
        return super().reset(**options)[0]


class FourParts(Line):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class NoSeed(Line):
    def reset(self):
        return self.seen(), {}


class NoStep(Line):
    def step(self, action):
        pass


class NoInfo(Line):
    def step(self, action):
        return (*super().step(action)[:4], None)


class Rare(Line):  # a cost that random steps never meet
    def info(self):
        return {"cost": 1.0} if self.t > 1000 else {}


class Exits(Line):
    def step(self, action):
        if self.steps == 104:
            raise SystemExit(3)  # of the environment
        return super().step(action)


class TwoCosts(Line):
    def info(self):
        return {"cost": np.ones(2)}


class Unmade(Line):
    def __init__(self):
        raise ValueError("a bad argument of my own")


class Locked(Line):
    low, high = [-1.0, 0.5], [1.0, 0.5]


class Huge(Line):
    low, high = [-3e38], [3e38]


kinds = [Line, Parity, Silent, Overlooked, Buggy, NaNs, NaNCost, Short, LateShort, OldReset, TwoCosts, Unmade]
kinds += [FourParts, NoSeed, NoStep, NoInfo, Rare, Exits]
for kind in [*kinds, Locked, Huge]:
    gymnasium.register(f"{kind.__name__}-v0", entry_point=f"lines:{kind.__name__}", max_episode_steps=20)
gymnasium.register("Long-v0", entry_point="lines:Line", max_episode_steps=109)
gymnasium.register("Untimed-v0", entry_point="lines:FourParts")
gymnasium.register("lab/Line-v0", entry_point="lines:Line", max_episode_steps=20)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """The module in the working directory, which is not on the import path; not imported yet."""
    (tmp_path / "lines.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = set(gymnasium.registry)
    yield tmp_path / "lines.py"
    sys.modules.pop("lines", None)
    for env_id in set(gymnasium.registry) - before:
        del gymnasium.registry[env_id]


def line_of(module, text):
    return f"{module}:{next(n for n, line in enumerate(module.read_text().splitlines(), 1) if text in line)}"


def stepped(env_id, steps, num_envs=1):
    sim = GymnasiumSimulator(env_id, num_envs)
    sim.reset(seeds=list(range(num_envs)))
    for _ in range(steps):
        step = sim.step(np.ones((num_envs, 1)))
        if (done := step.terminated | step.truncated).any():
            sim.reset(done)
    return sim, step


@pytest.fixture
def policy():
    return ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[8]), torch.Generator().manual_seed(0))


def collected(policy, horizon, concept="auto"):
    env = make_env("lines:Line-v0", 2, concept)
    env.set_seed(0)
    return env, RolloutCollector(env, policy, horizon, torch.Generator().manual_seed(0))


def test_a_cost_that_appears_late_is_collected_and_was_0_before():
    sim, step = stepped("lines:Line-v0", 109)
    assert tuple(step.costs) == sim.cost_keys == ("cost_sum",)
    assert sim.step(np.ones((1, 1))).costs["cost_wall"] == 1.0
    assert sim.cost_keys == ("cost_wall", "cost_sum")


def test_a_rollout_holds_a_late_cost_and_a_resumed_one_the_same(policy):
    env, collector = collected(policy, 100)
    assert set(collector.rollout()[keys.NEXT, keys.COSTS].keys()) == {"cost_sum"}
    wall = (rollout := collector.rollout())[keys.NEXT, keys.COSTS, "cost_wall"]
    assert wall[:, :9].sum() == 0
    assert wall[:, 9:].all()
    policy.mean(rollout[keys.OBSERVATION]).sum().backward()  # which tensors made for inference only would refuse
    state = collector.state_dict()
    env.close()
    env, again = collected(policy, 100)
    again.load_state_dict(state)
    assert set(again.rollout()[keys.NEXT, keys.COSTS].keys()) == {"cost_wall", "cost_sum"}
    env.close()


def test_a_concept_named_by_a_late_cost_counts_from_its_first_report_on(policy):
    with pytest.warns(UserWarning, match="cost_wall.*has not reported it in random steps"):
        env, collector = collected(policy, 120, concept="cost_wall")
    rollout = collector.rollout()
    assert rollout[keys.NEXT, keys.C_FORGET][:, :109].sum() == 0
    assert rollout[keys.NEXT, keys.C_FORGET][:, 109:].all()
    env.close()


def test_processes_of_their_own_meet_late_costs_each_in_its_order(policy):
    rollouts = []
    for workers in (1, 2):
        env = make_env("lines:Parity-v0", 2, workers=workers)
        env.seed_environments([3, 4])
        collector = RolloutCollector(env, policy, 60, torch.Generator().manual_seed(0))
        collector.rollout()
        rollouts.append(collector.rollout())
        restored = RolloutCollector(env, policy, 60, torch.Generator())
        restored.load_state_dict(collector.state_dict())
        assert set(env.simulator.cost_keys) == {"cost_even", "cost_odd", "cost_sum"}
        env.close()
    one, several = rollouts
    assert set(one[keys.NEXT, keys.COSTS].keys()) == {"cost_even", "cost_odd", "cost_sum"}
    assert (one == several).all()
    even, odd = (one[keys.NEXT, keys.COSTS, f"cost_{kind}"].sum(1).flatten().tolist() for kind in ("even", "odd"))
    assert (odd, even) == ([11, 0], [0, 11])  # from the 110th step on


def test_an_environment_of_the_main_file_stays_in_its_process(capsys):
    class Here(gymnasium.Env):
        pass

    Here.__module__ = "__main__"
    assert not is_portable(Here)
    assert not is_portable(lambda count: None)


@pytest.mark.filterwarnings("ignore:.*has not reported it in random steps")
def test_a_rollout_of_torchrl_goes_on_when_a_cost_appears():
    env = make_env("lines:Line-v0", 2, "cost_wall")
    env.set_seed(0)
    assert env.rollout(120, break_when_any_done=False)[keys.NEXT, keys.C_FORGET].sum() == 2 * 11
    env.close()


def test_an_environment_may_report_costs_only_where_there_are_some():
    sim, step = stepped("lines:Silent-v0", 20)
    assert sim.cost_keys == ("cost_far", "cost_sum")
    assert step.costs["cost_sum"] == step.costs["cost_far"] == 1.0


def test_hazards_that_auto_overlooked_are_warned_of(policy):
    env = make_env("lines:Overlooked-v0", 1)
    env.set_seed(0)
    collector = RolloutCollector(env, policy, 120, torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="auto was taken as cost_sum, and only now .* has reported cost_hazards"):
        collector.rollout()
    env.close()


def test_a_name_that_can_never_be_a_cost_is_refused():
    with pytest.raises(ValueError, match="'collision' is never reported"):
        make_env("lines:Line-v0", 1, "collision")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Short", r"the reset of environment 0 returned an observation of shape \(1,\).*see Short.reset at .*lines.py"),
        ("OldReset", r"the reset of environment 0 returned an observation of shape \(\).*lines.py"),
        ("TwoCosts", r"the cost must be one number, not array.*lines.py"),
        ("Locked", r"component 1 of its actions is locked \(low 0.5, high 0.5\)"),
        ("Huge", "unbounded actions"),
        ("Unmade", "^a bad argument of my own$"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(name, message):
    with pytest.raises(ValueError, match=message):
        make_env(f"lines:{name}-v0", 1)


def test_a_shape_that_changes_later_is_named_with_step_and_line(module):
    with pytest.raises(ValueError, match=r"step 4 of an episode of environment 0 returned .*shape \(1,\)") as caught:
        stepped("lines:LateShort-v0", 110)
    assert line_of(module, "def step(self") in str(caught.value)


@pytest.mark.parametrize(("name", "what", "step"), [("NaNs", "observation", 3), ("NaNCost", "cost", 1)])
def test_numbers_that_are_not_finite_are_named_with_step_and_line(module, name, what, step):
    message = rf"11 times in a row, the last time in step {step} of its episode, the {what} is not finite"
    with pytest.raises(RuntimeError, match=message) as caught:
        stepped(f"lines:{name}-v0", 60)
    assert line_of(module, "def step(self") in str(caught.value)


def test_an_exception_of_an_environment_keeps_its_traceback(module, store, capsys):
    chain = ["-c", "base.yaml", "-c", "method/unsafe.yaml", "--env", "lines:Buggy-v0"]
    with pytest.raises(ValueError, match="could not broadcast") as caught:
        cli.main(["fit", *chain, "--updates", "1", "--horizon", "120", "--n_envs", "1"])
    note = caught.value.__notes__[0]
    assert note.startswith("lines:Buggy-v0: environment 0 raised this in step 5 of its episode")
    assert line_of(module, "# the mistake") in note
    assert "lightning-unlearn: error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env_id", "method", "error"),
    [
        ("FourParts", "step", ValueError),
        ("Untimed", "step", ValueError),
        ("NoSeed", "reset", TypeError),
        ("NoStep", "step", TypeError),
        ("NoInfo", "step", ValueError),
    ],
)
def test_a_method_of_another_signature_is_named_with_its_line(module, env_id, method, error):
    with pytest.raises(error) as caught:
        make_env(f"lines:{env_id}-v0", 1)
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    kind = "FourParts" if env_id == "Untimed" else env_id
    definition = module.read_text().partition(f"class {kind}(")[0].count("\n") + 2
    assert f"see {kind}.{method} at {module}:{definition}" in told
    assert "site-packages" not in told


def test_a_cost_that_random_steps_do_not_meet_has_a_remedy(module):
    with pytest.raises(ValueError, match=r'report info\["cost"\] = 0.0 in the other steps: see Rare.step'):
        make_env("lines:Rare-v0", 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_that_exits_is_named_and_its_code_is_kept(module, policy, workers):
    env = make_env("lines:Exits-v0", 2, workers=workers)
    env.set_seed(0)
    collector = RolloutCollector(env, policy, 120, torch.Generator().manual_seed(0))
    with pytest.raises(SystemExit) as stopped:
        collector.rollout()
    env.close()
    assert stopped.value.code == 3
    assert stopped.value.__notes__[0].startswith("lines:Exits-v0: environment 0 raised this in step 5 of its episode")
    assert line_of(module, "# of the environment") in stopped.value.__notes__[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_actions_that_are_not_finite_are_not_the_environments_fault(workers):
    env = make_env("lines:Line-v0", 2, workers=workers)
    env.set_seed(0)
    env.restart()
    with pytest.raises(ValueError, match="component 0 of the action for environment 1 is nan"):
        env.simulator.step(np.array([[0.0], [np.nan]]))
    env.close()


CHAIN = ["-c", "base.yaml", "-c", "method/unsafe.yaml", "--updates", "1", "--horizon", "64", "--n_envs", "2"]


@pytest.mark.parametrize(
    ("env_id", "name"), [("lines:Line-v0", "lines~Line-v0"), ("lines:lab/Line-v0", "lines~lab+Line-v0")]
)
def test_an_own_environment_from_training_to_evaluation(store, tmp_path, capsys, env_id, name):
    cli.main(["fit", *CHAIN, "--env", env_id])
    uri = f"models:/unsafe.{name}/1"
    assert registry.load_policy(uri).card.env == env_id
    cli.main(["evaluate", "--env", env_id, "--episodes", "12", "--workers", "2", "--eval_id", "own"])
    assert "unsafe" in capsys.readouterr().out
    assert len(pd.read_csv(next(tmp_path.glob("artifacts/**/own/per_episode.csv")))) == 12
    (run,) = mlflow.search_runs(experiment_names=[env_id], filter_string="tags.method='unsafe'", output_format="list")
    with pytest.raises(SystemExit):
        cli.main(["reproduce", run.info.run_id])
    assert "--module lines" in capsys.readouterr().err
    cli.main(["reproduce", run.info.run_id, "--module", "lines"])
    assert "Reproduced: 1 save points" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
def test_failed_episodes_are_told(module, store, capsys, workers):
    chain = [*CHAIN[:-4], "--horizon", "12", "--n_envs", "2", "--data.workers", str(workers)]
    with pytest.warns(UserWarning, match="lines:NaNs-v0: the simulation failed in 8 of 8 episodes"):
        cli.main(["fit", *chain, "--env", "lines:NaNs-v0"])
    why = (
        f"in step 3 of its episode, the observation is not finite: see NaNs.step at {line_of(module, 'def step(self')}"
    )
    assert f"failed in 8 of 8 episodes, the last one {why}\n" in capsys.readouterr().out
    cli.main(["evaluate", "--env", "lines:NaNs-v0", "--episodes", "2", "--workers", str(workers)])
    printed = capsys.readouterr().out
    assert f"failed in 2 of 2 episodes, the last one {why}\n" in printed
    assert "Failed_Episodes" in printed


def test_an_evaluation_has_every_cost_of_every_model(store, tmp_path, policy):
    """The first model's episodes end before the environment has ever reported the wall."""
    other = ActorCritic(policy.config, torch.Generator().manual_seed(1))
    for number, some in enumerate((policy, other)):
        save_policy(tmp_path / f"policy{number}", some, ModelCard("concept", "lines:Long-v0"))
    models = [str(tmp_path / f"policy{number}") for number in range(2)]
    cli.main(["evaluate", "--env", "lines:Long-v0", "--models", *models, "--unsafe_model", models[0], *SMALL])
    table = pd.read_csv(next(tmp_path.glob("artifacts/**/late/per_episode.csv")))
    assert table["cost_wall"].tolist() == [0.0, 0.0, 109.0, 109.0]
    summary = pd.read_csv(next(tmp_path.glob("artifacts/**/late/summary.csv")))
    assert [0.0, 109.0] in [column.tolist() for name, column in summary.items() if "cost_wall" in name]


SMALL = ["--episodes", "2", "--workers", "1", "--eval_id", "late"]


def test_a_module_that_is_not_there_and_an_unknown_id_are_refused_first(store, refused):
    assert "there is no module 'nowhere'" in refused("import", "sb3", "agent.zip", "--env", "nowhere:Line-v0")
    message = refused("import", "sb3", "agent.zip", "--env", "SafetyPointGaol1-v0")
    assert "the nearest are SafetyPointGoal1-v0" in message
    assert "Traceback" not in message
    message = refused("import", "sb3", "agent.zip", "--env", "lines:Lone-v0")
    assert re.search(
        "unknown environment 'lines:Lone-v0': the module 'lines' is there, and registers .*Line-v0", message
    )
    assert "SafetyPoint" not in message


def test_a_policy_with_an_environment_of_a_namespace_is_read_back(tmp_path, policy):
    save_policy(tmp_path / "policy", policy, ModelCard("concept", "my.lines:lab/Line-v0"))
    assert load_policy(tmp_path / "policy").card.env == "my.lines:lab/Line-v0"
    for env_id in ("../Line-v0", "a/b/Line-v0", "/Line-v0", "a:b:Line-v0", "lab/..", "lab/"):
        with pytest.raises(ValueError, match="is no name"):
            ModelCard("concept", env_id)
