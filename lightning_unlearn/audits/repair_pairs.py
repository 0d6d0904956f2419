"""Pairs of a repaired model and the expert that its method started from, run on the same layouts.

`patching` and `weight_path` compare the two inside: by layer, and along the line through their weights. `elicitation`
attacks the sensors of both.
Shapes: N layouts, B states, O observation size.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lightning_unlearn.audits import outputs
from lightning_unlearn.audits.audited_models import (
    UNSAFE,
    AuditedModel,
    arrange,
    find_models,
    random_twin,
    require_fit,
    seeds_in_store,
    unsafe_expert,
)
from lightning_unlearn.audits.policy_comparison import evaluate_in, per_episode, reference_states
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import (
    add_concept_option,
    concept_to_json,
    parse_with_concept,
    resolve_concept,
)
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.policies.mean_scale import measured_mean_scale, scale_means
from lightning_unlearn.safe_files import read_json
from lightning_unlearn.seeding import evaluation_layouts
from lightning_unlearn.tracking import registry, runs

RANDOM = "random"
"""Name of a model with random weights, of the shape of the first seed's expert."""
STATES = 5000
"""Most states of the expert on which actions are compared."""
SCALING = "off_policy_concept"
"""Beginning of the names of models whose method scales the expert's means before it learns."""
COLUMNS = {"return": "reward", "cost": "cost_sum", "c_forget": "cforget_sum"}
"""Measure of an episode → its column in `PolicyRun.episodes`."""
_SCALE_OPTION = "model.init_args.mean_scale"
_CRITICS = ("reward_value.", "cost_value.", "critic_trunk.", "log_std")
"""Beginnings of the names of weights that no deterministic action depends on."""


@dataclass(frozen=True)
class RepairPair:
    """A repaired model, and the expert that its method started from."""

    model: AuditedModel
    expert: AuditedModel
    mean_scale: float | None
    """Factor on the expert's means before tanh when the method began; None: to be measured, as the method did."""


@dataclass(frozen=True)
class PolicyRun:
    """One deterministic episode on each layout."""

    episodes: pd.DataFrame
    """From `per_episode`."""
    states: torch.Tensor
    """At most `STATES` of the visited states, evenly spread. Shape: (B, O)."""

    def measure(self, signal: str) -> Any:
        """Return `cost` or `c_forget` of each episode. Shape: (N,)."""
        return self.episodes[COLUMNS[signal]].to_numpy(float)

    def means(self) -> dict[str, float]:
        """Return the mean episode return, cost and C_forget."""
        return {name: float(self.episodes[column].mean()) for name, column in COLUMNS.items()}


class LayoutBank:
    """Runs policies on the layouts that results are reported on; policies that act alike are run once.

    Args:
        env: One environment a layout.
    """

    def __init__(self, env: BatchedEnv) -> None:
        self.env = env
        self.bar = tqdm(disable=True)
        """Progress bar, which counts policies."""
        self._runs: dict[str, PolicyRun] = {}

    def run(self, policy: ActorCritic) -> PolicyRun:
        """Return a policy's episodes and states."""
        digest = acting_digest(policy)
        if digest not in self._runs:
            evaluation = evaluate_in(self.env, policy, evaluation_layouts(self.env.num_envs))
            self._runs[digest] = PolicyRun(per_episode(evaluation.episodes), reference_states(evaluation, STATES)[0])
        self.bar.update()
        return self._runs[digest]

    def starting_expert(self, expert: ActorCritic, mean_scale: float | None) -> tuple[ActorCritic, float]:
        """Return a copy of the expert with its means scaled as the method did, and the factor.

        A factor of None is measured on the expert's own states by the method's rule. The method measures it on its
        first rollout, which has exploration noise.
        """
        factor = measured_mean_scale(expert, self.run(expert).states) if mean_scale is None else mean_scale
        start = deepcopy(expert)
        scale_means(start, factor)
        return start, factor


Audit = Callable[[LayoutBank, ActorCritic, ActorCritic], Mapping[str, Any]]
"""Computes a result from an expert, as the method started from it, and a repaired policy."""


