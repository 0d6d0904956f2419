"""What the store holds about an environment: trainings with their curves, and the audits of their models.

Of two runs that answer the same question the newer one counts.
"""

import json
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import pandas as pd
from mlflow.exceptions import MlflowException

from lightning_unlearn.audits import latent_shift, policy_suite, relearning
from lightning_unlearn.audits.audited_models import UNSAFE
from lightning_unlearn.audits.policy_suite import METADATA, PER_EPISODE, SUMMARY, SUMMARY_JSON
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.runs import StoredRun
from lightning_unlearn.tracking.store import store_address

CURVES = ("rollout/episode_return", "rollout/cost_rate", "lagrangian/lambda")
TARGET = "lagrangian/target"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Model:
    """Where a model comes from; of what is no stored model only a name is known."""

    family: str
    update: int | None = None
    seed: int | None = None

    @property
    def kind(self) -> str:
        """Family and update, which all seeds share."""
        return self.family if self.update is None else f"{self.family} {self.update}"

    @property
    def name(self) -> str:
        """With the seed."""
        return self.kind if self.seed is None else f"{self.kind}, seed {self.seed}"


@dataclass(frozen=True)
class Training:
    """The newest run of a method and seed, a finished one before others."""

    method: str
    seed: int
    run: StoredRun
    curves: dict[str, list[tuple[int, float]]]
    """Metric → environment steps and value."""
    config: str


@dataclass(frozen=True)
class Evaluation:
    """A run of the policy suite."""

    run: StoredRun
    eval_id: str
    table: pd.DataFrame
    """`summary.csv`."""
    findings: dict[str, Any]
    """`summary.json`."""
    metadata: dict[str, Any]
    videos: dict[str, bytes]
    """Label of a model → GIF."""
    figures: dict[str, bytes]
    """Label of a model → PNG of it beside its expert."""
    episodes: pd.DataFrame
    """`per_episode.csv`."""


@dataclass(frozen=True)
class Relearning:
    """The relearning test of one model."""

    model: Model
    run: StoredRun
    result: dict[str, Any]
    """What is said of this model."""
    test: dict[str, Any]
    """What is said of the whole test: threshold, expert, settings."""
    curve: list[tuple[int, float]]
    """Environment steps and cost rate."""


@dataclass(frozen=True)
class Measure:
    """An audit of one model on a probe's dataset."""

    model: Model
    run: StoredRun
    content: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """All of it; what is not there is empty."""

    env: str
    trainings: list[Training]
    evaluation: Evaluation | None
    relearning: list[Relearning]
    probes: list[Measure]
    """From `probe fit` and `probe eval`."""
    shifts: list[Measure]
    controls: list[Measure]


@dataclass(frozen=True)
class Wanted:
    """What is asked for."""

    env: str
    seeds: Collection[int] = ()
    """Training seeds; all if empty."""
    methods: Collection[str] = ()
    """Beside the unsafe expert; all if empty."""
    eval_id: str | None = None
    """The policy suite; the newest deterministic one if None."""

    def training(self, run: StoredRun) -> bool:
        """Whether a training is asked for."""
        return self.method(run.tags.get("method", "")) and (not self.seeds or bool(run.seeds & set(self.seeds)))

    def audit(self, run: StoredRun) -> bool:
        """Whether a finished audit is of the seeds, as far as its seeds are known."""
        return run.status == "FINISHED" and (not self.seeds or not run.seeds or bool(run.seeds & set(self.seeds)))

    def method(self, family: str) -> bool:
        """Whether a family of models is asked for."""
        return not self.methods or family in (UNSAFE, relearning.RANDOM, *self.methods)


def gather(wanted: Wanted) -> Findings:
    """Read the present store.

    Raises:
        ValueError: It has nothing of this environment, or not the evaluation.
    """
    past = runs.stored_runs(wanted.env)
    if not past:
        raise ValueError(
            f"--env {wanted.env}: the store at {store_address()} has no run of it. Train one with "
            "`lightning-unlearn fit`, name another environment, or another store with --tracking_uri."
        )
    audits = [run for run in past if run.audit and wanted.audit(run)]

    def of(*kinds: str) -> list[StoredRun]:
        return [run for run in audits if run.audit in kinds]

    tests = [test for found in _readable(_relearning, of("relearn")) for test in found]
    tests = [test for test in tests if wanted.method(test.model.family)]
    return Findings(
        wanted.env,
        _trainings([run for run in past if not run.audit and wanted.training(run)]),
        _evaluation(of("policy-suite"), wanted),
        _newest(tests, lambda test: (test.model, test.run.params.get("seed"))),
        _measures(of("probe-fit", "probe-eval"), wanted),
        _measures(of("latent-shift"), wanted),
        _measures(of("action-control"), wanted),
    )


def model_at(uri: str) -> Model:
    """What the model's own card says; the URI itself where there is no such model any more."""
    try:
        card = registry.load_policy(uri).card
    except ValueError:
        return Model(uri)
    update, seed = (number if number >= 0 else None for number in (card.update, card.seed))
    return Model(card.method or uri, update, None if registry.is_shipped(uri) else seed)


def _newest(entries: Iterable[_T], key: Callable[[_T], Hashable]) -> list[_T]:
    """The last entry of each key, keys in order of their first one."""
    return list({key(entry): entry for entry in entries}.values())


