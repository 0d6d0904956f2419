"""The `evaluate` command: the policy suite on stored models, deterministic unless asked otherwise."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lightning_unlearn.audits.places import results_folder
from lightning_unlearn.audits.records import flat_numbers, require_at_least
from lightning_unlearn.audits.statistics import INTERVALS
from lightning_unlearn.audits.subjects import (
    ORACLE,
    UNSAFE,
    ZOO,
    Subject,
    arrange,
    expert,
    find,
    latest_oracle,
    require_fit,
)
from lightning_unlearn.audits.suite import Comparison, Result, Suite, SuiteOptions, settings
from lightning_unlearn.audits.suite_files import (
    FILES,
    MAX_BYTES,
    PARTIAL,
    SUMMARY,
    SUMMARY_JSON,
    VIDEOS,
    Partial,
    finished,
    records,
    write_files,
)
from lightning_unlearn.audits.suite_print import print_tables
from lightning_unlearn.audits.suite_table import (
    COLUMNS,
    Found,
    columns,
    cost_keys,
    fill_costs,
    notes,
    other_concepts,
    over_training_seeds,
    per_episode_table,
    shortcomings,
    summary,
)
from lightning_unlearn.audits.top_view import has_map
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept, resolve_concept
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.options import CommandParser
from lightning_unlearn.safe_files import read_json
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment, store_address

KIND, NAME = "policy_suite_eval", "policy-suite"
"""Folder of the files, and name of the run."""
PUBLISHED_COLUMNS = 17
VIDEO_RENDERER = "top view drawn by matplotlib, which needs neither a display nor GL (EGL, OSMesa)"
_VERSIONS = ("lightning-unlearn", "torch", "mujoco", "safety-gymnasium", "numpy")


def main(args: Sequence[str]) -> None:
    """Evaluate what the options name, and write, record and print the results."""
    (options, wanted), started = read_options(args), time.perf_counter()
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    open_store(options.tracking_uri)
    require_active_experiment(options.env)
    comparisons = gather(options)
    wanted = replace(
        wanted, concept=resolve_concept(wanted.concept, [c.subject.concept for c in repaired(comparisons)])
    )
    folder = results_folder(options.out, KIND, options.eval_id)
    eval_id = options.eval_id or folder.name
    about = [settings(wanted, comparison) for comparison in comparisons]
    seeds = {c.subject.seed for c in comparisons if not registry.is_shipped(c.subject.uri)}
    if options.eval_id and _is_finished(folder, about):
        print(f"Evaluation {eval_id} is finished already: {folder.resolve()}")
        if not _is_recorded(options.env, eval_id):  # in another store, or the store refused it
            over_seeds = read_json(folder / SUMMARY_JSON, MAX_BYTES)["over_seeds"]
            run = _record(options, eval_id, folder, pd.read_csv(folder / SUMMARY), over_seeds, seeds)
            print(f"MLflow run: {run}")
        return
    found, shared = _examine(wanted, comparisons, folder, options.workers)
    shared["summary_columns"] = columns(found)
    over_seeds = over_training_seeds(found, np.random.default_rng(wanted.seed))
    table = summary(found, over_seeds, {**_same_for_all(wanted), **shared["columns"]})
    said = [
        *shortcomings(found, wanted.kl_states),
        *other_concepts(found, shared["concept"]),
        *notes(table, over_seeds),
    ]
    findings = {"eval_id": eval_id, "over_seeds": over_seeds, "notes": said}
    metadata = _metadata(options, eval_id, comparisons, about, shared, time.perf_counter() - started)
    write_files(folder, table, per_episode_table(found), findings, metadata)
    Partial(folder).remove()
    print_tables(table, cost_keys(found), over_seeds, said)
    run = _record(options, eval_id, folder, table, over_seeds, seeds)
    print("\n".join(f"  {path.resolve()}" for path in _written(folder)) + f"\nMLflow run: {run}")


def repaired(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those of models that had something to forget; all, if there are only unsafe experts."""
    return [c for c in comparisons if c.subject.family != UNSAFE] or list(comparisons)


