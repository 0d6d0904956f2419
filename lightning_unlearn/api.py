"""The Python API: load a policy, evaluate it, repair it, dial how much, and wrap what was trained elsewhere.

All of it is importable from `lightning_unlearn` itself, which loads nothing until a name is used.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd

from lightning_unlearn import registry, training
from lightning_unlearn.audits.policy_suite import evaluate as evaluate_episodes
from lightning_unlearn.audits.policy_suite import per_episode
from lightning_unlearn.callbacks.concept_check import ConceptCheck
from lightning_unlearn.callbacks.progress import Progress
from lightning_unlearn.callbacks.weight_average import released
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.foreign.module import wrap
from lightning_unlearn.methods.base import require_fit
from lightning_unlearn.methods.gradient import GradientMethod
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.extrapolation import extrapolate
from lightning_unlearn.policies.storage import ModelCard
from lightning_unlearn.policies.storage import save_policy as save_policy_files
from lightning_unlearn.seeds import evaluation_layouts
from lightning_unlearn.torch_modes import ordinary_modes

__all__ = ["ModelCard", "evaluate", "extrapolate", "load_policy", "repair", "save_policy", "wrap"]
_OF_A_RUN = (
    "--trainer.",
    "--updates",
    "--model.source",
    "--source",
    "--env",
    "--data.env",
    "--save_points",
    "--resume",
)
"""Options of `fit` that a repair has arguments for, or no use."""


@ordinary_modes()
def load_policy(uri: str, tracking_uri: str = registry.DEFAULT_TRACKING_URI) -> ActorCritic:
    """A policy from the registry, a run, the shipped ones, or a file; `policy.act` maps (N, O) to actions (N, A).

    Args:
        uri: `models:/…`, `runs:/…`, `zoo:…`, a folder or a `.pt` file.
        tracking_uri: The MLflow store that `models:` and `runs:` are looked up in.

    Raises:
        ValueError: Nothing is there, or it is not a policy.
    """
    if uri.startswith(("models:", "runs:")):
        registry.open_store(tracking_uri)
    return registry.load_policy(uri).policy


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


@ordinary_modes()
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


@ordinary_modes()
def repair(
    policy: ActorCritic, env: str, method: str = "concept", updates: int = 50, options: Sequence[str] = ()
) -> ActorCritic:
    """A repaired copy of a policy, by one of the methods that update by gradient; the policy itself stays as it is.

    Nothing is registered: `fit --model.source` does the same and keeps the result. With `average`, in the method's
    config or among the options, what comes back is what that makes of the weights.

    Args:
        policy: Loaded, or wrapped.
        env: The task.
        method: Names the config, `method/<method>.yaml`: concept, concept_tuned, off_policy_concept,
            localized_concept, continued or trajectory_decremental.
        updates: Of that method, each one rollout.
        options: More options of `fit` about method, multiplier and rollouts, such as `["--target_cost", "0.02"]`.

    Raises:
        ValueError: An option is impossible, or the policy does not fit the environment.
    """
    chain = [part for file in ("base", "env/point_goal1", f"method/{method}") for part in ("-c", f"{file}.yaml")]
    given = ["--env", env, "--updates", str(updates), "--save_points", "null", *options]
    _require_effect(options)
    cli = training.TrainingCLI([*chain, *given])
    if not isinstance(cli.model, GradientMethod):
        raise ValueError(f"method={method!r} does not change weights by gradient: use one that does, such as concept.")
    try:
        require_fit(policy, cli.datamodule.env, "the policy")
        cli.model.policy = deepcopy(policy).requires_grad_(True).train()
        cli.prepare()
        trainer = _trainer(cli, updates)
        trainer.fit(cli.model, cli.datamodule)
    finally:
        cli.datamodule.teardown("fit")
    return released(trainer, cli.model).eval()


def _require_effect(options: Sequence[str]) -> None:
    for option in options:
        if option.startswith(_OF_A_RUN):
            raise ValueError(
                f"options: {option} has no effect here: a repair starts from the policy given, makes the updates "
                "given, and leaves no run. Use the arguments of the same names, or `fit`."
            )


def _trainer(cli: training.TrainingCLI, updates: int) -> pl.Trainer:
    """A trainer that leaves nothing behind."""
    average, pid = cli.config_init.average, cli.config_init.pid
    ours = [average, *([ConceptCheck(), pid] if pid else []), Progress()]
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=updates,
        logger=False,
        callbacks=[callback for callback in ours if callback is not None],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
