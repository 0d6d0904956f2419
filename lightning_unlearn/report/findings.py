"""Results that the store holds about an environment: trainings with their curves, and audits of their models.

If two runs answer the same question, the newer one counts.
"""

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, TypeVar

import pandas as pd
from mlflow.exceptions import MlflowException

from lightning_unlearn.audits import (
    elicitation,
    headline,
    latent_shift,
    patching,
    policy_suite,
    relearning,
    weight_path,
)
from lightning_unlearn.audits.audited_models import UNSAFE, trained_limits
from lightning_unlearn.audits.policy_suite import METADATA, PER_EPISODE, SUMMARY, SUMMARY_JSON
from lightning_unlearn.audits.relearn_attacks import PPO
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import store_address

CURVES = ("rollout/episode_return", "rollout/cost_rate", "lagrangian/lambda")
TARGET = "lagrangian/target"
_PAIR_FILES = {module.NAME: (module.KIND, module.RESULT) for module in (elicitation, patching, weight_path)}
"""Audit of pairs → folder and name of its result."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelOrigin:
    """Method, update and training seed of a model; only a name if the model is not stored any more."""

    family: str
    update: int | None = None
    seed: int | None = None
    line: float | None = None
    """Share of the way from its expert's weights to its own; None: the model itself."""

    @property
    def kind(self) -> str:
        """Family and update, which all seeds share."""
        kind = self.family if self.update is None else f"{self.family} {self.update}"
        return kind if self.line is None else f"{kind}, {100 * self.line:g} % of the line"

    @property
    def name(self) -> str:
        """Family, update and seed."""
        return self.kind if self.seed is None else f"{self.kind}, seed {self.seed}"


@dataclass(frozen=True)
class TrainingRun:
    """The newest run of a method and seed; a finished run goes before an unfinished one."""

    method: str
    seed: int
    run: StoredRun
    curves: dict[str, list[tuple[int, float]]]
    """Metric → environment steps and value."""
    config: str


@dataclass(frozen=True)
class StoredEvaluation:
    """A run of the policy suite."""

    run: StoredRun
    eval_id: str
    table: pd.DataFrame
    """`summary.csv`."""
    findings: dict[str, Any]
    """`summary.json`."""
    metadata: dict[str, Any]
    videos: dict[str, tuple[str, bytes]]
    """Label of a model → format, mp4 where there is one and else gif, and content of its video."""
    figures: dict[str, bytes]
    """Label of a model → PNG of it beside its expert."""
    episodes: pd.DataFrame
    """`per_episode.csv`."""
    limits: dict[str, float]
    """URI of a model → limit on C_forget of an episode that it was trained for, where one is recorded."""


@dataclass(frozen=True)
class RelearningTest:
    """The relearning test of one model."""

    model: ModelOrigin
    run: StoredRun
    result: dict[str, Any]
    """Result of this model."""
    test: dict[str, Any]
    """The whole test: threshold, expert, settings."""
    curve: list[tuple[int, float]]
    """Steps of the attack and cost rate."""

    @property
    def attack(self) -> str:
        """Name of the attack."""
        return str(self.test["settings"].get("attack", PPO))

    @property
    def name(self) -> str:
        """Name of the model, and of an attack that is not the published one."""
        return self.model.name if self.attack == PPO else f"{self.model.name}, {self.attack}"

    @property
    def time(self) -> int:
        """Steps until the threshold was reached, or until which it was not."""
        reached = self.result["steps_to_threshold"]
        return int(self.result["censored_at_steps"] if reached is None else reached)

    @property
    def censored(self) -> bool:
        """The threshold was not reached."""
        return self.result["steps_to_threshold"] is None


@dataclass(frozen=True)
class PairResult:
    """Result of an audit of one repaired model beside the expert that it started from."""

    model: ModelOrigin
    run: StoredRun
    rows: list[dict[str, Any]]
    """Rows of its table: one an attack and ε from `elicit`, one a direction and layer from `patch`, one from
    `weight-path`."""


@dataclass(frozen=True)
class ProbeAudit:
    """Metrics of one model on a probe's dataset: probe fit or evaluation, latent shift, action control."""

    model: ModelOrigin
    run: StoredRun
    content: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """All results in the scope of a report; empty lists where there are none."""

    env: str
    trainings: list[TrainingRun]
    evaluation: StoredEvaluation | None
    relearning: list[RelearningTest]
    pairs: list[PairResult]
    """From `elicit`, `patch` and `weight-path`."""
    probes: list[ProbeAudit]
    """From `probe fit` and `probe eval`."""
    shifts: list[ProbeAudit]
    controls: list[ProbeAudit]


