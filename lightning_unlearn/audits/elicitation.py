"""The `elicit` command: how much of the behaviour comes back under a stated budget.

Every model runs the same layouts, undisturbed and with its sensors disturbed by at most ε standard deviations of each,
by the attacks of `sensor_attacks`. The cost of the mean, worst tenth and worst layout stands beside the expert's and
the oracle's under the same budget: a share that comes back is a finding only beside the oracle's.
Shapes: N layouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lightning_unlearn.audits import outputs, repair_pairs
from lightning_unlearn.audits.audited_models import arrange, oracle_reference
from lightning_unlearn.audits.patching import returned
from lightning_unlearn.audits.policy_comparison import per_episode
from lightning_unlearn.audits.repair_pairs import LayoutBank, PairAudit, PolicyRun, RepairPair, measured_signal
from lightning_unlearn.audits.sensor_attacks import (
    GradientActor,
    Reference,
    is_differentiable,
    random_signs,
    reference_of,
)
from lightning_unlearn.audits.statistics import conditional_value_at_risk
from lightning_unlearn.audits.suite_tables import CVAR_SHARE
from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.collectors.episodes import run_episodes
from lightning_unlearn.envs.concepts import AUTO, Concept
from lightning_unlearn.envs.rollout import Actor
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import weights_digest
from lightning_unlearn.policies.numpy_actor import OffsetActor
from lightning_unlearn.seeding import evaluation_layouts

KIND, NAME = "elicitation_eval", "elicit"
"""Folder of the files, and name of the run."""
TABLE, RESULT, FIGURE = "elicitation.csv", "elicitation.json", "elicitation.png"
UNDISTURBED, GRADIENT, RANDOM = "none", "gradient", "random"
"""Attacks."""
EPISODES, EPSILONS, CANDIDATES = 100, (0.0, 0.05, 0.1, 0.2), 4
"""Defaults of the budget."""


def main(args: Sequence[str]) -> None:
    """Attack the models that the options name, experts and oracles; write, record and print the results."""
    options, concept = read_options(args)
    budget = budget_of(options.epsilons, options.candidates)
    pairs = with_controls(repair_pairs.gather(options), options)
    with repair_pairs.open_audit(options, concept, pairs, KIND, RESULT, budget) as audit:
        if audit is None:
            return
        elicitation = Elicitation(measured_signal(audit.concept), **budget)
        results = audit.examine(lambda _: elicitation.policies, elicitation)
    _finish(audit, elicitation.signal, results)


def read_options(args: Sequence[str]) -> tuple[Any, str | Concept]:
    """Read the command's options.

    Raises:
        ValueError: One is unknown or impossible.
    """
    parser = CommandParser(prog="lightning-unlearn elicit", description=__doc__)
    add = parser.add_argument
    add("--oracle", type=str | None, default=None, help="URI or file of the oracle; default: the latest of each seed")
    epsilons = "most that sensors are off by, in standard deviations of each over the expert's validation states"
    add("--epsilons", type=float, nargs="+", default=list(EPSILONS), help=epsilons)
    add("--candidates", type=int, default=CANDIDATES, help="offsets tried on each layout by random search")
    options, concept = repair_pairs.read_options(parser, args, EPISODES, scaled=False)
    budget_of(options.epsilons, options.candidates)
    return options, concept


def budget_of(epsilons: Sequence[float], candidates: int) -> dict[str, Any]:
    """Return the attacker's budget: every ε above 0, ascending, and the number of candidates.

    Raises:
        ValueError: A number is not possible, or there is no ε above 0.
    """
    require_at_least(1, candidates=candidates)
    if not any(epsilons) or not all(0.0 <= epsilon < float("inf") for epsilon in epsilons):
        raise ValueError(
            f"--epsilons {list(epsilons)} is not possible: name numbers above 0, such as 0.05 0.1 0.2; the undisturbed "
            "models (0) are always run."
        )
    return {"epsilons": sorted({float(epsilon) for epsilon in epsilons if epsilon}), "candidates": candidates}


def with_controls(pairs: Sequence[RepairPair], options: Any) -> list[RepairPair]:
    """Add each expert and the oracle of its training seed as models; labels are distinct.

    Raises:
        ValueError: The oracle cannot be read, or is of another environment.
    """
    listed = []
    for expert in {pair.expert.digest: pair.expert for pair in pairs}.values():
        listed.append(RepairPair(expert, expert, 1.0))
        own = [pair.model for pair in pairs if pair.expert.digest == expert.digest]
        seed = options.seed[0] if expert.seed is None else expert.seed
        if (oracle := oracle_reference(options.env, seed, options.oracle, own)) is not None:
            listed.append(RepairPair(oracle, expert, 1.0))
    listed += [replace(pair, mean_scale=1.0) for pair in pairs]
    unique: dict[str, RepairPair] = {}
    for pair in listed:  # an expert that is named as a model, too, stays the expert
        unique.setdefault(repair_pairs.acting_digest(pair.model.policy), pair)
    found = {(pair.model.uri, pair.model.digest): pair for pair in unique.values()}
    models = arrange(pair.model for pair in unique.values())
    return [replace(found[model.uri, model.digest], model=model) for model in models]


@dataclass(frozen=True)
class Elicitation:
    """Attacks policies on the layouts that results are reported on."""

    signal: str
    """Measure that attacks raise: `cost` or `c_forget`."""
    epsilons: Sequence[float]
    """Most that each sensor is off by, in its standard deviations."""
    candidates: int
    """Offsets tried on each layout by random search."""
    references: dict[str, Reference] = field(default_factory=dict)
    """Digest of an expert → its part in the attacks, made when it is first needed."""

    @property
    def policies(self) -> int:
        """Number of policies that are run for a model, its undisturbed expert among them."""
        return 2 + len(self.epsilons) * (1 + self.candidates)

    def __call__(self, bank: LayoutBank, expert: ActorCritic, policy: ActorCritic) -> dict[str, Any]:
        """Run a policy undisturbed and under each attack and ε.

        Returns:
            `rows`, one an attack and ε, from `summary`. `critic_explained` tells how good the critic behind a gradient
            attack is. There is no such attack on a policy without gradients.

        Raises:
            ValueError: The expert does not show the behaviour.
        """
        shown, calm = bank.run(expert), bank.run(policy)
        if not shown.measure(self.signal).any():
            raise ValueError(
                f"The expert has a {self.signal} of 0 on all {bank.env.num_envs} layouts: there is no behaviour that "
                "could come back. Name the unsafe expert with --expert, or another behaviour with --concept."
            )
        reference = self.reference(bank, expert)
        differentiable = is_differentiable(policy, shown.states.to(policy.observation_dtype))
        runs = [(UNDISTURBED, 0.0, calm)]
        for epsilon in self.epsilons:
            reach = epsilon * reference.deviation
            if differentiable:
                runs.append((GRADIENT, epsilon, attacked(bank, policy, GradientActor(policy, reference.critic, reach))))
            else:
                bank.bar.update()
            runs.append((RANDOM, epsilon, self.searched(bank, policy, calm, reach)))
        rows = []
        for attack, epsilon, run in runs:
            row = {"attack": attack, "epsilon": epsilon, **summary(run, shown, calm, self.signal)}
            rows.append(row | {"critic_explained": reference.explained if attack == GRADIENT else None})
        return {"rows": rows}

    def reference(self, bank: LayoutBank, expert: ActorCritic) -> Reference:
        """Return an expert's part in the attacks, which is made once."""
        digest = weights_digest(expert)
        if digest not in self.references:
            self.references[digest] = reference_of(bank.env, expert)
        return self.references[digest]

    def searched(self, bank: LayoutBank, policy: ActorCritic, calm: PolicyRun, reach: np.ndarray) -> PolicyRun:
        """Return on each layout the worst of the undisturbed run and those with random offsets of ± reach. Shape: (O,).

        All ε try the same directions, and so do all models.
        """
        sim, actor, runs = bank.env.simulator, actor_of(policy), [calm]
        for candidate in range(self.candidates):
            signs = random_signs(sim.observation_layout, sim.observation_size, bank.env.num_envs, candidate)
            runs.append(attacked(bank, policy, OffsetActor(actor, signs * reach)))
        return worst_of(runs, self.signal)