def acting_digest(policy: ActorCritic) -> str:
    """Return a SHA-256 over everything that a deterministic action depends on."""
    config = policy.config
    about = (
        config.squash,
        config.activation,
        config.normaliser_epsilon,
        config.normaliser_clip,
        config.observation_dtype,
    )
    state = hashlib.sha256(repr(about).encode())
    for name, tensor in sorted(policy.state_dict().items()):
        if not name.startswith(_CRITICS):
            state.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def measured_signal(concept: str | Concept) -> str:
    """Return the signal that stands for the behaviour: the whole cost, or C_forget if a concept is named."""
    return "cost" if concept == AUTO else "c_forget"


def read_options(
    parser: CommandParser, args: Sequence[str], episodes: int = 50, *, scaled: bool = True
) -> tuple[Any, str | Concept]:
    """Add the options that audits of pairs share to a parser, and parse.

    Args:
        parser: The command's parser.
        args: The options.
        episodes: Default number of layouts.
        scaled: The audit compares with the expert as the method started from it, and so has `--mean_scale`.

    Raises:
        ValueError: One is unknown or impossible.
    """
    add = parser.add_argument
    models = "URIs, files, methods, `METHOD@selected`, `zoo`, or `random`; default: all registered ones"
    add("--models", type=str, nargs="*", default=[], help=models)
    expert = "the expert; default: the one that each model's training started from, else that of its seed"
    add("--expert", type=str | None, default=None, help=expert)
    if scaled:
        scale = "factor on the expert's means before tanh; default: 1, and for off_policy_concept its own, or measured"
        add("--mean_scale", type=float | None, default=None, help=scale)
    add("--seed", type=int, nargs="+", default=[0], help="training seeds of the registered models")
    options, concept = parse_run_options(parser, args, episodes)
    if not options.seed or min(options.seed) < 0:
        raise ValueError(f"--seed {options.seed} is not possible: name training seeds of 0 or more.")
    factor = options.get("mean_scale")
    if factor is not None and not 0.0 < factor < float("inf"):
        raise ValueError(f"--mean_scale {factor} is not possible: use a number above 0; 1 leaves the expert as it is.")
    return options, concept


def parse_run_options(parser: CommandParser, args: Sequence[str], episodes: int) -> tuple[Any, str | Concept]:
    """Add the options of `open_audit` to a parser, and parse.

    Args:
        parser: The command's parser.
        args: The options.
        episodes: Default number of layouts.

    Raises:
        ValueError: One is unknown or impossible.
    """
    add = parser.add_argument
    add("--env", type=str, default="SafetyPointGoal1-v0", help="the task")
    add("--episodes", type=int, default=episodes, help="layouts, one episode each")
    add_concept_option(parser, ", or recorded, what the models record")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--out", type=str | None, default=None, help="folder of the files; default: artifacts/eval/<kind>/<eval_id>")
    add("--eval_id", type=str | None, default=None, help="name of the audit; an interrupted one is continued")
    outputs.add_store_option(parser)
    options, concept = parse_with_concept(parser, args)
    require_at_least(1, workers=options.workers)
    evaluation_layouts(options.episodes)
    return options, concept


def gather(options: Any) -> list[RepairPair]:
    """Open the store, and read the models that the options name, or all, each with the expert that it started from.

    Raises:
        ValueError: The store cannot be opened, there is no such model, no expert is known, or one is of another
            environment.
    """
    outputs.open_audit_store(options.tracking_uri, options.env)
    names, first = [name for name in options.models if name != RANDOM], options.seed[0]
    listed = find_models(options.env, names, options.seed) if names or not options.models else []
    if not options.models:
        listed = [model for model in listed if model.family != UNSAFE] or listed
    pairs = [_pair(model, options) for model in arrange(listed)]
    if RANDOM in options.models:
        expert = unsafe_expert(options.env, first, options.expert)
        twin = random_twin(expert.policy, first)
        made = replace(expert, label=RANDOM, family=RANDOM, uri=RANDOM, update=None, policy=twin)
        pairs.append(RepairPair(replace(made, digest=weights_digest(twin)), expert, 1.0))
    return pairs


