"""A repair that chooses its save point and ends with a verdict, in a real store."""

import json
from io import StringIO

import mlflow
import pandas as pd
import pytest

from lightning_unlearn import cli, fit
from lightning_unlearn import keep_best as module
from lightning_unlearn.audits import verdict
from lightning_unlearn.callbacks.pid_lagrangian import PIDLagrangian
from lightning_unlearn.tracking import runs

TOY = "ToyLine-v0"
NAME = f"off_policy_concept.{TOY}"
SMALL = [
    *("-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/off_policy_concept.yaml", "--env", TOY),
    *("--n_envs", "4", "--horizon", "64", "--data.workers", "1", "--model.action_repeat", "2"),
    *("--model.warm_up", "0.17", "--model.critic_steps", "100", "--model.steps", "20", "--model.batch_size", "64"),
    *("--model.critic_sizes", "[32,32]", "--updates", "4", "--save_points", "[2,4]"),
]


def artifact(run_id, name):
    return runs.read_artifact(run_id, f"{module.PLACE}/{name}").decode()


def test_a_save_point_is_chosen_and_judged_in_the_last_line(store, capsys):
    cli.main(["fit", *SMALL, "--cost_limit", "1000", "--lr", "1e-9"])
    printed = capsys.readouterr().out
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    run_id, tags, client = run.info.run_id, run.data.tags, mlflow.MlflowClient()
    last = printed.strip().splitlines()[-1]
    found = json.loads(artifact(run_id, "verdict.json"))
    assert found["in_words"] == last
    assert last.startswith("Repaired: return ")
    assert (tags["repair.verdict"], run.info.status) == (verdict.REPAIRED, "FINISHED")
    assert run.data.metrics["repair/cost"] == found["repair/cost"]
    assert f"**{last}**" in tags["mlflow.note.content"]  # the description of the run in MLflow's UI
    chosen = client.get_model_version_by_alias(NAME, "seed-0-selected")
    assert client.get_model_version_by_alias(NAME, "selected").version == chosen.version
    assert chosen.tags["selected.run"] == run_id
    assert {key: chosen.tags[key] for key in tags if key.startswith("repair.")} == {
        key: value for key, value in tags.items() if key.startswith("repair.")
    }
    assert {"repair.verdict", "repair.return_share", "repair.cost"} <= set(chosen.tags)
    assert found["model"] == f"models:/{NAME}/{chosen.version}"
    validation = pd.read_csv(StringIO(artifact(run_id, "selection/validation.csv")))
    assert validation["Update"].tolist() == [2, 4]
    assert validation.loc[validation["Selected"], "Reward"].item() == validation["Reward"].max()  # both are within
    episodes = pd.read_csv(StringIO(artifact(run_id, "per_episode.csv")))
    assert episodes.groupby("Model")["layout_seed"].apply(list).to_dict() == {
        "expert": list(range(21_000, 21_100)),
        "repair": list(range(21_000, 21_100)),
    }
    again = verdict.judge(
        *(episodes[episodes["Model"] == name].to_dict("list") for name in ("repair", "expert")), 1000.0
    )
    assert again.in_words() == last


def test_the_expert_is_the_one_that_training_started_from(store):
    import lightning_unlearn as lu

    found = fit.train([*SMALL, "--cost_limit", "0", "--lr", "1e-9"]).verdict
    assert found is not None
    assert "above the limit" in found.failures
    own = lu.load_policy(f"zoo:unsafe.{TOY}")
    env = module.RolloutData(TOY, 100)
    try:
        table = module.per_episode(module.evaluate_in(env.env, own, module.verdict_layouts()).episodes)
    finally:
        env.teardown("fit")
    assert found.expert_return == pytest.approx(table["reward"].mean())


def test_a_verdict_that_was_interrupted_is_given_when_the_run_is_resumed(store, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "judge", interrupt)
        with pytest.raises(SystemExit):
            fit.train(SMALL)
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    assert (run.info.status, "repair.verdict" in run.data.tags) == ("KILLED", False)
    resumed = fit.train([*SMALL, "--resume", "last"])
    assert resumed.run_id == run.info.run_id
    assert resumed.verdict is not None
    run = mlflow.get_run(resumed.run_id)
    assert (run.info.status, run.data.tags["repair.verdict"]) == ("FINISHED", resumed.verdict.word)
    assert len(mlflow.MlflowClient().search_model_versions(f"name='{NAME}'")) == 2


def test_a_target_a_step_is_a_limit_of_the_experts_episodes(store):
    verdict_of = fit.train([*SMALL, "--target_cost", "0.25", "--lr", "1e-9"]).verdict
    assert verdict_of is not None
    assert verdict_of.cost_limit == pytest.approx(0.25 * 32)


def test_without_it_there_is_no_verdict(store):
    assert fit.train([*SMALL, "--keep_best", "false"]).verdict is None
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    assert not runs.artifact_paths(run.info.run_id, module.PLACE)


UNSAFE = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/unsafe.yaml", "--env", TOY]
REFUSED = {
    "no multiplier": ([*SMALL, "--pid", "null"], "keep_best=true judges by the limit of pid, and pid is null"),
    "no expert": ([*UNSAFE, "--keep_best", "true"], "keep_best=true compares with the expert"),
    "a limit below 0": ([*SMALL, "--cost_limit", "-1"], "pid.cost_limit=-1.0 is not possible"),
    "no switch": ([*SMALL, "--keep_best", "sometimes"], "keep_best"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_judged_is_refused_before_training(store, options, message):
    with pytest.raises(ValueError, match=message):
        fit.train(options)
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


def test_a_limit_is_a_number_of_at_least_0():
    for limit in ("inf", "nan"):
        with pytest.raises(ValueError, match=f"pid.cost_limit={limit} is not possible"):
            PIDLagrangian(1.0, 0.0, 0.0, cost_limit=float(limit))
    assert PIDLagrangian(1.0, 0.0, 0.0, cost_limit=0.0).cost_limit == 0.0
