"""End of a repair: choose the best save point on validation layouts, and judge it on layouts kept for that."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd

from lightning_unlearn.audits import model_selection
from lightning_unlearn.audits.model_selection import Validated
from lightning_unlearn.audits.outputs import write_json
from lightning_unlearn.audits.policy_comparison import evaluate_in, per_episode
from lightning_unlearn.audits.verdict import Verdict, as_table, judge
from lightning_unlearn.callbacks.mlflow_run import MLflowRun
from lightning_unlearn.callbacks.pid_lagrangian import PIDLagrangian
from lightning_unlearn.callbacks.save_points import SavePoints
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.envs.concept_config import concept_to_json
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import validation_layouts, verdict_layouts
from lightning_unlearn.tracking import model_page, registry, runs
from lightning_unlearn.tracking.experiment_page import NOTE
from lightning_unlearn.tracking.registry import RegisteredModel
from lightning_unlearn.tracking.store import store_address, with_retries

PLACE, FIGURE = "eval/verdict", "before_after.png"
"""Folder of the files among a run's artifacts, and the figure among them."""
VALIDATION_EPISODES = 50
VALIDATION_SHARE = 0.9
"""Share of the limit that a save point must keep on the validation layouts.

Below 1, because the best of several save points on these layouts costs a little more on others.
"""
MOST_STEPS = 10_000
"""Episodes of a task without a time limit are cut here."""


class KeepBest(pl.Callback):
    """Choose among a finished run's save points by the rule of `select`, and judge the chosen one.

    The run is not finished in MLflow before that: if it is interrupted, `--resume` gives the verdict.

    Args:
        run: The MLflow run.
        save_points: The run's save points.
        pid: The controller of λ; the verdict is on its limit of C_forget per episode.
    """

    def __init__(self, run: MLflowRun, save_points: SavePoints, pid: PIDLagrangian) -> None:
        self.run, self.save_points, self.pid = run, save_points, pid
        self.expert: ActorCritic | None = None
        """Policy that training started from; None: the module's source."""
        self.verdict: Verdict | None = None
        self.chosen: str | None = None
        """URI of the model that the verdict is on."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Choose, judge and record."""
        data: RolloutData = pl_module.data
        layouts = validation_layouts(VALIDATION_EPISODES)
        limit = self.pid.episode_limit(pl_module)
        bound = VALIDATION_SHARE * limit
        models = self._models(pl_module)
        print(f"Choosing among {len(models)} save points on layouts {layouts[0]} to {layouts[-1]}")
        env = data.more_environments(len(layouts))
        try:
            max_steps = min(env.simulator.max_episode_steps, MOST_STEPS)
            found = model_selection.validate(env, models, layouts, max_steps)
        finally:
            env.close()
        chosen = model_selection.choose(found, bound)
        self.chosen = chosen.model.uri
        print(model_selection.in_words(chosen, found, bound))
        expert = self.expert or registry.load_policy(str(pl_module.source_uri)).policy
        repaired = registry.load_policy(chosen.model.uri).policy
        tables = _episodes(data, {"expert": expert, "repair": repaired}, max_steps)
        self.verdict = judge(tables["repair"], tables["expert"], limit)
        settings = {
            "cost_limit": bound,
            "verdict_limit": limit,
            "concept": concept_to_json(data.concept),
            "max_steps": max_steps,
            "layouts": f"{layouts[0]} to {layouts[-1]}",
        }
        with_retries(lambda: self._record(found, chosen, settings, tables), "the verdict")
        self.run.log_metrics(self.verdict.numbers, pl_module.env_steps - data.steps_per_update)  # the last update's

    def _models(self, module: Any) -> list[RegisteredModel]:
        """The run's save points, those that were deleted meanwhile left out."""
        run_id = str(self.run.run_id)
        models = registry.registered_models(module.data.env_id, module.seed, run_id)
        if gone := sorted(set(self.save_points.saved) - {model.update for model in models}):
            print(f"Save points {gone} are not in the store any more.")
        if not models:
            raise ValueError(f"keep_best: run {run_id} has no save point in {store_address()}: train it anew.")
        return models

    def _record(
        self,
        found: Sequence[Validated],
        chosen: Validated,
        settings: dict[str, Any],
        tables: dict[str, pd.DataFrame],
    ) -> None:
        from lightning_unlearn.audits.figures import before_after_figure, save_png  # imports matplotlib

        assert self.verdict is not None
        name, run_id = chosen.model.uri.removeprefix("models:/").rpartition("/")[0], str(self.run.run_id)
        by_seed = {chosen.model.seed: chosen}
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "selection").mkdir()
            model_selection.write_files(folder / "selection", found, by_seed, settings)
            episodes = [table.assign(Model=model) for model, table in tables.items()]
            pd.concat(episodes).to_csv(folder / "per_episode.csv", index=False)
            about = {"model": chosen.model.uri, "verdict": self.verdict.word, "in_words": self.verdict.in_words()}
            write_json(folder / "verdict.json", about | self.verdict.tags | self.verdict.numbers)
            save_png(before_after_figure(tables["expert"], tables["repair"], self.verdict.cost_limit), folder / FIGURE)
            runs.log_files(run_id, folder, PLACE)
        model_selection.name_chosen(name, by_seed, settings, run_id)
        registry.tag_version(name, chosen.model.version, self.verdict.tags)
        picture = model_page.image(run_id, f"{PLACE}/{FIGURE}", "Return and C_forget of each episode, before and after")
        table = as_table({"before": tables["expert"], "after": tables["repair"]})
        text = f"**{self.verdict.in_words()}**\n\n{table}\n\n{picture}"
        model_page.describe_before_and_after(name, chosen.model.version, text)
        runs.set_tags(run_id, {NOTE: text} | self.verdict.tags)


def _episodes(data: RolloutData, policies: dict[str, ActorCritic], max_steps: int) -> dict[str, pd.DataFrame]:
    """Each policy's deterministic episodes on the layouts of verdicts."""
    layouts = verdict_layouts()
    print(f"Judging it beside the expert on layouts {layouts[0]} to {layouts[-1]}", flush=True)
    env = data.more_environments(len(layouts))
    try:
        return {
            name: per_episode(evaluate_in(env, policy, layouts, max_steps=max_steps, label=name).episodes)
            for name, policy in policies.items()
        }
    finally:
        env.close()
