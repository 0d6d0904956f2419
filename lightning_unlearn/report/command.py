"""The `report` command: one HTML file and its Markdown twin about an environment, from what the store holds."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.audits.outputs import ARTIFACTS, results_folder
from lightning_unlearn.audits.top_view import has_map
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.report import audits, results
from lightning_unlearn.report.as_html import as_html
from lightning_unlearn.report.as_markdown import FIGURES, as_markdown
from lightning_unlearn.report.document import Document
from lightning_unlearn.report.findings import Findings, Wanted, gather
from lightning_unlearn.report.kinds import Kind, expert, kinds
from lightning_unlearn.report.maps import Places, drive, heat_maps, together
from lightning_unlearn.report.material import Material
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment

_SECTIONS = (
    results.headline,
    results.tests,
    results.tradeoff,
    results.learning,
    audits.relearning,
    audits.probes,
    audits.shifts,
    audits.places,
    audits.videos,
    audits.provenance,
)


def main(args: Sequence[str]) -> None:
    """Read the store, draw, write both files, and record them."""
    (options, wanted), started = read_options(args), time.perf_counter()
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    store = open_store(options.tracking_uri)
    require_active_experiment(options.env)
    findings = gather(wanted)
    out = results_folder(options.out or f"{ARTIFACTS}/report/{options.env}", "report", None)
    found = kinds(findings.evaluation, wanted) if findings.evaluation else []
    maps = _maps(options, found)
    files = write(out, document(Material(findings, found, maps, store)))
    run = _record(options, findings, files)
    print("\n".join(f"  {file.resolve()}" for file in files if file.parent == out))
    print(f"MLflow run: {run}\nWritten in {time.perf_counter() - started:.0f} s.")


def read_options(args: Sequence[str]) -> tuple[Any, Wanted]:
    """The command's options, and what they ask the store for.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options = _parser().parse_args(args)
    return options, _wanted(options)


def document(known: Material) -> Document:
    """All sections, those that have nothing to say included: they say what is missing."""
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by lightning-unlearn {version('lightning-unlearn')}"
    subtitle = f"Return, cost, and what was and was not forgotten. Written {written}."
    return Document(f"Unlearning report: {known.env}", subtitle, [section(known) for section in _SECTIONS])


def write(out: Path, content: Document) -> list[Path]:
    """The HTML file, the Markdown file and its images."""
    figures = out / FIGURES
    figures.mkdir(exist_ok=True)
    files = [out / "report.html", out / "report.md"]
    for file, text in zip(files, (as_html(content), as_markdown(content)), strict=True):
        file.write_text(text, encoding="utf-8")
    for picture in content.pictures:
        files.append(figures / picture.name)
        files[-1].write_bytes(picture.content)
    return files


def _wanted(options: Any) -> Wanted:
    require_at_least(0, map_episodes=options.map_episodes)
    if options.map_episodes:
        evaluation_layouts(options.map_episodes)
    if options.seed and min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    return Wanted(options.env, tuple(options.seed), tuple(options.models), options.eval_id)


def _maps(options: Any, found: Sequence[Kind]) -> dict[str, bytes]:
    """Heat maps of every kind, its seeds together; none where nothing is asked for or the task has no map."""
    if not options.map_episodes or not found:
        return {}
    layouts = evaluation_layouts(options.map_episodes)
    env = make_env(options.env, len(layouts), workers=min(options.workers, len(layouts)))
    try:
        if not has_map(env.simulator.top_view()):
            return {}
        driven: dict[str, Places] = {}
        for number, kind in enumerate(found, start=1):
            print(f"heat map {number}/{len(found)}: {kind.name}", flush=True)
            policies = [registry.load_policy(str(uri)).policy for uri in kind.rows["Path"]]
            driven[kind.name] = together([drive(env, policy, layouts, kind.name) for policy in policies])
    finally:
        env.close()
    return heat_maps(driven, expert(list(found)).name)


def _record(options: Any, findings: Findings, files: Sequence[Path]) -> str:
    out = files[0].parent
    places = {file: f"report/{FIGURES}" if file.parent != out else "report" for file in files}
    seeds = set().union(*(t.run.seeds for t in findings.trainings))
    return runs.record_audit(options.env, "report", vars(options), {}, places, seeds=seeds)


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn report", description=__doc__)
    add = parser.add_argument
    add("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    add("--models", type=str, nargs="*", default=[], help="methods beside the unsafe expert; default: all")
    add("--seed", type=int, nargs="*", default=[], help="training seeds; default: all")
    add("--eval_id", type=str | None, default=None, help="the evaluation; default: the newest of exactly these seeds")
    add("--map_episodes", type=int, default=20, help="layouts behind each heat map; 0: no heat maps")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--out", type=str | None, default=None, help="folder of the files; default: artifacts/report/<env>")
    add("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
