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

from lightning_unlearn.audits import headline, outputs, suite_tables
from lightning_unlearn.audits.audited_models import (
    ORACLE,
    UNSAFE,
    ZOO,
    AuditedModel,
    arrange,
    find_models,
    oracle_reference,
    require_fit,
    seeds_in_store,
    trained_limits,
    unsafe_expert,
)
from lightning_unlearn.audits.policy_comparison import (
    Comparison,
    Result,
    Suite,
    SuiteOptions,
    distance_measure,
    settings,
)
from lightning_unlearn.audits.statistics import INTERVALS
from lightning_unlearn.audits.videos import DRAWN_BY, VideoRecorder, add_video_options, read_video_options
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept, resolve_concept
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.safe_files import read_json
from lightning_unlearn.tracking import runs
from lightning_unlearn.tracking.store import store_address

KIND, NAME = "policy_suite_eval", "policy-suite"
"""Folder of the files, and name of the run."""
SUMMARY, PER_EPISODE, SUMMARY_JSON, METADATA = "summary.csv", "per_episode.csv", "summary.json", "metadata.json"
FILES = (SUMMARY, PER_EPISODE, SUMMARY_JSON, METADATA)
VIDEOS = "videos"
PUBLISHED_COLUMNS = 17
_VERSIONS = ("lightning-unlearn", "torch", "mujoco", "safety-gymnasium", "numpy")


def main(args: Sequence[str]) -> None:
    """Evaluate the models that the options name; write, record and print the results."""
    (options, suite_options), started = read_options(args), time.perf_counter()
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    outputs.open_audit_store(options.tracking_uri, options.env)
    comparisons = gather(options)
    concept = resolve_concept(suite_options.concept, [c.model.concept for c in without_experts(comparisons)])
    suite_options = replace(suite_options, concept=concept)
    folder = outputs.results_folder(options.out, KIND, options.eval_id)
    eval_id, seeds = options.eval_id or folder.name, seeds_in_store(c.model for c in comparisons)
    about = [settings(suite_options, comparison) for comparison in comparisons]
    if not (options.eval_id and _is_finished(folder, about)):
        table, over_seeds = _evaluate(options, suite_options, comparisons, folder, started)
        outputs.print_outputs(_written(folder), _record(options, eval_id, folder, table, over_seeds, seeds))
        return
    print(f"Evaluation {eval_id} is finished already: {folder.resolve()}")
    past = [run for run in runs.stored_runs(options.env) if run.audit == NAME and run.status == "FINISHED"]
    if not any(run.params.get("eval_id") == eval_id for run in past):  # in another store, or the store refused it
        over_seeds = read_json(folder / SUMMARY_JSON, outputs.MAX_BYTES)["over_seeds"]
        run = _record(options, eval_id, folder, pd.read_csv(folder / SUMMARY), over_seeds, seeds)
        print(f"MLflow run: {run}")


def read_options(args: Sequence[str]) -> tuple[Any, SuiteOptions]:
    """The command's options, and those of the suite among them.

    Raises:
        ValueError: One is unknown or impossible.
    """
    options, concept = parse_with_concept(_parser(), args)
    require_at_least(1, workers=options.workers)
    if not options.seed or min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    same = {name: options[name] for name in ("env", "episodes", "max_steps", "kl_states", "stochastic")}
    video = read_video_options(options)
    return options, SuiteOptions(**same, video=video, concept=concept, seed=options.seed[0])


def gather(options: Any) -> list[Comparison]:
    """The models that the options name, or the store's, with their references; the unsafe experts are among them.

    Raises:
        ValueError: There is no such model, no reference, or one is of another environment.
    """
    listed = find_models(options.env, options.models, options.seed)
    only_shipped, first = options.models == [ZOO], options.seed[0]
    seeds = {_seed(model, first) for model in listed}
    named_experts = [model for model in listed if model.family == UNSAFE and model.uri in options.models]
    named = {_seed(model, first): model.uri for model in sorted(named_experts, key=lambda m: m.update or 0)}
    experts = {
        seed: unsafe_expert(options.env, seed, options.unsafe_model or named.get(seed), shipped=only_shipped)
        for seed in seeds
    }
    digests = {expert.digest for expert in experts.values()}
    others = [model for model in listed if not (model.family == UNSAFE and model.digest in digests)]
    models = arrange([*experts.values(), *others])
    labelled = {(model.uri, model.digest): model for model in models}
    unsafe = {seed: labelled[expert.uri, expert.digest] for seed, expert in experts.items()}
    oracles = {seed: _oracle(options, seed, models, only_shipped) for seed in seeds}
    comparisons = []
    for model in models:
        seed = next((seed for seed, expert in unsafe.items() if expert is model), _seed(model, first))
        comparisons.append(Comparison(model, unsafe[seed], oracles[seed]))
    return comparisons