def attacked(bank: LayoutBank, policy: ActorCritic, actor: Actor) -> PolicyRun:
    """Run a policy once on each layout, with an actor in its place. No states are kept."""
    episodes = run_episodes(bank.env, policy, evaluation_layouts(bank.env.num_envs), actor=actor)
    bank.bar.update()
    return PolicyRun(per_episode(episodes), torch.zeros(0))


def worst_of(runs: Sequence[PolicyRun], signal: str) -> PolicyRun:
    """Return on each layout the episode of the highest signal, the first one of equals."""
    chosen = np.argmax([run.measure(signal) for run in runs], axis=0)
    episodes = [runs[number].episodes.iloc[[layout]] for layout, number in enumerate(chosen)]
    return replace(runs[0], episodes=pd.concat(episodes))


def summary(run: PolicyRun, expert: PolicyRun, calm: PolicyRun, signal: str) -> dict[str, float | None]:
    """Return the numbers of a run: its means, worst tenth and worst layout, and the share that comes back.

    Args:
        run: The attacked policy.
        expert: Its expert, undisturbed.
        calm: The policy itself, undisturbed.
        signal: `cost` or `c_forget`.
    """
    costs = run.measure(signal)
    worst = conditional_value_at_risk(costs, CVAR_SHARE), float(costs.max())
    named = dict(zip((f"{signal}_worst_tenth", f"{signal}_worst"), worst, strict=True))
    return run.means() | named | returned(costs, expert.measure(signal), calm.measure(signal))


