"""The sections about what is behind the behaviour: relearning, probes, latent shift, and where policies drive."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_unlearn.audits.probe_data import CLASSES
from lightning_unlearn.audits.relearning import THRESHOLD_EPISODES
from lightning_unlearn.report import charts
from lightning_unlearn.report.document import Block, Folded, Gallery, Paragraph, Picture, Section, Table
from lightning_unlearn.report.findings import Measure, Relearning
from lightning_unlearn.report.kinds import last_updates
from lightning_unlearn.report.material import NOTHING, Material, number
from lightning_unlearn.report.reference import ENV, PROBE_TEST

_DATASET = "probe_states.npz"
_SCORES = ("balanced accuracy", "AUROC")
_SHIFTS = {"latent": "latent_shift_l2_mean", "action mean": "action_mean_shift_l2_mean"}


def relearning(known: Material) -> Section:
    """How many steps bring the behaviour back."""
    tests, title = known.findings.relearning, "Relearning"
    if not tests:
        command = f"relearn --env {known.env} --models {known.example_uri} random --fractions 0.5 0.8 0.9"
        return Section(title, [known.missing("No relearning test of these models is in the store.", command)])
    fractions = list(dict.fromkeys(name for test in tests for name in test.result["gap_thresholds"]))
    rows = [_relearning_row(test, fractions) for test in tests]
    table = Table(("model", "start", "threshold", "steps to it", *fractions, "note"), rows)
    episodes = max(test.test["eval_episodes"] for test in tests)
    caption = (
        f"Rate over {episodes} deterministic episodes while plain PPO (λ = 0) trains a model on. Dashed: "
        "threshold; dotted: the unsafe expert. A cross ends a run that never reached its threshold."
    )
    said = (
        "Environment steps until the rate is back at the threshold, or at a share of the gap between its start "
        f"(over {THRESHOLD_EPISODES} episodes) and the unsafe expert. A model that never got there is censored: it "
        "would take more than the steps after the sign >."
    )
    drawing = Picture("relearning.svg", charts.relearning(tests, known.colours), caption)
    return Section(title, [Paragraph(said), Gallery([drawing]), table])


def probes(known: Material) -> Section:
    """What a linear probe reads off latents, beside its controls."""
    measures, title = known.findings.probes, "Probes"
    fits = [m for m in measures if m.run.audit == "probe-fit"]
    if not fits:
        return Section(title, [_no_dataset(known, "No probe of these models is in the store.", _fit_command(known))])
    rows = [row for measure in measures for row in _probe_rows(measure)]
    chart = {name: dict(zip(_SCORES, scores, strict=True)) for name, *scores in rows}
    levels = {"chance": 0.5} | ({"published probe, AUROC": PROBE_TEST["auroc"]} if known.env == ENV else {})
    caption = (
        "Test split. Floor: the same probe on a random network. Ceiling: on the raw observation. Shuffled: on labels "
        "in random order. Stored: the probe of the first model on another one; refitted: a new probe there."
    )
    table = Table(("probe", *_SCORES), [(name, *map(number_3, scores)) for name, *scores in rows])
    drawing = charts.dots(chart, "score on the test split", levels)
    blocks: list[Block] = [Gallery([Picture("probes.svg", drawing, caption)]), table]
    if not [m for m in measures if m.run.audit == "probe-eval"]:
        command = f"probe eval --probe_path hazard_probe.npz --model {known.example_uri} --dataset {_DATASET}"
        blocks.append(
            known.missing("The probe was not put to another model.", f"{command} --metrics_out probe_eval.json")
        )
    return Section(title, blocks)


def shifts(known: Material) -> Section:
    """How far latents and actions moved, and how much of an action a latent tells."""
    measures, title = known.findings.shifts, "Latent shift"
    if not measures:
        return Section(title, [_no_shift(known), *_control(known)])
    named = {f"{m.model.name}, {m.content['features']}": m.content["groups"] for m in measures}
    rows = [[name, *_shift_cells(groups)] for name, groups in named.items()]
    header = ("model", *(f"{what}, {group}" for what in _SHIFTS for group in CLASSES))
    caption = "Mean length of the difference to the expert on the probe's states; safe and hazard by their labels."
    pictures = []
    for what, key in _SHIFTS.items():
        means = {name: {c: groups[c][key] for c in CLASSES if groups[c]["n"]} for name, groups in named.items()}
        drawing = charts.dots(means, f"shift of the {what}")
        pictures.append(Picture(f"shift_{what.replace(' ', '_')}.svg", drawing, f"Shift of the {what}."))
    return Section(title, [Gallery(pictures), Table(header, rows, caption), *_control(known)])


def places(known: Material) -> Section:
    """Heat maps, seen from above."""
    title = "Where the policies drive"
    if not known.maps:
        what = "No heat maps were drawn: there is no evaluation, the task has no map, or none were asked for."
        return Section(title, [known.missing(what, f"report --env {known.env} --map_episodes 20")])
    said = (
        "Deterministic episodes on the same layouts, seen from above, in percent of the time in each cell; all maps "
        "share their scales. Orange circle: the nearest hazard's edge. Change: red where a policy is more often than "
        "the unsafe expert, blue where less."
    )
    pictures = [Picture(f"places_{_file(name)}.png", png, name) for name, png in known.maps.items()]
    return Section(title, [Paragraph(said), Gallery(pictures)])


def videos(known: Material) -> Section:
    """The expert, and the last save point of every family, on one layout."""
    evaluation, title = known.findings.evaluation, "Before and after"
    if evaluation is None or not evaluation.videos:
        command = f"evaluate --env {known.env} --record_videos"
        return Section(title, [known.missing("The evaluation recorded no videos.", command)])
    labels = {str(kind.rows["Model"].iloc[0]): kind.name for kind in last_updates(known.kinds)}
    shown = {name: evaluation.videos[label] for label, name in labels.items() if label in evaluation.videos}
    video = evaluation.metadata["video"]
    said = f"Layout {video['layout_seed']}, where the unsafe expert's cost is the median one; {video['renderer']}."
    return Section(title, [Paragraph(said), Gallery([Picture(f"{_file(n)}.gif", gif, n) for n, gif in shown.items()])])


def provenance(known: Material) -> Section:
    """Configs, options and versions, as they were recorded."""
    found = known.findings
    runs = [test.run for test in found.relearning]
    runs += [measure.run for measure in (*found.probes, *found.shifts, *found.controls)]
    if found.evaluation is not None:
        runs.insert(0, found.evaluation.run)
    blocks: list[Block] = [Paragraph("Unfold a line for what a run was asked for and where it ran.")]
    for training in found.trainings:
        title = f"{training.method}, seed {training.seed}: run {training.run.run_id}, {training.run.status}"
        blocks.append(Folded(title, f"{_lines(training.run.tags)}\n\n# config.yaml\n{training.config}"))
    for run in {run.run_id: run for run in runs}.values():
        blocks.append(Folded(f"{run.name}: run {run.run_id}", f"{_lines(run.tags)}\n\n# options\n{_lines(run.params)}"))
    if found.evaluation is not None:
        blocks.append(Folded("versions of the evaluation", _lines(found.evaluation.metadata["versions"])))
    return Section("Configs and versions", blocks)


def number_3(value: float | None) -> str:
    """With three digits."""
    return number(value, 3)


def _relearning_row(test: Relearning, fractions: Sequence[str]) -> list[str]:
    found, gaps = test.result, test.result["gap_thresholds"]
    main = _steps(found["steps_to_threshold"], found["censored_at_steps"])
    others = [_steps(gaps[f]["steps"], gaps[f]["censored_at_steps"]) if f in gaps else NOTHING for f in fractions]
    cells = [number(found["start_cost"], 4), number(test.test["threshold"], 4), main, *others]
    return [test.model.name, *cells, "; ".join(found["notes"]) or NOTHING]


def _steps(steps: int | None, censored_at: int | None) -> str:
    return f"> {censored_at}" if steps is None else str(steps)


def _probe_rows(measure: Measure) -> list[tuple[str, float, float]]:
    """Each probe of an audit with its scores on the test split."""
    content, name = measure.content, measure.model.name
    if measure.run.audit == "probe-fit":
        named = {"latent": content, "floor": content["floor"], "ceiling": content["ceiling"]}
        named |= {"shuffled": content["shuffled_labels"]}
    else:
        kind = "" if content["features"] == "raw" else ", edited"
        named = {f"stored{kind}": content, f"refitted{kind}": content["refitted"]}
    tests = {f"{name}: {what}": report["test"] for what, report in named.items()}
    return [(row, test["balanced_accuracy"], test["auroc"]) for row, test in tests.items()]


def _shift_cells(groups: Mapping[str, Any]) -> list[str]:
    return [number_3(groups[group][key]) for key in _SHIFTS.values() for group in CLASSES]


def _no_shift(known: Material) -> Block:
    models = f"--reference {known.expert_uri} --model {known.example_uri}"
    command = f"latent-shift --env {known.env} --dataset {_DATASET} {models}"
    return _no_dataset(known, "No latent shift of these models is in the store.", command)


def _control(known: Material) -> list[Block]:
    """How much of an action a linear map reads off the latent."""
    if not known.findings.controls:
        command = f"action-control --env {known.env} --dataset {_DATASET} --model {known.example_uri}"
        return [known.missing("How well the latent tells the action was not measured.", command)]
    rows = []
    for measure in known.findings.controls:
        reports = (measure.content, measure.content["floor"], measure.content["ceiling"])
        rows.append([measure.model.name, *(number_3(report["test"]["r2"]) for report in reports)])
    caption = "R² of a ridge regression on the test split, from the latent to the action mean; controls as for probes."
    return [Table(("action from", "latent", "floor", "ceiling"), rows, caption)]


def _fit_command(known: Material) -> str:
    outputs = "--out hazard_probe.npz --metrics_out hazard_probe_metrics.json"
    return f"probe fit --env {known.env} --dataset {_DATASET} --model {known.expert_uri} {outputs}"


def _no_dataset(known: Material, what: str, command: str) -> Block:
    collect = f"probe collect --env {known.env} --model {known.expert_uri} --out {_DATASET}"
    return known.missing(what, f"{collect}\nlightning-unlearn {command}")


def _lines(entries: dict[str, Any]) -> str:
    return "\n".join(f"{key}: {value}" for key, value in sorted(entries.items()))


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
