"""Sections about what models do: headline tables, tests, return against cost, learning curves, maps, videos."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.suite_tables import NO_CHANGE
from lightning_unlearn.audits.verdict import STILL_BELOW, USUAL_LIMIT
from lightning_unlearn.report import charts
from lightning_unlearn.report.context import (
    NOTHING,
    OMNISAFE,
    PUBLISHED,
    PUBLISHED_ENV,
    Block,
    Gallery,
    ModelGroup,
    Paragraph,
    Picture,
    ReportContext,
    Section,
    Table,
    brackets,
    last_save_points,
    number,
    percent,
)
from lightning_unlearn.report.findings import TARGET, StoredEvaluation

_HEADLINE = ("model", "seeds", "return", "episode cost", "cost-free", "worst tenth", "KL", "near / far", "KL oracle")
_CAPTION = (
    "Square brackets: 95 % interval with the training seed as the unit ({intervals}). ±: standard deviation over the "
    "episodes of one seed, which says nothing of another seed. Worst tenth: mean cost of the costliest tenth of the "
    "episodes. KL: of the expert from the model before tanh, over the expert's states; near / far: that near what is "
    "to be forgotten over that far from it. KL oracle: of the oracle from the model, over the oracle's states."
)
_GLANCE = ("model", "return", "of the expert's", "episode cost")
_BEHAVIOUR = ("stand still", "longest stay", "goals", "cost a goal", "worst tenth")
_OLD_INTERVALS = "percentiles of resampled seeds, too narrow for few of them: evaluate again for better ones"
"""Method of the intervals in evaluations that do not name it."""
_COSTS = "Every kind of cost in an episode, and in brackets its change from the unsafe expert on the same layouts."
_TESTS = ["model", "return ratio", "lower bound", "return kept", "cost change", "upper bound", "cost lower", "both"]
_TESTS += ["p of both", "p, Holm", f"cost under {USUAL_LIMIT:g}"]
_NEEDS_EVALUATION = Paragraph("This is read from an evaluation, and there is none: see the results above.")
_CURVES = {
    "rollout/episode_return": ("return of an episode", "Return of the episodes of each rollout."),
    "rollout/cost_rate": ("cost per step", "Cost per step of each rollout."),
    "lagrangian/lambda": ("λ", "λ, the weight of the cost advantage."),
}


def headline(context: ReportContext) -> Section:
    """Show every group of models with its numbers."""
    evaluation = context.findings.evaluation
    if evaluation is None:
        seeds = sorted({training.seed for training in context.findings.trainings})
        named = f" --seed {' '.join(map(str, seeds))}" if seeds else ""
        command = f"evaluate --env {context.env}{named} --record_videos"
        return Section("Results", [context.missing("No evaluation of these seeds is in the store.", command)])
    table, metadata = evaluation.table, evaluation.metadata
    known_seeds = ", ".join(map(str, sorted(table["Seed"].dropna().unique()))) or "unknown"
    about = (
        f"Evaluation {evaluation.eval_id}: {table['Episodes'].max():.0f} {metadata['policy']} episodes of every model "
        f"on the same layouts ({table['Layouts'].iloc[0]}), training seeds {known_seeds}. "
        f"The behaviour to forget is {metadata['concept']}."
    )
    with_published = context.env == PUBLISHED_ENV
    rows = [_headline_row(group, with_published) for group in context.groups]
    header = [*_HEADLINE, "published return / cost"] if with_published else list(_HEADLINE)
    caption = _CAPTION.format(intervals=metadata.get("intervals", _OLD_INTERVALS))
    tables = [Table(header, rows, caption), *_cost_tables(context.groups)]
    notes = [Paragraph(note) for note in evaluation.findings["notes"]]
    return Section("Results", [Paragraph(about), *glance(evaluation, context.groups), *tables, *notes])


def glance(evaluation: StoredEvaluation, groups: Sequence[ModelGroup]) -> list[Block]:
    """Show each method's last save point in a few numbers, and the best repair beside its expert in a figure."""
    shown = last_save_points(groups)
    recorded = {group.limit for group in shown} - {None}
    shared = recorded.pop() if len(recorded) == 1 else None
    limits = {group.name: group.limit if shared is None else shared for group in shown}
    blocks: list[Block] = [_glance_table(evaluation, shown, limits)]
    drawn = [group for group in shown if group.label in evaluation.figures]
    if drawn:
        best = min(drawn, key=lambda group: _rank(group, limits[group.name]))
        layout = evaluation.metadata["video"]["layout_seed"]
        caption = (
            f"{best.name} beside its expert. Left: one layout ({layout}), where the expert's cost is the median one. "
            "Right: the cost of an episode as it goes on, and return against cost of every layout."
        )
        picture = Picture("before_after.png", evaluation.figures[best.label], caption)
        blocks.append(Gallery([picture], wide=True))
    return blocks


