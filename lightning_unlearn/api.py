"""The Python API: load a policy, evaluate it, repair it, dial how much, and wrap what was trained elsewhere.

All of it is importable from `lightning_unlearn` itself, which loads nothing until a name is used.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch

from lightning_unlearn import fit
from lightning_unlearn.audits.policy_suite import evaluate as evaluate_episodes
from lightning_unlearn.audits.policy_suite import per_episode
from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.callbacks.weight_average import averaged_policy
from lightning_unlearn.configuration import shipped_config
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.global_state import same_process
from lightning_unlearn.importers.torch_module import wrap as wrap_module
from lightning_unlearn.methods.base import GradientMethod, require_fit
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.actor_critic import extrapolate as extrapolate_policies
from lightning_unlearn.policies.files import ModelCard, require_storable
from lightning_unlearn.policies.files import save_policy as save_policy_files
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import not_autologged, same_store, use_existing_store

__all__ = ["ModelCard", "evaluate", "extrapolate", "load_policy", "repair", "save_policy", "wrap"]
_OF_A_RUN = (
    "--trainer.accelerator",
    "--trainer.max_epochs",
    "--updates",
    "--model.source",
    "--source",
    "--env",
    "--data.env",
    "--save_points",
    "--tracking_uri",
    "--resume",
    "--help",
    "-h",
    "--print_config",
)
"""Options of `fit` that a repair has arguments for, or no use."""
_IN_MEMORY = "a policy in memory"
"""Recorded as the source of a repair from Python."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore after a library call all global state that it touches, MLflow's stores included.

    Use it as a decorator. Inside, libraries are quiet, gradients are computed, and MLflow logs nothing by itself.
    """
    with same_process(), not_autologged(), same_store():
        yield


wrap, extrapolate = undisturbed()(wrap_module), undisturbed()(extrapolate_policies)


@undisturbed()
def load_policy(uri: str, tracking_uri: str | None = None) -> ActorCritic:
    """A policy from the registry, a run, the shipped ones, or a file; `policy.act` maps (N, O) to actions (N, A).

    Args:
        uri: `models:/…`, `runs:/…`, `zoo:…`, a folder or a `.pt` file.
        tracking_uri: The MLflow store that `models:` and `runs:` are looked up in; None: where MLflow points
            (`mlflow.set_tracking_uri`, or MLFLOW_TRACKING_URI), else the store in `./mlruns`.

    Raises:
        ValueError: Nothing is there, or it is not a policy.
    """
    if uri.startswith(("models:", "runs:")):
        use_existing_store(tracking_uri)
    return registry.load_policy(uri).policy


@undisturbed()
def save_policy(folder: str | Path, policy: ActorCritic, card: ModelCard) -> None:
    """Write a policy into a folder, which `load_policy` reads.

    Args:
        folder: Made if need be.
        policy: Loaded or repaired; a wrapped network cannot be stored like this.
        card: Where it comes from: at least its method and environment.

    Raises:
        ValueError: A weight is not finite, or the policy is wrapped around a network.
    """
    save_policy_files(Path(folder), policy, card)


@undisturbed()
def evaluate(
    policy: ActorCritic, env: str, episodes: int = 50, concept: str | Concept = "auto", workers: int = 2
) -> pd.DataFrame:
    """The deterministic policy on the fixed bank of layouts, one row an episode (reward, cost_sum, cforget_sum, …).

    Args:
        policy: Acts.
        env: The task.
        episodes: How many layouts of the bank; every policy sees the same ones.
        concept: What counts as C_forget: auto, an info key or a concept.
        workers: Processes that step the environments; results do not depend on it.
    """
    layouts = evaluation_layouts(episodes)
    return per_episode(evaluate_episodes(policy, env, layouts, concept=concept, workers=workers).episodes)


@undisturbed()
def repair(
    policy: ActorCritic,
    env: str,
    method: str = "off_policy_concept",
    updates: int | None = None,
    options: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> ActorCritic:
    """A repaired copy of a policy, by one of the methods that update by gradient; the policy itself stays as it is.

    With `average`, in the method's config or among the options, what comes back is what that makes of the weights.

    Args:
        policy: Loaded, or wrapped.
        env: The task.
        method: Names the shipped config, `method/<method>.yaml`: off_policy_concept, concept, concept_tuned,
            localized_concept, continued or trajectory_decremental.
        updates: Of that method, each one rollout. None: as many as its config file says.
        options: More options of `fit` about method, multiplier and rollouts, such as `["--cost_limit", "10"]`.
        tracking_uri: The MLflow store that the repair is recorded in, as a run with the registered result; where the
            method's config says `keep_best: true`, the verdict on it is recorded and printed, as by `fit`. None:
            nothing is recorded or judged, and no store is needed.

    Raises:
        ValueError: An option is impossible, or the policy does not fit the environment.
    """
    _require_effect(options, _OF_A_RUN if tracking_uri else (*_OF_A_RUN, "--keep_best"))
    files = ("base.yaml", "env/point_goal1.yaml", f"method/{method}.yaml")
    chain = [part for file in files for part in ("-c", str(shipped_config(file)))]
    given = ["--env", env, "--tracking_uri", tracking_uri or "null"]
    given += [] if updates is None else ["--updates", str(updates)]
    cli = _Repair([*chain, "--save_points", "null", *options, *given])
    if not isinstance(cli.model, GradientMethod):
        raise ValueError(f"method={method!r} does not change weights by gradient: use one that does, such as concept.")
    if cli.recorded:
        require_storable(policy)
        cli.save_points.require_names(cli.model.method, env)
    try:
        require_fit(policy, cli.datamodule.env, "the policy")
        cli.model.source_uri = _IN_MEMORY
        if cli.keep_best is not None:
            cli.keep_best.expert = policy
        cli.build(deepcopy(policy).requires_grad_(True).train())
        cli.trainer.fit(cli.model, cli.datamodule)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop  # Lightning ends the whole program at Ctrl-C
        raise
    finally:
        cli.datamodule.teardown("fit")
    if cli.keep_best is not None and cli.keep_best.verdict is not None:
        print(cli.keep_best.verdict.in_words())
    return averaged_policy(cli.trainer, cli.model).eval()


def _require_effect(options: Sequence[str], without: tuple[str, ...]) -> None:
    for option in options:
        if option.startswith(without):
            raise ValueError(
                f"options: {option} has no effect here: a repair starts from the policy given, makes the updates "
                "given, and is judged where a store is named. Use the arguments of `repair`, or the command `fit`."
            )


class _Repair(fit.FitCLI):
    """Builds what `fit` builds; without a store, with a trainer that leaves nothing behind."""

    @property
    def recorded(self) -> bool:
        """Whether a store was named."""
        return self.config.tracking_uri is not None

    def open_store(self) -> None:
        """Open the store, if one was named."""
        if self.recorded:
            super().open_store()

    def recorders(self) -> tuple[list[MLflowRun], list[pl.Callback]]:
        """The MLflow run and what writes to it, if a store was named."""
        return super().recorders() if self.recorded else ([], [])

    def _set_seed(self) -> None:
        """Seed as Lightning does, but for what could not be restored: random streams of GPUs."""
        random.seed(self.config.seed_everything)
        np.random.seed(self.config.seed_everything)  # noqa: NPY002 (the global stream, as Lightning does)
        torch.default_generator.manual_seed(self.config.seed_everything)
