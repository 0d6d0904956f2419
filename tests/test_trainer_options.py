"""Options of Lightning's trainer that do not work here are refused with the reason."""

import inspect

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lightning_unlearn import trainer_options
from lightning_unlearn.callbacks.weight_average import WeightAverage

GIVEN = {name: option.default for name, option in inspect.signature(pl.Trainer).parameters.items()}
GIVEN |= {"accelerator": "cpu", "devices": 1, "max_epochs": 4}


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("max_epochs", 0, "at least 1"),
        ("max_epochs", None, "at least 1"),
        ("min_epochs", 9, "more than trainer.max_epochs=4"),
        ("max_time", "00:01:00:00", "max_epochs"),
        ("max_steps", 3, "max_epochs"),
        ("fast_dev_run", True, "max_epochs"),
        ("precision", "64-true", "float32"),
        ("devices", 2, "one device"),
        ("devices", [0], "one device"),
        ("strategy", "ddp", "one device"),
        ("num_nodes", 2, "one device"),
        ("accumulate_grad_batches", 2, "optimizer steps"),
        ("gradient_clip_val", 0.5, "max_grad_norm"),
        ("val_check_interval", 0.5, "no validation"),
        ("inference_mode", False, "no validation"),
        ("use_distributed_sampler", False, "no effect"),
        ("reload_dataloaders_every_n_epochs", 1, "no effect"),
        ("barebones", True, "recorded"),
        ("log_every_n_steps", 0, "recorded"),
    ],
)
def test_an_option_that_does_not_work_is_refused_with_the_reason(option, value, reason):
    trainer_options.require_possible(GIVEN)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (a value may have brackets)
        trainer_options.require_possible(GIVEN | {option: value})
    message = str(refused.value)
    assert message.startswith(f"trainer.{option}={value} ")
    assert "is not possible: " in message
    assert reason in message


@pytest.mark.parametrize(
    ("accelerator", "devices"), [("cpu", "1"), ("cpu", "auto"), ("gpu", [3]), ("gpu", "3,"), ("auto", 1)]
)
def test_one_device_may_be_named_in_all_of_lightnings_ways(accelerator, devices):
    trainer_options.require_possible(GIVEN | {"accelerator": accelerator, "devices": devices})


class WithinUpdates(pl.Callback):
    """A callback with a hook that is never called."""

    def on_after_backward(self, trainer, pl_module):
        """Never called."""


@pytest.mark.parametrize(
    ("further", "given", "message"),
    [
        (trainer_options.further_loggers, False, "trainer.logger=False is not possible: every run is recorded"),
        (trainer_options.further_callbacks, WeightAverage(0.5), "WeightAverage is not possible: .* option of its own"),
        (trainer_options.further_callbacks, [EMAWeightAveraging()], "EMAWeightAveraging is not possible"),
        (trainer_options.further_callbacks, WithinUpdates(), "WithinUpdates.on_after_backward would never be called"),
        (trainer_options.further_plugins, [AsyncCheckpointIO()], "AsyncCheckpointIO is not possible: .*float32"),
    ],
)
def test_what_would_not_work_beside_ours_is_refused(further, given, message):
    with pytest.raises(ValueError, match=message):
        further(given)


def test_what_works_beside_ours_is_passed_on(tmp_path):
    logger, callback, plugin = CSVLogger(tmp_path), pl.Callback(), LightningEnvironment()
    assert trainer_options.further_loggers(logger) == [logger]
    assert trainer_options.further_loggers(None) == trainer_options.further_loggers(True) == []
    assert trainer_options.further_callbacks([callback]) == [callback]
    assert trainer_options.further_plugins(plugin) == [plugin]
