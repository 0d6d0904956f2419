"""Evaluate stored weights again, and compare what they make with what is stated of them.

    uv run python tests/results/recompute.py                     # every table: hours on two cores
    uv run python tests/results/recompute.py tuning 'zoo/*'      # some tables
    uv run python tests/results/recompute.py headline --models 'unsafe_*' 'off_policy_concept_25_*'

Stated are the rows of each `summary.csv` under `mlruns/results`, whose column Path names their weights (a folder there,
or a shipped model) and is empty where none are stored, and the evaluations in the shipped models' `provenance.json`.
Each model is kept in `artifacts/recomputed` once it is evaluated, so that an interrupted run goes on.

A row is `equal` if every number of it is. It is `close` if each mean differs by at most two standard errors of the
difference: another processor rounds differently, and one bit is enough to part two episodes. Where
`mlruns/results/evaluated_on.json` names this processor, these releases and this arithmetic for the table, it has to be
equal. The exit code is 1 if a row differs.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_number

from lightning_unlearn.audits import headline
from lightning_unlearn.audits.audited_models import UNSAFE, AuditedModel, read_model
from lightning_unlearn.audits.outputs import PartialResults
from lightning_unlearn.audits.policy_comparison import Comparison, Result, Suite, SuiteOptions, settings
from lightning_unlearn.audits.suite_tables import fill_headline, summary
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.seeding import ARITHMETIC
from lightning_unlearn.tracking import registry

ROOT = Path(__file__).parents[2]
RESULTS, ZOO = ROOT / "mlruns" / "results", ROOT / "lightning_unlearn" / "zoo"
EVALUATED_ON = RESULTS / "evaluated_on.json"
CACHE = ROOT / "artifacts" / "recomputed"
STANDARD_ERRORS = 2.0
OVER_SEEDS = ("Seeds", "Reward_Seeds_Low", "Reward_Seeds_High", "Cost_Seeds_Low", "Cost_Seeds_High")
"""Columns that other rows have a part in; the tests derive them from the rows."""


@dataclass(frozen=True)
class Table:
    """What is stated of several models of one task on the same layouts."""

    name: str
    rows: pd.DataFrame
    """Columns of `summary.csv`, or some of them; index: Model. Path is a model URI, empty if no weights are stored."""
    decimals: int | None = None
    """That numbers are rounded to."""

    def text(self, value: float) -> str:
        """A number as it is printed: with the decimals that it is stated with, so that equal ones look equal."""
        return f"{value:.{2 if self.decimals is None else self.decimals}f}"


@dataclass(frozen=True)
class OnLayouts(SuiteOptions):
    """The policy suite on any range of layouts."""

    first: int = 0

    @property
    def layouts(self) -> list[int]:
        """The layout of each episode."""
        return list(range(self.first, self.first + self.episodes))


def tables() -> list[Table]:
    """All that is stated of models, those without weights included."""
    found = []
    for path in sorted(RESULTS.rglob("summary.csv")):
        rows = pd.read_csv(path, index_col="Model")
        rows["Path"] = [_uri(place) if isinstance(place, str) else "" for place in rows["Path"]]
        found.append(Table(path.parent.relative_to(RESULTS).as_posix(), rows))
    return found + [table for path in sorted(ZOO.glob("*/provenance.json")) for table in _of_shipped(path)]


def _uri(place: str) -> str:
    return place if place.startswith("zoo:") else str(RESULTS / place)


def _of_shipped(path: Path) -> Iterator[Table]:
    provenance, name = json.loads(path.read_text()), path.parent.name
    for key in (key for key in provenance if key.startswith("evaluation")):
        stated, family = provenance[key], name.partition(".")[0]
        row = {
            "Path": f"zoo:{name}",
            "Family": family,
            "Seed": 0,
            "Reward": stated["episode_return"]["mean"],
            "RewardStd": stated["episode_return"]["std_over_episodes"],
            "Cost_Sum": stated["episode_cost"]["mean"],
            "CostStd": stated["episode_cost"]["std_over_episodes"],
            "Cost_Free_Share": stated["cost_free_episodes"],
            "Episodes": stated["episodes"],
            "Layouts": stated["layout_seeds"].partition(",")[0],
        }
        rows = pd.DataFrame([row], index=pd.Index([name], name="Model"))
        yield Table(f"zoo/{name}{key.removeprefix('evaluation')}", rows, decimals=3)


def this_machine() -> dict[str, Any]:
    """The processor, the releases and this package's arithmetic, which the bits of an evaluation depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    model = ", ".join(f"{name} {about[name]}" for name in ("cpu family", "model", "stepping") if name in about)
    releases = ("torch", "numpy", "mujoco", "safety-gymnasium")
    return {
        "processor": f"{about.get('model name', 'unknown')} ({model}), {torch.backends.cpu.get_cpu_capability()}",
        "releases": {name: version(name).partition("+")[0] for name in releases},
        "arithmetic": ARITHMETIC,
    }