def without_experts(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Leave out the unsafe experts, unless there are no other models."""
    return [c for c in comparisons if c.model.family != UNSAFE] or list(comparisons)


def write_files(
    folder: Path,
    summary: pd.DataFrame,
    per_episode: pd.DataFrame,
    findings: Mapping[str, Any],
    metadata: Mapping[str, Any],
) -> None:
    """Write `FILES`; `summary.json` holds the findings and the rows of the summary."""
    summary.to_csv(folder / SUMMARY, index=False)
    per_episode.to_csv(folder / PER_EPISODE, index=False)
    outputs.write_json(folder / SUMMARY_JSON, {**findings, "models": _rows(summary)})
    outputs.write_json(folder / METADATA, metadata)


def _oracle(options: Any, seed: int, models: Sequence[AuditedModel], only_shipped: bool) -> AuditedModel | None:
    if only_shipped and options.oracle_ref_path is None:
        shipped = [model for model in models if model.family == ORACLE]
        return max(shipped, key=lambda model: model.update or 0, default=None)
    oracle = oracle_reference(options.env, seed, options.oracle_ref_path, models)
    return next((model for model in models if oracle is not None and model.uri == oracle.uri), oracle)


def _seed(model: AuditedModel, otherwise: int) -> int:
    return otherwise if model.seed is None else model.seed


def _is_finished(folder: Path, about: list[dict[str, Any]]) -> bool:
    """True if the folder holds this very evaluation, complete.

    Raises:
        ValueError: It holds another one.
    """
    if not all((folder / name).is_file() for name in FILES):
        return False
    try:
        found = read_json(folder / METADATA, outputs.MAX_BYTES).get("settings")
    except outputs.DAMAGED:
        return False
    if (folder / outputs.PARTIAL).exists():
        return False
    if found != about:
        raise ValueError(
            f"--eval_id {folder.name} is a finished evaluation of other models or with other options: name another."
        )
    return True


def _evaluate(
    options: Any, suite_options: SuiteOptions, comparisons: Sequence[Comparison], folder: Path, started: float
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Run, write and print the evaluation; returns the summary and the rows over training seeds."""
    results, shared = _examine(suite_options, comparisons, folder, options.workers)
    models = [comparison.model for comparison, _ in results]
    trainings = {run.run_id: run for run in runs.stored_runs(options.env) if not run.audit}
    limits = headline.limits(models, trained_limits((model.uri for model in models), trainings))
    suite_tables.fill_headline(results, limits)
    over_seeds = suite_tables.over_training_seeds(results, np.random.default_rng(suite_options.seed))
    layouts, policy = suite_options.layouts, "stochastic" if options.stochastic else "deterministic"
    same = {"Near_By": shared["near_by"], "Policy": policy, "Layouts": f"{layouts[0]} to {layouts[-1]}"}
    table = suite_tables.summary(results, over_seeds, same, limits)
    notes = suite_tables.notes(results, table, over_seeds, suite_options.kl_states, shared["concept"])
    eval_id = options.eval_id or folder.name
    metadata = {
        "eval_id": eval_id,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {name: value for name, value in vars(options).items() if name != "config"}
        | {"tracking_uri": store_address()},
        "policy": policy,
        **_provenance(suite_options, comparisons, shared, suite_tables.columns(results)),
        "wall_time_s": round(time.perf_counter() - started, 2),
    }
    findings = {"eval_id": eval_id, "over_seeds": over_seeds, "notes": notes}
    write_files(folder, table, suite_tables.per_episode_table(results), findings, metadata)
    outputs.PartialResults(folder).remove()
    suite_tables.print_tables(table, suite_tables.cost_keys(results), over_seeds, notes)
    return table, over_seeds


def _provenance(
    suite_options: SuiteOptions,
    comparisons: Sequence[Comparison],
    shared: Mapping[str, Any],
    columns: Mapping[str, str],
) -> dict[str, Any]:
    """The part of the metadata that says how and of what the tables were made."""
    models = {
        c.model.label: {
            "uri": c.model.uri,
            "weights_sha256": c.model.digest,
            "unsafe": c.unsafe.uri,
            "oracle_ref": None if c.oracle is None else c.oracle.uri,
        }
        for c in comparisons
    }
    return {
        "concept": shared["concept"],
        "near_by": shared["near_by"],
        "standard_deviations": "of the population of episodes",
        "intervals": INTERVALS,
        "models": models,
        "settings": [settings(suite_options, comparison) for comparison in comparisons],
        "video": shared["video"],
        "columns": columns,
        "published_columns": list(suite_tables.COLUMNS)[:PUBLISHED_COLUMNS],
        "versions": {name: version(name) for name in _VERSIONS},
    }


def _examine(
    suite_options: SuiteOptions, comparisons: Sequence[Comparison], folder: Path, workers: int
) -> tuple[list[tuple[Comparison, Result]], dict[str, Any]]:
    """Every model's result, with those of an interrupted evaluation taken over; and what holds for all of them."""
    episodes, videos = suite_options.episodes, None
    env = make_env(suite_options.env, episodes, suite_options.concept, min(workers, episodes))
    try:
        _require_fits(comparisons, env)
        if suite_options.video is not None:
            videos = VideoRecorder(folder / VIDEOS, suite_options.env, suite_options.video, env.simulator)
            videos.folder.mkdir(exist_ok=True)
            print(f"Videos: {videos.renderer}.")
        suite, partial, results = Suite(env, suite_options, videos), outputs.PartialResults(folder), []
        for number, comparison in enumerate(comparisons, start=1):
            result = _result(suite, partial, comparison, f"{number}/{len(comparisons)}  {comparison.model.label}")
            results.append((comparison, result))
        suite_tables.fill_costs(results)
        video: dict[str, Any] = {"renderer": DRAWN_BY, "layout_seed": None}
        if videos is not None:
            layout = suite.video_layout(comparisons[0].unsafe)
            video = {"renderer": videos.renderer, "layout_seed": layout, "beside_expert": True}
        return results, {"near_by": distance_measure(env), "concept": env.concept, "video": video}
    finally:
        env.close()
        if videos is not None:
            videos.close()


def _require_fits(comparisons: Sequence[Comparison], env: BatchedEnv) -> None:
    """Refuse models of other sizes than the environment's."""
    named: list[tuple[str, AuditedModel | None]] = [("expert", c.unsafe) for c in comparisons]
    named += [("models", c.model) for c in comparisons] + [("oracle", c.oracle) for c in comparisons]
    for option, model in named:
        if model is not None:
            require_fit(model.policy, env.simulator, option, model.uri)


def _result(suite: Suite, partial: outputs.PartialResults, comparison: Comparison, title: str) -> Result:
    """A model's result: kept from an interrupted evaluation, or made now."""
    label, about = comparison.model.label, settings(suite.options, comparison)
    kept = partial.read(label, about, Result.parse)
    if kept is not None and (suite.videos is None or all(path.is_file() for path in suite.videos.paths(label))):
        print(f"{title}: done before")
        return kept
    result = suite.examine(comparison)
    partial.write(label, about, result.content)
    episodes = result.episodes
    print(
        f"{title}: return {episodes['reward'].mean():.2f}, cost {episodes['cost_sum'].mean():.2f} an episode",
        flush=True,
    )
    if failed := episodes["simulator_failed"].sum():
        why = f", the last one {reason}" if (reason := suite.env.simulator.last_failure()) else ""
        print(f"The simulation failed in {failed} of {len(episodes)} episodes{why}", flush=True)
    return result


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, None where a cell is empty."""
    rows = table.astype(object).to_dict("records")
    return [{str(name): None if pd.isna(cell) else cell for name, cell in row.items()} for row in rows]


def _written(folder: Path) -> list[Path]:
    drawn = [path for path in sorted((folder / VIDEOS).glob("*")) if path.suffix in (".gif", ".mp4", ".png")]
    return [*(folder / name for name in FILES), *drawn]


def _record(
    options: Any,
    eval_id: str,
    folder: Path,
    table: pd.DataFrame,
    over_seeds: Sequence[Mapping[str, Any]],
    seeds: Iterable[int],
) -> str:
    """Store the evaluation as an MLflow run; returns the run's id."""
    place = f"eval/{KIND}/{eval_id}"
    places = {path: f"{place}/{VIDEOS}" if path.parent != folder else place for path in _written(folder)}
    numbers = outputs.flat_numbers({row["Model"]: row for row in _rows(table)})
    for row in over_seeds:
        numbers |= outputs.flat_numbers({f"over_seeds/{row['Family']}_{row['Update']}": row})
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
    add_video_options(parser)
    add_concept_option(parser, ", or recorded, what the models record")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--out", type=str | None, default=None, help="folder of the files; default: artifacts/eval/<kind>/<eval_id>")
    add("--eval_id", type=str | None, default=None, help="name of the evaluation; an interrupted one is continued")
    outputs.add_store_option(parser)
    return parser
