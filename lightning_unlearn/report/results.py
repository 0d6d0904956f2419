"""The sections about what models do: the headline table, the two tests, return against cost, learning curves."""

from collections.abc import Sequence
from typing import Any

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.suite_tables import NO_CHANGE
from lightning_unlearn.report import charts
from lightning_unlearn.report.document import Block, Gallery, Paragraph, Picture, Section, Table
from lightning_unlearn.report.findings import TARGET, Evaluation
from lightning_unlearn.report.glance import glance
from lightning_unlearn.report.kinds import Kind
from lightning_unlearn.report.material import NOTHING, Material, number, percent, with_spread
from lightning_unlearn.report.reference import COST_LIMIT, ENV, OMNISAFE, PUBLISHED

_HEADLINE = ("model", "seeds", "return", "episode cost", "cost-free", "worst tenth", "KL", "near / far", "KL oracle")
_CAPTION = (
    "Square brackets: 95 % interval with the training seed as the unit ({intervals}). ±: standard deviation over the "
    "episodes of one seed, which says nothing of another seed. Worst tenth: mean cost of the costliest tenth of the "
    "episodes. KL: of the expert from the model before tanh, over the expert's states; near / far: that near what is "
    "to be forgotten over that far from it. KL oracle: of the oracle from the model, over the oracle's states."
)
_BEFORE = "percentiles of resampled seeds, too narrow for few of them: evaluate again for better ones"
"""How intervals were made before evaluations said how."""
_COSTS = "Every kind of cost in an episode, and in brackets its change from the unsafe expert on the same layouts."
_TESTS = ["model", "return ratio", "lower bound", "return kept", "cost change", "upper bound", "cost lower", "both"]
_TESTS += ["p of both", "p, Holm", f"cost under {COST_LIMIT:g}"]
_NEEDS_EVALUATION = Paragraph("This is read from an evaluation, and there is none: see the results above.")
_CURVES = {
    "rollout/episode_return": ("return of an episode", "Return of the episodes of each rollout."),
    "rollout/cost_rate": ("cost per step", "Cost per step of each rollout."),
    "lagrangian/lambda": ("λ", "λ, the weight of the cost advantage."),
}


def headline(known: Material) -> Section:
    """Every kind of model with its numbers."""
    evaluation = known.findings.evaluation
    if evaluation is None:
        return Section("Results", [_no_evaluation(known)])
    beside = known.env == ENV
    rows = [_headline_row(kind, beside) for kind in known.kinds]
    header = [*_HEADLINE, "published return / cost"] if beside else list(_HEADLINE)
    notes = [Paragraph(note) for note in evaluation.findings["notes"]]
    caption = _CAPTION.format(intervals=evaluation.metadata.get("intervals", _BEFORE))
    tables = [Table(header, rows, caption), *_costs(known.kinds)]
    return Section("Results", [Paragraph(_about(evaluation)), *glance(evaluation, known.kinds), *tables, *notes])


def tests(known: Material) -> Section:
    """Non-inferiority of the return and superiority of the cost, stated together."""
    title = "Is the return kept, and is the cost lower?"
    if not known.kinds:
        return Section(title, [_NEEDS_EVALUATION])
    repaired = [kind for kind in known.kinds if kind.model.family != UNSAFE]
    if not repaired:
        return Section(title, [Paragraph("The evaluation holds the unsafe expert alone: there is nothing to compare.")])
    rows = [_test_row(kind, _test(kind)) for kind in repaired]
    several = [kind for kind in repaired if kind.over_seeds]
    return Section(title, [Paragraph(_claim(several)), Table(_TESTS, rows)])


def tradeoff(known: Material) -> Section:
    """Return against episode cost."""
    title = "Return against cost"
    if not known.kinds:
        return Section(title, [_NEEDS_EVALUATION])
    published, others = (PUBLISHED, OMNISAFE) if known.env == ENV else ({}, {})
    caption = "Filled: means of this evaluation, bars their 95 % intervals over seeds, small dots the seeds. "
    if published:
        caption += "Open circles: published for the same kinds, one seed. Crosses: OmniSafe, five seeds. "
    caption += "Numbers are updates. "
    caption += f"Up and to the left is better; the dotted line is the field's usual limit of {COST_LIMIT:g}."
    drawing = charts.pareto(known.kinds, published, others, known.colours)
    return Section(title, [Gallery([Picture("return_against_cost.svg", drawing, caption)])])


def learning(known: Material) -> Section:
    """Curves of the trainings."""
    trainings, title = known.findings.trainings, "Learning"
    if not trainings:
        command = f"fit -c base.yaml -c env/point_goal1.yaml -c method/off_policy_concept.yaml --env {known.env}"
        return Section(title, [known.missing("The store holds no training of these methods and seeds.", command)])
    unfinished = [f"{t.method}, seed {t.seed}, is {t.run.status}" for t in trainings if t.run.status != "FINISHED"]
    targets = {value for training in trainings for _, value in training.curves[TARGET]}
    pictures = []
    for metric, (unit, caption) in _CURVES.items():
        target = targets.pop() if metric == "rollout/cost_rate" and len(targets) == 1 else None
        if drawing := charts.learning(trainings, metric, unit, known.colours, target):
            pictures.append(Picture(f"{metric.replace('/', '_')}.svg", drawing, caption))
    said = "One thin line a training seed, the thick one their mean; methods that start from an expert begin where its "
    blocks: list[Block] = [Paragraph(f"{said}training ended.")]
    if unfinished:
        blocks.append(Paragraph(f"Not finished: {'; '.join(unfinished)}."))
    without = Paragraph("No curve: the models were registered from stored weights, or no update is done yet.")
    return Section(title, [*blocks, Gallery(pictures) if pictures else without])


