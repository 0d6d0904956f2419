"""Commands inside somebody's MLflow run, as under `mlflow run`: their runs are their own."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking.fluent import _ACTIVE_MODEL_CONTEXT
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lightning_unlearn import cli
from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.study.cache import StudyStore
from lightning_unlearn.tracking import runs
from lightning_unlearn.tracking.store import writing

TOY = "ToyLine-v0"


@pytest.fixture
def outer(store):
    """The id of a run of another experiment, with a parameter that an audit has too."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(client.create_experiment("pipeline")).info.run_id
    client.log_param(run_id, "env", "somebody's own")
    return run_id


def record(**given):
    run_id = runs.record_audit(TOY, "probe-fit", {"env": TOY, **given}, {"x": 1.0}, {})
    return mlflow.MlflowClient().get_run(run_id)


def untouched(run_id):
    run = mlflow.MlflowClient().get_run(run_id)
    return run.data.params == {"env": "somebody's own"} and not run.data.metrics and "audit" not in run.data.tags


def test_audits_under_mlflow_run_are_runs_of_their_own_and_report_finds_them(outer, register, monkeypatch, capsys):
    register("unsafe", 10, 2.0)
    register("concept", 50, 0.0)
    monkeypatch.setenv("MLFLOW_RUN_ID", outer)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.get_experiment_by_name("pipeline").experiment_id)
    cli.main(["evaluate", "--env", TOY, "--episodes", "2", "--kl_states", "20", "--eval_id", "mine"])
    cli.main(["report", "--env", TOY, "--eval_id", "mine", "--map_episodes", "0"])
    audits = [run for run in runs.stored_runs(TOY) if run.audit]
    assert [(run.audit, run.status) for run in audits] == [("policy-suite", "FINISHED"), ("report", "FINISHED")]
    for run in audits:
        assert mlflow.MlflowClient().get_run(run.run_id).data.tags[MLFLOW_PARENT_RUN_ID] == outer
    assert untouched(outer)


def test_an_active_run_of_the_program_is_the_parent_and_stays_active(outer):
    with mlflow.start_run(run_id=outer):
        assert record().data.tags[MLFLOW_PARENT_RUN_ID] == outer
        training = MLflowRun(TOY, "a run", {})
        assert training.experiment.get_run(training.run_id).data.tags[MLFLOW_PARENT_RUN_ID] == outer
        study = StudyStore([TOY]).begin("few", "digest", "name: few")
        assert mlflow.MlflowClient().get_run(study).data.tags[MLFLOW_PARENT_RUN_ID] == outer
        assert mlflow.active_run().info.run_id == outer
    assert untouched(outer)


@pytest.mark.parametrize("named", ["0" * 32, "no/id", ""])
def test_a_run_that_this_store_does_not_have_is_nobodys_parent(store, monkeypatch, named):
    monkeypatch.setenv("MLFLOW_RUN_ID", named)
    assert MLFLOW_PARENT_RUN_ID not in record().data.tags


def test_a_deleted_run_is_nobodys_parent(outer, monkeypatch):
    mlflow.MlflowClient().delete_run(outer)
    monkeypatch.setenv("MLFLOW_RUN_ID", outer)
    assert MLFLOW_PARENT_RUN_ID not in record().data.tags


