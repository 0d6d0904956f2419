"""The Python API. Its examples in the documentation are run by `test_docs.py`."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import (
    Actor,
    Delta,
    IndependentNormal,
    ProbabilisticActor,
    TanhDelta,
    TanhNormal,
    TruncatedNormal,
)

import lightning_unlearn as lu
from lightning_unlearn.envs.concepts import ObservationRange
from lightning_unlearn.importers.torch_module import TorchModule
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import DEFAULT_TRACKING_URI, artifact_location, open_store

TOY = "ToyLine-v0"
QUICK = ["--horizon", "64", "--n_envs", "4", "--data.workers", "1"]


@pytest.fixture
def registered(store):
    """A store with one model."""
    import mlflow

    experiment = mlflow.create_experiment("SafetyPointGoal1-v0", artifact_location())
    with mlflow.start_run(experiment_id=experiment) as run:
        policy = lu.load_policy("zoo:unsafe.SafetyPointGoal1-v0")
        registry.register_policy(policy, ModelCard("concept", "SafetyPointGoal1-v0", update=1), run.info.run_id)


def test_importing_the_package_is_cheap():
    loaded = "import sys, lightning_unlearn; sys.exit(bool({'torch', 'mlflow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        lu.nothing  # noqa: B018


def test_a_policy_is_saved_and_loaded(store, policy):
    lu.save_policy("mine", policy, ModelCard("concept", TOY))
    assert torch.equal(lu.load_policy("mine").act(torch.ones(1, 2)), policy.act(torch.ones(1, 2)))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("method", ["concept", "localized_concept"])
def test_a_repair_leaves_the_policy_as_it_was_and_registers_nothing(store, policy, method):
    before = [parameter.clone() for parameter in policy.parameters()]
    repaired = lu.repair(policy, TOY, method, updates=2, options=QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert not torch.equal(repaired.action_mean.weight, policy.action_mean.weight)
    import mlflow

    assert mlflow.MlflowClient().search_registered_models() == []


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_repair_hands_out_the_mean_of_the_weights_where_it_is_asked_for(store, policy):
    average = ["--average.share", "1.0"]
    one, two, mean = (
        lu.repair(policy, TOY, "concept", updates, [*QUICK, *more]).action_mean.weight
        for updates, more in ((1, []), (2, []), (2, average))
    )
    torch.testing.assert_close(mean, 0.5 * (one + two))
    assert not torch.equal(one, two)


def test_a_repair_refuses_another_environment_and_bad_options(store, policy):
    with pytest.raises(ValueError, match="the policy takes 2 observations"):
        lu.repair(policy, "SafetyPointGoal1-v0", options=["--data.workers", "1"])
    with pytest.raises(ValueError, match="Did you mean"):
        lu.repair(policy, TOY, options=["--target_cots", "1"])
    with pytest.raises(ValueError, match="--updates has no effect here"):
        lu.repair(policy, TOY, options=["--updates", "3"])
    with pytest.raises(ValueError, match="method='repedit' does not change weights by gradient"):
        lu.repair(policy, TOY, "repedit")


def global_state():
    """All that a library call has to leave alone."""
    import mlflow

    loggers = [
        "",
        "mlflow",
        "pytorch_lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "alembic",
        "lightning.pytorch.callbacks",
    ]
    return {
        "variables": dict(os.environ),
        "stores": (mlflow.get_tracking_uri(), mlflow.get_registry_uri()),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "levels": {name: logging.getLogger(name).level for name in loggers},
        "filters": list(warnings.filters),
        "interrupt": signal.getsignal(signal.SIGINT),
        "path": list(sys.path),
        "folder": (os.getcwd(), sorted(os.listdir())),
    }


def differing(before):
    return [name for name, value in global_state().items() if value != before[name]]


CALLS = {
    "repair": lambda policy: lu.repair(policy, TOY, "concept", 1, QUICK),
    "repair, recorded": lambda policy: lu.repair(
        policy, TOY, "concept", 1, QUICK, tracking_uri="sqlite:///mlruns/mlflow.db"
    ),
    "evaluate": lambda policy: lu.evaluate(policy, TOY, episodes=2, workers=1),
    "wrap": lambda policy: lu.wrap(policy.action_mean, TOY, std=0.3, warm_up_rollouts=2),
    "load": lambda policy: lu.load_policy("zoo:unsafe.SafetyPointGoal1-v0"),
    "load from a store": lambda policy: lu.load_policy("models:/none/1", "sqlite:///mlruns/mlflow.db"),
    "extrapolate": lambda policy: lu.extrapolate(policy, policy, 1.5),
    "an error": lambda policy: lu.repair(policy, "Nothing-v0", options=QUICK),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_leaves_the_process_as_it_was(store, policy, monkeypatch, call):
    import mlflow

    policy = deepcopy(policy)
    policy.action_mean = torch.nn.Linear(2, 1) if call is CALLS["wrap"] else policy.action_mean
    monkeypatch.setattr("lightning_unlearn.importers.torch_module.HORIZON", 64)
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    mlflow.set_tracking_uri("sqlite:///mine.db")
    mlflow.set_registry_uri("sqlite:///mine.db")
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            before = global_state()
            with suppress(ValueError):
                call(policy)
            assert differing(before) == []
    finally:
        torch.set_num_threads(1)
        mlflow.set_tracking_uri(store)
        mlflow.set_registry_uri(store)


PROGRAM = """
import os, sys
before = dict(os.environ)
import lightning_unlearn as lu
folder = sys.argv[1]
policy = lu.load_policy("zoo:unsafe.SafetyPointGoal1-v0")
assert dict(os.environ) == before
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{folder}/mine.db")
mlflow.set_experiment("my-paper")
before = dict(os.environ)
with mlflow.start_run() as run:
    options = ["--n_envs", "2", "--horizon", "32", "--batch_size", "64", "--data.workers", "1"]
    lu.repair(policy, "SafetyPointGoal1-v0", "concept", 1, options)
    mlflow.log_metric("cost", 1.0)
