"""A run that is killed, at whatever moment, and resumed ends as if it had never been."""

import math
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import killing
import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException

from lightning_unlearn import cli, fit, keys, resume
from lightning_unlearn.envs.toy import ToySimulator
from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO
from lightning_unlearn.options import flatten
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.tracking import checkpoints, registry, runs
from lightning_unlearn.tracking import store as store_module
from lightning_unlearn.tracking.store import open_store

TOY, GOAL = "ToyLine-v0", "SafetyPointGoal1-v0"
UPDATES = ["--updates", "5", "--save_points", "2", "5"]
TINY = ["--n_envs", "2", "--horizon", "96", "--data.workers", "1"]
SEED = 2026_11_24
METHODS = ["unsafe", "oracle", "continued", "localized_concept", "trajectory_decremental", "repedit"]
LEARNS_AT_ONCE = {
    "off_policy_concept": [
        "--model.warm_up=0.4",
        "--model.critic_steps=20",
        "--model.steps=10",
        "--model.batch_size=32",
        "--keep_best=false",
    ]
}


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
    """With the mean of the weights and where they started, which have to survive, too."""
    average = ["--average.share", "1.0", "--average.alpha", "1.5"]
    args = killing.options("concept", *UPDATES, *TINY, *average, env="goal")
    assert assert_ends_equally(tmp_path, GOAL, args, 2) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [TOY, GOAL])
@pytest.mark.parametrize("method", [*METHODS, "concept", "concept_tuned", *LEARNS_AT_ONCE])
def test_every_method_ends_equally(tmp_path, method, env_id):
    env, tiny = ("toy", []) if env_id == TOY else ("goal", TINY)
    own = LEARNS_AT_ONCE.get(method, [])
    assert_ends_equally(tmp_path, env_id, killing.options(method, *UPDATES, *tiny, *own, env=env), 8)


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
    kill_at(registry.Model, "log", 1, after)


def in_version(after):
    kill_at(registry.mlflow, "register_model", 1, after)


def in_alias(after):
    kill_at(mlflow.MlflowClient, "set_registered_model_alias", 1, after)


def in_end(after):
    kill_at(mlflow.MlflowClient, "set_terminated", 1, after)


