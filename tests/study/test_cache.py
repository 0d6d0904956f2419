"""What a study finds in the store again, and what it leaves alone there."""

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException

from lightning_unlearn import processes
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.study.cache import DIGEST, RESULT, StudyStore, step_tags
from lightning_unlearn.study.run import StudyRunner
from lightning_unlearn.study.steps import StudyStep, Workload
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import experiment_id

ENV = "ToyLine-v0"
AUDIT = StudyStep(f"{ENV}/evaluate", "evaluate", "evaluate", ENV, ("evaluate",))


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
    select = StudyStep(f"{ENV}/select/concept", "select", "select/concept", ENV, ("select",))
    assert StudyStore([ENV]).find(select, "abc") is None


def test_a_selection_is_not_done_once_another_has_moved_the_name(store):
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0]), torch.Generator().manual_seed(0))
    version = registry.register_policy(policy, ModelCard("concept", ENV, "cost_hazards", 0, 50), run_of("FINISHED"))
    select = StudyStep(f"{ENV}/select/concept", "select", "select/concept", ENV, ("select",))
    run_id = run_of("FINISHED", **{DIGEST: "abc", RESULT: "abc", runs.SEEDS_TAG: "0"})
    mlflow.MlflowClient().log_param(run_id, "method", "concept")
    registry.select_version(f"concept.{ENV}", 0, version, {"run": run_id})
    assert StudyStore([ENV]).find(select, "abc").run_id == run_id
    registry.select_version(f"concept.{ENV}", 0, version, {"run": "a later one"})
    assert StudyStore([ENV]).find(select, "abc") is None


def test_registering_weights_says_nothing_of_how_long_training_takes(store):
    unsafe = {"name": f"{ENV}/seed0/unsafe", "stage": "unsafe", "kind": "unsafe", "env": ENV}
    trained = StudyStep(**unsafe, args=("fit",), work=Workload(trained=1000))
    registered = StudyStep(**unsafe, args=("register",))
    for digest, step, seconds in (("a", trained, 600.0), ("b", registered, 5.0)):
        run_of("FINISHED", **step_tags(step, digest, "study"))
        StudyStore([ENV]).record_result(step, digest, seconds, "log")
    assert StudyStore([ENV]).pace(trained) == (600.0, 1000.0)
    assert StudyStore([ENV]).pace(registered) == (5.0, 0.0)


def test_a_training_that_registered_too_little_is_not(store):
    run_of("FINISHED", **{DIGEST: "abc"})
    training = StudyStep(f"{ENV}/seed0/concept", "concept", "concept", ENV, ("fit",), updates=(150,))
    assert StudyStore([ENV]).find(training, "abc") is None


def test_a_step_that_left_no_run_has_failed(store):
    with pytest.raises(ValueError, match="evaluate ended well, but its run is not in sqlite"):
        StudyStore([ENV]).record_result(AUDIT, "abc", 1.0, "log")


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

    runner = StudyRunner(StudyStore([ENV]), {}, Refusing(), "few", str(tmp_path), 1)
    with pytest.raises(ValueError, match="the store refused it: database is locked"):
        runner.start(AUDIT)
