"""What every test shares: one thread, and a store of its own."""

import importlib
import os

from lightning_unlearn.global_state import VARIABLES

os.environ.update(VARIABLES)

import mlflow
import numpy as np
import pytest
import torch

from lightning_unlearn import cli
from lightning_unlearn.audits.probe_data import ProbeData, save_data
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import DEFAULT_TRACKING_URI, artifact_location, open_store

torch.set_num_threads(1)
TOY = "ToyLine-v0"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def policy(generator):
    """A small random policy of two observations and one action, as the toy environment has."""
    return ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[16, 8]), generator)


@pytest.fixture(scope="session")
def template_store(tmp_path_factory):
    """An empty SQLite store, made once: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("template")
    open_store(f"sqlite:///{folder}/mlflow.db")
    _point_nowhere()  # module fixtures, and processes that they start, come before `pointed_nowhere`
    return folder / "mlflow.db"


@pytest.fixture(scope="session", autouse=True)
def outside(tmp_path_factory):
    """Fixtures of modules work outside of the checkout."""
    os.chdir(tmp_path_factory.mktemp("outside"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test works in a folder of its own: MLflow and MuJoCo write to the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def pointed_nowhere():
    """MLflow as in a program of its own: what one test pointed it at is not the next one's."""
    _point_nowhere()
    yield
    _point_nowhere()  # the next test's module fixtures are made before its own


def _point_nowhere():
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)


@pytest.fixture
def store(tmp_path, template_store, monkeypatch):
    """A fresh store in an empty working directory; yields its tracking URI."""
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(template_store.read_bytes())
    monkeypatch.chdir(tmp_path)
    open_store(DEFAULT_TRACKING_URI)
    return DEFAULT_TRACKING_URI


def toy_policy(push, seed=0):
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0]), torch.Generator().manual_seed(seed))
    policy.action_mean.bias.data.fill_(push)
    return policy


@pytest.fixture
def pushed():
    """Makes a toy policy that moves right, into the hazard, for a positive push."""
    return toy_policy


@pytest.fixture
def register(store):
    """Registers a toy policy as a method's save point; returns its URI."""

    def add(method, update, push, seed=0, env=TOY):
        experiment = mlflow.get_experiment_by_name(env)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else mlflow.create_experiment(env, artifact_location=artifact_location())
        )
        tags = {"method": method, "seed": str(seed), "env": env, "mlflow.runName": f"{method}-seed{seed}"}
        client = mlflow.MlflowClient()
        run_id = client.create_run(experiment_id, tags=tags, run_name=f"{method}-seed{seed}").info.run_id
        client.log_metric(run_id, "rollout/cost_rate", 0.25, step=64)
        client.set_terminated(run_id)
        card = ModelCard(method, env, "cost_hazards", seed, update, update * 256)
        version = registry.register_policy(toy_policy(push, seed), card, run_id)
        return f"models:/{method}.{env}/{version}"

    return add


@pytest.fixture(scope="session")
def ray():
    """Ray; without it its tests are skipped, except in CI, where they fail."""
    return importlib.import_module("ray") if os.environ.get("CI") else pytest.importorskip("ray")


@pytest.fixture
def refused(capsys):
    """Runs a command that must end with exit code 2 and no results; returns its message."""

    def run(*args):
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(args))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def data():
    """A probe dataset made by hand: 40 episodes of 20 states, hazard where x > 0.3."""
    x = np.random.default_rng(0).uniform(-1, 1, 800)
    states = np.stack([x, np.tile(np.arange(20) / 32, 40)], axis=-1).astype(np.float32)
    labels = (states[:, 0] > 0.3).astype(np.int64)
    about = {"env": TOY, "hazard_distance": "distance of x from 0.3"}
    return ProbeData(states, labels, np.repeat(np.arange(40), 20), np.abs(states[:, 0] - 0.3), about)


@pytest.fixture
def dataset(data, tmp_path):
    """Its file."""
    save_data(tmp_path / "states.npz", data)
    return str(tmp_path / "states.npz")
