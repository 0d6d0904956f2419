"""What a study finds in the store again, and what it leaves alone there."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from lightning_unlearn import processes
from lightning_unlearn.store import experiment_id
from lightning_unlearn.study.conduct import Conduct
from lightning_unlearn.study.steps import Step
from lightning_unlearn.study.store import DIGEST, StudyStore

ENV = "ToyLine-v0"
AUDIT = Step(f"{ENV}/evaluate", "evaluate", "evaluate", ENV, ("evaluate",))


def run_of(status, **tags):
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment_id(ENV), tags=tags).info.run_id
    client.update_run(run_id, status=status)
    return run_id


def test_a_step_that_finished_after_its_study_was_killed_is_done(store):
    run_id = run_of("FINISHED", **{DIGEST: "abc"})
    assert StudyStore([ENV]).find(AUDIT, "abc").run_id == run_id
    assert StudyStore([ENV]).find(AUDIT, "another") is None


def test_a_selection_that_was_never_settled_may_have_set_no_alias(store):
    run_of("FINISHED", **{DIGEST: "abc"})
    select = Step(f"{ENV}/select/concept", "select", "select/concept", ENV, ("select",))
    assert StudyStore([ENV]).find(select, "abc") is None


def test_a_training_that_registered_too_little_is_not(store):
    run_of("FINISHED", **{DIGEST: "abc"})
    training = Step(f"{ENV}/seed0/concept", "concept", "concept", ENV, ("fit",), updates=(150,))
    assert StudyStore([ENV]).find(training, "abc") is None


def test_a_step_that_left_no_run_has_failed(store):
    with pytest.raises(ValueError, match="evaluate ended well, but its run is not in sqlite"):
        StudyStore([ENV]).settle(AUDIT, "abc", 1.0, "log")


def test_a_step_that_still_runs_is_not_declared_dead(store):
    study = StudyStore([ENV])
    parent = study.begin("few", "abc", "name: few")
    of_study = {"mlflow.parentRunId": parent}
    alive = run_of("RUNNING", **of_study, **processes.owner())
    gone = run_of("RUNNING", **of_study, **{**processes.owner(), processes.STARTED: "0"})
    study.end(parent, "KILLED", "step,state")
    states = [mlflow.get_run(run).info.status for run in (parent, alive, gone)]
    assert states == ["KILLED", "RUNNING", "KILLED"]


def test_the_same_study_does_not_run_twice_at_once(store):
    study = StudyStore([ENV])
    parent = study.begin("few", "abc", "name: few")
    with pytest.raises(ValueError, match="under way already, in process"):
        StudyStore([ENV]).begin("few", "abc", "name: few")
    study.end(parent, "KILLED", "")
    assert StudyStore([ENV]).begin("few", "abc", "name: few") == parent


def test_what_the_store_refuses_is_one_steps_failure(store, tmp_path):
    class Refusing:
        cores = 1

        def start(self, job):
            raise MlflowException("database is locked")

    conduct = Conduct(StudyStore([ENV]), {}, Refusing(), "few", str(tmp_path), 1)
    with pytest.raises(ValueError, match="the store refused it: database is locked"):
        conduct.doing(lambda progress: None, 1, 0).start(AUDIT)