def read_options(args: Sequence[str]) -> tuple[Any, SuiteOptions]:
    """The command's options, and what they ask the suite for.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options, concept = parse_with_concept(_parser(), args)
    return options, _suite_options(options, concept)


def gather(options: Any) -> list[Comparison]:
    """The models with their references, the unsafe experts among them: those named by their URIs, else the store's.

    Raises:
        ValueError: There is no such model, no reference, or one is of another environment.
    """
    listed = find(options.env, options.models, options.seed)
    only_shipped, first = options.models == [ZOO], options.seed[0]
    seeds = {_seed(subject, first) for subject in listed}
    experts_named = [s for s in listed if s.family == UNSAFE and s.uri in options.models]
    told = {_seed(s, first): s.uri for s in sorted(experts_named, key=lambda s: s.update or 0)}
    given = {s: options.unsafe_model or told.get(s) for s in seeds}
    experts = {s: expert(options.env, s, given[s], shipped=only_shipped) for s in seeds}
    digests = {one.digest for one in experts.values()}
    others = [s for s in listed if not (s.family == UNSAFE and s.digest in digests)]
    subjects = arrange([*experts.values(), *others])
    named = {(s.uri, s.digest): s for s in subjects}
    unsafe = {seed: named[one.uri, one.digest] for seed, one in experts.items()}
    oracles = {s: _oracle(options, s, subjects, only_shipped) for s in seeds}
    comparisons = []
    for subject in subjects:
        seed = next((s for s, one in unsafe.items() if one is subject), _seed(subject, first))
        comparisons.append(Comparison(subject, unsafe[seed], oracles[seed]))
    return comparisons


def _oracle(options: Any, seed: int, subjects: list[Subject], only_shipped: bool) -> Subject | None:
    if only_shipped and options.oracle_ref_path is None:
        shipped = [s for s in subjects if s.family == ORACLE]
        return max(shipped, key=lambda s: s.update or 0, default=None)
    oracle = latest_oracle(options.env, seed, options.oracle_ref_path, subjects)
    return next((s for s in subjects if oracle is not None and s.uri == oracle.uri), oracle)


def _seed(subject: Subject, otherwise: int) -> int:
    return otherwise if subject.seed is None else subject.seed


def _suite_options(options: Any, concept: str | Concept) -> SuiteOptions:
    require_at_least(1, workers=options.workers)
    if not options.seed or min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    same = ("env", "episodes", "max_steps", "kl_states", "stochastic", "record_videos")
    return SuiteOptions(**{name: options[name] for name in same}, concept=concept, seed=options.seed[0])


def _is_finished(folder: Path, about: list[dict[str, Any]]) -> bool:
    metadata = finished(folder)
    if metadata is None or (folder / PARTIAL).exists():
        return False
    if metadata.get("settings") != about:
        raise ValueError(
            f"--eval_id {folder.name} is a finished evaluation of other models or with other options: name another."
        )
    return True


def _is_recorded(env_id: str, eval_id: str) -> bool:
    past = [run for run in runs.stored_runs(env_id) if run.audit == NAME and run.status == "FINISHED"]
    return any(run.params.get("eval_id") == eval_id for run in past)


def _examine(
    wanted: SuiteOptions, comparisons: Sequence[Comparison], folder: Path, workers: int
) -> tuple[Found, dict[str, Any]]:
    """Every model's result, those of an interrupted evaluation taken over; and what all rows share."""
    env = make_env(wanted.env, wanted.episodes, wanted.concept, min(workers, wanted.episodes))
    videos = folder / VIDEOS if wanted.record_videos else None
    partial, found = Partial(folder), list[tuple[Comparison, Result]]()
    try:
        _require_possible(wanted, comparisons, env)
        if videos is not None:
            videos.mkdir(exist_ok=True)
            print(f"Videos: {VIDEO_RENDERER}.")
        suite = Suite(env, wanted, videos)
        for number, comparison in enumerate(comparisons, start=1):
            found.append((comparison, _result(suite, partial, wanted, comparison, f"{number}/{len(comparisons)}")))
        fill_costs(found)
        shared: dict[str, Any] = {"columns": {"Near_By": suite.distance_measure}, "concept": env.concept}
        if videos is not None:
            shared["video_layout"] = suite.video_layout(comparisons[0].unsafe)
        return found, shared
    finally:
        env.close()


def _require_possible(wanted: SuiteOptions, comparisons: Sequence[Comparison], env: BatchedEnv) -> None:
    """Refuse models of other sizes than the environment's, and videos where there is nothing to draw."""
    named: list[tuple[str, Subject | None]] = [("unsafe_model", c.unsafe) for c in comparisons]
    named += [("models", c.subject) for c in comparisons] + [("oracle_ref_path", c.oracle) for c in comparisons]
    for option, subject in named:
        if subject is not None:
            require_fit(subject, env.simulator, option)
    if wanted.record_videos and not has_map(env.simulator.top_view()):
        raise ValueError(f"--record_videos is not possible in {wanted.env}, which has no map to draw: leave it out.")


