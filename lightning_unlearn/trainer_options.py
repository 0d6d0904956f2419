"""Options of Lightning's trainer: refuse those that do not work here, each with its reason."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import Logger, MLFlowLogger

from lightning_unlearn.callbacks.weight_average import WeightAverage

_LENGTH = (
    "training is as long as trainer.max_epochs (the number of updates) says. A run that is ended before that goes on "
    "with --resume last"
)
_ONE_PROCESS = "one process trains on one device. Spread the environments over processes by data.workers"
_PRECISION = "weights, checkpoints and results are float32"
_OWN_STEPS = "each method makes its own optimizer steps. Use model.batch_size and model.max_grad_norm"
_NO_VALIDATION = "training has no validation. Use `lightning-unlearn evaluate` or `select`"
_NO_SECOND_RUN = (
    "trainer.logger: MLFlowLogger is not possible: the run is in MLflow anyway, in the store --tracking_uri."
)
_WITHIN_UPDATES = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
"""Hooks of Lightning around single optimizer steps."""
_NO_EFFECT = "it has no effect on this training"
_REFUSED: tuple[tuple[str, dict[str, tuple[Any, ...]]], ...] = (
    (
        _LENGTH,
        {
            "max_time": (None,),
            "max_steps": (-1,),
            "min_steps": (None,),
            "fast_dev_run": (False,),
            "limit_train_batches": (None, 1.0),
            "overfit_batches": (0.0,),
        },
    ),
    (_ONE_PROCESS, {"strategy": ("auto",), "num_nodes": (1,)}),
    (_PRECISION, {"precision": (None, 32, "32", "32-true")}),
    (
        _OWN_STEPS,
        {"accumulate_grad_batches": (1,), "gradient_clip_val": (None,), "gradient_clip_algorithm": (None,)},
    ),
    (
        _NO_VALIDATION,
        {
            "limit_val_batches": (None, 1.0),
            "limit_test_batches": (None, 1.0),
            "limit_predict_batches": (None, 1.0),
            "val_check_interval": (None, 1.0),
            "check_val_every_n_epoch": (1,),
            "num_sanity_val_steps": (None, 2),
            "inference_mode": (True,),
        },
    ),
    (
        _NO_EFFECT,
        {
            "use_distributed_sampler": (True,),
            "sync_batchnorm": (False,),
            "reload_dataloaders_every_n_epochs": (0,),
            "enable_autolog_hparams": (True,),
            "model_registry": (None,),
        },
    ),
    ("every run is recorded", {"barebones": (False,)}),
)
"""Reason → the options refused for it, each with the values that are accepted: Lightning's defaults and equals."""


def require_possible(trainer: Any) -> None:
    """Refuse options of the trainer that do not work here.

    Args:
        trainer: The config's `trainer`, parsed and not instantiated.

    Raises:
        ValueError: An option would end training early, does not work, or has no effect.
    """
    _require_length(trainer)
    for reason, options in _REFUSED:
        for option, harmless in options.items():
            if trainer[option] not in harmless:
                raise ValueError(f"trainer.{option}={trainer[option]} is not possible: {reason}.")
    if not _is_one_device(trainer["devices"], trainer["accelerator"]):
        raise ValueError(f"trainer.devices={trainer['devices']} is not possible: {_ONE_PROCESS}.")
    if any(getattr(logger, "class_path", "").endswith("MLFlowLogger") for logger in _listed(trainer["logger"])):
        raise ValueError(_NO_SECOND_RUN)
    interval = trainer["log_every_n_steps"]
    if interval is not None and interval < 1:
        raise ValueError(f"trainer.log_every_n_steps={interval} is not possible: every run is recorded. Use 1.")


def _require_length(trainer: Any) -> None:
    """Refuse a number of updates that is none."""
    updates = trainer["max_epochs"]
    if updates is None or updates < 1:
        raise ValueError(f"trainer.max_epochs={updates} (the number of updates) is not possible: use at least 1.")
    if trainer["min_epochs"] is not None and trainer["min_epochs"] > updates:
        raise ValueError(
            f"trainer.min_epochs={trainer['min_epochs']} is not possible: it is more than trainer.max_epochs={updates} "
            "(the number of updates)."
        )


def _is_one_device(devices: Any, accelerator: Any) -> bool:
    """True for one device, given as a number, or as a list or comma-separated indices of GPUs."""
    if isinstance(devices, str) and "," in devices:
        devices = [index for index in devices.split(",") if index]
    if isinstance(devices, list):
        return len(devices) == 1 and accelerator != "cpu"
    return devices in (1, "1", "auto")


def require_one_device(trainer: pl.Trainer) -> None:
    """Refuse `auto` where it found several devices.

    Raises:
        ValueError: It did.
    """
    if trainer.num_devices != 1:
        raise ValueError(
            f"trainer.devices=auto found {trainer.num_devices} devices: {_ONE_PROCESS}. Use --trainer.devices 1."
        )


def further_loggers(given: Logger | Sequence[Logger] | bool | None) -> list[Logger]:
    """Return the loggers that run beside MLflow's.

    Raises:
        ValueError: Logging is switched off, or a logger would take MLflow to another store.
    """
    if given is False:
        raise ValueError(
            "trainer.logger=False is not possible: every run is recorded in MLflow. Leave the option out; another "
            "store is named by --tracking_uri."
        )
    loggers = [] if given in (None, True) else list(_listed(given))
    if any(isinstance(logger, MLFlowLogger) for logger in loggers):
        raise ValueError(_NO_SECOND_RUN)
    return loggers


def further_callbacks(given: pl.Callback | Sequence[pl.Callback] | None) -> list[pl.Callback]:
    """Return the callbacks that run beside this package's.

    Raises:
        ValueError: One averages weights, which save points would not hold, or has a hook that is never called.
    """
    callbacks = list(_listed(given))
    for callback in callbacks:
        if isinstance(callback, WeightAverage | WeightAveraging | StochasticWeightAveraging):
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} is not possible: save points would not hold its "
                "weights. The mean of weights is an option of its own, average (--average.share 0.3333)."
            )
        for hook in _WITHIN_UPDATES:
            if getattr(type(callback), hook) is not getattr(pl.Callback, hook):
                raise ValueError(
                    f"trainer.callbacks: {type(callback).__name__}.{hook} would never be called: {_OWN_STEPS}. Use "
                    "on_train_batch_start or on_train_batch_end, around an update."
                )
    return callbacks


def further_plugins(given: Any) -> list[ClusterEnvironment]:
    """Return the plugins that run beside this package's.

    Raises:
        ValueError: One is for precision, for checkpoints, or for layers.
    """
    plugins = list(_listed(given))
    for plugin in plugins:
        if not isinstance(plugin, ClusterEnvironment):
            raise ValueError(
                f"trainer.plugins: {type(plugin).__name__} is not possible: {_PRECISION}, and written by this package. "
                "Only a cluster environment can be named."
            )
    return plugins


def _listed(given: Any) -> Iterator[Any]:
    """Yield the items of a list, a single item, or nothing for None."""
    if isinstance(given, list | tuple):
        yield from given
    elif given is not None:
        yield given