@dataclass(frozen=True)
class ReportScope:
    """Environment, seeds, methods and evaluation that a report is about."""

    env: str
    seeds: Collection[int] = ()
    """Training seeds; all if empty."""
    methods: Collection[str] = ()
    """Methods beside the unsafe expert; all if empty."""
    eval_id: str | None = None
    """The policy suite; the newest deterministic one if None."""

    def has_training(self, run: StoredRun) -> bool:
        """Return True for a training of the methods and seeds."""
        return self.has_method(run.tags.get("method", "")) and (not self.seeds or bool(run.seeds & set(self.seeds)))

    def has_audit(self, run: StoredRun) -> bool:
        """Return True for a finished audit of the seeds, or of unknown seeds."""
        return run.status == "FINISHED" and (not self.seeds or not run.seeds or bool(run.seeds & set(self.seeds)))

    def has_method(self, family: str) -> bool:
        """Return True for a method of the report, the unsafe expert and a random network."""
        return not self.methods or family in (UNSAFE, relearning.RANDOM, *self.methods)


def gather(scope: ReportScope) -> Findings:
    """Read the present store.

    Raises:
        ValueError: It has nothing of this environment, or not the evaluation.
    """
    past = runs.stored_runs(scope.env)
    if not past:
        raise ValueError(
            f"--env {scope.env}: the store at {store_address()} has no run of it. Train one with "
            "`lightning-unlearn fit`, name another environment, or another store with --tracking_uri."
        )
    audits = [run for run in past if run.audit and scope.has_audit(run)]

    def of(*kinds: str) -> list[StoredRun]:
        return [run for run in audits if run.audit in kinds]

    tests = [test for found in _readable(_relearning_tests, of("relearn")) for test in found]
    tests = [test for test in tests if scope.has_method(test.model.family)]
    pairs = [pair for found in _readable(_pair_results, of(*_PAIR_FILES)) for pair in found]
    pairs = [pair for pair in pairs if scope.has_method(pair.model.family)]
    trainings = [run for run in past if not run.audit]
    return Findings(
        env=scope.env,
        trainings=_newest_trainings([run for run in trainings if scope.has_training(run)]),
        evaluation=_evaluation(of("policy-suite"), scope, {run.run_id: run for run in trainings}),
        relearning=_newest(tests, lambda test: (test.model, test.attack, test.run.params.get("seed"))),
        pairs=_newest(pairs, lambda pair: (pair.run.audit, pair.model)),
        probes=_probe_audits(of("probe-fit", "probe-eval"), scope),
        shifts=_probe_audits(of("latent-shift"), scope),
        controls=_probe_audits(of("action-control"), scope),
    )


def _newest(entries: Iterable[_T], key: Callable[[_T], Hashable]) -> list[_T]:
    """Return the last entry of each key, keys in order of their first one."""
    return list({key(entry): entry for entry in entries}.values())


def _readable(read: Callable[[StoredRun], _T], past: Iterable[StoredRun]) -> Iterator[_T]:
    """Read runs; name and leave out those that cannot be read: anybody may store runs and delete files."""
    for run in past:
        try:
            yield read(run)
        except (ValueError, LookupError, TypeError, AttributeError, OSError, MlflowException) as error:
            print(f"Left out: run {run.run_id} ({run.name}) cannot be read ({type(error).__name__}: {error}).")


def _newest_trainings(past: list[StoredRun]) -> list[TrainingRun]:
    """Return the newest finished run of each method and seed; an unfinished one only if none has finished."""
    complete = [run for run in past if run.tags.get("method") and run.seeds]
    finished_last = sorted(complete, key=lambda run: (run.status == "FINISHED", run.started))
    newest = _newest(finished_last, lambda run: (run.tags["method"], *run.seeds))
    return list(_readable(_training, sorted(newest, key=lambda run: (run.tags["method"], *run.seeds))))


def _training(run: StoredRun) -> TrainingRun:
    curves = {metric: runs.history(run.run_id, metric) for metric in (*CURVES, TARGET)}
    has_config = "config.yaml" in runs.artifact_paths(run.run_id, "")
    config = runs.read_artifact(run.run_id, "config.yaml").decode() if has_config else "(not recorded)"
    return TrainingRun(run.tags["method"], min(run.seeds), run, curves, config)


def _evaluation(
    past: list[StoredRun], scope: ReportScope, trainings: Mapping[str, StoredRun]
) -> StoredEvaluation | None:
    """Return the evaluation of the scope's id; else the newest of exactly its seeds, deterministic ones first."""
    found = {_eval_id(paths): (run, paths) for run in past if (paths := _paths(run, policy_suite.KIND, SUMMARY))}

    def read(run: StoredRun) -> StoredEvaluation:
        return _read_evaluation(run, trainings)

    if scope.eval_id is not None:
        if scope.eval_id not in found:
            known = ", ".join(found) or "there is none"
            raise ValueError(f"--eval_id {scope.eval_id}: the store has no such evaluation of {scope.env} ({known}).")
        return read(found[scope.eval_id][0])
    fitting = [f for f in found.values() if not scope.seeds or f[0].seeds in (set(), set(scope.seeds))]
    ranked = sorted(fitting, key=lambda f: (f[0].params.get("stochastic") == "False", f[0].started))
    return next(_readable(read, [run for run, _ in reversed(ranked)]), None)