class Recomputation:
    """Evaluates a table's models; an expert that others are compared with is evaluated first.

    Args:
        table: What is stated.
        folder: Where each model's result is kept.
    """

    def __init__(self, table: Table, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.table, self._kept = table, PartialResults(folder)
        self._suite: Suite | None = None
        self._results: dict[str, Result] = {}

    def close(self) -> None:
        """Close the environments."""
        if self._suite is not None:
            self._suite.env.close()

    def row(self, label: str) -> pd.Series:
        """What the weights of a row make, as a row of `summary.csv`."""
        pairs = [self._pair(other) for other in dict.fromkeys([self._expert(label), label])]
        limits = headline.limits([comparison.model for comparison, _ in pairs], {})
        fill_headline(pairs, limits)
        return summary(pairs, [], {}, limits).set_index("Model").loc[label]

    def _pair(self, label: str) -> tuple[Comparison, Result]:
        oracle = self.table.rows.loc[label].get("OracleRef")
        comparison = Comparison(
            self._model(label),
            self._model(self._expert(label)),
            self._model(oracle) if isinstance(oracle, str) else None,
        )
        if label not in self._results:
            wanted = self._options(comparison.model)
            about = settings(wanted, comparison)
            result = self._kept.read(label, about, Result.parse)
            if result is None:
                result = self._examine(wanted, comparison)
                self._kept.write(label, about, result.content)
            self._results[label] = result
        return comparison, self._results[label]

    def _examine(self, wanted: OnLayouts, comparison: Comparison) -> Result:
        if self._suite is None:
            self._suite = Suite(make_env(wanted.env, wanted.episodes, wanted.concept), wanted, None)
        return self._suite.examine(comparison)

    def _options(self, model: AuditedModel) -> OnLayouts:
        stated = self.table.rows.loc[model.label]
        first = int(stated["Layouts"].split(" to ")[0])
        card = registry.load_policy(stated["Path"]).card
        return OnLayouts(card.env, int(stated["Episodes"]), concept=card.concept or "auto", first=first)

    def _model(self, label: str) -> AuditedModel:
        path = self.table.rows.loc[label, "Path"]
        return replace(read_model(path, registry.load_policy(path).card.env, "models"), label=label)

    def _expert(self, label: str) -> str:
        rows = self.table.rows
        experts = rows.index[(rows["Family"] == UNSAFE) & (rows["Seed"] == rows.loc[label, "Seed"])]
        return str(experts[0]) if len(experts) else label


def verdict(table: Table, label: str, made: pd.Series) -> tuple[str, list[str]]:
    """Whether a row is `equal`, `close` or `different`; and its means that are too far from what is stated."""
    stated = table.rows.loc[label]
    numbers = [n for n in stated.index.intersection(made.index).difference(OVER_SEEDS) if is_number(stated[n])]
    shown = {name: made[name] if table.decimals is None else round(made[name], table.decimals) for name in numbers}
    if all(stated[name] == shown[name] or pd.isna([stated[name], shown[name]]).all() for name in numbers):
        return "equal", []
    errors = {name: _standard_error(stated, made, name) for name in numbers}
    far = [
        f"{name}: stated {table.text(stated[name])}, made {table.text(made[name])}, "
        f"standard error of the difference {table.text(error)}"
        for name, error in errors.items()
        if error is not None and not abs(made[name] - stated[name]) <= STANDARD_ERRORS * error
    ]
    return ("different" if far else "close"), far


def _standard_error(stated: pd.Series, made: pd.Series, mean: str) -> float | None:
    """Standard error of the difference between two means; None if the column has none."""
    if mean.endswith("_Change_vs_Unsafe"):
        spread, episodes = mean.replace("_vs_Unsafe", "_SE"), 1
    else:
        spread = {"Reward": "RewardStd", "Cost_Sum": "CostStd"}.get(mean, f"{mean}_Std")
        episodes = stated["Episodes"]
    return float(np.hypot(stated[spread], made[spread])) / episodes**0.5 if spread in stated.index else None


def main(args: Sequence[str]) -> int:
    """Recompute and compare; 1 if a row differs."""
    options = _parser().parse_args(args)
    known = {table.name: table for table in tables()}
    chosen = [known[name] for name in _matching(options.tables, [*known], "table")]
    models = _matching(options.models, [str(label) for table in chosen for label in table.rows.index], "model")
    torch.set_num_threads(1)
    evaluated_on, here, counts = json.loads(EVALUATED_ON.read_text()), this_machine(), Counter[str]()
    print(f"{here['processor']}, {here['releases']}")
    for table in chosen:
        exactly, recomputation = evaluated_on.get(table.name) == here, Recomputation(table, CACHE / table.name)
        try:
            for label, stated in table.rows.iterrows():
                if str(label) in models:
                    counts[_compare(table, str(label), stated, recomputation, exactly)] += 1
        finally:
            recomputation.close()
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    return int(counts["different"] > 0)


def _matching(patterns: Sequence[str], names: Sequence[str], kind: str) -> list[str]:
    """The names that any of the patterns matches.

    Raises:
        SystemExit: A pattern matches none of them.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise SystemExit(f"No {kind} matches {pattern!r}: use a pattern of {', '.join(dict.fromkeys(names))}.")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _compare(table: Table, label: str, stated: pd.Series, recomputation: Recomputation, exactly: bool) -> str:
    where = f"{table.name} {label}: stated {table.text(stated['Reward'])} / {table.text(stated['Cost_Sum'])}"
    if not stated["Path"]:
        print(f"{where}: no weights are stored")
        return "without weights"
    made = recomputation.row(label)
    found, far = verdict(table, label, made)
    if found == "close" and exactly:
        found, far = "different", ["evaluated_on.json names this processor and these releases, so it has to be equal"]
    numbers = f"{table.text(made['Reward'])} / {table.text(made['Cost_Sum'])}"
    print(f"{where}, made {numbers}: {found}", *far, sep="\n    ", flush=True)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["*"], help="names or patterns, such as headline or 'zoo/*'")
    parser.add_argument("--models", nargs="+", default=["*"], help="patterns of the column Model")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