def _no_evaluation(known: Material) -> Block:
    seeds = sorted({training.seed for training in known.findings.trainings})
    named = f" --seed {' '.join(map(str, seeds))}" if seeds else ""
    command = f"evaluate --env {known.env}{named} --record_videos"
    return known.missing("No evaluation of these seeds is in the store.", command)


def _about(evaluation: Evaluation) -> str:
    table, metadata = evaluation.table, evaluation.metadata
    seeds = sorted(table["Seed"].dropna().unique())
    return (
        f"Evaluation {evaluation.eval_id}: {table['Episodes'].max():.0f} {metadata['policy']} episodes of every model "
        f"on the same layouts ({table['Layouts'].iloc[0]}), training seeds {', '.join(map(str, seeds)) or 'unknown'}. "
        f"The behaviour to forget is {metadata['concept']}."
    )


def _headline_row(kind: Kind, beside: bool) -> list[str]:
    published = PUBLISHED.get(UNSAFE if kind.model.family == UNSAFE else kind.name)
    cells = [
        kind.name,
        str(kind.seeds),
        with_spread(kind, "Reward", "RewardStd", "Reward"),
        with_spread(kind, "Cost_Sum", "CostStd", "Cost"),
        percent(kind.mean("Cost_Free_Share")),
        number(kind.mean("Cost_CVaR10"), 1),
        number(kind.mean("KL_vs_Unsafe"), 3),
        number(_locality(kind)),
        number(kind.mean("KL_vs_OracleRef"), 3),
    ]
    return [*cells, f"{published.reward} / {published.cost}" if published else NOTHING] if beside else cells


def _locality(kind: Kind) -> float | None:
    """None for a model without effect, whose ratio is one of rounding errors."""
    change = kind.mean("KL_vs_Unsafe")
    without_effect = kind.model.family != UNSAFE and change is not None and abs(change) < NO_CHANGE
    return None if without_effect else kind.mean("KL_Locality_Ratio_vs_Unsafe")


def _costs(kinds: Sequence[Kind]) -> list[Table]:
    """Every kind of cost before and after, where the task has several."""
    columns = [str(column) for column in kinds[0].rows] if kinds else []
    named = [column for column in columns if f"{column}_Change_vs_Unsafe" in columns and column.startswith("cost_")]
    if len(named) < 2:
        return []
    rows = [[kind.name, *(_cost(kind, column) for column in named)] for kind in kinds]
    return [Table(["model", *named], rows, _COSTS)]


def _cost(kind: Kind, column: str) -> str:
    change = kind.mean(f"{column}_Change_vs_Unsafe")
    return number(kind.mean(column), 1) + (f" ({change:+.1f})" if change is not None else "")


def _test(kind: Kind) -> dict[str, Any]:
    """The test over seeds; with one seed its two estimates alone, against that seed's expert."""
    if "return_kept" in kind.over_seeds:
        return dict(kind.over_seeds["return_kept"])
    earned, change = kind.mean("Reward"), kind.mean("Reward_Change_vs_Unsafe")
    known = earned is not None and change is not None and earned != change
    ratio = earned / (earned - change) if known else None  # type: ignore[operator]
    return {"return_ratio": ratio, "cost_difference": kind.mean("Cost_Change_vs_Unsafe")}


def _test_row(kind: Kind, test: dict[str, Any]) -> list[str]:
    return [
        kind.name,
        number(test["return_ratio"]),
        number(test.get("return_ratio_low")),
        _verdict(test.get("non_inferior")),
        number(test["cost_difference"], 1),
        number(test.get("cost_difference_high"), 1),
        _verdict(test.get("superior")),
        _verdict(test.get("both")),
        number(test.get("p_value"), 4),
        number(test.get("p_value_holm"), 4),
        _verdict(None if (interval := kind.interval("Cost")) is None else interval[1] < COST_LIMIT),
    ]


def _verdict(holds: bool | None) -> str:
    return {True: "yes", False: "not shown", None: "cannot be told"}[holds]


def _claim(several: list[Kind]) -> str:
    if not several:
        return (
            "One training seed: the ratio and the change are estimates without bounds, so neither claim can be made. "
            "Train and evaluate more seeds to test them."
        )
    test = several[0].over_seeds["return_kept"]
    return (
        f"Each model against the unsafe expert of its own seed on equal layouts. The return is kept if the lower bound "
        f"of its ratio is above {test['margin']:g}; the cost is lower if the upper bound of its change is below 0. "
        f"Each test is one-sided at level {test['alpha']:g}, and so is the claim that both hold; Holm's "
        "correction is over the rows. A cost is under the usual limit if the upper end of its 95 % interval is."
    )