def _read_evaluation(run: StoredRun, trainings: Mapping[str, StoredRun]) -> StoredEvaluation:
    paths = _paths(run, policy_suite.KIND, SUMMARY)

    def content(name: str) -> bytes:
        return runs.read_artifact(run.run_id, paths[name])

    figures, gifs, mp4s = (
        {name.removesuffix(ending): name for name in paths if name.endswith(ending)}
        for ending in (".png", ".gif", ".mp4")
    )
    table = pd.read_csv(BytesIO(content(SUMMARY)))
    table = table.astype({name: "Int64" for name in ("Update", "Seed", "Seeds")})
    for name in set(headline.COLUMNS) - set(table):  # an older release wrote it
        table[name] = float("nan")
    return StoredEvaluation(
        run=run,
        eval_id=_eval_id(paths),
        table=table,
        findings=json.loads(content(SUMMARY_JSON)),
        metadata=json.loads(content(METADATA)),
        videos={label: (name.rpartition(".")[2], content(name)) for label, name in (gifs | mp4s).items()},
        figures={label: content(name) for label, name in figures.items()},
        episodes=pd.read_csv(BytesIO(content(PER_EPISODE))),
        limits=trained_limits(map(str, table["Path"]), trainings),
    )


def _paths(run: StoredRun, kind: str, needed: str) -> dict[str, str]:
    """Map the names of an audit's files to their paths; empty if the needed file is not among them."""
    paths = {path.rpartition("/")[2]: path for path in runs.artifact_paths(run.run_id, f"eval/{kind}")}
    return paths if needed in paths else {}


def _eval_id(paths: dict[str, str]) -> str:
    return paths[SUMMARY].split("/")[-2]


def _relearning_tests(run: StoredRun) -> list[RelearningTest]:
    paths = _paths(run, relearning.KIND, relearning.RESULT)
    if not paths:
        return []  # only a threshold
    test = json.loads(runs.read_artifact(run.run_id, paths[relearning.RESULT]))
    history = pd.read_csv(BytesIO(runs.read_artifact(run.run_id, paths[relearning.HISTORY]))).dropna(subset="eval_cost")
    found = []
    for result in test["models"]:
        own = history[history["model"] == result["model"]]
        curve = list(zip(own["global_steps"], own["eval_cost"], strict=True))
        model = _origin(result["model_path"], test["settings"]["seed"])
        if "line" in result:
            model = replace(model, line=result["line"])
        found.append(RelearningTest(model, run, result, test, curve))
    return found


def _pair_results(run: StoredRun) -> list[PairResult]:
    kind, name = _PAIR_FILES[run.audit]
    content = json.loads(runs.read_artifact(run.run_id, _paths(run, kind, name)[name]))
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in content["models"]}
    for row in content["rows"]:
        rows[row["model"]].append(row)
    uris = {label: model["uri"] for label, model in content["models"].items()}
    return [PairResult(_origin(uris[label], own[0]["seed"]), run, own) for label, own in rows.items()]


def _probe_audits(past: list[StoredRun], scope: ReportScope) -> list[ProbeAudit]:
    found = [one for one in _readable(_probe_audit, past) if one is not None and scope.has_method(one.model.family)]
    return _newest(found, lambda audit: (audit.run.audit, audit.model, audit.content.get("features")))


def _probe_audit(run: StoredRun) -> ProbeAudit | None:
    name = run.params["metrics_out"].rpartition("/")[2] if "metrics_out" in run.params else latent_shift.METRICS
    folder = "probes" if "metrics_out" in run.params else f"eval/{latent_shift.KIND}"
    path = next((p for p in runs.artifact_paths(run.run_id, folder) if p.endswith(f"/{name}")), None)
    if path is None:
        return None
    content = json.loads(runs.read_artifact(run.run_id, path))
    return ProbeAudit(_origin(content.get("cmp_model_path") or content["model_path"]), run, content)


def _origin(uri: str, seed_of_random: int | None = None) -> ModelOrigin:
    """Read a model's card; a random network has its audit's seed, and a model that is gone is named by its URI."""
    if uri == relearning.RANDOM:
        return ModelOrigin(uri, seed=seed_of_random)
    try:
        card = registry.load_policy(uri).card
    except ValueError:
        return ModelOrigin(uri)
    update, seed = (number if number >= 0 else None for number in (card.update, card.seed))
    return ModelOrigin(card.method or uri, update, None if registry.is_shipped(uri) else seed)
