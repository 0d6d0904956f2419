"""The `fit` command: build environments and method from a chain of config files, and train in an MLflow run."""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import SUPPRESS
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from lightning_unlearn import resume
from lightning_unlearn.audits.verdict import Verdict
from lightning_unlearn.callbacks.expert import ConceptCheck, ExpertRecord, NothingToForgetError
from lightning_unlearn.callbacks.mlflow_run import MLflowRun, RunRecord, UpdateCheckpoint
from lightning_unlearn.callbacks.pid_lagrangian import PIDLagrangian
from lightning_unlearn.callbacks.progress import EarlyEnd, FailedEpisodes, Throughput, UpdateBar
from lightning_unlearn.callbacks.save_points import SavePoints
from lightning_unlearn.callbacks.weight_average import WeightAverage
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.configuration import (
    ConfigParser,
    expand,
    method_classes,
    names_task,
    origin,
    without_alternatives,
)
from lightning_unlearn.keep_best import KeepBest
from lightning_unlearn.methods.base import GradientMethod, LagrangianMethod
from lightning_unlearn.old_names import REMOVED_CHOICES, drop_removed_choices
from lightning_unlearn.options import flatten
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.processes import cores, working_directory_importable
from lightning_unlearn.tracking.addresses import without_password
from lightning_unlearn.tracking.checkpoints import AtomicCheckpoints
from lightning_unlearn.tracking.store import (
    TRACKING_URI_HELP,
    key_figures_address,
    not_autologged,
    open_store,
    require_active_experiment,
    ui_command,
)
from lightning_unlearn.trainer_options import (
    further_callbacks,
    further_loggers,
    further_plugins,
    require_one_device,
    require_possible,
)

DESCRIPTION = (
    "Train one method. Its config is enough: `fit -c method/concept.yaml` trains in the default task. Another one is "
    "named by --env, or by a config such as `-c env/point_button1.yaml`. Callbacks of Lightning and your own are named "
    "by --trainer.callbacks. `--model.help CLASS`, such as DualHeadPPO, lists a method's options, to be given as "
    "--model.lr."
)


@dataclass(frozen=True)
class FinishedRun:
    """A finished training and its registered models."""

    run_id: str
    """The MLflow run."""
    env_id: str
    """The environment, and the MLflow experiment."""
    saved: dict[int, str]
    """Update → URI of the registered model."""
    verdict: Verdict | None = None
    """Verdict on the chosen save point; None without `keep_best`."""
    chosen: str | None = None
    """URI of that save point."""
    experiment_id: str = ""
    """MLflow's id of the experiment."""


