"""A study on a two-node Ray cluster with a real tracking server; a worker is killed in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from lightning_unlearn import cli
from lightning_unlearn.study.jobs import SENT
from lightning_unlearn.tracking.store import open_store

STUDY = """
name: spread
envs: [point_goal1]
overlays: [smoke.yaml]
seeds: [0]
methods: [unsafe, {config: concept, options: {trainer.max_epochs: 40, save_points: [40]}}]
weights: [{method: unsafe, uri: "zoo:unsafe.ToyLine-v0"}]
audits:
  probe:
    collect: {n_per_class: 200, max_env_steps: 20000}
    fit: {split_tries: 16}
    models: [concept]
"""


@pytest.fixture
def cluster(ray, monkeypatch):
    """Two nodes of one core each; on a busy machine Ray's own defaults give up too soon, and starve its workers."""
    for name, value in {"raylet_start_wait_time_s": "300", "worker_niceness": "0"}.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


def workers_on(step):
    """Process ids of Ray workers that run a step; Ray names them after it."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"ray::{step}" in (entry / "cmdline").read_text():
                yield int(entry.name)
        except OSError:
            continue


def all_runs():
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("ToyLine-v0")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def run_named(name):
    return [run for run in all_runs() if run.info.run_name == name]


def sent(run):
    """Whether its first checkpoint is in the store."""
    return mlflow.MlflowClient().list_artifacts(run.info.run_id, SENT)


@pytest.mark.slow
def test_a_study_on_two_nodes_survives_a_killed_worker(server, cluster, tmp_path, monkeypatch, wait_for):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spread.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "lightning_unlearn", "study", "-c", "spread.yaml", "--executor", "ray"]
    command += ["--ray_address", cluster, "--tracking_uri", server.address]
    open_store(server.address)
    with (tmp_path / "told").open("w") as told:
        study = subprocess.Popen(command, stdout=told, stderr=told)
    try:
        wait_for(lambda: [run for run in run_named("concept-seed0") if sent(run)], 1500)
        (victim,) = workers_on("ToyLine-v0/seed0/concept")
        os.kill(victim, signal.SIGKILL)
        assert study.wait(1500) == 0, (tmp_path / "told").read_text()
    finally:
        study.kill()
        study.wait()
    (concept,) = run_named("concept-seed0")  # the second worker went on with the run of the first
    assert concept.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(concept.info.run_id, "rollout/cost_rate")
    assert {point.step for point in history} == {256 * update for update in range(301, 341)}
    assert "Resuming run" in mlflow.artifacts.load_text(f"runs:/{concept.info.run_id}/log.txt")
    (parent,) = run_named("study-spread")
    nested = {r.info.run_name for r in all_runs() if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {"probe-collect", "probe-fit", "probe-export", "probe-eval", "action-control"} <= nested


def test_ray_needs_a_server(store, capsys, tmp_path):
    (tmp_path / "spread.yaml").write_text(STUDY)
    with pytest.raises(SystemExit):
        cli.main(["study", "-c", "spread.yaml", "--executor", "ray"])
    assert "mlflow server" in capsys.readouterr().err


def test_without_ray_the_extra_is_named(store, capsys, tmp_path, monkeypatch):
    (tmp_path / "spread.yaml").write_text(STUDY)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        cli.main(["study", "-c", "spread.yaml", "--executor", "ray", "--dry-run"])
    assert "lightning-unlearn[ray]" in capsys.readouterr().err