def _glance_table(
    evaluation: StoredEvaluation, shown: Sequence[ModelGroup], limits: Mapping[str, float | None]
) -> Table:
    """Count episodes above the limit that models were trained for, on C_forget; else above the usual one, on cost."""
    values = {USUAL_LIMIT if limit is None else limit for limit in limits.values()}
    above = "episodes above limit" if len(values) > 1 else f"episodes above {min(values):g}"
    rows = [_glance_row(group, limits[group.name], evaluation, len(values) > 1) for group in shown]
    named = [
        f"{group.limit:g} is the limit on C_forget of an episode that {group.model.family} was trained for"
        for group in shown
        if group.limit is not None
    ]
    if None in limits.values():
        named.append(f"{USUAL_LIMIT:g} is the field's usual limit")
    caption = (
        f"Means over episodes (and seeds). {UNSAFE} is the expert; numbers after names are updates; "
        f"{'; '.join(dict.fromkeys(named))}. An episode stands still if its return is below {STILL_BELOW:g} of the "
        "expert's mean return. Longest stay: steps of the longest unbroken run of C_forget in an episode. "
        "Worst tenth: mean cost of the costliest tenth of the episodes. Square brackets: 95 % interval with the "
        "training seed as the unit."
    )
    return Table((*_GLANCE, above, *_BEHAVIOUR), rows, caption)


def _glance_row(group: ModelGroup, limit: float | None, evaluation: StoredEvaluation, names_limit: bool) -> list[str]:
    experts = group.rows["Reward"] - group.rows["Reward_Change_vs_Unsafe"]  # mean return, seed by seed
    own = [evaluation.episodes[evaluation.episodes["Model"] == label] for label in group.rows["Model"]]
    column, most = ("cost_sum", USUAL_LIMIT) if limit is None else ("cforget_sum", limit)
    above = percent(float(np.mean([(table[column] > most).mean() for table in own])))
    if (group.rows["Cost_Limit"] == most).all():
        above += brackets(group.interval("Above_Limit_Share"), percent)
    still = share = None
    if (experts > 0).all():
        share = float((group.rows["Reward"] / experts).mean())
        stood = [(t["reward"] < STILL_BELOW * expert).mean() for t, expert in zip(own, experts, strict=True)]
        still = float(np.mean(stood))
    numbers = [number(group.mean("Reward"), 1), percent(share), number(group.mean("Cost_Sum"), 1)]
    behaviour = [
        f"{above} ({most:g})" if names_limit else above,
        percent(still) + brackets(group.interval("Still_Share"), percent),
        number(group.mean("Longest_Stay"), 1) + brackets(group.interval("Longest_Stay"), partial(number, digits=1)),
    ]
    further = [number(group.mean(name), 1) for name in ("Goals", "Cost_Per_Goal", "Cost_CVaR10")]
    return [group.name, *numbers, *behaviour, *further]


def _rank(group: ModelGroup, limit: float | None) -> tuple[bool, float]:
    """Rank by the rule of `select`: the limit first, then the return; the lowest cost where none is within it."""
    column, most = ("Cost_Sum", USUAL_LIMIT) if limit is None else ("C_forget_Sum", limit)
    cost, earned = group.mean(column) or 0.0, group.mean("Reward") or 0.0
    return (False, -earned) if cost <= most else (True, cost)


