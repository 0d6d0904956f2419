"""Stored models of the toy environment, and a probe dataset of it, that audits can look at."""

import mlflow
import numpy as np
import pytest
import torch

from lightning_unlearn.audits.probe_data import ProbeData, save_data
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import artifact_location

TOY = "ToyLine-v0"


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