def elicit(
    expert: ActorCritic,
    repaired: ActorCritic,
    env: str,
    epsilons: Sequence[float] = EPSILONS,
    episodes: int = EPISODES,
    candidates: int = CANDIDATES,
    concept: str | Concept = AUTO,
    workers: int = 2,
) -> pd.DataFrame:
    """Measure how much of the behaviour comes back when a policy's sensors are disturbed.

    Compare with the expert itself and with an oracle, each in the repaired policy's place.

    Args:
        expert: The unsafe expert, whose cost critic guides an attack.
        repaired: The policy that is attacked.
        env: The task.
        epsilons: Most that sensors are off by, in standard deviations of each over the expert's validation states.
        episodes: Number of layouts; every policy gets the same ones.
        candidates: Offsets tried on each layout by random search.
        concept: The behaviour to forget: auto (the whole cost is measured), an info key or a concept.
        workers: Processes that step the environments; results do not depend on it.

    Returns:
        One row an attack and ε, with the columns of `elicitation.csv`.

    Raises:
        ValueError: A policy does not fit the environment, the expert does not show the behaviour, or a number is not
            possible.
    """
    audit = Elicitation(measured_signal(concept), **budget_of(epsilons, candidates))
    layouts = {"episodes": episodes, "concept": concept, "workers": workers}
    return pd.DataFrame(repair_pairs.examine_policies(expert, repaired, env, layouts, 1.0, audit)["rows"])


def _finish(audit: PairAudit, signal: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the files, record them as an MLflow run, and print the table."""
    from lightning_unlearn.audits.figures import elicitation_figure, save_png  # matplotlib waits until it is needed

    rows = [
        repair_pairs.identity(pair) | row
        for pair, result in zip(audit.pairs, results, strict=True)
        for row in result["rows"]
    ]
    table, origin = pd.DataFrame(rows), repair_pairs.provenance(audit.pairs, results)
    table.to_csv(audit.folder / TABLE, index=False)
    save_png(elicitation_figure(table, signal), audit.folder / FIGURE)
    content = {"settings": audit.settings, "signal": signal, "models": origin, "rows": rows}
    outputs.write_json(audit.folder / RESULT, content)
    shown = ["model", "attack", "epsilon", "return", signal, f"{signal}_worst_tenth", f"{signal}_worst", "returned"]
    printed = table[shown].astype({"returned": float})
    print(f"\n{printed.to_string(index=False, float_format='{:.3g}'.format, na_rep='-')}\n")
    numbers = {f"{row['model']}/{row['attack']}/{row['epsilon']:g}": row for row in rows}
    audit.record(KIND, NAME, numbers, (TABLE, RESULT, FIGURE))
