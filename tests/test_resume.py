"""A run that is killed, at whatever moment, and resumed ends as if it had never been."""

import os
import signal
from functools import partial

import killing
import mlflow
import pytest

from lightning_unlearn import checkpoints

TOY, GOAL = "ToyLine-v0", "SafetyPointGoal1-v0"
UPDATES = ["--updates", "6", "--save_points", "2", "5", "6"]
TINY = ["--n_envs", "2", "--horizon", "96", "--data.workers", "1"]
SEED = 2026_11_24
METHODS = ["unsafe", "oracle", "continued", "localized_concept", "trajectory_decremental", "repedit"]


def assert_ends_equally(tmp_path, env_id, args, count, seed=SEED):
    """Kill and resume `count` times at random moments; compare with a run that was left alone."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "killed").mkdir()
    work = killing.complete(tmp_path / "alone", args)
    moments = killing.moments(seed, count, 0.8 * work)
    kills = killing.kill_until_done(tmp_path / "killed", args, moments)
    print(f"seed {seed}: {kills} kills after {[round(m, 3) for m in moments]} s of {work:.2f} s of work")
    expected, found = (killing.outcome(tmp_path / name, env_id) for name in ("alone", "killed"))
    for part in expected:
        assert found[part] == expected[part], part
    return kills


def test_concept_ends_equally_after_kills_at_random_moments(tmp_path):
    assert assert_ends_equally(tmp_path, GOAL, killing.options("concept", *UPDATES, *TINY, env="goal"), 3) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [TOY, GOAL])
@pytest.mark.parametrize("method", [*METHODS, "concept"])
def test_every_method_ends_equally(tmp_path, method, env_id):
    env, tiny = ("toy", []) if env_id == TOY else ("goal", TINY)
    assert_ends_equally(tmp_path, env_id, killing.options(method, *UPDATES, *tiny, env=env), 8)


def kill_at(module, name, call, after):
    """Have the process killed at one call of a function, before or after it does its work."""

    def die(*args, **kwargs):
        count[0] += 1
        if count[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if count[0] == call and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    count, original = [0], getattr(module, name)
    setattr(module, name, die)


def in_checkpoint(after):
    kill_at(checkpoints.os, "fsync", 5, after)


def in_metrics(after):
    kill_at(mlflow.MlflowClient, "log_batch", 4, after)


def in_model_files(after):
    from lightning_unlearn import versions

    kill_at(versions.Model, "log", 1, after)


def in_version(after):
    from lightning_unlearn import versions

    kill_at(versions.mlflow, "register_model", 1, after)


def in_alias(after):
    kill_at(mlflow.MlflowClient, "set_registered_model_alias", 1, after)


def in_end(after):
    kill_at(mlflow.MlflowClient, "set_terminated", 1, after)


PLACES = [in_checkpoint, in_metrics, in_model_files, in_version, in_alias, in_end]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What an oracle on the toy environment leaves when nobody kills it."""
    folder = tmp_path_factory.mktemp("alone")
    killing.complete(folder, killing.options("oracle", *UPDATES))
    return killing.outcome(folder, TOY)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_it_ends_equally_after_a_kill_inside_a_write(tmp_path, alone, place, after):
    args = killing.options("oracle", *UPDATES)
    assert killing.run(tmp_path, args, sabotage=partial(place, after))
    if (place, after) != (in_end, True):
        killing.complete(tmp_path, [*args, "--resume", "last"])
    found = killing.outcome(tmp_path, TOY)
    for part in alone:
        assert found[part] == alone[part], part
