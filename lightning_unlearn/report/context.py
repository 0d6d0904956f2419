"""Input and building blocks of a report's sections: findings, groups of models, published numbers, and blocks."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.statistics import censored_median, mean_interval
from lightning_unlearn.report.findings import Findings, ModelOrigin, ReportScope, StoredEvaluation
from lightning_unlearn.tracking import registry

NOTHING = "\N{EN DASH}"
_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "gif": "image/gif", "mp4": "video/mp4"}


class Point(NamedTuple):
    """Mean return and mean cost of an episode."""

    reward: float
    cost: float


PUBLISHED_ENV = "SafetyPointGoal1-v0"
"""Environment of the published numbers."""
PUBLISHED = {
    "unsafe": Point(23.67, 59.6),
    "oracle 300": Point(18.66, 29.3),
    "oracle 350": Point(21.97, 32.1),
    "oracle 400": Point(20.40, 17.5),
    "oracle 450": Point(19.07, 20.7),
    "concept 50": Point(23.55, 36.8),
    "concept 100": Point(23.87, 41.8),
    "concept 150": Point(12.44, 22.1),
    "repedit 50": Point(23.00, 62.0),
    "repedit 100": Point(22.85, 63.4),
    "repedit 150": Point(22.36, 59.9),
}
"""Family and update → result of the system that this project rebuilds; trajectory-decremental was not published.

One training seed, 50 deterministic episodes, unseeded layouts.
"""
OMNISAFE = {
    "PPO": Point(25.4, 55.7),
    "CPO": Point(20.5, 28.8),
    "TRPOPID": Point(19.2, 21.4),
    "PPOLag": Point(13.0, 25.8),
    "CPPOPID": Point(8.4, 25.7),
}
"""Algorithm → OmniSafe's published result: 10 million steps, five seeds."""
PUBLISHED_PROBE_AUROC = 0.751
"""AUROC of the published probe on the unsafe expert's latents, test split."""


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Table:
    """Cells of plain text; the first column names the row."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An image or a video that the report carries with it."""

    name: str
    """File name; its ending is the format."""
    content: bytes
    caption: str
    """Also the alternative text."""

    @property
    def data_uri(self) -> str:
        """The image as a URI, for an HTML file that carries it inside."""
        media_type = _MEDIA_TYPES[self.name.rpartition(".")[2]]
        return f"data:{media_type};base64,{base64.b64encode(self.content).decode()}"

    @property
    def is_video(self) -> bool:
        """True if a browser plays it, with controls."""
        return self.name.endswith(".mp4")


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as far as there is room."""

    kind: ClassVar = "gallery"
    pictures: Sequence[Picture]
    wide: bool = False
    """One below the other, as wide as the page; on a narrow screen they scroll sideways."""
    pairs: bool = False
    """Each is a pair: at most two in a row."""


@dataclass(frozen=True)
class Folded:
    """Text of fixed width that is hidden until a reader opens it."""

    kind: ClassVar = "folded"
    title: str
    text: str


@dataclass(frozen=True)
class Missing:
    """A result that the store does not hold, and the command that makes it."""

    kind: ClassVar = "missing"
    text: str
    command: str


Block = Paragraph | Table | Gallery | Folded | Missing


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Id of the section, for links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class ModelGroup:
    """The evaluated models of one method and update, one per training seed."""

    model: ModelOrigin
    """Without a seed."""
    rows: pd.DataFrame
    """Their rows of `summary.csv`."""
    over_seeds: dict[str, Any]
    """Intervals and tests over seeds; empty with one seed."""
    limit: float | None = None
    """Limit on C_forget of an episode that they were trained for; None if none is recorded, or several are."""

    @property
    def name(self) -> str:
        """Family and update."""
        return self.model.kind

    @property
    def label(self) -> str:
        """Label of its first seed's model in the evaluation's files."""
        return str(self.rows["Model"].iloc[0])

    @property
    def seeds(self) -> int:
        """Number of training seeds; 1 if none is known."""
        return max(1, self.rows["Seed"].nunique())

    def mean(self, column: str) -> float | None:
        """Mean of a column over seeds; None if no seed has a value."""
        value = self.rows[column].mean()
        return None if pd.isna(value) else float(value)

    def interval(self, quantity: str) -> tuple[float, float] | None:
        """The 95 % interval over seeds of Reward, Cost or a headline column; None with one seed."""
        bounds = [self.over_seeds.get(f"{quantity}_Seeds_{end}") for end in ("Low", "High")]
        return None if None in bounds else (bounds[0], bounds[1])  # type: ignore[return-value]


def group_models(evaluation: StoredEvaluation, scope: ReportScope) -> list[ModelGroup]:
    """Group an evaluation's models by family and update, in the order of its table.

    Raises:
        ValueError: The evaluation lacks a method of the scope.
    """
    table = evaluation.table
    families = set(table["Family"].dropna())
    if absent := set(scope.methods) - families:
        raise ValueError(
            f"--models {' '.join(sorted(absent))}: evaluation {evaluation.eval_id} holds {', '.join(sorted(families))}."
        )
    rows = table[[scope.has_method(family) for family in table["Family"].fillna("")]]
    over_seeds = {(row["Family"], row["Update"]): row for row in evaluation.findings["over_seeds"]}
    groups = []
    for (family, update), group in rows.groupby(["Family", "Update"], sort=False, dropna=False):
        name = group["Model"].iloc[0] if pd.isna(family) or not family else str(family)
        model = ModelOrigin(name, None if pd.isna(update) else int(update))
        limits = {evaluation.limits.get(uri) for uri in group["Path"]}
        limit = limits.pop() if len(limits) == 1 else None
        groups.append(ModelGroup(model, group, over_seeds.get((model.family, model.update), {}), limit))
    return groups


def last_save_points(groups: Iterable[ModelGroup]) -> list[ModelGroup]:
    """Return the last save point of every family, in order."""
    last: dict[str, int] = {}
    for group in (groups := list(groups)):
        last[group.model.family] = max(group.model.update or 0, last.get(group.model.family, 0))
    return [group for group in groups if (group.model.update or 0) == last[group.model.family]]


@dataclass(frozen=True)
class Measure:
    """A number of each model, with each training seed."""

    title: str
    reading: str
    """Meaning of a larger number, in a few words."""
    shown: Callable[[float], str]
    """Formats the number."""
    values: Mapping[ModelOrigin, Sequence[float]]
    """Model without a seed → its number with each seed."""
    censored: Mapping[ModelOrigin, Sequence[bool]] = field(default_factory=dict)
    """Model → True where the number would be larger if the test had gone on; empty if that cannot be."""
    trust: str = ""
    """How well the measure tells hidden behaviour from none; empty if that was not measured."""

    def middle(self, model: ModelOrigin) -> float | None:
        """Mean over seeds; of times, the median of Kaplan and Meier. None if it is unknown."""
        values = self.values.get(model, ())
        if self.censored and values:
            return censored_median(values, self.censored[model])
        return float(np.mean(values)) if values else None

    def interval(self, model: ModelOrigin) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean over seeds; None with one seed, and for times."""
        values = self.values.get(model, ())
        return mean_interval(np.asarray(values)) if len(values) > 1 and not self.censored else None

    def cell(self, model: ModelOrigin) -> str:
        """The middle with its interval; of times, also how many seeds were not censored."""
        values, middle = self.values.get(model, ()), self.middle(model)
        if not values:
            return NOTHING
        text = f"> {self.shown(max(values))}" if middle is None else self.shown(middle)
        if self.censored:
            open_ended = self.censored[model]
            return f"{text} ({open_ended.count(False)} of {len(values)})"
        return text + brackets(self.interval(model), self.shown)


