"""Sections about what is behind the behaviour: relearning, probes, latent shift; and how all of it was made."""

from collections.abc import Sequence
from typing import Any

from lightning_unlearn.audits.probe_data import CLASSES
from lightning_unlearn.audits.relearn_attacks import CLONING, ELSEWHERE, PPO
from lightning_unlearn.audits.relearning import THRESHOLD_EPISODES
from lightning_unlearn.report import charts
from lightning_unlearn.report.context import (
    NOTHING,
    PUBLISHED_ENV,
    PUBLISHED_PROBE_AUROC,
    Block,
    Folded,
    Gallery,
    Paragraph,
    Picture,
    ReportContext,
    Section,
    Table,
    number,
)
from lightning_unlearn.report.findings import ProbeAudit, RelearningTest

_DATASET = "probe_states.npz"
_ATTACKS = {
    PPO: "plain PPO (λ = 0) trains a model on",
    CLONING: "a model clones the expert's episodes without the concept",
    ELSEWHERE: "plain PPO trains a model on where the concept's objects are taken out",
}
_SCORES = ("balanced accuracy", "AUROC")
_SHIFTS = {"latent": "latent_shift_l2_mean", "action mean": "action_mean_shift_l2_mean"}


def relearning(context: ReportContext) -> Section:
    """Show how many steps bring the behaviour back."""
    tests, title = context.findings.relearning, "Relearning"
    if not tests:
        command = f"relearn --env {context.env} --models {context.repaired_uri} random --fractions 0.5 0.8 0.9"
        return Section(title, [context.missing("No relearning test of these models is in the store.", command)])
    fractions = list(dict.fromkeys(name for test in tests for name in test.result["gap_thresholds"]))
    rows = [_relearning_row(test, fractions) for test in tests]
    table = Table(("model", "start", "threshold", "steps to it", *fractions, "note"), rows)
    episodes = max(test.test["eval_episodes"] for test in tests)
    text = (
        "Steps until the rate is back at the threshold, or at a share of the gap between its start "
        f"(over {THRESHOLD_EPISODES} episodes) and the unsafe expert. A model that never got there is censored: it "
        "would take more than the steps after the sign >."
    )
    colours, pictures = charts.colours(context.families), []
    for attack in dict.fromkeys(test.attack for test in tests):
        drawing = charts.relearning([test for test in tests if test.attack == attack], colours)
        caption = (
            f"Rate over {episodes} deterministic episodes while {_ATTACKS[attack]}. Dashed: "
            "threshold; dotted: the unsafe expert. A cross ends a run that never reached its threshold."
        )
        pictures.append(Picture("relearning.svg" if attack == PPO else f"relearning_{attack}.svg", drawing, caption))
    return Section(title, [Paragraph(text), Gallery(pictures), table])


def _relearning_row(test: RelearningTest, fractions: Sequence[str]) -> list[str]:
    result, gaps = test.result, test.result["gap_thresholds"]
    main = _steps(result["steps_to_threshold"], result["censored_at_steps"])
    others = [_steps(gaps[f]["steps"], gaps[f]["censored_at_steps"]) if f in gaps else NOTHING for f in fractions]
    cells = [number(result["start_cost"], 4), number(test.test["threshold"], 4), main, *others]
    return [test.name, *cells, "; ".join(result["notes"]) or NOTHING]


def _steps(steps: int | None, censored_at: int | None) -> str:
    return f"> {censored_at}" if steps is None else str(steps)


def probes(context: ReportContext) -> Section:
    """Show how well a linear probe reads the concept from latents, beside its controls."""
    audits, title = context.findings.probes, "Probes"
    if not [audit for audit in audits if audit.run.audit == "probe-fit"]:
        outputs = "--out hazard_probe.npz --metrics_out hazard_probe_metrics.json"
        command = f"probe fit --env {context.env} --dataset {_DATASET} --model {context.expert_uri} {outputs}"
        return Section(title, [_no_dataset(context, "No probe of these models is in the store.", command)])
    rows = [row for audit in audits for row in _probe_rows(audit)]
    points = {name: dict(zip(_SCORES, scores, strict=True)) for name, *scores in rows}
    published = {"published probe, AUROC": PUBLISHED_PROBE_AUROC} if context.env == PUBLISHED_ENV else {}
    drawing = charts.dots(points, "score on the test split", {"chance": 0.5} | published)
    caption = (
        "Test split. Floor: the same probe on a random network. Ceiling: on the raw observation. Shuffled: on labels "
        "in random order. Stored: the probe of the first model on another one; refitted: a new probe there."
    )
    table = Table(("probe", *_SCORES), [(name, *(number(score, 3) for score in scores)) for name, *scores in rows])
    blocks: list[Block] = [Gallery([Picture("probes.svg", drawing, caption)]), table]
    if not [audit for audit in audits if audit.run.audit == "probe-eval"]:
        command = f"probe eval --probe_path hazard_probe.npz --model {context.repaired_uri} --dataset {_DATASET}"
        command += " --metrics_out probe_eval.json"
        blocks.append(context.missing("The probe was not put to another model.", command))
    return Section(title, blocks)


