"""The `import` command: register an agent trained elsewhere as an unsafe expert that acts as it did."""

import json
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept
from lightning_unlearn.importers.cleanrl import CleanRL
from lightning_unlearn.importers.critic_warm_up import WarmUp, warm_up
from lightning_unlearn.importers.omnisafe import OmniSafe
from lightning_unlearn.importers.reader import (
    EXPLORATION_STD,
    LARGEST_DIFFERENCE,
    FileReader,
    Reference,
    largest_difference,
    raw_states,
)
from lightning_unlearn.importers.sb3 import StableBaselines3
from lightning_unlearn.importers.torchrl_actor import TorchRL
from lightning_unlearn.options import CommandParser, choose
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.seeding import SeedStreams, torch_generator
from lightning_unlearn.tracking import registry, runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment

READERS: dict[str, type[FileReader]] = {
    "sb3": StableBaselines3,
    "omnisafe": OmniSafe,
    "cleanrl": CleanRL,
    "torchrl": TorchRL,
}
STATES = 10_000
"""Most states, of the agent's own episodes, on which its library's actions and the policy's are compared."""
_STATED = (
    "It has no Gaussian that is the same in every state: its deterministic action is imported, and repairs explore "
    "from there with the stated standard deviation {std:g} (--exploration_std). KL columns count with it."
)


def main(args: Sequence[str]) -> None:
    """Run the `import` command."""
    library, rest = choose("import", tuple(READERS), args)
    options, concept = parse_with_concept(_parser(library), rest)
    if options.warm_up_rollouts < 2:
        raise ValueError(f"--warm_up_rollouts {options.warm_up_rollouts} is not possible: use at least 2.")
    streams = SeedStreams.of(options.seed)
    torch.set_num_threads(1)  # networks of this size gain nothing from more, and lose much on a busy machine
    started = time.perf_counter()
    reader = _find(library, options)
    data = RolloutData(options.env, options.num_envs, options.horizon, concept, options.workers, options.seed)
    try:
        simulator = data.env.simulator  # an impossible environment is refused before a store is made
        store = open_store(options.tracking_uri)
        require_active_experiment(options.env)
        policy, reference = reader.policy(simulator, torch_generator(streams.weights)), reader.reference(simulator)
        read_s, std = time.perf_counter() - started, reader.agent(simulator).stated_std
        print(f"Read {options.agent} of {reader.library} in {read_s:.1f} s.", flush=True)
        note = f"imported from {reader.library}, file {Path(options.agent).name}"
        if std:
            note += f"; its deterministic action, with the stated exploration std {std:g}"
            print(_STATED.format(std=std))
        print("Warming up its critics.", flush=True)
        warmth = warm_up(policy, data, options.warm_up_rollouts)
        states = raw_states(policy, simulator, min(STATES, len(warmth.observations)))
        difference = require_same_actions(reference, policy, states)
        figures = _figures(warmth, difference, read_s)
        card = ModelCard("unsafe", options.env, data.env.concept, options.seed, 0, 0, note, std)
        run_id, uri = _record(library, options, reader.library, policy, card, figures)
        print(_summary(warmth, difference, uri, run_id, options, store))
    finally:
        data.teardown("fit")


def _find(library: str, options: Any) -> FileReader:
    reader = READERS[library](Path(options.agent), options.normalizer, options.exploration_std)
    found_statistics = reader.statistics if options.normalizer is None else None
    if reader.path != Path(options.agent) or found_statistics:
        print(f"Found {reader.path}" + (f" with {reader.statistics}." if reader.statistics else "."))
    return reader


def require_same_actions(reference: Reference, policy: ActorCritic, observation: torch.Tensor) -> float:
    """Compute the largest difference between the actions of the agent's library and the policy's. Shape: (N, O).

    Raises:
        ValueError: It is more than rounding.
    """
    difference = largest_difference(reference, policy, observation)
    if not difference < LARGEST_DIFFERENCE:
        raise ValueError(
            f"the imported policy's actions are up to {difference:.3g} off the agent's: nothing was stored."
        )
    return difference


def _figures(warmth: WarmUp, difference: float, read_s: float) -> dict[str, float]:
    figures = {"largest_action_difference": difference, "read_s": read_s, "warm_up_s": warmth.seconds}
    for when, fit in (("before", warmth.before), ("after", warmth.after)):
        figures |= {f"{critic}_explained_{when}": share for critic, share in asdict(fit).items()}
    return {f"import/{name}": number for name, number in figures.items()}


def _record(
    library: str, options: Any, agent_library: str, policy: ActorCritic, card: ModelCard, figures: dict[str, float]
) -> tuple[str, str]:
    """Record a run and register the model; return the run's id and the model's URI."""
    params = {"library": agent_library, **vars(options)} | {"policy": json.dumps(asdict(policy.config))[:500]}
    params.pop("config", None)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "import.json")
        content = json.dumps({"note": card.note, "policy": asdict(policy.config), **figures}, indent=2)
        file.write_text(f"{content}\n", encoding="utf-8")
        run_id = runs.record_audit(options.env, f"import-{library}", params, figures, {file: "import"})
    version = registry.register_policy(policy, card, run_id)
    return run_id, f"models:/{registry.model_name(card.method, card.env)}/{version}"


def _summary(warmth: WarmUp, difference: float, uri: str, run_id: str, options: Any, store: str) -> str:
    steps = len(warmth.observations)
    named = ["--env", options.env, "--unsafe_updates", "0", "--model.source", uri, "--cost_limit", "25"]
    command = shlex.join(named) + store
    return (
        f"Largest difference of an action on {min(steps, STATES)} of its own states: {difference:.1e}\n"
        f"Critics after {steps} of its own steps ({warmth.seconds:.0f} s): reward explains "
        f"{warmth.before.reward:.2f} → {warmth.after.reward:.2f} of its targets' variance, cost "
        f"{warmth.before.cost:.2f} → {warmth.after.cost:.2f}\n"
        f"The expert is {uri}, of run {run_id}. Repair it with\n"
        f"  lightning-unlearn fit -c base.yaml -c env/point_goal1.yaml -c method/off_policy_concept.yaml {command}"
    )


def _parser(library: str) -> CommandParser:
    parser = CommandParser(prog=f"lightning-unlearn import {library}", description=__doc__)
    add = parser.add_argument
    add("agent", type=str, help="the agent's file; for omnisafe, rl-zoo3 or torchrl, also its folder")
    add("--env", type=str, default="SafetyPointGoal1-v0", help="the task it was trained in")
    add("--normalizer", type=str | None, default=None, help="file of its observation statistics, or `none`")
    add(
        "--exploration_std",
        type=float | None,
        default=None,
        help="standard deviation before tanh of an agent without a state-independent Gaussian; null: "
        f"{EXPLORATION_STD}",
    )
    add_concept_option(parser)
    add("--seed", type=int, default=0, help="training seed that the expert is registered with, and seed of the warm-up")
    add("--warm_up_rollouts", type=int, default=8, help="rollouts of the agent to which its critics are fitted")
    add("--num_envs", type=int, default=8, help="environments side by side in a rollout")
    add("--horizon", type=int, default=1024, help="steps of each environment in a rollout")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