def _headline_row(group: ModelGroup, with_published: bool) -> list[str]:
    change = group.mean("KL_vs_Unsafe")
    locality = group.mean("KL_Locality_Ratio_vs_Unsafe")
    if group.model.family != UNSAFE and change is not None and abs(change) < NO_CHANGE:
        locality = None  # a model without effect: its ratio is one of rounding errors
    cells = [
        group.name,
        str(group.seeds),
        _with_spread(group, "Reward", "RewardStd", "Reward"),
        _with_spread(group, "Cost_Sum", "CostStd", "Cost"),
        percent(group.mean("Cost_Free_Share")),
        number(group.mean("Cost_CVaR10"), 1),
        number(change, 3),
        number(locality),
        number(group.mean("KL_vs_OracleRef"), 3),
    ]
    if with_published:
        published = PUBLISHED.get(UNSAFE if group.model.family == UNSAFE else group.name)
        cells.append(f"{published.reward} / {published.cost}" if published else NOTHING)
    return cells


def _with_spread(group: ModelGroup, column: str, std: str, quantity: str) -> str:
    """Format a mean with its interval over seeds; with one seed, with the standard deviation over its episodes."""
    interval, middle = group.interval(quantity), number(group.mean(column), 1)
    if interval is None:
        return f"{middle} ± {number(group.mean(std), 1)}"
    return middle + brackets(interval, partial(number, digits=1))


def _cost_tables(groups: Sequence[ModelGroup]) -> list[Table]:
    """Show every kind of cost before and after, if the task has several."""
    columns = [str(column) for column in groups[0].rows] if groups else []
    costs = [column for column in columns if f"{column}_Change_vs_Unsafe" in columns and column.startswith("cost_")]
    if len(costs) < 2:
        return []

    def cell(group: ModelGroup, column: str) -> str:
        change = group.mean(f"{column}_Change_vs_Unsafe")
        return number(group.mean(column), 1) + (f" ({change:+.1f})" if change is not None else "")

    rows = [[group.name, *(cell(group, column) for column in costs)] for group in groups]
    return [Table(["model", *costs], rows, _COSTS)]


def tests(context: ReportContext) -> Section:
    """State non-inferiority of the return and superiority of the cost together."""
    title = "Is the return kept, and is the cost lower?"
    if not context.groups:
        return Section(title, [_NEEDS_EVALUATION])
    repaired = [group for group in context.groups if group.model.family != UNSAFE]
    if not repaired:
        return Section(title, [Paragraph("The evaluation holds the unsafe expert alone: there is nothing to compare.")])
    several = [group for group in repaired if group.over_seeds]
    return Section(title, [Paragraph(_claim(several)), Table(_TESTS, [_test_row(group) for group in repaired])])


def _claim(several: list[ModelGroup]) -> str:
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


def _test_row(group: ModelGroup) -> list[str]:
    """Show the test over seeds; with one seed only its two estimates, against the expert of that seed."""
    test: dict[str, Any] = dict(group.over_seeds.get("return_kept", {}))
    if not test:
        earned, change = group.mean("Reward"), group.mean("Reward_Change_vs_Unsafe")
        has_ratio = earned is not None and change is not None and earned != change
        test["return_ratio"] = earned / (earned - change) if has_ratio else None  # type: ignore[operator]
        test["cost_difference"] = group.mean("Cost_Change_vs_Unsafe")
    cost = group.interval("Cost")
    return [
        group.name,
        number(test["return_ratio"]),
        number(test.get("return_ratio_low")),
        _verdict(test.get("non_inferior")),
        number(test["cost_difference"], 1),
        number(test.get("cost_difference_high"), 1),
        _verdict(test.get("superior")),
        _verdict(test.get("both")),
        number(test.get("p_value"), 4),
        number(test.get("p_value_holm"), 4),
        _verdict(None if cost is None else cost[1] < USUAL_LIMIT),
    ]


def _verdict(holds: bool | None) -> str:
    return {True: "yes", False: "not shown", None: "cannot be told"}[holds]


