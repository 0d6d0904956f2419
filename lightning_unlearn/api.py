"""The Python API: load, evaluate, repair, extrapolate and save policies, and wrap networks trained elsewhere.

All functions can be imported from `lightning_unlearn` itself, which loads nothing until a name is used.
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
from lightning_unlearn.audits.elicitation import elicit as elicit_behaviour
from lightning_unlearn.audits.meta_evaluation import meta_evaluation
from lightning_unlearn.audits.patching import patch as patch_policies
from lightning_unlearn.audits.policy_comparison import evaluate as evaluate_episodes
from lightning_unlearn.audits.policy_comparison import per_episode
from lightning_unlearn.audits.weight_path import weight_path as walk_path
from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.callbacks.weight_average import averaged_policy
from lightning_unlearn.configuration import shipped_config
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.global_state import same_process
from lightning_unlearn.importers.torch_module import wrap as wrap_module
from lightning_unlearn.methods.base import GradientMethod, require_same_sizes
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.actor_critic import extrapolate as extrapolate_policies
from lightning_unlearn.policies.files import ModelCard, require_storable
from lightning_unlearn.policies.files import save_policy as save_policy_files
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import not_autologged, same_store, use_existing_store

__all__ = [
    "ModelCard",
    "elicit",
    "evaluate",
    "extrapolate",
    "load_policy",
    "meta_evaluation",
    "patch",
    "repair",
    "save_policy",
    "weight_path",
    "wrap",
]
_WITHOUT_EFFECT = (
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
"""Options of `fit` that have no effect on a repair, or an argument of `repair` in their place."""
_IN_MEMORY = "a policy in memory"
"""Source that is recorded for a repair from Python."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore after a library call all global state that it touches, MLflow's stores included.

    Use it as a decorator. Inside, libraries are quiet, gradients are computed, and MLflow logs nothing by itself.
    """
    with same_process(), not_autologged(), same_store():
        yield


wrap, extrapolate = undisturbed()(wrap_module), undisturbed()(extrapolate_policies)
patch, weight_path = undisturbed()(patch_policies), undisturbed()(walk_path)
elicit = undisturbed()(elicit_behaviour)


@undisturbed()
def load_policy(uri: str, tracking_uri: str | None = None) -> ActorCritic:
    """Load a policy from the registry, a run, the shipped models or a file; `policy.act` maps (N, O) to actions (N, A).

    A store that was copied or moved is first made to work where it is, as by the command line.

    Args:
        uri: `models:/…`, `runs:/…`, `zoo:…`, a folder or a `.pt` file.
        tracking_uri: The MLflow store that `models:` and `runs:` are looked up in; None: where MLflow points
            (`mlflow.set_tracking_uri`, or MLFLOW_TRACKING_URI), else the store in `./mlruns`.

    Raises:
        ValueError: There is no such model, or it is not a policy.
    """
    if uri.startswith(("models:", "runs:")):
        use_existing_store(tracking_uri)
    return registry.load_policy(uri).policy


@undisturbed()
def save_policy(folder: str | Path, policy: ActorCritic, card: ModelCard) -> None:
    """Write a policy into a folder, which `load_policy` reads.

    Args:
        folder: It is made if it is missing.
        policy: A loaded or repaired policy; a wrapped network cannot be stored like this.
        card: Origin of the policy: at least its method and environment.

    Raises:
        ValueError: A weight is not finite, or the policy is wrapped around a network.
    """
    save_policy_files(Path(folder), policy, card)


@undisturbed()
def evaluate(
    policy: ActorCritic, env: str, episodes: int = 50, concept: str | Concept = "auto", workers: int = 2
) -> pd.DataFrame:
    """Evaluate the deterministic policy on the fixed bank of layouts.

    Args:
        policy: The policy.
        env: The task.
        episodes: Number of layouts; every policy gets the same ones.
        concept: The behaviour counted as C_forget: auto, an info key or a concept.
        workers: Processes that step the environments; results do not depend on it.

    Returns:
        One row an episode: reward, cost_sum, cforget_sum, …
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
    """Return a repaired copy of a policy, trained by one of the methods that update by gradient.

    With `average`, in the method's config or among the options, the copy has the mean of the late weights.

    Args:
        policy: A loaded or wrapped policy; it is not changed.
        env: The task.
        method: Name of the shipped config `method/<method>.yaml`: off_policy_concept, concept, concept_tuned,
            localized_concept, continued or trajectory_decremental.
        updates: Updates of the method, one rollout each. None: as many as in its config file.
        options: Further options of `fit` for method, multiplier and rollouts, such as `["--cost_limit", "10"]`.
        tracking_uri: The MLflow store in which the repair is recorded as a run with the registered result. If the
            method's config says `keep_best: true`, the verdict on it is recorded and printed, as by `fit`. None:
            nothing is recorded or judged, and no store is needed.

    Raises:
        ValueError: An option is impossible, or the policy does not fit the environment.
    """
    _require_effect(options, _WITHOUT_EFFECT if tracking_uri else (*_WITHOUT_EFFECT, "--keep_best"))
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
        require_same_sizes(policy, cli.datamodule.env, "the policy")
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
    """The training that `fit` builds; without a store, its trainer leaves nothing behind."""

    @property
    def recorded(self) -> bool:
        """A store was named."""
        return self.config.tracking_uri is not None

    def open_store(self) -> None:
        """Open the store, if one was named."""
        if self.recorded:
            super().open_store()

    def recorders(self) -> tuple[list[MLflowRun], list[pl.Callback]]:
        """Return the MLflow run and the callbacks that write to it, if a store was named."""
        return super().recorders() if self.recorded else ([], [])

    def _set_seed(self) -> None:
        """Seed as Lightning does, except random streams of GPUs, which could not be restored."""
        random.seed(self.config.seed_everything)
        np.random.seed(self.config.seed_everything)  # noqa: NPY002 (the global stream, as Lightning does)
        torch.default_generator.manual_seed(self.config.seed_everything)
