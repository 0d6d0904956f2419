"""Habits of LightningCLI: short forms, callbacks, `--print_config`, and help."""

import re
import sys
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from lightning_unlearn import cli, fit
from lightning_unlearn.resume import config_digest
from lightning_unlearn.tracking import registry

SMOKE = ["-c", "method/oracle.yaml", "-c", "smoke.yaml"]
NO_TASK = "No task is named: training in SafetyPointGoal1-v0."


def test_a_methods_config_is_a_whole_command_that_prints_the_default_task(store, capsys):
    alone = fit.FitCLI(["-c", "method/concept.yaml"])
    assert NO_TASK in capsys.readouterr().out
    chain = fit.FitCLI(["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", "method/concept.yaml"])
    assert "No task" not in capsys.readouterr().out
    alone.config.data.workers = chain.config.data.workers  # results do not depend on it
    assert yaml.safe_load(alone._dump()) == yaml.safe_load(chain._dump())


@pytest.mark.parametrize("named", [["--env", "ToyLine-v0"], ["--data.env=ToyLine-v0"], ["-c", "smoke.yaml"]])
def test_nothing_is_printed_about_a_task_that_is_named(store, capsys, named):
    assert fit.FitCLI(["-c", "method/concept.yaml", *named]).datamodule.env_id == "ToyLine-v0"
    assert "No task" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["DualHeadPPO", "LocalizedConcept", "OffPolicyConcept", "TrajectoryDecremental", "RepEdit"]
)
def test_the_name_of_a_methods_class_is_enough(store, name):
    Path("mine.yaml").write_text(f"model: {{class_path: {name}, init_args: {{method: mine}}}}\n")
    from_file = fit.FitCLI(["-c", "mine.yaml"])
    from_option = fit.FitCLI(["-c", "base.yaml", "--model", name, "--model.method", "mine"])
    assert type(from_file.model).__name__ == type(from_option.model).__name__ == name
    recorded = yaml.safe_load(from_file._dump())["model"]["class_path"]
    assert recorded.startswith("lightning_unlearn.methods.")  # so that a stored config says which class was meant


def test_a_name_that_no_class_has_is_refused(refused):
    assert "DualHedPPO" in refused("fit", *SMOKE, "--model", "DualHedPPO")


CALLBACKS = """
trainer:
  enable_checkpointing: true
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: rollout/episode_return, mode: max, patience: 2, min_delta: 1.0e9}
    - class_path: LearningRateMonitor
    - class_path: ModelCheckpoint
      init_args: {dirpath: ckpts, filename: best, monitor: rollout/cost_rate}
    - class_path: mine.Counting
      init_args: {start: 10}
"""
MINE = """
import lightning.pytorch as pl


class Counting(pl.Callback):
    seen = []

    def __init__(self, start: int = 0):
        self.start = start

    def on_train_batch_end(self, trainer, pl_module, *others):
        type(self).seen.append((self.start + trainer.current_epoch, pl_module.method))
"""


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_callbacks_of_lightning_and_ones_own_run_and_change_no_weight(store, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    Path("callbacks.yaml").write_text(CALLBACKS)
    run = fit.train([*SMOKE, "--save_points", "[3]", "-c", "callbacks.yaml"])
    assert "ended training after update 3 of 4" in capsys.readouterr().out  # the first one, and two without a gain
    assert sys.modules["mine"].Counting.seen == [(10, "oracle"), (11, "oracle"), (12, "oracle")]
    assert [file.name for file in Path("ckpts").iterdir()] == ["best.ckpt"]
    plain = fit.train([*SMOKE, "--save_points", "[3]"])
    weights = [registry.load_policy(done.saved[3]).policy.action_mean.weight for done in (run, plain)]
    assert torch.equal(*weights)


def test_the_learning_rate_is_a_metric_with_or_without_lightnings_monitor(store):
    run = fit.train([*SMOKE, "--trainer.callbacks", "LearningRateMonitor", "--model.anneal_lr", "true"])
    points = mlflow.MlflowClient().get_metric_history(run.run_id, "train/lr")
    assert [point.value for point in points] == pytest.approx([3e-4 * share for share in (1, 0.75, 0.5, 0.25)])


def printed_config(capsys, *options):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", *options, "--print_config"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["-c", "method/concept.yaml"],
        [*SMOKE, "--lr", "1e-3", "--seed", "7", "--trainer.callbacks", "LearningRateMonitor"],
        ["-c", "env/car_goal1.yaml", "-c", "method/off_policy_concept.yaml", "--cost_limit", "12"],
    ],
    ids=["short", "callbacks", "repair"],
)
def test_a_printed_config_gives_the_same_run(store, capsys, options):
    text = printed_config(capsys, *options)
    Path("printed.yaml").write_text(text)
    assert printed_config(capsys, "-c", "printed.yaml") == text
    first, again = fit.FitCLI(options), fit.FitCLI(["-c", "printed.yaml"])
    digests = [config_digest(fit.flatten(yaml.safe_load(made._dump()))) for made in (first, again)]
    assert digests[0] == digests[1]


def test_help_is_short_and_whole_on_request(capsys):
    short = cli.help_text("fit")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "--help_all"])
    whole = capsys.readouterr().out
    assert stopped.value.code == 0
    assert len(short.splitlines()) <= 100 < 300 < len(whole.splitlines())
    options = [set(re.findall(r"^  (--[\w.]+)", text, re.MULTILINE)) for text in (short, whole)]
    assert {"--data.env", "--pid", "--save_points", "--trainer.max_epochs", "--model", "--print_config"} <= options[0]
    assert options[0] < options[1]
    assert {"--trainer.callbacks", "--trainer.strategy", "--pid.help"} <= options[1] - options[0]
    assert "--help_all" in short


def test_help_of_a_method_lists_its_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", "--model.help", "RepEdit"])
    assert "--model.repedit_alpha" in capsys.readouterr().out
