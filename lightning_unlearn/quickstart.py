"""The five-minute path: repair the shipped unsafe expert by concept unlearning, and show before and after."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lightning_unlearn import registry, runs, training
from lightning_unlearn.audits.drawing import save_png
from lightning_unlearn.audits.figures import before_after
from lightning_unlearn.audits.places import results_folder
from lightning_unlearn.audits.policy_suite import Evaluation, evaluate, per_episode, policy_change, reference_states
from lightning_unlearn.audits.top_view import write_gif
from lightning_unlearn.configuration import shipped_config
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeds import evaluation_layouts

ENV_ID = "SafetyPointGoal1-v0"
SOURCE = f"zoo:unsafe.{ENV_ID}"
CONFIGS = ("base.yaml", "env/point_goal1.yaml", "method/concept.yaml")
UPDATES = 60
"""The published recipe, stopped where the whole stays well under five minutes on two cores."""


@dataclass(frozen=True)
class Subject:
    """A policy and what it did on the layouts."""

    name: str
    uri: str
    policy: ActorCritic
    evaluation: Evaluation


def main(args: Sequence[str]) -> None:
    """The `quickstart` command."""
    options = _parser().parse_args(args)
    layouts, out = evaluation_layouts(options.episodes), results_folder(options.out, "quickstart", None)
    print(f"1/3  Repairing {SOURCE} by concept unlearning, {options.updates} updates")
    run = training.train(_training_options(options.updates, options.seed, options.tracking_uri))
    print(f"2/3  Evaluating both on the same {len(layouts)} layouts")
    named = {"before": SOURCE, "after": run.saved[options.updates]}
    before, after = (_subject(name, uri, layouts) for name, uri in named.items())
    table = comparison(before, after)
    print("3/3  Drawing")
    _write_results(out, table, before, after)
    runs.log_files(run.run_id, out, "eval/quickstart")
    _report(table, after, out, run.run_id)


def comparison(before: Subject, after: Subject) -> pd.DataFrame:
    """One row a policy: return, cost, share of cost-free episodes, and KL from the first policy near and far."""
    states, distance = reference_states(before.evaluation)
    rows = []
    for subject in (before, after):
        episodes = per_episode(subject.evaluation.episodes)
        change = policy_change(before.policy, subject.policy, states, distance)
        rows.append(
            {
                "policy": subject.name,
                "return": episodes["reward"].mean(),
                "episode_cost": episodes["cost_sum"].mean(),
                "cost_free_episodes": (episodes["cost_sum"] == 0).mean(),
                "kl_near": change.near,
                "kl_far": change.far,
            }
        )
    return pd.DataFrame(rows).set_index("policy")


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn quickstart", description=__doc__)
    parser.add_argument("--updates", type=int, default=UPDATES, help="updates of concept unlearning")
    parser.add_argument("--episodes", type=int, default=50, help="evaluation layouts, one episode each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the repair")
    parser.add_argument("--out", type=str, default="quickstart", help="folder for the table, the figure and the GIFs")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=registry.TRACKING_URI_HELP)
    return parser


def _training_options(updates: int, seed: int, tracking_uri: str | None) -> list[str]:
    chain = [part for config in CONFIGS for part in ("-c", str(shipped_config(config)))]
    options = {"updates": updates, "save_points": "null", "seed": seed, "tracking_uri": tracking_uri or "null"}
    return [*chain, "--model.source", SOURCE, *(part for k, v in options.items() for part in (f"--{k}", str(v)))]


def _subject(name: str, uri: str, layouts: list[int]) -> Subject:
    policy = registry.load_policy(uri).policy
    return Subject(name, uri, policy, evaluate(policy, ENV_ID, layouts, workers=2, keep_scenes=True, label=name))


def _write_results(out: Path, table: pd.DataFrame, before: Subject, after: Subject) -> None:
    table.to_csv(out / "table.csv")
    uris = json.dumps({s.name: s.uri for s in (before, after)}, indent=2)
    (out / "models.json").write_text(f"{uris}\n", encoding="utf-8")
    shown = _telling_episode(before, after)
    episodes = before.evaluation.episodes, after.evaluation.episodes
    save_png(before_after(*episodes, shown, (before.name, after.name)), out / "before_after.png")
    for subject in (before, after):
        per_episode(subject.evaluation.episodes).to_csv(out / f"per_episode_{subject.name}.csv", index=False)
        write_gif(out / f"{subject.name}.gif", subject.evaluation.episodes, shown, subject.name)


def _telling_episode(before: Subject, after: Subject) -> int:
    """The layout whose saving in cost is the median one: neither the best case nor the worst."""
    saving = before.evaluation.episodes.episode_cost - after.evaluation.episodes.episode_cost
    return int(saving.argsort()[len(saving) // 2])


def _report(table: pd.DataFrame, after: Subject, out: Path, run_id: str) -> None:
    cost, kept = (table.loc["after", column] / table.loc["before", column] for column in ("episode_cost", "return"))
    print(f"\n{table.to_string(float_format='{:.3f}'.format)}\n")
    print(f"Episode cost {100 * (cost - 1):+.0f} %, return kept {100 * kept:.0f} %.", end=" ")
    print("One training seed: there is no interval over seeds; train more before you claim more.")
    print(f"The repaired policy is {after.uri}, of run {run_id}.")
    print(f"Table, figure and GIFs (also with the run in MLflow): {out.resolve()}")
    print(f"See it all in the MLflow UI, at http://localhost:5000:\n  {registry.ui_command()}")