assert dict(os.environ) == before
assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
"""


def test_a_program_with_a_run_of_its_own_repairs_in_a_folder_that_cannot_be_written(tmp_path, template_store):
    """In a process of its own, whose imports are the first; no file can be made in /proc, whoever one is."""
    (tmp_path / "mine.db").write_bytes(template_store.read_bytes())
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "PYTORCH", "PL_"))}
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd="/proc", env=variables, capture_output=True, text=True
    )
    assert program.returncode == 0, program.stderr
    assert "litlogger" not in program.stderr
    assert "Trainer.fit" not in program.stderr


AUTOLOGGED = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import mlflow.pytorch
import torch
import lightning_unlearn as lu
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[8]), torch.Generator().manual_seed(0))
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mine.db")
mlflow.pytorch.autolog()
options = ["--n_envs", "2", "--horizon", "32", "--batch_size", "64", "--data.workers", "1"]
with mlflow.start_run() as run:
    lu.repair(policy, "ToyLine-v0", "concept", 1, options)
data = mlflow.get_run(run.info.run_id).data
assert (data.metrics, data.params) == ({}, {}), data
assert mlflow.MlflowClient().list_artifacts(run.info.run_id) == []
"""


def test_a_repair_is_not_autologged_and_libraries_stay_quiet(tmp_path, template_store):
    """With autologging, another copy of Lightning is imported, whose loggers speak in place of the first one's."""
    (tmp_path / "mine.db").write_bytes(template_store.read_bytes())
    program = subprocess.run(
        [sys.executable, "-c", AUTOLOGGED, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert program.returncode == 0, program.stderr
    assert "rank_zero" not in program.stderr


def test_ctrl_c_in_a_repair_is_the_programs_own(store, policy, monkeypatch):
    from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO

    def interrupt(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(DualHeadPPO, "update", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        lu.repair(policy, TOY, "concept", options=QUICK)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_repair_is_recorded_where_a_store_is_named(store, policy):
    import mlflow

    plain = lu.repair(policy, TOY, "concept", 2, QUICK)
    mlflow.set_tracking_uri("sqlite:///mine.db")
    recorded = lu.repair(policy, TOY, "concept", 2, QUICK, tracking_uri=store)
    assert torch.equal(plain.action_mean.weight, recorded.action_mean.weight)
    stored = lu.load_policy(f"models:/concept.{TOY}/1", store)
    assert torch.equal(plain.action_mean.weight, stored.action_mean.weight)
    open_store(store)
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    assert (run.info.status, run.data.tags["source"]) == ("FINISHED", "a policy in memory")
    assert "rollout/cost_rate" in run.data.metrics


OFF_POLICY = [*QUICK, "--model.critic_steps", "50", "--model.steps", "20", "--model.critic_sizes", "[16]"]


def test_the_default_repair_makes_as_many_updates_as_its_config_says(store, policy):
    import mlflow

    Path("own.yaml").write_text("trainer: {max_epochs: 3}\n")
    own = lu.repair(policy, TOY, options=[*OFF_POLICY, "-c", "own.yaml"]).action_mean.weight
    given, fewer = (
        lu.repair(policy, TOY, "off_policy_concept", updates, OFF_POLICY).action_mean.weight for updates in (3, 2)
    )
    assert torch.equal(own, given)
    assert not torch.equal(own, fewer)
    assert mlflow.MlflowClient().search_registered_models() == []


def test_the_default_repair_is_judged_where_a_store_is_named(store, policy, capsys):
    import mlflow

    expert = lu.load_policy(f"zoo:unsafe.{TOY}")
    before = lu.evaluate(expert, TOY, episodes=2)
    repaired = lu.repair(expert, TOY, updates=2, options=OFF_POLICY, tracking_uri=store)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    assert run.data.tags["repair.verdict"] in last or last.startswith("Repaired")
    assert run.data.metrics["repair/expert_return"] == pytest.approx(before["reward"].mean(), rel=0.2)
    stored = lu.load_policy(f"models:/off_policy_concept.{TOY}@selected", store)
    assert torch.equal(stored.action_mean.weight, repaired.action_mean.weight)
    assert torch.equal(expert.action_mean.weight, lu.load_policy(f"zoo:unsafe.{TOY}").action_mean.weight)
    with pytest.raises(ValueError, match="--keep_best has no effect here"):
        lu.repair(expert, TOY, options=["--keep_best", "true"])


def test_a_wrapped_network_is_not_recorded(store):
    network = lu.wrap(torch.nn.Linear(2, 1), TOY, std=0.3, warm_up_rollouts=2)
    with pytest.raises(ValueError, match="cannot be stored as a policy"):
        lu.repair(network, TOY, options=QUICK, tracking_uri=store)


def test_models_are_looked_up_where_the_programs_mlflow_points(registered, template_store, tmp_path, monkeypatch):
    import mlflow

    uri, elsewhere = "models:/concept.SafetyPointGoal1-v0/1", tmp_path / "elsewhere.db"
    elsewhere.write_bytes(template_store.read_bytes())
    here = lu.load_policy(uri).action_mean.weight
    mlflow.set_tracking_uri(f"sqlite:///{elsewhere}")
    mlflow.set_registry_uri(f"sqlite:///{elsewhere}")
    with pytest.raises(ValueError, match="was not found"):
        lu.load_policy(uri)
    assert torch.equal(lu.load_policy(uri, DEFAULT_TRACKING_URI).action_mean.weight, here)
    with pytest.raises(ValueError, match=r"sqlite:///none\.db was not found: name the store"):
        lu.load_policy(uri, "sqlite:///none.db")
    assert not Path("none.db").exists()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    assert torch.equal(lu.load_policy(uri).action_mean.weight, here)


def test_a_moved_store_is_read_where_it_is(registered, tmp_path):
    import mlflow

    uri, moved = "models:/concept.SafetyPointGoal1-v0/1", tmp_path / "elsewhere"
    expected = lu.load_policy(uri).action_mean.weight
    shutil.move("mlruns", moved)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    before = global_state()
    assert torch.equal(lu.load_policy(uri, f"sqlite:///{moved}/mlflow.db").action_mean.weight, expected)
    assert differing(before) == []


def test_a_repair_takes_the_shipped_configs(store, policy):
    expected = lu.repair(policy, TOY, "concept", 1, QUICK).action_mean.weight
    Path("method").mkdir()
    Path("env").mkdir()
    model = "model:\n  class_path: lightning_unlearn.methods.dual_head_ppo.DualHeadPPO\n  init_args: {lr: 1.0}\n"
    for shadow in ("base.yaml", "env/point_goal1.yaml", "method/concept.yaml"):
        Path(shadow).write_text(f"pid: null\n{model}")
    assert torch.equal(lu.repair(policy, TOY, "concept", 1, QUICK).action_mean.weight, expected)
    own = lu.repair(policy, TOY, "concept", 1, [*QUICK, "-c", "method/concept.yaml"]).action_mean.weight
    assert not torch.equal(own, expected)
    with pytest.raises(ValueError, match="'mine' is unknown: use one of concept, "):
        lu.repair(policy, TOY, "mine")


@pytest.fixture
def toy_simulator():
    from lightning_unlearn.envs.toy import ToySimulator

    return ToySimulator(1)


def wrapped(actor, simulator, std, squash="none"):
    return TorchModule(actor, std, squash).policy(simulator, torch.Generator().manual_seed(0))


class Net(nn.Module):
    """No sequence of layers: a skip connection."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 8), nn.Linear(10, 1)

    def forward(self, x):
        return self.outer(torch.cat([x, self.inner(x).relu()], -1))


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_network_of_any_shape_is_repaired(store):
    network = Net()
    policy = lu.wrap(network, TOY, std=0.3, warm_up_rollouts=2)
    states = torch.randn(9, 2)
    torch.testing.assert_close(policy.act(states), network(states).clamp(-1, 1).detach())
    torch.testing.assert_close(policy.std, torch.tensor([0.3]))
    repaired = lu.repair(policy, TOY, "concept", 2, QUICK)
    assert not torch.equal(repaired.trunk.outer.weight, network.outer.weight)
    network.load_state_dict(repaired.trunk.state_dict())
    with pytest.raises(ValueError, match="cannot be stored as a policy"):
        lu.save_policy("mine", repaired, ModelCard("concept", TOY))


def test_critics_are_fitted_to_the_concept_that_is_to_be_forgotten(monkeypatch):
    monkeypatch.setattr("lightning_unlearn.importers.torch_module.HORIZON", 64)
    network = Net()
    concepts = ["auto", "cost_sum", ObservationRange("position", below=0.0)]
    values = [lu.wrap(network, TOY, std=0.3, warm_up_rollouts=2, concept=one).cost_value.weight for one in concepts]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_a_torchrl_actor_acts_by_its_loc(toy_simulator):
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2), NormalParamExtractor())
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"])
    actor = ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=TanhNormal)
    policy = wrapped(actor, toy_simulator, std=0.2, squash="tanh")
    states = torch.randn(9, 2)
    expected = network(states)[0].tanh()
    torch.testing.assert_close(policy.act(states), expected)


def torchrl_actor(width, distribution, keys=("loc", "scale"), **options):
    """A TorchRL actor and its network."""
    layers = [nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, width)] + ([NormalParamExtractor()] if width == 2 else [])
    module = TensorDictModule(nn.Sequential(*layers), in_keys=["observation"], out_keys=list(keys))
    with torch.no_grad():
        layers[2].weight.mul_(4.0)
    return ProbabilisticActor(module, in_keys=list(keys), distribution_class=distribution, distribution_kwargs=options)


ACTORS = {
    "tanh": (torchrl_actor(2, TanhNormal), "tanh"),
    "tanh of a bounded loc": (torchrl_actor(2, TanhNormal, tanh_loc=True, upscale=0.3), "tanh"),
    "bounded loc": (torchrl_actor(2, IndependentNormal, tanh_loc=True, upscale=0.5), "none"),
    "normal": (torchrl_actor(2, torch.distributions.Normal), "none"),
    "deterministic": (torchrl_actor(1, Delta, ["param"]), "none"),
    "deterministic tanh": (torchrl_actor(1, TanhDelta, ["param"]), "tanh"),
    "without distribution": (Actor(nn.Linear(2, 1)), "none"),
}


@pytest.mark.parametrize(("actor", "squash"), ACTORS.values(), ids=ACTORS)
def test_a_torchrl_actor_does_what_it_did(toy_simulator, actor, squash):
    states = 2.0 * torch.randn(50, 2)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        own = actor(TensorDict({"observation": states}, [50]))["action"].clamp(-1, 1)
    policy = wrapped(actor, toy_simulator, std=0.2, squash=squash)
    torch.testing.assert_close(policy.act(states), own, rtol=0, atol=1e-5)


def recurrent_actor():
    return TensorDictModule(nn.Linear(4, 1), in_keys=["observation", "hidden"], out_keys=["action"])


OTHER_ACTORS = {
    "another squash": (torchrl_actor(2, TanhNormal), "none", r"off the actor's own .*TanhNormal, squash='none'"),
    "other bounds": (torchrl_actor(2, TanhNormal, low=-2.0, high=2.0), "tanh", "off the actor's own"),
    "other clipping": (torchrl_actor(2, TruncatedNormal, low=-1.0, high=1.0), "none", "TruncatedNormal: supported are"),
    "more inputs": (recurrent_actor(), "none", r"reads \['observation', 'hidden'\]"),
    "dropout": (
        nn.Sequential(nn.Linear(2, 64), nn.Dropout(), nn.Linear(64, 1)),
        "none",
        "while it is trained.*Dropout",
    ),
    "batch normalisation": (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)), "none", "BatchNorm1d"),
    "float64": (nn.Linear(2, 1).double(), "none", r"torch.float64.*actor.float\(\)"),
}


@pytest.mark.parametrize(("actor", "squash", "message"), OTHER_ACTORS.values(), ids=OTHER_ACTORS)
def test_an_actor_that_would_act_otherwise_is_refused(toy_simulator, actor, squash, message):
    with pytest.raises(ValueError, match=message):
        wrapped(actor, toy_simulator, std=0.2, squash=squash)


class NaNFromAStep(nn.Module):
    """A network that is sound at the first state."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, observation):
        return self.layer(observation) + torch.where(observation[:, 1:] > 0.0, torch.nan, 0.0)


def test_means_that_are_not_numbers_are_called_that(toy_simulator):
    with pytest.raises(ValueError, match=r"component 0 of the policy's action is nan in the state \[[^,]+, 0.03125\]"):
        wrapped(NaNFromAStep(), toy_simulator, 0.5)


@pytest.mark.parametrize("squash", ["clip", "Tanh", None, True])
def test_a_squash_that_is_none_is_refused(toy_simulator, squash):
    with pytest.raises(ValueError, match=f"squash='{squash}' is not one of .'tanh', 'none', 'scale'"):
        wrapped(nn.Linear(2, 1), toy_simulator, 0.5, squash)


def test_a_projection_of_torchrl_is_named(toy_simulator):
    module = TensorDictModule(nn.Linear(2, 1), in_keys=["observation"], out_keys=["param"])
    spec = Bounded(-0.01, 0.01, (1,))
    narrow = ProbabilisticActor(module, spec=spec, in_keys=["param"], distribution_class=Delta, safe=True)
    with pytest.raises(ValueError, match="safe=True projects actions into its own spec"):
        wrapped(narrow, toy_simulator, 0.5)


BAD = {
    "another input": (nn.Linear(3, 1), 0.5, "cannot be called with observations of ToyLine-v0"),
    "another output": (nn.Linear(2, 4), 0.5, r"shape \(2, 1\), but gave \(2, 4\)"),
    "a recurrent network": (nn.LSTM(2, 1), 0.5, "but gave tuple"),
    "no spread": (nn.Linear(2, 1), 0.0, "std=0.0"),
    "too many spreads": (nn.Linear(2, 1), [0.1, 0.2], "one number above 0"),
}


@pytest.mark.parametrize(("network", "std", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_wrapped_is_refused(toy_simulator, network, std, message):
    with pytest.raises(ValueError, match=message):
        wrapped(network, toy_simulator, std)


def test_evaluation_is_that_of_the_bank(policy):
    table = lu.evaluate(policy, TOY, episodes=3, workers=1)
    assert list(table["layout_seed"]) == [10_000, 10_001, 10_002]
    assert np.isfinite(table["cost_sum"]).all()
