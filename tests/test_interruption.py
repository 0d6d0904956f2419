"""A run that breaks or is stopped ends at once, says how, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from lightning_unlearn import fit
from lightning_unlearn.envs.parallel import ParallelSimulator
from lightning_unlearn.tracking.store import open_store

BASE = ["-c", "configs/base.yaml", "-c", "configs/env/point_goal1.yaml", "-c", "configs/method/unsafe.yaml"]

# A shell that starts tests in the background lets them inherit an ignored SIGINT.
INTERRUPTIBLE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('lightning_unlearn', run_name='__main__', alter_sys=True)"
)


def only_run(store):
    open_store(store)
    (run,) = mlflow.search_runs(experiment_names=["SafetyPointGoal1-v0"], output_format="list")
    return run


def ask_for_the_impossible(worker):
    worker.ask("fly")
    worker.answer()


def kill(worker):
    worker._process.kill()


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (ask_for_the_impossible, AttributeError, "no attribute 'fly'"),
        (kill, RuntimeError, "environments 2 to 3 has died"),
    ],
)
def test_a_failure_in_a_worker_ends_the_run(store, monkeypatch, harm, error, message):
    def roll_out(self, *args):
        sims.append(self)
        if len(sims) == 2:
            harm(self._workers[0])
        return original(self, *args)

    sims, original = [], ParallelSimulator.roll_out
    monkeypatch.setattr(ParallelSimulator, "roll_out", roll_out)
    with pytest.raises(error, match=message):
        fit.train([*BASE, "--n_envs", "4", "--horizon", "64", "--updates", "3"])
    assert only_run(store).info.status == "FAILED"
    assert sims[0]._workers[0]._process.returncode is not None


def test_an_interrupted_collection_ends_within_two_seconds_as_killed(store, tmp_path):
    command = [sys.executable, "-c", INTERRUPTIBLE, "fit", *BASE, "--horizon", "1024", "--updates", "50"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ, start_new_session=True)
        try:
            wait_for_progress(process, tmp_path / "log")
            process.send_signal(signal.SIGINT)
            started = time.perf_counter()
            process.wait(timeout=30)
            seconds = time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
    assert process.returncode != 0
    assert only_run(store).info.status == "KILLED"
    assert f"--resume {only_run(store).info.run_id}" in (tmp_path / "log").read_text()
    assert seconds < 2.0
    assert_gone(process.pid)


def wait_for_progress(process, log):
    """Until an update is shown; the next rollout is being collected then."""
    deadline = time.perf_counter() + 120
    while not re.search(r" [1-9]\d*/50 ", log.read_text()):
        assert process.poll() is None, log.read_text()
        assert time.perf_counter() < deadline, log.read_text()
        time.sleep(0.05)


def assert_gone(group):
    """No process of the group is left, once the helpers of Python's own multiprocessing have noticed the end."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"processes of group {group} are still there")