PLACES = [
    (in_checkpoint, False),
    (in_metrics, True),
    (in_model_files, True),
    (in_version, True),
    (in_alias, True),
    (in_end, False),
]
SHORT = ["--updates", "3", "--save_points", "2"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What an oracle on the toy environment leaves when nobody kills it."""
    folder = tmp_path_factory.mktemp("alone")
    killing.complete(folder, killing.options("oracle", *SHORT))
    return killing.outcome(folder, TOY)


@pytest.mark.parametrize(("place", "after"), PLACES)
def test_it_ends_equally_after_a_kill_inside_a_write(tmp_path, alone, template_store, place, after):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(template_store.read_bytes())
    args = killing.options("oracle", *SHORT)
    assert killing.run(tmp_path, args, sabotage=partial(place, after))
    killing.complete(tmp_path, [*args, "--resume", "last"])
    found = killing.outcome(tmp_path, TOY)
    for part in alone:
        assert found[part] == alone[part], part


def toy(*more):
    return killing.options("oracle", *SHORT, *more)


def only_run():
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    return run


@pytest.fixture
def broken(store, monkeypatch):
    """The id of a run whose third update fails; what it fails of is gone then."""

    def fail(self, batch):
        if self.trainer.current_epoch == 2:
            raise OSError(28, "No space left on device")
        return update(self, batch)

    update = DualHeadPPO.update
    monkeypatch.setattr(DualHeadPPO, "update", fail)
    with pytest.raises(OSError, match="No space"):
        fit.train(toy())
    monkeypatch.undo()
    monkeypatch.chdir(Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).parent.parent)
    return only_run().info.run_id


@pytest.mark.parametrize("by_name", [True, False], ids=["id", "last"])
def test_a_failed_run_goes_on_in_the_same_run(broken, by_name, capsys):
    result = fit.train(toy("--resume", broken if by_name else "last", "--data.workers", "2"))
    assert result.run_id == broken
    assert f"Resuming run {broken} after update 2" in capsys.readouterr().out
    assert only_run().info.status == "FINISHED"
    assert list(result.saved) == [2]


def test_another_config_is_refused_with_what_differs(broken, capsys):
    for wanted in (broken, "last"):
        with pytest.raises(SystemExit):
            cli.main(["fit", *toy("--resume", wanted, "--lr", "0.1", "--updates", "4")])
        told = capsys.readouterr().err
        assert "model.init_args.lr=0.1 (the run: 0.0003)" in told
        assert "trainer.max_epochs=4 (the run: 3)" in told


def test_a_run_from_before_an_option_existed_goes_on_where_the_option_is_off(broken, tmp_path):
    config = yaml.safe_load(runs.stored_config(broken))
    assert config.pop("average") is None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    client = mlflow.MlflowClient()
    client.log_artifact(broken, tmp_path / "config.yaml")
    client.set_tag(broken, resume.CONFIG_DIGEST, resume.config_digest(flatten(config)))
    with pytest.raises(ValueError, match=r"What differs: average.*share=0.5 \(the run: None\)"):
        fit.train(toy("--resume", broken, "--average.share", "0.5"))
    assert fit.train(toy("--resume", broken)).run_id == broken


def test_a_run_of_another_collector_is_refused_by_name_and_one_of_the_only_collector_goes_on(broken, tmp_path):
    config = yaml.safe_load(runs.stored_config(broken))
    client, path = mlflow.MlflowClient(), tmp_path / "config.yaml"
    for collector, reason in (("ray", "a study spreads trainings"), ("stock", "more slowly")):
        path.write_text(yaml.safe_dump(config | {"data": config["data"] | {"collector": collector}}))
        client.log_artifact(broken, path)
        client.set_tag(broken, resume.CONFIG_DIGEST, collector)
        with pytest.raises(ValueError, match=f"{broken} .* data.collector={collector} is not possible: .*{reason}"):
            fit.train(toy("--resume", broken))
    lean = config | {"data": config["data"] | {"collector": "lean"}}
    assert resume.config_digest(flatten(lean)) == resume.config_digest(flatten(config))
    path.write_text(yaml.safe_dump(lean | {"save_points": [1, 2, 3]}))
    client.log_artifact(broken, path)
    with pytest.raises(ValueError, match=r"What differs: save_points=.* \(the run: \[1, 2, 3\]\)\. Give"):
        fit.train(toy("--resume", broken))


def test_the_checkpoint_that_was_torn_is_passed_over(broken, capsys):
    newest = checkpoints.newest(store_module.checkpoint_folder(broken))
    newest.write_bytes(newest.read_bytes()[:-1])
    fit.train(toy("--resume", broken))
    assert "after update 1" in capsys.readouterr().out


def rewrite_newest(run_id, change):
    """Write the newest checkpoint of a run anew, as another release would have written it."""
    path = checkpoints.newest(store_module.checkpoint_folder(run_id))
    state = torch.load(path, weights_only=True)
    change(state)
    checkpoints.AtomicCheckpoints().save_checkpoint(state, path.with_name(path.name.split(".")[0]))
    path.unlink()


def as_before_the_arithmetic_was_counted(state):
    """Such checkpoints hold the state of PyTorch's own Adam, with nothing of parameters that no loss reached."""
    del state["arithmetic"]
    (optimizer,) = state["optimizer_states"]
    weights = [torch.zeros_like(kept["exp_avg"]).requires_grad_() for _, kept in sorted(optimizer["state"].items())]
    plain = torch.optim.Adam(weights, lr=optimizer["param_groups"][0]["lr"], fused=True)
    plain.load_state_dict(optimizer)
    state["optimizer_states"] = [plain.state_dict()]


def test_a_checkpoint_from_before_the_arithmetic_changed_goes_on_and_says_so(broken, capsys):
    rewrite_newest(broken, as_before_the_arithmetic_was_counted)
    assert fit.train(toy("--resume", broken)).run_id == broken
    told = capsys.readouterr().out
    assert "begun with version 1 of the arithmetic of training, and goes on with version 2" in told


def test_a_resumed_run_keeps_the_threads_that_were_chosen_for_it(broken, monkeypatch):
    """Where more or fewer cores are there than before; the number asked for counts first."""
    assert only_run().data.tags[resume.THREADS] == "1"
    client = mlflow.MlflowClient()
    client.set_tag(broken, resume.THREADS, "2")
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with pytest.raises(ValueError, match="average"):
        fit.train(toy("--resume", broken, "--average.share", "0.5"))
    fit.FitCLI(toy("--resume", broken, "--torch_threads", "3"))
    fit.FitCLI(toy("--resume", broken))
    client.delete_tag(broken, resume.THREADS)
    fit.FitCLI(toy("--resume", broken))
    assert threads == [3, 2, 1]


@pytest.mark.parametrize(
    ("method", "cores", "chosen"), [("oracle", 8, 1), ("off_policy_concept", 2, 2), ("off_policy_concept", 64, 4)]
)
def test_as_many_threads_are_chosen_as_a_method_gains_from(store, monkeypatch, method, cores, chosen):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(fit, "cores", lambda: cores)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    fit.FitCLI(killing.options(method, *LEARNS_AT_ONCE.get(method, [])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as a study gives each of the runs that share a machine
    fit.FitCLI(killing.options(method, *LEARNS_AT_ONCE.get(method, [])))
    assert threads == [chosen, 1]


@pytest.mark.parametrize("method", ["off_policy_concept", "trajectory_decremental"])
def test_what_a_method_keeps_beside_its_weights_survives(store, monkeypatch, method):
    """A run whose last update fails once ends with the weights of one that was left alone."""

    def fail(self, *args, **kwargs):
        if self.trainer.current_epoch == 3:
            raise OSError(28, "No space left on device")
        return step(self, *args, **kwargs)

    own = {**LEARNS_AT_ONCE, "trajectory_decremental": ["--dataset_episodes", "60", "--recollect_every", "2"]}[method]
    args = killing.options(method, *UPDATES, *own)
    alone = fit.train(args)
    cls = type(fit.FitCLI(args).model)
    step = cls.training_step
    monkeypatch.setattr(cls, "training_step", fail)
    with pytest.raises(OSError, match="No space"):
        fit.train(args)
    monkeypatch.setattr(cls, "training_step", step)
    again = fit.train([*args, "--resume", "last"])
    alone, again = (registry.load_policy(run.saved[max(run.saved)]) for run in (alone, again))
    assert weights_digest(again.policy) == weights_digest(alone.policy)
    assert again.card == alone.card


def test_what_cannot_be_resumed_is_refused(store):
    with pytest.raises(ValueError, match="there is no such run"):
        fit.train(toy("--resume", "abc"))
    finished = fit.train(toy("--resume", "last"))  # nothing is there to resume: a new run
    with pytest.raises(ValueError, match="finished already"):
        fit.train(toy("--resume", finished.run_id))


def test_two_checkpoints_are_kept(store):
    run = fit.train(toy())
    names = sorted(path.name.split(".")[0] for path in store_module.checkpoint_folder(run.run_id).iterdir())
    assert names == ["update-2", "update-3"]


def terminated_in_training(folder, args):
    from lightning_unlearn.__main__ import run

    sys.argv = ["lightning-unlearn", "fit", *args]
    killing.enter(folder)
    run()


def test_a_request_to_end_is_an_interruption(tmp_path):
    def log():
        return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

    updates_done = re.compile(r" [1-9]\d*/100000")
    args = (str(tmp_path), killing.options("oracle", "--updates", "100000", "--save_points", "100000"))
    process = killing.FORKS.Process(target=terminated_in_training, args=args)
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and not updates_done.search(log()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    process.join(60)
    process.kill()
    open_store(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    assert process.exitcode == 1
    assert only_run().info.status == "KILLED"
    assert f"--resume {only_run().info.run_id}" in log()


def test_a_request_to_end_that_a_destructor_swallowed_is_no_success(store, monkeypatch):
    def swallow(self, batch, index):
        self.trainer._signal_connector.received_sigterm = True
        return step(self, batch, index)

    step = DualHeadPPO.training_step
    monkeypatch.setattr(DualHeadPPO, "training_step", swallow)
    with pytest.raises(SystemExit) as stop:
        fit.train(toy())
    assert stop.value.code == 1
    assert only_run().info.status == "KILLED"


def test_a_loss_that_is_no_number_reaches_neither_weights_nor_registry(store, monkeypatch, capsys):
    def poisoned(self, batch):
        if self.trainer.current_epoch == 1:
            batch[keys.REWARD_TARGET][:] = math.nan
        return update(self, batch)

    update = DualHeadPPO.update
    monkeypatch.setattr(DualHeadPPO, "update", poisoned)
    with pytest.raises(SystemExit):
        cli.main(["fit", *toy()])
    run = only_run()
    told = capsys.readouterr().err
    assert run.info.status == "FAILED"
    assert "the loss is nan" in told
    assert f"the same command and --resume {run.info.run_id}" in told
    assert mlflow.MlflowClient().search_registered_models() == []
    state = torch.load(checkpoints.newest(store_module.checkpoint_folder(run.info.run_id)), weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_an_observation_that_is_no_number_is_not_learned_from(store, monkeypatch):
    def blind(self):
        return np.full((self.num_envs, 2), np.nan)

    monkeypatch.setattr(ToySimulator, "_observation", blind)
    with pytest.raises(FloatingPointError, match="ToyLine-v0: an observation"):
        fit.train(toy())
    assert only_run().info.status == "FAILED"


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (checkpoints.os, "fsync", OSError(28, "No space left on device")),
        (mlflow.MlflowClient, "log_batch", MlflowException("(sqlite3.OperationalError) database is locked")),
    ],
    ids=["disk full", "database locked"],
)
def test_a_store_that_gives_out_is_told_with_the_run(store, monkeypatch, capsys, place, name, error):
    give_out = Mock(side_effect=error)  # raised in Python's own code, as these are: not in somebody else's

    with monkeypatch.context() as patched:
        patched.setattr(place, name, give_out)
        with pytest.raises(SystemExit):
            cli.main(["fit", *toy()])
    run, told = only_run(), capsys.readouterr().err
    assert run.info.status == "FAILED"
    assert str(error) in told
    assert f"--resume {run.info.run_id}" in told
    assert fit.train(toy("--resume", "last")).run_id == run.info.run_id


def test_workers_do_not_change_a_bit_of_a_run(store):
    def weights(workers):
        run = fit.train(killing.options("concept", *SHORT, *TINY, "--data.workers", workers, env="goal"))
        return killing.plain(registry.load_policy(run.saved[2]).policy.state_dict())

    assert weights("1") == weights("2")


def test_many_processes_start_at_once_on_an_empty_store(tmp_path):
    assert_many_succeed(tmp_path)


def assert_many_succeed(folder, count=8):
    """Start trainings of other seeds at the same time; every run, metric, version and alias is there."""
    args = [
        killing.options("oracle", "--updates", "3", "--save_points", "2", "3", "--seed", str(n)) for n in range(count)
    ]
    runs = [killing.FORKS.Process(target=killing.train, args=(str(folder), a)) for a in args]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0] * count, (folder / "log").read_text()
    open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    client = mlflow.MlflowClient()
    found = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    assert [run.info.status for run in found] == ["FINISHED"] * count
    histories = [client.get_metric_history(run.info.run_id, "lagrangian/lambda") for run in found]
    assert [len(history) for history in histories] == [3] * count
    versions = client.search_model_versions("name='oracle.ToyLine-v0'")
    assert sorted(int(version.version) for version in versions) == list(range(1, 2 * count + 1))
    where = {alias: int(at) for alias, at in client.get_registered_model("oracle.ToyLine-v0").aliases.items()}
    expected = {f"seed-{v.tags['seed']}-update-{v.tags['update']}": int(v.version) for v in versions}
    expected |= {f"update-{n}": max(int(v.version) for v in versions if v.tags["update"] == n) for n in ("2", "3")}
    assert where == expected
