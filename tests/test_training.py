"""The whole path on the toy environment, through the command line, with a real store."""

import re
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from lightning_unlearn import cli, fit
from lightning_unlearn.callbacks.weight_average import WeightAverage
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import open_store, tracking_uri

BASE = ["-c", "configs/base.yaml", "-c", "configs/env/point_goal1.yaml"]
SMOKE = ["-c", "configs/smoke.yaml"]
METHODS = [
    "unsafe",
    "oracle",
    "concept",
    "concept_tuned",
    "continued",
    "repedit",
    "localized_concept",
    "off_policy_concept",
    "trajectory_decremental",
]
OWN = {"off_policy_concept": ["--model.critic_steps", "20", "--model.steps", "10", "--model.mean_scale", "0.3"]}
ROLLOUT = ("rollout/cost_rate", "rollout/episode_return", "time/env_steps_per_s")
METRICS = {
    "repedit": (*ROLLOUT, "repedit/alpha"),
    "localized_concept": (*ROLLOUT, "train/policy_loss", "train/locality_kl"),
    "off_policy_concept": (*ROLLOUT, "train/policy_loss", "train/total_loss", "train/reward_value", "train/cost_value"),
    "trajectory_decremental": ("train/cloning_loss", "decremental/episodes_retained", "time/update_s"),
}
"""What a method logs at every update; the others what a rollout shows, and a policy loss."""


def options(method, *more):
    return [*BASE, "-c", f"configs/method/{method}.yaml", *SMOKE, *OWN.get(method, []), *more]