@dataclass(frozen=True)
class PairAudit:
    """An audit of the pairs that a command's options name, with its environments and the folder of its files."""

    options: Any
    concept: str | Concept
    pairs: Sequence[RepairPair]
    settings: Sequence[Mapping[str, Any]]
    """Everything that each pair's result depends on."""
    env: BatchedEnv
    folder: Path

    def examine(self, count: Callable[[RepairPair], int], audit: Audit) -> list[dict[str, Any]]:
        """Audit one pair after the other in the same environments; those of an interrupted audit are taken over.

        Args:
            count: Number of policies that a pair's audit runs.
            audit: Computes the result of an expert, scaled already, and a repaired policy.

        Returns:
            The result of each pair, with `mean_scale`.
        """
        measured = sum(pair.mean_scale is None for pair in self.pairs)
        bank, partial, results = LayoutBank(self.env), outputs.PartialResults(self.folder), []
        total = sum(map(count, self.pairs)) + measured
        with tqdm(total=total, desc="policies", unit="policy", leave=False) as bank.bar:
            for number, (pair, its) in enumerate(zip(self.pairs, self.settings, strict=True), start=1):
                title = f"{number}/{len(self.pairs)}  {pair.model.label}"
                result = partial.read(pair.model.label, its, dict)
                if result is None:
                    start, factor = bank.starting_expert(pair.expert.policy, pair.mean_scale)
                    result = {"mean_scale": factor, **audit(bank, start, pair.model.policy)}
                    partial.write(pair.model.label, its, result)
                else:
                    title += ": done before"
                    bank.bar.update(count(pair) + (pair.mean_scale is None))
                bank.bar.write(title)
                results.append(result)
        return results

    def record(self, kind: str, name: str, numbers: Mapping[str, Any], files: Sequence[str]) -> None:
        """Record the finished audit's files as an MLflow run, and print where they are.

        Args:
            kind: Folder of the files among the run's artifacts.
            name: Name of the run.
            numbers: The rows of the results by name; their numbers become metrics.
            files: Names of the files in the audit's folder.
        """
        paths = [self.folder / file for file in files]
        places = dict.fromkeys(paths, f"eval/{kind}/{self.options.eval_id or self.folder.name}")
        seeds = seeds_in_store(pair.model for pair in self.pairs)
        metrics = outputs.flat_numbers(numbers)
        run = runs.record_audit(self.options.env, name, vars(self.options), metrics, places, seeds=seeds)
        outputs.PartialResults(self.folder).remove()
        outputs.print_outputs(paths, run)