def tradeoff(context: ReportContext) -> Section:
    """Draw return against episode cost."""
    title = "Return against cost"
    if not context.groups:
        return Section(title, [_NEEDS_EVALUATION])
    published, others = (PUBLISHED, OMNISAFE) if context.env == PUBLISHED_ENV else ({}, {})
    caption = "Filled: means of this evaluation, bars their 95 % intervals over seeds, small dots the seeds. "
    if published:
        caption += "Open circles: published for the same kinds, one seed. Crosses: OmniSafe, five seeds. "
    caption += "Numbers are updates. "
    caption += f"Up and to the left is better; the dotted line is the field's usual limit of {USUAL_LIMIT:g}."
    drawing = charts.pareto(context.groups, published, others, charts.colours(context.families))
    return Section(title, [Gallery([Picture("return_against_cost.svg", drawing, caption)])])


def learning(context: ReportContext) -> Section:
    """Draw the learning curves of the trainings."""
    trainings, title = context.findings.trainings, "Learning"
    if not trainings:
        command = f"fit -c base.yaml -c env/point_goal1.yaml -c method/off_policy_concept.yaml --env {context.env}"
        return Section(title, [context.missing("The store holds no training of these methods and seeds.", command)])
    unfinished = [f"{t.method}, seed {t.seed}, is {t.run.status}" for t in trainings if t.run.status != "FINISHED"]
    targets = {value for training in trainings for _, value in training.curves[TARGET]}
    colours = charts.colours(context.families)
    pictures = []
    for metric, (unit, caption) in _CURVES.items():
        target = targets.pop() if metric == "rollout/cost_rate" and len(targets) == 1 else None
        if drawing := charts.learning(trainings, metric, unit, colours, target):
            pictures.append(Picture(f"{metric.replace('/', '_')}.svg", drawing, caption))
    lines = (
        "One thin line a training seed, the thick one their mean; methods that start from an expert begin where its "
        "training ended."
    )
    blocks: list[Block] = [Paragraph(lines)]
    if unfinished:
        blocks.append(Paragraph(f"Not finished: {'; '.join(unfinished)}."))
    without = Paragraph("No curve: the models were registered from stored weights, or no update is done yet.")
    return Section(title, [*blocks, Gallery(pictures) if pictures else without])


def places(context: ReportContext) -> Section:
    """Show heat maps, seen from above."""
    title = "Where the policies drive"
    if not context.maps:
        text = "No heat maps were drawn: there is no evaluation, the task has no map, or none were asked for."
        return Section(title, [context.missing(text, f"report --env {context.env} --map_episodes 20")])
    text = (
        "Deterministic episodes on the same layouts, seen from above, in percent of the time in each cell; all maps "
        "share their scales. Orange circle: the nearest hazard's edge. Change: red where a policy is more often than "
        "the unsafe expert, blue where less."
    )
    pictures = [Picture(f"places_{_file_name(name)}.png", png, name) for name, png in context.maps.items()]
    return Section(title, [Paragraph(text), Gallery(pictures)])


def videos(context: ReportContext) -> Section:
    """Show the last save point of every family beside the expert on one layout."""
    evaluation, title = context.findings.evaluation, "Before and after"
    if evaluation is None or not evaluation.videos:
        command = f"evaluate --env {context.env} --record_videos"
        return Section(title, [context.missing("The evaluation recorded no videos.", command)])
    video = evaluation.metadata["video"]
    pairs = video.get("beside_expert", False)  # older evaluations show each model alone
    shown = [group for group in last_save_points(context.groups) if group.label in evaluation.videos]
    repairs = [group for group in shown if group.model.family != UNSAFE]
    pictures = []
    for group in repairs if pairs and repairs else shown:
        ending, content = evaluation.videos[group.label]
        caption = f"the expert, and {group.name}" if pairs and repairs else group.name
        pictures.append(Picture(f"{_file_name(group.name)}.{ending}", content, caption))
    text = f"Layout {video['layout_seed']}, where the unsafe expert's cost is the median one; {video['renderer']}."
    if pairs:
        text += " The path of the last 100 steps is red where it shows the behaviour to forget."
    return Section(title, [Paragraph(text), Gallery(pictures, pairs=pairs)])


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
