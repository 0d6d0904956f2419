"""The `report` command: one HTML file and its Markdown twin about an environment, from what the store holds."""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.filters import do_mark_safe as mark_safe

from lightning_unlearn.audits.outputs import ARTIFACTS, results_folder
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.report import audit_sections, behaviour_sections, depth, maps
from lightning_unlearn.report.context import Gallery, ReportContext, Section, group_models
from lightning_unlearn.report.findings import ReportScope, gather
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking import runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment

_SECTIONS = (
    behaviour_sections.headline,
    behaviour_sections.tests,
    behaviour_sections.tradeoff,
    behaviour_sections.learning,
    depth.how_deep,
    audit_sections.relearning,
    audit_sections.probes,
    audit_sections.shifts,
    behaviour_sections.places,
    behaviour_sections.videos,
    audit_sections.provenance,
)
_FIGURES = "figures"
"""Folder of the images, beside the Markdown file."""
_MARKDOWN_SYNTAX = re.compile(r"([\\`*_\[\]<>|#~])")


def main(args: Sequence[str]) -> None:
    """Read the store, draw, write both files, and record them."""
    (options, scope), started = read_options(args), time.perf_counter()
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    store_option = open_store(options.tracking_uri)
    require_active_experiment(options.env)
    findings = gather(scope)
    out = results_folder(options.out or f"{ARTIFACTS}/report/{options.env}", "report", None)
    groups = group_models(findings.evaluation, scope) if findings.evaluation else []
    drawn: dict[str, bytes] = {}
    if options.map_episodes and groups:
        drawn = maps.drive(options.env, groups, evaluation_layouts(options.map_episodes), options.workers)
    context = ReportContext(findings, groups, drawn, store_option)
    title = f"Unlearning report: {context.env}"
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by lightning-unlearn {version('lightning-unlearn')}"
    subtitle = f"Return, cost, and what was and was not forgotten. Written {written}."
    sections = [made for section in _SECTIONS if (made := section(context)) is not None]
    files = write(out, title, subtitle, sections)
    places = {file: "report" if file.parent == out else f"report/{_FIGURES}" for file in files}
    seeds = set().union(*(training.run.seeds for training in findings.trainings))
    run = runs.record_audit(options.env, "report", vars(options), {}, places, seeds=seeds)
    print("\n".join(f"  {file.resolve()}" for file in files if file.parent == out))
    print(f"MLflow run: {run}\nWritten in {time.perf_counter() - started:.0f} s.")


def read_options(args: Sequence[str]) -> tuple[Any, ReportScope]:
    """Read the command's options, and the scope that they describe.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options = _parser().parse_args(args)
    require_at_least(0, map_episodes=options.map_episodes)
    if options.map_episodes:
        evaluation_layouts(options.map_episodes)
    if options.seed and min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    return options, ReportScope(options.env, tuple(options.seed), tuple(options.models), options.eval_id)


def write(out: Path, title: str, subtitle: str, sections: Sequence[Section]) -> list[Path]:
    """Write the HTML file, the Markdown file and the images of the latter; return their paths in this order."""
    figures = out / _FIGURES
    figures.mkdir(exist_ok=True)
    files = [out / "report.html", out / "report.md"]
    for file, render in zip(files, (render_html, render_markdown), strict=True):
        file.write_text(render(title, subtitle, sections), encoding="utf-8")
    galleries = [block for section in sections for block in section.blocks if isinstance(block, Gallery)]
    for picture in (picture for gallery in galleries for picture in gallery.pictures):
        files.append(figures / picture.name)
        files[-1].write_bytes(picture.content)
    return files


def render_html(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Render the report as one HTML file that needs nothing else: style and images are inside, there is no script."""
    return _templates().get_template("report.html").render(title=title, subtitle=subtitle, sections=sections)


def render_markdown(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Render the report as Markdown; its images are files in the folder `figures` beside it."""
    templates = _templates(finalize=_escape_markdown)
    templates.filters["fenced"] = _fenced
    return templates.get_template("report.md").render(
        title=title, subtitle=subtitle, sections=sections, figures=_FIGURES
    )


def _templates(**options: Any) -> Environment:
    """Build Jinja's environment: every value is escaped, and a name that a template misspells is an error."""
    return Environment(
        loader=PackageLoader("lightning_unlearn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )


def _escape_markdown(value: Any) -> str:
    """Escape Markdown's syntax with backslashes, except in what is marked as safe."""
    return value if hasattr(value, "__html__") else mark_safe(_MARKDOWN_SYNTAX.sub(r"\\\1", str(value)))


def _fenced(text: str) -> str:
    """Put text between fences that are longer than any fence inside it."""
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 0)
    return mark_safe(f"{fence}\n{text.rstrip()}\n{fence}")


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