def history(run_id, metric):
    points = mlflow.MlflowClient().get_metric_history(run_id, metric)
    return [(p.step, p.value) for p in sorted(points, key=lambda p: p.step)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_registers_and_records(store, method, capsys):
    cli.main(["fit", *options(method)])
    printed = capsys.readouterr().out
    (run,) = mlflow.search_runs(experiment_names=["ToyLine-v0"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.info.run_id in printed
    assert f"models:/{method}.ToyLine-v0/2" in printed
    assert registry.load_policy(f"models:/{method}.ToyLine-v0@update-4").card.update == 4
    assert run.data.tags["method"] == method
    assert run.data.params["data.horizon"] == "64"
    for metric in METRICS.get(method, (*ROLLOUT, "train/policy_loss")):
        assert [step for step, _ in history(run.info.run_id, metric)] == expected_steps(method)
    lambdas = [value for _, value in history(run.info.run_id, "lagrangian/lambda")]
    assert len(lambdas) == (4 if "concept" in method or method == "oracle" else 0)


def expected_steps(method):
    """4 updates, each from its own rollout of 4 × 64 steps; or all from one collection of 200 episodes of 32 steps."""
    before = {"unsafe": 0, "oracle": 0, "concept_tuned": 1200}.get(method, 300) * 4 * 64
    if method == "trajectory_decremental":
        return [before + 200 * 32] * 4
    return [before + update * 4 * 64 for update in (1, 2, 3, 4)]


def test_the_recorded_config_makes_the_same_run_again(store, tmp_path):
    first = fit.train(options("oracle", "--pid.kp", "3.5"))
    text = mlflow.artifacts.load_text(f"runs:/{first.run_id}/config.yaml")
    config = yaml.safe_load(text)
    assert config["pid"]["init_args"]["kp"] == 3.5
    (tmp_path / "again.yaml").write_text(text)
    second = fit.train(["-c", str(tmp_path / "again.yaml")])
    weights = [registry.load_policy(run.saved[4]).policy.state_dict() for run in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_source_is_recorded_by_its_version_whatever_named_it(store):
    version = fit.train(options("unsafe")).saved[4]
    run = fit.train(options("concept", "--model.source", "models:/unsafe.ToyLine-v0@update-4"))
    assert mlflow.get_run(run.run_id).data.tags["source"] == version


@pytest.mark.parametrize(("anneal", "shares"), [("true", [1.0, 0.75, 0.5, 0.25]), ("false", [1.0] * 4)])
def test_the_step_size_falls_linearly_where_it_is_annealed(store, anneal, shares):
    run = fit.train(options("oracle", "--model.lr", "1e-3", "--model.anneal_lr", anneal))
    assert [lr for _, lr in history(run.run_id, "train/lr")] == pytest.approx([1e-3 * share for share in shares])


MEAN = ["--save_points", "[2, 3, 4]", "--average.share", "0.5"]
"""Of four updates, the last two."""


def saved_weights(run):
    return {update: dict(registry.load_policy(uri).policy.named_parameters()) for update, uri in run.saved.items()}


def note_of(run, update):
    return registry.load_policy(run.saved[update]).card.note


@pytest.mark.parametrize(
    ("method", "without", "asked"), [("oracle", [], MEAN[2:]), ("concept_tuned", ["--average", "null"], [])]
)
def test_save_points_hold_the_mean_of_the_weights_if_an_option_or_a_config_says_so(store, method, without, asked):
    run = fit.train(options(method, *MEAN[:2], *asked))
    last, mean = saved_weights(fit.train(options(method, *MEAN[:2], *without))), saved_weights(run)
    for name in last[2]:
        assert torch.equal(mean[2][name], last[2][name])  # before the first one that counts
        assert torch.equal(mean[3][name], last[3][name])
        torch.testing.assert_close(mean[4][name], 0.5 * (last[3][name] + last[4][name]))
    assert not torch.equal(mean[4]["trunk.0.weight"], last[4]["trunk.0.weight"])
    assert [note_of(run, update) for update in (2, 4)] == ["", "mean of the weights of 2 updates"]


def test_the_option_of_the_collector_is_read_and_dropped_or_refused_with_the_reason(store, tmp_path):
    (tmp_path / "old.yaml").write_text("data: {collector: lean}")
    assert "collector" not in fit.FitCLI(options("unsafe", "-c", str(tmp_path / "old.yaml"))).config.data
    reasons = {"ray": "a study spreads trainings", "stock": "more slowly", "fast": "no longer exists"}
    for collector, reason in reasons.items():
        with pytest.raises(ValueError, match=f"data.collector={collector} is not possible: .*{reason}"):
            fit.FitCLI(options("unsafe", "--data.collector", collector))


def test_the_seed_decides(store):
    runs = [fit.train(options("unsafe", "--seed", str(seed))) for seed in (0, 0, 1)]
    means = [registry.load_policy(run.saved[4]).policy.action_mean.weight for run in runs]
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])


def test_a_stage_takes_weights_only_from_its_source(store):
    expert = fit.train(options("unsafe"))
    chain = fit.FitCLI(options("concept", "--model.source", expert.saved[4]))
    chain.build()
    source = registry.load_policy(expert.saved[4]).policy
    assert torch.equal(chain.model.policy.trunk[0].weight, source.trunk[0].weight)
    assert chain.model.cost_weight == 0.0
    assert chain.trainer.current_epoch == 0


def test_names_of_the_published_scripts_are_understood(store):
    given = ["--n_envs", "2", "--updates=3", "--save_points", "1", "3", "--ent_coef", "0.1", "--target_cost", "0.05"]
    parsed = fit.FitCLI([*options("oracle"), *given]).config
    assert (parsed.data.num_envs, parsed.trainer.max_epochs, parsed.save_points) == (2, 3, [1, 3])
    assert (parsed.model.init_args.ent_coef, parsed.pid.init_args.target_cost) == (0.1, 0.05)


BAD = {
    "unknown environment": (["--env", "SafetyPointGaol1-v0"], "SafetyPointGoal1-v0"),
    "unknown method file": (["-c", "method/concpt.yaml"], "method/concept.yaml"),
    "unknown model": (["--model.source", "models:/nope/1"], "models:/nope/1 was not found"),
    "unknown alias": (["--model.source", "models:/nope@x"], "models:/nope@x was not found"),
    "model of another size": (["--model.source", "zoo:unsafe.SafetyPointGoal1-v0"], "takes 60 observations"),
    "concept never reported": (["--data.concept", "cost_vases"], "cost_hazards, cost_sum"),
    "no environments": (["--n_envs", "0"], "num_envs=0"),
    "more workers than environments": (["--n_envs", "2", "--data.workers", "3"], "workers=3 is more than num_envs=2"),
    "a pid that nothing listens to": (["-c", "configs/method/repedit.yaml"], "pid has no effect on the method repedit"),
    "an average of what is not trained": (
        ["-c", "configs/method/repedit.yaml", "--pid", "null", "--average.share", "0.5"],
        "average has no effect on the method repedit",
    ),
    "an average among the trainer's callbacks": (
        ["--trainer.callbacks", WeightAverage.__module__ + ".WeightAverage", "--trainer.callbacks.share", "0.5"],
        "trainer.callbacks: WeightAverage is not possible.* an option of its own, average",
    ),
    "an infinite step": (["--lr", ".inf"], "model.lr=inf"),
    "no horizon": (["--horizon", "0"], "horizon=0"),
    "a limit of Lightning's own": (["--trainer.max_time", "00:01:00:00"], "trainer.max_time=00:01:00:00 .*max_epochs"),
    "no MLflow": (["--trainer.logger", "false"], "trainer.logger=False is not possible: every run is recorded"),
    "a second MLflow run": (["--trainer.logger", "MLFlowLogger"], "trainer.logger: MLFlowLogger is not possible"),
    "checkpoints of another kind": (
        ["--trainer.plugins", "lightning.pytorch.plugins.io.AsyncCheckpointIO"],
        "trainer.plugins: AsyncCheckpointIO is not possible",
    ),
    "averaged weights that no save point holds": (
        ["--trainer.callbacks", "EMAWeightAveraging"],
        "trainer.callbacks: EMAWeightAveraging is not possible",
    ),
    "another precision": (["--trainer.precision", "64-true"], "trainer.precision=64-true is not possible: .*float32"),
    "a method that names no model": (
        ["--model.method", "concept-v2"],
        "model.method=concept-v2 .*'concept-v2' is no name",
    ),
    "save points beyond the updates": (["--save_points", "2", "40"], r"save_points=\[40\].*max_epochs=4"),
    "no threads": (["--torch_threads", "0"], "torch_threads=0"),
    "threads that are no number": (["--torch_threads", "many"], "torch_threads"),
    "negative seed": (["--seed", "-1"], "seed_everything=-1 is not possible"),
    "misspelt option": (["--data.horizn", "3"], "Did you mean data.horizon"),
    "abbreviated option": (["--trainer.max_epoch", "3"], "Did you mean trainer.max_epochs"),
    "misspelt pid option": (["--pid.target_cots", "3"], "Did you mean (pid.)?target_cost"),
    "store that cannot be written": (["--tracking_uri", "sqlite:////proc/x/mlflow.db"], "cannot be written"),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_anything_is_made(store, capsys, given, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", *options("oracle"), *given])
    assert stopped.value.code == 2
    assert_says(capsys, message)
    open_store(store)
    assert mlflow.search_experiments(filter_string="name = 'ToyLine-v0'") == []
    assert mlflow.MlflowClient().search_registered_models() == []


def assert_says(capsys, message):
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data:\n  horizn: 3\n", "Did you mean (data.)?horizon.*The key is in .*bad.yaml"),
        ("lr: 0.001\nhidden: 64\n", "Option 'lr' is not accepted.*The key is in .*bad.yaml"),
        ("model:\n  init_args:\n    lr: fast\n", "Got value: fast.*The key is in .*bad.yaml"),
    ],
)
def test_a_wrong_key_in_a_file_is_refused_by_the_names_of_both(tmp_path, refused, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    assert re.search(message, refused("fit", *options("oracle"), "-c", str(tmp_path / "bad.yaml")), re.DOTALL)


@pytest.mark.parametrize("given", [["--data.horizon", "64.0"], ["--lr", "fast"], ["--save_points", "x"]])
def test_a_value_of_the_wrong_type_is_no_misspelt_key(refused, given):
    message = refused("fit", *options("oracle"), *given)
    assert given[1] in message
    assert "Did you mean" not in message
    assert "The key is in" not in message


WORKING = """
trainer:
  enable_checkpointing: true
  profiler: simple
  plugins: {class_path: lightning.pytorch.plugins.environments.LightningEnvironment}
  logger: {class_path: CSVLogger, init_args: {save_dir: csv}}
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {dirpath: ckpts, filename: best, save_last: true, save_top_k: 1, monitor: rollout/cost_rate}
"""


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_loggers_plugins_profilers_and_checkpoints_of_lightning_work_beside_ours(store, tmp_path, capsys, monkeypatch):
    """A resumed run, too: what Lightning's own callback keeps is in our checkpoints."""
    (tmp_path / "more.yaml").write_text(WORKING)
    plain = fit.train(options("oracle"))
    with monkeypatch.context() as failing:
        failing.setattr("lightning_unlearn.callbacks.save_points.SavePoints._register", fail_at_the_second)
        with pytest.raises(RuntimeError):
            fit.train(options("oracle", "-c", str(tmp_path / "more.yaml")))
    run = fit.train(options("oracle", "-c", str(tmp_path / "more.yaml"), "--resume", "last"))
    assert sorted(path.name for path in Path("ckpts").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert torch.load("ckpts/last.ckpt", weights_only=True)["epoch"] == 3
    rows = Path("csv/lightning_logs/version_1/metrics.csv").read_text().splitlines()
    assert "rollout/cost_rate" in rows[0]
    assert len(history(run.run_id, "rollout/cost_rate")) == 4
    weights = [registry.load_policy(done.saved[4]).policy.action_mean.weight for done in (plain, run)]
    assert torch.equal(*weights)


def fail_at_the_second(self, trainer, pl_module):
    if trainer.current_epoch == 1:
        raise RuntimeError("broken")


def test_the_store_is_the_options_then_the_programs_then_the_variables(tmp_path, template_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uris = {}
    for name in ("option", "program", "variable"):
        (tmp_path / f"{name}.db").write_bytes(template_store.read_bytes())
        uris[name] = f"sqlite:///{tmp_path}/{name}.db"
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uris["variable"])
    assert used_by_a_command() == uris["variable"]
    mlflow.set_tracking_uri(uris["program"])
    assert used_by_a_command() == uris["program"]
    assert used_by_a_command("--tracking_uri", uris["option"]) == uris["option"]
    assert not Path("mlruns").exists()
    mlflow.set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("mlruns").mkdir()
    Path("mlruns/mlflow.db").write_bytes(template_store.read_bytes())
    assert used_by_a_command() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def used_by_a_command(*given):
    cli.main(["gc", *given])
    return tracking_uri()


def test_a_config_of_ones_own_names_the_store_whatever_the_variable_says(store, tmp_path, template_store, monkeypatch):
    (tmp_path / "own.db").write_bytes(template_store.read_bytes())
    (tmp_path / "own.yaml").write_text(f"tracking_uri: sqlite:///{tmp_path}/own.db\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///variable.db")
    fit.train(options("unsafe", "-c", "own.yaml"))
    assert tracking_uri() == f"sqlite:///{tmp_path}/own.db"
    assert not Path("variable.db").exists()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MLFLOW_EXPERIMENT_NAME", "mine", "MLFLOW_EXPERIMENT_NAME=mine is not possible: every environment has one"),
        ("MLFLOW_REGISTRY_URI", "sqlite:///r.db", "MLFLOW_REGISTRY_URI=sqlite:///r.db .*is not possible"),
        ("MLFLOW_TRACKING_URI", "file:///mlruns", r"file:///mlruns' \(from MLFLOW_TRACKING_URI .* names no store"),
    ],
)
def test_a_variable_that_asks_for_another_place_is_refused(store, monkeypatch, refused, variable, value, message):
    mlflow.set_tracking_uri(None)
    monkeypatch.setenv(variable, value)
    assert re.search(message, refused("fit", *options("oracle")))
    assert re.search(message, refused("evaluate", "--env", "ToyLine-v0", "--models", "zoo:unsafe.SafetyPointGoal1-v0"))


EARLY = ["--trainer.callbacks", "lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor"]
STOPPING = [*EARLY, "rollout/episode_return", "--trainer.callbacks.stopping_threshold", "1e9"]


@pytest.mark.parametrize("save_points", ["null", "[2, 4]", "[1, 4]"])
def test_a_run_that_a_callback_ends_registers_its_last_update_and_says_so(store, capsys, save_points):
    cli.main(["fit", *options("oracle", "--save_points", save_points, "--average.share", "0.5", *STOPPING)])
    printed = capsys.readouterr().out
    assert re.search("A callback .* ended training after update 1 of 4. .* the result has its own weights", printed)
    assert "after update 1: models:/oracle.ToyLine-v0/1" in printed
    (version,) = mlflow.MlflowClient().search_model_versions("name='oracle.ToyLine-v0'")
    card = registry.load_policy("models:/oracle.ToyLine-v0@update-1").card
    assert (card.update, card.env_steps, card.note) == (1, 4 * 64, "")
    assert mlflow.get_run(version.run_id).info.status == "FINISHED"


def test_a_callback_that_stops_at_the_last_update_ends_nothing_early(store, capsys):
    run = fit.train(options("oracle", "--save_points", "[2]", "--trainer.min_epochs", "4", *STOPPING))
    assert [*run.saved] == [2]
    assert "ended training" not in capsys.readouterr().out


def test_a_monitor_that_is_no_metric_is_refused_after_the_first_update(store, refused):
    message = refused("fit", *options("oracle", *EARLY, "return"))
    assert re.search("trainer.callbacks: EarlyStopping.monitor=return is not possible: use one of .*rollout/", message)
    saving = [
        EARLY[0],
        "lightning.pytorch.callbacks.ModelCheckpoint",
        EARLY[2],
        "return",
        "--trainer.enable_checkpointing",
        "true",
    ]
    assert "ModelCheckpoint.monitor=return is not possible: use one of" in refused("fit", *options("oracle", *saving))


def test_training_is_not_autologged(store, monkeypatch):
    import mlflow.pytorch
    from mlflow.utils import autologging_utils

    mlflow.pytorch.autolog()
    try:
        with mlflow.start_run(experiment_id=mlflow.create_experiment("mine")) as mine:
            fit.train(options("oracle"))
    finally:
        mlflow.pytorch.autolog(disable=True)
    data = mlflow.get_run(mine.info.run_id).data
    assert (data.metrics, data.params) == ({}, {})
    assert autologging_utils._AUTOLOGGING_GLOBALLY_DISABLED is False


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mysql+pymysql://me:secret@127.0.0.1/db", r"mysql\+pymysql://127.0.0.1/db needs .* \(pip install 'pymysql'\)"),
        ("mysql://me:secret@127.0.0.1/db", r"the Python module MySQLdb: .* \(pip install 'mysqlclient'\)"),
        ("postgresql://me:secret@127.0.0.1/db", r"\(pip install 'psycopg(2-binary|\[binary\])'\)"),
        ("postgresql+nothing://me:secret@127.0.0.1/db", "names no store: .*nothing"),
        ("sqlite:///:memory:", "names no file: use sqlite:///FOLDER/mlflow.db"),
        ("sqlite:///", "names no file"),
    ],
)
def test_a_store_that_cannot_be_opened_is_refused_without_its_password(store, refused, uri, message):
    said = refused("fit", *options("oracle", "--tracking_uri", uri))
    assert re.search(f"tracking_uri={re.escape(uri.split(':')[0])}", said)
    assert re.search(message, said)
    assert "secret" not in said