@dataclass(frozen=True)
class ReportContext:
    """Everything that sections are written from."""

    findings: Findings
    groups: list[ModelGroup]
    """Models of the evaluation; empty without one."""
    maps: Mapping[str, bytes] = field(default_factory=dict)
    """Name of a group → heat map."""
    store_option: str = ""
    """Option that names the store in a command, after a space; empty if a command finds the store by itself."""

    @property
    def env(self) -> str:
        """Environment id."""
        return self.findings.env

    @property
    def families(self) -> list[str]:
        """Families of all models that are drawn."""
        audited = [test.model.family for test in self.findings.relearning]
        audited += [pair.model.family for pair in self.findings.pairs]
        trained = [training.method for training in self.findings.trainings]
        return [*(group.model.family for group in self.groups), *trained, *audited]

    @property
    def expert_uri(self) -> str:
        """URI of the unsafe expert for a command."""
        paths = [str(group.rows["Path"].iloc[0]) for group in self.groups if group.model.family == UNSAFE]
        return paths[0] if paths else f"zoo:{registry.model_name(UNSAFE, self.env)}"

    @property
    def repaired_uri(self) -> str:
        """URI of a repaired model for a command."""
        paths = [str(group.rows["Path"].iloc[0]) for group in self.groups if group.model.family != UNSAFE]
        return paths[-1] if paths else f"models:/{registry.model_name('concept', self.env)}/latest"

    def missing(self, text: str, command: str) -> Missing:
        """Name a result that is not there, and the command that makes it in this store."""
        return Missing(text, f"lightning-unlearn {command}{self.store_option}")


def number(value: float | None, digits: int = 2) -> str:
    """Format a number with a true minus sign; an unknown one as a dash."""
    if value is None or value != value:
        return NOTHING
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None) -> str:
    """Format a share as a whole percentage."""
    return NOTHING if share is None else f"{100 * share:.0f} %"


def brackets(interval: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    """Format an interval in square brackets, after a space; nothing if there is none."""
    return "" if interval is None else f" [{shown(interval[0])}, {shown(interval[1])}]"