def test_a_step_of_a_study_stays_below_the_study(outer, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", outer)
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", f'{{"{MLFLOW_PARENT_RUN_ID}": "the study"}}')
    assert record().data.tags[MLFLOW_PARENT_RUN_ID] == "the study"


@pytest.fixture
def thread_without_model():
    """MLflow keeps the active model for each thread, also one that came from a variable."""
    _ACTIVE_MODEL_CONTEXT.reset()
    yield
    _ACTIVE_MODEL_CONTEXT.reset()


@pytest.fixture
def own_model(store):
    """The id of a model that the program makes itself."""
    client = mlflow.MlflowClient()
    return client.create_logged_model(client.create_experiment("mine"), "mine").model_id


def a_study_settles(run_id):
    """What the end of a study's step writes beside its result."""
    with writing():
        mlflow.MlflowClient().log_metric(run_id, "study/seconds", 1.0)


def assert_all_metrics_are_written():
    audit = record()
    training = MLflowRun(TOY, "a run", {})
    training.log_metrics({"y": 2.0}, 3)
    training.publish()
    training.finalize()
    a_study_settles(audit.info.run_id)
    assert mlflow.get_run(audit.info.run_id).data.metrics == {"x": 1.0, "study/seconds": 1.0}
    assert mlflow.get_run(training.run_id).data.metrics == {"y": 2.0}


def test_the_programs_active_model_gets_no_metric_of_ours_and_stays_active(own_model, thread_without_model):
    with mlflow.set_active_model(model_id=own_model):
        assert_all_metrics_are_written()
        with suppress(FileNotFoundError):
            runs.record_audit(TOY, "relearn", {}, {"x": 1.0}, {Path("nowhere"): "eval"})
        assert mlflow.get_active_model_id() == own_model
    assert not mlflow.get_logged_model(own_model).metrics


@pytest.mark.parametrize("variable", ["MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"])
@pytest.mark.parametrize("named", ["m-" + "0" * 32, ""], ids=["unknown", "empty"])
def test_an_active_model_that_this_store_does_not_have_is_no_matter(
    store, thread_without_model, monkeypatch, variable, named
):
    monkeypatch.setenv(variable, named)
    assert_all_metrics_are_written()
    assert os.environ[variable] == mlflow.get_active_model_id() == named


def test_another_thread_keeps_its_active_model_while_we_write(own_model, thread_without_model):
    with mlflow.set_active_model(model_id=own_model), ThreadPoolExecutor(1) as other:
        other.submit(mlflow.set_active_model, model_id=own_model).result()
        with writing():
            assert mlflow.get_active_model_id() is None
            assert other.submit(mlflow.get_active_model_id).result() == own_model


def test_a_record_that_fails_is_marked_and_its_error_is_the_one_told(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        runs.record_audit(TOY, "relearn", {}, {}, {tmp_path / "nowhere": "eval"})
    assert [run.status for run in runs.stored_runs(TOY)] == ["FAILED"]


def test_no_password_is_recorded(store):
    params = record(tracking_uri="postgresql://me:secret@host/db").data.params
    assert params["tracking_uri"] == "postgresql://host/db"


def test_report_survives_runs_that_are_not_ours(register, capsys, tmp_path):
    register("unsafe", 10, 2.0)
    cli.main(["evaluate", "--env", TOY, "--episodes", "2", "--kl_states", "20", "--eval_id", "mine"])
    client, experiment = mlflow.MlflowClient(), mlflow.get_experiment_by_name(TOY).experiment_id
    (tmp_path / "summary.csv").write_text("what,ever\n1,2\n")
    (tmp_path / "relearn_result.json").write_text("[]")
    odd = (
        {"method": "unsafe", "seed": "of pears"},
        {"audit": "policy-suite"},
        {"audit": "relearn"},
        {"audit": "probe-fit"},
    )
    for tags in odd:
        run_id = client.create_run(experiment, tags={**tags, "training_seeds": "one two"}).info.run_id
        client.log_param(run_id, "stochastic", False)
        client.log_artifact(run_id, str(tmp_path / "summary.csv"), "eval/policy_suite_eval/odd")
        client.log_artifact(run_id, str(tmp_path / "relearn_result.json"), "eval/relearn_test_eval/odd")
        client.set_terminated(run_id)
    capsys.readouterr()
    cli.main(["report", "--env", TOY, "--map_episodes", "0"])
    told = capsys.readouterr().out
    assert told.count("Left out: run") == 2
    assert "mine" in (tmp_path / "artifacts/report/ToyLine-v0/report.md").read_text()
