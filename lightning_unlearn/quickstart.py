"""The five-minute path: repair the shipped unsafe expert, and report it beside the expert and the published recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_unlearn import fit
from lightning_unlearn.audits import policy_suite
from lightning_unlearn.audits.outputs import results_folder
from lightning_unlearn.audits.policy_suite import PER_EPISODE, VIDEOS
from lightning_unlearn.audits.verdict import Verdict, judge
from lightning_unlearn.configuration import shipped_config
from lightning_unlearn.options import CommandParser
from lightning_unlearn.report import report_command
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, ui_command

ENV_ID = "SafetyPointGoal1-v0"
SOURCE = f"zoo:unsafe.{ENV_ID}"
REPAIR, PUBLISHED = "off_policy_concept", "concept"
"""Methods: the default repair, and the published recipe beside it."""
COST_LIMIT = 25.0
UPDATES = 42
"""Updates of the repair, which makes 60 by default: about three minutes on two cores."""
OPTIONS = ["--cost_limit", str(COST_LIMIT), "--kp", "0.35"]
"""Further options of the repair. Its default gain is for more updates."""
SAVED_AFTER = (5 / 7, 6 / 7, 1.0)
"""Shares of the repair's updates after which the policy is kept, to choose from."""
PUBLISHED_UPDATES = 20
"""Updates of the published recipe, 150 in its config: as many as five minutes have room for."""
MAP_EPISODES = 10
"""Layouts behind each heat map of the report."""


def main(args: Sequence[str]) -> None:
    """Train the repair and the published recipe, evaluate both beside the expert, and write the report."""
    options = _parser().parse_args(args)
    evaluation_layouts(options.episodes)
    out = results_folder(options.out, "quickstart", None)
    beside = min(PUBLISHED_UPDATES, options.updates)
    print(f"1/4  Repairing {SOURCE} by {REPAIR}, {options.updates} updates, for a cost of {COST_LIMIT:g} an episode")
    save_points = sorted({max(1, round(share * options.updates)) for share in SAVED_AFTER})
    repaired = _train(REPAIR, options.updates, options, [*OPTIONS, "--save_points", str(save_points)])
    print(f"2/4  The published recipe, {PUBLISHED}, {beside} of its 150 updates")
    published = _train(PUBLISHED, beside, options, [])
    print(f"3/4  Evaluating all three on the same {options.episodes} layouts")
    store = ["--env", ENV_ID, "--seed", str(options.seed)]
    store += [] if options.tracking_uri is None else ["--tracking_uri", options.tracking_uri]
    models = ["--unsafe_model", SOURCE, "--models", SOURCE, published, repaired]
    policy_suite.main([*store, *models, "--episodes", str(options.episodes), "--record_videos", "--out", str(out)])
    print("4/4  Writing the report")
    methods = ["--models", PUBLISHED, REPAIR, "--map_episodes", str(min(MAP_EPISODES, options.episodes))]
    report_command.main([*store, *methods, "--out", str(out / "report")])
    episodes = pd.read_csv(out / PER_EPISODE)  # of layouts on which nothing was chosen
    tables = {family: table.to_dict("series") for family, table in episodes.groupby("Family")}
    verdict = judge(tables[REPAIR], tables["unsafe"], COST_LIMIT)
    print(_summary(verdict, repaired, out))


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn quickstart", description=__doc__)
    parser.add_argument("--updates", type=int, default=UPDATES, help="updates of the repair")
    parser.add_argument("--episodes", type=int, default=50, help="evaluation layouts, one episode each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the repair")
    parser.add_argument("--out", type=str, default="quickstart", help="folder for the tables, figures, GIFs and report")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser


def _train(method: str, updates: int, options: Any, further: Sequence[str]) -> str:
    """Train a method from the shipped expert; return the URI of the chosen save point, or of the last one."""
    run = fit.train(training_options(method, updates, options.seed, options.tracking_uri, further))
    return run.chosen or run.saved[updates]


def training_options(
    method: str, updates: int, seed: int, tracking_uri: str | None, further: Sequence[str]
) -> list[str]:
    """Return options of `fit` that name the shipped files, whatever files the working directory has."""
    configs = ("base.yaml", "env/point_goal1.yaml", f"method/{method}.yaml")
    chain = [part for config in configs for part in ("-c", str(shipped_config(config)))]
    given = {"updates": updates, "save_points": "null", "seed": seed, "tracking_uri": tracking_uri or "null"}
    own = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return [*chain, "--model.source", SOURCE, *own, *further]


def _summary(verdict: Verdict, repaired: str, out: Path) -> str:
    return (
        f"\nThe repaired policy is {repaired}. One training seed: there is no interval over seeds.\n"
        f"Tables: {out.resolve()}; figures and GIFs: {(out / VIDEOS).resolve()}\n"
        f"See it all in the MLflow UI, at http://localhost:5000:\n  {ui_command()}\n"
        f"Report: {(out / 'report' / 'report.html').resolve()}\n"
        f"{verdict.in_words()}"
    )