@contextmanager
def open_audit(
    options: Any,
    concept: str | Concept,
    pairs: Sequence[RepairPair],
    kind: str,
    result: str,
    budget: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[PairAudit | None]:
    """Make the environments of an audit, one a layout, and the folder of its files, for the `with` block.

    Args:
        options: From `read_options`.
        concept: From `read_options`.
        pairs: From `gather`.
        kind: Folder of the audit's files.
        result: Name of the file that a finished audit has there.
        budget: Further settings that the results depend on.

    Returns:
        The audit; None if it is finished already.

    Raises:
        ValueError: The task or the concept is not possible, or a policy is of other sizes.
    """
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    concept = resolve_concept(concept, [pair.model.concept for pair in pairs])
    shared = {"env": options.env, "episodes": options.episodes, "concept": concept_to_json(concept), **budget}
    about = [
        {
            **shared,
            "label": pair.model.label,
            "model": pair.model.digest,
            "expert": pair.expert.digest,
            "mean_scale": pair.mean_scale,
        }
        for pair in pairs
    ]
    with closing(make_env(options.env, options.episodes, concept, min(options.workers, options.episodes))) as env:
        for pair in pairs:
            require_fit(pair.expert.policy, env.simulator, "expert", pair.expert.uri)
            require_fit(pair.model.policy, env.simulator, "models", pair.model.uri)
        folder = outputs.results_folder(options.out, kind, options.eval_id)
        if _is_finished(folder / result, about) and _is_recorded(options, kind):
            print(f"This audit is finished already: {folder.resolve()}")
            yield None
        else:
            yield PairAudit(options, concept, pairs, about, env, folder)


def examine_policies(
    expert: ActorCritic,
    repaired: ActorCritic,
    env_id: str,
    layouts: Mapping[str, Any],
    mean_scale: float | None,
    audit: Audit,
) -> Mapping[str, Any]:
    """Audit two policies in memory.

    Args:
        expert: The expert that the repair started from.
        repaired: The repaired policy.
        env_id: The task.
        layouts: `episodes`, `concept` and `workers`.
        mean_scale: Factor on the expert's means before tanh; None: to be measured.
        audit: Computes the result.

    Raises:
        ValueError: A policy does not fit the environment, or a number is not possible.
    """
    episodes, workers = len(evaluation_layouts(layouts["episodes"])), layouts["workers"]
    with closing(make_env(env_id, episodes, layouts["concept"], min(workers, episodes))) as env:
        for name, policy in (("expert", expert), ("repaired", repaired)):
            require_fit(policy, env.simulator, name, "in memory")
        bank = LayoutBank(env)
        start, _ = bank.starting_expert(expert, mean_scale)
        return audit(bank, start, repaired)


def _is_finished(path: Path, about: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a result file holds this very audit.

    Raises:
        ValueError: It holds another one.
    """
    if not path.is_file() or (path.parent / outputs.PARTIAL).exists():
        return False
    try:
        found = read_json(path, outputs.MAX_BYTES).get("settings")
    except outputs.DAMAGED:
        return False
    if found != outputs.strict(about):
        raise ValueError(
            f"{path.parent} holds a finished audit of other models or with other options: name another --eval_id "
            "or --out."
        )
    return True


def _is_recorded(options: Any, kind: str) -> bool:
    """Return True if the store has a finished run of this audit; its files may come from another store."""
    same = {name: str(value) for name, value in vars(options).items() if name in ("out", "eval_id") and value}
    return any(
        run.status == "FINISHED"
        and same.items() <= run.params.items()
        and runs.artifact_paths(run.run_id, f"eval/{kind}")
        for run in runs.stored_runs(options.env)
    )


def identity(pair: RepairPair) -> dict[str, Any]:
    """Return the columns that name a pair in tables."""
    model = pair.model
    return {"model": model.label, "method": model.family, "update": model.update, "seed": model.seed}


def provenance(pairs: Sequence[RepairPair], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return by label which model and which expert were compared."""
    return {
        pair.model.label: {
            "uri": pair.model.uri,
            "weights_sha256": pair.model.digest,
            "expert": pair.expert.uri,
            "expert_weights_sha256": pair.expert.digest,
            "mean_scale": result["mean_scale"],
        }
        for pair, result in zip(pairs, results, strict=True)
    }


def _pair(model: AuditedModel, options: Any) -> RepairPair:
    """A model and its expert: the one given, the source of the model's run, else that of its training seed."""
    run = None
    if model.uri.startswith(("models:", "runs:")):
        run = runs.find_run(registry.registered_version(model.uri).run_id)
    source = None if run is None else run.tags.get("source")
    known = source if source is not None and source.startswith(("models:", "runs:", "zoo:")) else None
    seed = options.seed[0] if model.seed is None else model.seed
    shipped = registry.is_shipped(model.uri)
    expert = unsafe_expert(options.env, seed, options.expert or known, shipped=shipped)
    recorded = {} if run is None else runs.stored_options(run.run_id)
    if (given := options.get("mean_scale")) is not None:
        return RepairPair(model, expert, given)
    scales = model.family.startswith(SCALING) or _SCALE_OPTION in recorded
    return RepairPair(model, expert, recorded.get(_SCALE_OPTION) if scales else 1.0)