def _readable(read: Callable[[StoredRun], _T], past: Iterable[StoredRun]) -> Iterator[_T]:
    """What runs hold. Those that cannot be read are named and left out: anybody may store runs and delete files."""
    for run in past:
        try:
            yield read(run)
        except (ValueError, LookupError, TypeError, AttributeError, OSError, MlflowException) as error:
            print(f"Left out: run {run.run_id} ({run.name}) cannot be read ({type(error).__name__}: {error}).")


def _trainings(past: list[StoredRun]) -> list[Training]:
    """The newest finished run of each method and seed; a newer one that did not finish counts only where none did."""
    complete = [run for run in past if run.tags.get("method") and run.seeds]
    finished_last = sorted(complete, key=lambda run: (run.status == "FINISHED", run.started))
    newest = _newest(finished_last, lambda run: (run.tags["method"], *run.seeds))
    return list(_readable(_training, sorted(newest, key=lambda run: (run.tags["method"], *run.seeds))))


def _training(run: StoredRun) -> Training:
    curves = {metric: runs.history(run.run_id, metric) for metric in (*CURVES, TARGET)}
    has_config = "config.yaml" in runs.artifact_paths(run.run_id, "")
    config = runs.read_artifact(run.run_id, "config.yaml").decode() if has_config else "(not recorded)"
    return Training(run.tags["method"], min(run.seeds), run, curves, config)


def _evaluation(past: list[StoredRun], wanted: Wanted) -> Evaluation | None:
    """The one asked for by id; else the newest of exactly the seeds asked for, a deterministic one before others."""
    found = {_eval_id(paths): (run, paths) for run in past if (paths := _paths(run, policy_suite.KIND, SUMMARY))}
    if wanted.eval_id is not None:
        if wanted.eval_id not in found:
            known = ", ".join(found) or "there is none"
            raise ValueError(f"--eval_id {wanted.eval_id}: the store has no such evaluation of {wanted.env} ({known}).")
        return _read_evaluation(found[wanted.eval_id][0])
    fitting = [f for f in found.values() if not wanted.seeds or f[0].seeds in (set(), set(wanted.seeds))]
    ranked = sorted(fitting, key=lambda f: (f[0].params.get("stochastic") == "False", f[0].started))
    return next(_readable(_read_evaluation, [run for run, _ in reversed(ranked)]), None)


def _read_evaluation(run: StoredRun) -> Evaluation:
    paths = _paths(run, policy_suite.KIND, SUMMARY)

    def content(name: str) -> bytes:
        return runs.read_artifact(run.run_id, paths[name])

    videos, figures = (
        {name.removesuffix(ending): content(name) for name in paths if name.endswith(ending)}
        for ending in (".gif", ".png")
    )
    episodes = pd.read_csv(BytesIO(content(PER_EPISODE)))
    table = pd.read_csv(BytesIO(content(SUMMARY)))
    table = table.astype({name: "Int64" for name in ("Update", "Seed", "Seeds")})
    findings, metadata = (json.loads(content(name)) for name in (SUMMARY_JSON, METADATA))
    return Evaluation(run, _eval_id(paths), table, findings, metadata, videos, figures, episodes)


def _paths(run: StoredRun, kind: str, needed: str) -> dict[str, str]:
    """File name → path of what an audit wrote; empty if the file that is needed is not among it."""
    paths = {path.rpartition("/")[2]: path for path in runs.artifact_paths(run.run_id, f"eval/{kind}")}
    return paths if needed in paths else {}


def _eval_id(paths: dict[str, str]) -> str:
    return paths[SUMMARY].split("/")[-2]


def _relearning(run: StoredRun) -> list[Relearning]:
    paths = _paths(run, relearning.KIND, relearning.RESULT)
    if not paths:
        return []  # only a threshold
    test = json.loads(runs.read_artifact(run.run_id, paths[relearning.RESULT]))
    history = pd.read_csv(BytesIO(runs.read_artifact(run.run_id, paths[relearning.HISTORY]))).dropna(subset="eval_cost")
    found = []
    for result in test["models"]:
        own = history[history["model"] == result["model"]]
        curve = list(zip(own["global_steps"], own["eval_cost"], strict=True))
        named = result["model_path"]
        is_random = named == relearning.RANDOM  # a network of the test's own seed
        model = Model(named, seed=test["settings"]["seed"]) if is_random else model_at(named)
        found.append(Relearning(model, run, result, test, curve))
    return found


def _measures(past: list[StoredRun], wanted: Wanted) -> list[Measure]:
    found = [one for one in _readable(_measure, past) if one is not None and wanted.method(one.model.family)]
    return _newest(found, lambda m: (m.run.audit, m.model, m.content.get("features")))


def _measure(run: StoredRun) -> Measure | None:
    name = run.params["metrics_out"].rpartition("/")[2] if "metrics_out" in run.params else latent_shift.METRICS
    folder = "probes" if "metrics_out" in run.params else f"eval/{latent_shift.KIND}"
    path = next((p for p in runs.artifact_paths(run.run_id, folder) if p.endswith(f"/{name}")), None)
    if path is None:
        return None
    content = json.loads(runs.read_artifact(run.run_id, path))
    return Measure(model_at(content.get("cmp_model_path") or content["model_path"]), run, content)