class FitCLI(LightningCLI):
    """LightningCLI with this package's options. It parses and instantiates; `build` and `fit` are called by `train`."""

    resumed: resume.Resumption | None = None
    keep_best: KeepBest | None = None

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            pl.LightningModule,
            RolloutData,
            subclass_mode_model=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=expand(args),
            run=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options given to this class, never those of the process."""
        with working_directory_importable():
            try:
                self.config = parser.parse_args(args)
                drop_removed_choices(self.config)
                if not names_task(args):
                    print(f"No task is named: training in {self.config.data.env}. Name another one by --env.")
            except ValueError as error:
                raise ValueError(f"{error}{origin(str(error), args)}") from error

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make the parser."""
        parser = ConfigParser(prog="lightning-unlearn fit", description=DESCRIPTION)
        parser.add_config_option()
        method_classes()
        parser.shorten_help("trainer", "data.seed", "model.init_args.seed")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options beside trainer, model and data, and link the one seed to both."""
        parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
        points = "updates after which the policy is registered; null: the last one"
        parser.add_argument("--save_points", type=list[int] | None, default=None, help=points)
        parser.add_argument("--pid", type=PIDLagrangian | None, default=None, help="controls λ; null: λ stays 0")
        average = "mean of late weights that save points hold; null: the update's own weights"
        parser.add_argument("--average", type=WeightAverage | None, default=None, help=average)
        best = "choose a save point by the pid's limit, and judge it beside the expert"
        parser.add_argument("--keep_best", type=bool | None, default=None, help=best)
        parser.add_argument("--resume", type=str | None, default=None, help="run to resume: its id, or last")
        threads = "PyTorch threads; auto: as many cores as speed up the method's updates"
        parser.add_argument("--torch_threads", type=Literal["auto"] | int, default="auto", help=threads)
        for option in REMOVED_CHOICES:
            parser.add_argument(f"--{option}", type=str, default=SUPPRESS, help=SUPPRESS)  # dropped after parsing
        for target in ("data.seed", "model.init_args.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_seed)

    def before_instantiate_classes(self) -> None:
        """Check trainer and threads, and open the store."""
        require_possible(self.config.trainer)
        threads = self.config.torch_threads
        if threads != "auto" and threads < 1:
            raise ValueError(f"torch_threads={threads} is not possible: use auto, or at least 1.")
        # Lightning sets this to 1: then every optimizer step looks for GPUs by opening a library, which takes a sixth
        # of an update.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        self.open_store()

    def open_store(self) -> None:
        """Open the store that the run is recorded in."""
        open_store(self.config.tracking_uri)

    def instantiate_classes(self) -> None:
        """See LightningCLI; a refused value is not printed with all that may stand in its place."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            error.args = (without_alternatives(str(error)),)
            raise

    def instantiate_trainer(self, **_: Any) -> pl.Trainer:
        """Make the trainer: the config's callbacks come before this package's, the MLflow run before other loggers."""
        given, average, pid = self.config_init.trainer, self.config_init.average, self.config_init.pid
        theirs, loggers = further_callbacks(given.callbacks), further_loggers(given.logger)
        plugins = [*further_plugins(given.plugins), AtomicCheckpoints()]
        run, recorders = self.recorders()
        torch.set_num_threads(self._threads())
        ours = [
            average,
            None if pid is None else ConceptCheck(),
            ExpertRecord() if isinstance(self.model, LagrangianMethod) else None,
            pid,
            FailedEpisodes(),
            *recorders,
            UpdateBar(),
        ]
        callbacks = [*theirs, *(callback for callback in ours if callback is not None), EarlyEnd()]
        try:
            trainer = super().instantiate_trainer(logger=[*run, *loggers], callbacks=callbacks, plugins=plugins)
        except MisconfigurationException as error:
            if given.accelerator != "cpu":
                error.add_note(f"Given: trainer.accelerator={given.accelerator}, trainer.devices={given.devices}.")
            raise
        require_one_device(trainer)
        return trainer

    def recorders(self) -> tuple[list[MLflowRun], list[pl.Callback]]:
        """Make the MLflow run, as a logger, and the callbacks that write to it."""
        options = flatten(yaml.safe_load(self._dump()))
        tags = {"method": self.model.method, "seed": str(self.model.seed), "env": self.datamodule.env_id}
        self.resumed = self._resumed(tags, options)
        tags |= {
            resume.CONFIG_DIGEST: resume.config_digest(options),
            resume.THREADS: str(self._threads()),
        }
        run_id = None if self.resumed is None else self.resumed.run_id
        run = MLflowRun(self.datamodule.env_id, f"{tags['method']}-seed{tags['seed']}", tags, run_id)
        self.save_points = SavePoints(run, self.config_init.save_points)
        self.save_points.require_within(self.config.trainer.max_epochs)
        own = [Throughput(), UpdateCheckpoint(run), self.save_points, RunRecord(run, self._dump(), options)]
        if self.config.keep_best:
            self.keep_best = KeepBest(run, self.save_points, self._judging_pid())
            own.append(self.keep_best)
        return [run], own

    def build(self, policy: ActorCritic | None = None) -> None:
        """Build environments and policy, and refuse what cannot be trained, before an MLflow run exists.

        Args:
            policy: Start of training in place of the config's source.

        Raises:
            ValueError: Something in the config is impossible.
        """
        if self.config_init.pid is not None and not isinstance(self.model, LagrangianMethod):
            raise ValueError(f"pid has no effect on the method {self.model.method}: leave --pid and its options out.")
        if self.config_init.average is not None and not isinstance(self.model, GradientMethod):
            raise ValueError(
                f"average has no effect on the method {self.model.method}, which trains no weights: leave it out."
            )
        self.model.build(self.datamodule, policy)

    def fit(self) -> None:
        """Train, from the start or from the checkpoint of the run to resume."""
        checkpoint = None if self.resumed is None else self.resumed.checkpoint
        gc.freeze()  # otherwise garbage collection visits a million objects of the libraries now and then, for 0.3 s
        try:
            with not_autologged():
                self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        except (Exception, SystemExit) as error:
            if isinstance(error, SIGTERMException):  # Lightning's has no exit code, which is that of success
                error.code = 1
            if (run_id := self.save_points.run.begun) and not isinstance(error, NothingToForgetError):
                error.add_note(f"Run {run_id} ended early. To go on with it: the same command and --resume {run_id}")
            raise
        finally:
            gc.unfreeze()

    def _judging_pid(self) -> PIDLagrangian:
        """Return the pid whose limit the verdict goes by.

        Raises:
            ValueError: There is none, or no expert to compare with.
        """
        if self.model.source is None:
            raise ValueError(
                "keep_best=true compares with the expert that training starts from, and model.source is null: name "
                "one, or set --keep_best false."
            )
        pid: PIDLagrangian | None = self.config_init.pid
        if pid is None:
            raise ValueError(
                "keep_best=true judges by the limit of pid, and pid is null: name one, or set --keep_best false."
            )
        return pid

    def _resumed(self, tags: dict[str, str], options: dict[str, Any]) -> resume.Resumption | None:
        if self.config.resume is None:
            return None
        found = resume.find(self.config.resume, self.datamodule.env_id, tags, options)
        if found is None:
            print("There is no unfinished run of this method, environment and seed: this is a new one.")
            return None
        print(f"Resuming run {found.run_id} after update {found.updates}.")
        self.model.resume_from(found.updates, found.source)
        return found

    def _threads(self) -> int:
        """Number of PyTorch threads: the option's, or the resumed run's, since rounding depends on it."""
        if self.config.torch_threads != "auto":
            return int(self.config.torch_threads)
        if self.resumed is not None and self.resumed.threads:
            return self.resumed.threads
        own = os.environ.get("OMP_NUM_THREADS", "")
        usable = min(cores(), int(own)) if own.isdigit() and int(own) else cores()
        return min(usable, self.model.max_threads)  # workers sleep while the learner works

    def _dump(self) -> str:
        """The resolved config, as YAML, without `resume` and without the store's password."""
        config = self.config.clone()
        config.pop("resume")
        if config.tracking_uri:
            config.tracking_uri = without_password(config.tracking_uri)
        return str(self.parser.dump(config, skip_none=False, skip_validation=True))


