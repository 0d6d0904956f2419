"""A store with a lineage of small policies, and files of every kind that housekeeping looks at."""

import os
import time

import mlflow
import pytest
import torch

from lightning_unlearn import cli, processes
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking import store as store_module
from lightning_unlearn.tracking.inventory import SETTLED_S, Files

TOY = "ToyLine-v0"


def small_policy(seed=0):
    return ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[4, 4]), torch.Generator().manual_seed(seed))


@pytest.fixture
def begin(store):
    """Starts a run of this process, with tags; returns its id."""

    def run(name="concept-seed0", env=TOY, **tags):
        given = {"env": env, **processes.owner(), **tags}
        experiment = store_module.experiment_id(env)
        return mlflow.MlflowClient().create_run(experiment, run_name=name, tags=given).info.run_id

    return run


@pytest.fixture
def register(begin):
    """Registers a policy as a save point, of a run of its own that ends at once; returns its URI."""

    def add(method, update, seed=0, status="FINISHED", source="random", policy=None):
        run_id = begin(f"{method}-seed{seed}", method=method, seed=str(seed), source=source)
        card = ModelCard(method, TOY, "cost_hazards", seed, update, update * 256)
        version = registry.register_policy(policy or small_policy(seed), card, run_id)
        if status != "RUNNING":
            mlflow.MlflowClient().set_terminated(run_id, status)
        return f"models:/{method}.{TOY}/{version}"

    return add


@pytest.fixture
def files(store):
    return Files.of_store()


@pytest.fixture
def put(files):
    """Writes a file of some bytes under a folder, and makes it look old; returns the folder."""

    def write(folder, size=1000, name="file", age=2 * SETTLED_S):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
        settle(folder, age)
        return folder

    return write


@pytest.fixture
def old():
    """Makes all that is in a folder look old."""
    return settle


@pytest.fixture
def policy_of():
    """Makes a small policy of a seed."""
    return small_policy


def settle(folder, age=2 * SETTLED_S):
    """Make all that is in a folder look as if it had been written a while ago."""
    then = time.time() - age
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def shown(capsys):
    """Runs a command; returns what it printed."""

    def run(*args):
        capsys.readouterr()
        cli.main(list(args))
        return capsys.readouterr().out

    return run