def _probe_rows(audit: ProbeAudit) -> list[tuple[str, float, float]]:
    """Return the name and test scores of each probe in an audit."""
    content, name = audit.content, audit.model.name
    if audit.run.audit == "probe-fit":
        named = {"latent": content, "floor": content["floor"], "ceiling": content["ceiling"]}
        named |= {"shuffled": content["shuffled_labels"]}
    else:
        edited = "" if content["features"] == "raw" else ", edited"
        named = {f"stored{edited}": content, f"refitted{edited}": content["refitted"]}
    tests = {f"{name}: {probe}": report["test"] for probe, report in named.items()}
    return [(row, test["balanced_accuracy"], test["auroc"]) for row, test in tests.items()]


def shifts(context: ReportContext) -> Section:
    """Show how far latents and actions moved, and how much of an action a latent tells."""
    audits, title = context.findings.shifts, "Latent shift"
    control = _action_control(context)
    if not audits:
        models = f"--reference {context.expert_uri} --model {context.repaired_uri}"
        command = f"latent-shift --env {context.env} --dataset {_DATASET} {models}"
        missing = _no_dataset(context, "No latent shift of these models is in the store.", command)
        return Section(title, [missing, control])
    named = {f"{a.model.name}, {a.content['features']}": a.content["groups"] for a in audits}
    rows = [
        [name, *(number(groups[group][key], 3) for key in _SHIFTS.values() for group in CLASSES)]
        for name, groups in named.items()
    ]
    header = ("model", *(f"{what}, {group}" for what in _SHIFTS for group in CLASSES))
    caption = "Mean length of the difference to the expert on the probe's states; safe and hazard by their labels."
    pictures = []
    for what, key in _SHIFTS.items():
        means = {name: {c: groups[c][key] for c in CLASSES if groups[c]["n"]} for name, groups in named.items()}
        drawing = charts.dots(means, f"shift of the {what}")
        pictures.append(Picture(f"shift_{what.replace(' ', '_')}.svg", drawing, f"Shift of the {what}."))
    return Section(title, [Gallery(pictures), Table(header, rows, caption), control])


def _action_control(context: ReportContext) -> Block:
    """Show how well a linear map predicts the action from the latent."""
    if not context.findings.controls:
        command = f"action-control --env {context.env} --dataset {_DATASET} --model {context.repaired_uri}"
        return context.missing("How well the latent tells the action was not measured.", command)
    rows = []
    for audit in context.findings.controls:
        reports = (audit.content, audit.content["floor"], audit.content["ceiling"])
        rows.append([audit.model.name, *(number(report["test"]["r2"], 3) for report in reports)])
    caption = "R² of a ridge regression on the test split, from the latent to the action mean; controls as for probes."
    return Table(("action from", "latent", "floor", "ceiling"), rows, caption)


def _no_dataset(context: ReportContext, text: str, command: str) -> Block:
    collect = f"probe collect --env {context.env} --model {context.expert_uri} --out {_DATASET}"
    return context.missing(text, f"{collect}\nlightning-unlearn {command}")


def provenance(context: ReportContext) -> Section:
    """Show configs, options and versions as they were recorded."""
    findings = context.findings
    runs = [test.run for test in findings.relearning] + [pair.run for pair in findings.pairs]
    runs += [audit.run for audit in (*findings.probes, *findings.shifts, *findings.controls)]
    if findings.evaluation is not None:
        runs.insert(0, findings.evaluation.run)
    blocks: list[Block] = [Paragraph("Unfold a line for what a run was asked for and where it ran.")]
    for training in findings.trainings:
        title = f"{training.method}, seed {training.seed}: run {training.run.run_id}, {training.run.status}"
        blocks.append(Folded(title, f"{_lines(training.run.tags)}\n\n# config.yaml\n{training.config}"))
    for run in {run.run_id: run for run in runs}.values():
        blocks.append(Folded(f"{run.name}: run {run.run_id}", f"{_lines(run.tags)}\n\n# options\n{_lines(run.params)}"))
    if findings.evaluation is not None:
        blocks.append(Folded("versions of the evaluation", _lines(findings.evaluation.metadata["versions"])))
    return Section("Configs and versions", blocks)


def _lines(entries: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in sorted(entries.items()))
