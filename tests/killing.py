"""Trainings in processes of their own that are killed, and what is compared of the runs they leave."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import mlflow
import torch

FORKS = multiprocessing.get_context("forkserver")  # its children start with everything imported
FORKS.set_forkserver_preload(["lightning_unlearn.fit", "lightning_unlearn.envs.navigation"])
WALL_CLOCK = "time/"


def options(method, *more, env="toy"):
    chain = ["-c", "configs/base.yaml", "-c", "configs/env/point_goal1.yaml", "-c", f"configs/method/{method}.yaml"]
    return [*chain, *(["-c", "configs/smoke.yaml"] if env == "toy" else []), *more]


def enter(folder):
    """Work in a folder, and print into a file there."""
    torch.set_num_threads(1)
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def train(folder, args, cpu_seconds=None, sabotage=None):
    """Run `fit` in this process, with its store in a folder, and its own output in a file there.

    After so many seconds of work the kernel ends it on the spot, whatever it is doing: the action of SIGPROF is that of
    SIGKILL, and a timer of work, unlike one of the wall clock, means the same on a busy machine.
    """
    from lightning_unlearn import fit

    enter(folder)
    if sabotage is not None:
        sabotage()
    if cpu_seconds is not None:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    fit.train(args)
    Path("work").write_text(str(time.process_time()), encoding="utf-8")


def run(folder, args, cpu_seconds=None, sabotage=None):
    """Train in a process of its own; whether it was killed."""
    process = FORKS.Process(target=train, args=(str(folder), args, cpu_seconds, sabotage))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGPROF, -signal.SIGKILL), (Path(folder) / "log").read_text()
    return process.exitcode != 0


def complete(folder, args):
    """Train to the end; returns the seconds of work that it took."""
    assert not run(folder, args)
    return float((Path(folder) / "work").read_text())


def kill_until_done(folder, args, moments):
    """Kill and resume after each of so many seconds of work, then let it end; the number of kills."""
    for kills, seconds in enumerate(moments):
        if not run(folder, [*args, "--resume", "last"], seconds):
            return kills
    complete(folder, [*args, "--resume", "last"])
    return len(moments)


def moments(seed, count, longest):
    chance = random.Random(seed)
    return [chance.uniform(0.001, longest) for _ in range(count)]


def outcome(folder, env_id):
    """What a store holds of its only finished run, in a form that is equal exactly when all bits are."""
    from lightning_unlearn.tracking import checkpoints, registry, store

    store.open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(env_id)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    names = [name for name in run.data.metrics if not name.startswith(WALL_CLOCK)]
    histories = {n: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, n)] for n in names}
    checkpoint = checkpoints.newest(store.checkpoint_folder(run.info.run_id))
    state = torch.load(checkpoint, weights_only=True)
    return {
        "histories": {name: sorted(points) for name, points in histories.items()},
        "versions": versions(client, registry),
        "checkpoint": plain(without_clock(state)),
    }


def versions(client, registry):
    found = {}
    for version in client.search_model_versions():
        model = client.get_registered_model(version.name)
        uri = f"models:/{version.name}/{version.version}"
        weights = registry.load_policy(uri).policy.state_dict()
        aliases = sorted(alias for alias, at in model.aliases.items() if int(at) == int(version.version))
        tags = {key: value for key, value in version.tags.items() if key != "sha256"}  # of files that name the run
        found[uri] = (tags, aliases, plain(weights))
    return found


def without_clock(state):
    """A checkpoint less what names the run or tells the time."""
    state = {key: value for key, value in state.items() if key != "loops"}
    callbacks = {key: value for key, value in state["callbacks"].items() if key != "UpdateCheckpoint"}
    return {**state, "callbacks": callbacks}


def plain(value):
    """Nested values with tensors as their bytes, so that `==` compares bits."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
