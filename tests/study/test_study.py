"""A small study from end to end: real processes, the toy environment, a SQLite store."""

import os
import signal
import subprocess
import sys
import time

import mlflow
import pytest

from lightning_unlearn import cli
from lightning_unlearn.tracking import registry

FEW = """
name: few
envs: [point_goal1]
overlays: [smoke.yaml]
seeds: [0]
methods: [unsafe, {config: concept, options: {trainer.max_epochs: 2, save_points: [2]}}]
weights: [{method: unsafe, uri: "zoo:unsafe.ToyLine-v0"}]
audits: {patch: {models: [concept], options: {episodes: 2}}}
"""


@pytest.fixture
def few(store, tmp_path):
    (tmp_path / "few.yaml").write_text(FEW)
    return ["study", "-c", "few.yaml"]


def runs():
    return mlflow.search_runs(experiment_names=["ToyLine-v0"], output_format="list")


def test_a_dry_run_names_every_stage_in_order_and_trains_nothing(store, capsys):
    cli.main(["study", "-c", "study/full.yaml", "--dry-run"])
    told = capsys.readouterr().out
    table = [line.split() for line in told.splitlines()]
    assert [row[0] for row in table if len(row) > 3 and row[1].isdigit()] == [
        *("unsafe", "oracle", "concept", "localized_concept", "continued", "trajectory_decremental", "probe"),
        *("repedit", "evaluate", "relearn", "latent-shift", "report"),
    ]
    assert "0 done already; the rest takes about" in told
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


def test_it_runs_nests_and_is_done_the_second_time(few, capsys, tmp_path):
    cli.main(few)
    told = capsys.readouterr().out
    assert "The study is FINISHED" in told
    (parent,) = (run for run in runs() if run.info.run_name == "study-few")
    children = [run for run in runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == ["concept-seed0", "patch", "unsafe-seed0"]
    (concept,) = (run for run in children if run.info.run_name == "concept-seed0")
    assert concept.data.tags["source"] == "models:/unsafe.ToyLine-v0/2"
    kept = registry.load_policy(str(tmp_path / "studies/few/ToyLine-v0/seed0/weights/concept-2"))
    assert (kept.card.method, kept.card.update) == ("concept", 2)
    cli.main(few)
    assert "3 steps, 3 done already" in capsys.readouterr().out
    assert len(runs()) == 4  # nothing ran, and the study's own run is the same one


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("seeds: [0]", "seeds: [0, 0]"), "seeds: 0 is listed twice"),
        (("seeds: [0]", "seeds: [0]\nsedes: [0]"), "sedes"),
        (("seeds: [0]", "seeds: [0]\nseeds: [1]"), "few.yaml: seeds is listed twice"),
        (("audits: {", "audits: {evalute: {}, "), "evalute"),
        (("zoo:unsafe.ToyLine-v0", "nowhere"), "nowhere"),
        (("name: few", "name: ../few"), "name: '../few' is not possible"),
    ],
)
def test_bad_input_ends_with_a_message_before_anything_runs(few, tmp_path, capsys, changed, message):
    (tmp_path / "few.yaml").write_text(FEW.replace(*changed))
    with pytest.raises(SystemExit) as stopped:
        cli.main(few)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


@pytest.mark.slow
def test_an_interrupted_study_goes_on(few, tmp_path):
    (tmp_path / "few.yaml").write_text(
        FEW.replace("max_epochs: 2, save_points: [2]", "max_epochs: 400, save_points: [400]")
    )
    command = [sys.executable, "-m", "lightning_unlearn", *few]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    log = tmp_path / "studies/few/logs/ToyLine-v0.seed0.concept.log"
    while not (log.exists() and "/400" in log.read_text()):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "goes on from here" in told
    assert {run.info.run_name: run.info.status for run in runs()} == {
        "study-few": "KILLED",
        "concept-seed0": "KILLED",
        "unsafe-seed0": "FINISHED",
    }
    subprocess.run(command, check=True, env=os.environ)
    assert {run.info.status for run in runs() if run.info.run_name == "study-few"} == {"FINISHED"}


@pytest.mark.slow
def test_every_stage_of_a_study(store, tmp_path, capsys):
    cli.main(["study", "-c", "study/smoke.yaml"])
    assert "The study is FINISHED" in capsys.readouterr().out