def _seed(seed_everything: bool | int) -> int:
    if isinstance(seed_everything, bool) or not 0 <= seed_everything < 2**32:
        raise ValueError(f"seed_everything={seed_everything} is not possible: use a whole number from 0 to 2^32 - 1.")
    return seed_everything


def train(args: Sequence[str]) -> FinishedRun:
    """Train with these options.

    Raises:
        ValueError: The options are impossible; no run was made then.
    """
    cli = FitCLI(args)
    try:
        cli.save_points.require_names(cli.model.method, cli.datamodule.env_id)
        require_active_experiment(cli.datamodule.env_id)
        cli.build()
        cli.fit()
    finally:
        cli.datamodule.teardown("fit")  # Lightning leaves the environments and their processes open after an exception
    run, env_id, best = cli.save_points.run, cli.datamodule.env_id, cli.keep_best
    verdict, chosen = (best.verdict, best.chosen) if best else (None, None)
    return FinishedRun(str(run.run_id), env_id, cli.save_points.saved, verdict, chosen, str(run.experiment_id))


def main(args: Sequence[str]) -> None:
    """The `fit` command."""
    run = train(args)
    print(f"Run {run.run_id} of experiment {run.env_id} is finished.")
    for update, uri in sorted(run.saved.items()):
        print(f"  after update {update}: {uri}")
    print(f"Open it with: {ui_command()}\nKey figures of all runs: {key_figures_address(run.experiment_id)}")
    if run.verdict is not None:
        print(run.verdict.in_words())