def test_a_missing_option_tells_which_files_were_read(store, refused):
    Path("method").mkdir()
    Path("method/unsafe.yaml").write_text("pid: null\n")
    said = refused("fit", "-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/unsafe.yaml")
    assert re.search(r"required: model\n.*/base.yaml, .*, method/unsafe.yaml \(of the working directory, in", said)
    assert said.count("in place of") == 1
    Path("mine.yaml").write_text("name: few\n")
    assert re.search("required: envs, .*\n.* read: mine.yaml\\.", refused("study", "-c", "mine.yaml"))


def test_a_device_that_is_not_there_is_named_by_its_option(store, refused):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "trainer.accelerator=gpu" in refused("fit", *options("oracle", "--trainer.accelerator", "gpu"))


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")], ids=["failed", "killed"]
)
def test_a_run_that_ends_early_says_how(store, monkeypatch, error, status):
    from lightning_unlearn.methods.dual_head_ppo import DualHeadPPO

    def fail(self, batch):
        if self.trainer.current_epoch == 2:
            raise error
        return original(self, batch)

    original = DualHeadPPO.update
    monkeypatch.setattr(DualHeadPPO, "update", fail)
    with pytest.raises((RuntimeError, SystemExit)):
        fit.train(options("oracle"))
    (run,) = mlflow.search_runs(experiment_names=["ToyLine-v0"], output_format="list")
    assert run.info.status == status
    assert len(history(run.info.run_id, "rollout/cost_rate")) == 2