def _result(suite: Suite, partial: Partial, wanted: SuiteOptions, comparison: Comparison, number: str) -> Result:
    subject, about = comparison.subject, settings(wanted, comparison)
    result = partial.read(subject.label, about)
    drawn = suite.videos is None or (suite.videos / f"{subject.label}.gif").is_file()
    if result is not None and drawn:
        print(f"{number}  {subject.label}: done before")
        return result
    result = suite.examine(comparison)
    partial.write(subject.label, about, result)
    reward, cost = result.episodes["reward"].mean(), result.episodes["cost_sum"].mean()
    print(f"{number}  {subject.label}: return {reward:.2f}, cost {cost:.2f} an episode", flush=True)
    if failed := result.episodes["simulator_failed"].sum():
        why = f", the last one {reason}" if (reason := suite.env.simulator.last_failure()) else ""
        print(f"The simulation failed in {failed} of {len(result.episodes)} episodes{why}", flush=True)
    return result


def _same_for_all(wanted: SuiteOptions) -> dict[str, str]:
    layouts = wanted.layouts
    return {"Policy": _kind(wanted.stochastic), "Layouts": f"{layouts[0]} to {layouts[-1]}"}


def _kind(stochastic: bool) -> str:
    return "stochastic" if stochastic else "deterministic"


def _metadata(
    options: Any,
    eval_id: str,
    comparisons: Sequence[Comparison],
    about: list[dict[str, Any]],
    shared: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    return {
        "eval_id": eval_id,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {name: value for name, value in vars(options).items() if name != "config"}
        | {"tracking_uri": store_address()},
        "policy": _kind(options.stochastic),
        "concept": shared["concept"],
        "near_by": shared["columns"]["Near_By"],
        "standard_deviations": "of the population of episodes",
        "intervals": INTERVALS,
        "models": {c.subject.label: _about(c) for c in comparisons},
        "settings": about,
        "video": {"renderer": VIDEO_RENDERER, "layout_seed": shared.get("video_layout")},
        "columns": shared["summary_columns"],
        "published_columns": list(COLUMNS)[:PUBLISHED_COLUMNS],
        "versions": {name: version(name) for name in _VERSIONS},
        "wall_time_s": round(seconds, 2),
    }


def _about(comparison: Comparison) -> dict[str, Any]:
    subject, oracle = comparison.subject, comparison.oracle
    return {
        "uri": subject.uri,
        "weights_sha256": subject.digest,
        "unsafe": comparison.unsafe.uri,
        "oracle_ref": None if oracle is None else oracle.uri,
    }


def _written(folder: Path) -> list[Path]:
    drawn = [path for path in sorted((folder / VIDEOS).glob("*")) if path.suffix in (".gif", ".png")]
    return [*(folder / name for name in FILES), *drawn]


def _record(
    options: Any,
    eval_id: str,
    folder: Path,
    table: pd.DataFrame,
    over_seeds: Sequence[Mapping[str, Any]],
    seeds: Iterable[int | None],
) -> str:
    place = f"eval/{KIND}/{eval_id}"
    places = {path: f"{place}/{VIDEOS}" if path.parent != folder else place for path in _written(folder)}
    numbers = flat_numbers({row["Model"]: row for row in records(table)})
    for row in over_seeds:
        numbers |= flat_numbers({f"over_seeds/{row['Family']}_{row['Update']}": row})
    run = runs.record_audit(options.env, NAME, vars(options), numbers, places, seeds=seeds)
    shown = table.astype(object).where(table.notna(), None)
    runs.log_table(run, shown, f"{place}/summary_table.json")
    return run


def _parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn evaluate", description=__doc__)
    add = parser.add_argument
    add("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    models = "URIs, files, methods, `METHOD@selected`, or `zoo`; default: all registered ones"
    add("--models", type=str, nargs="*", default=[], help=models)
    add("--unsafe_model", type=str | None, default=None, help="the expert compared with; default: that of the seed")
    add("--oracle_ref_path", type=str | None, default=None, help="URI or file of the oracle; default: the latest one")
    add("--seed", type=int, nargs="+", default=[0], help="training seeds of the registered models; noise if stochastic")
    add("--episodes", type=int, default=50, help="layouts, one episode each")
    add("--max_steps", type=int, default=2000, help="episodes are cut here at the latest")
    add("--kl_states", type=int, default=5000, help="states that policies are compared on")
    add("--stochastic", action="store_true", help="draw actions instead of taking the mean; KL states stay the same")
    add("--record_videos", action="store_true", help="a GIF of each model, and a figure beside its expert")
    add_concept_option(parser, ", or recorded, what the models record")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--out", type=str | None, default=None, help="folder of the files; default: artifacts/eval/<kind>/<eval_id>")
    add("--eval_id", type=str | None, default=None, help="name of the evaluation; an interrupted one is continued")
    add("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
