"""The `probe collect` command: deterministic rollouts until each class has enough labelled states.

Shapes: E environments, O observation size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_unlearn.audits import outputs
from lightning_unlearn.audits.audited_models import read_model, require_fit
from lightning_unlearn.audits.policy_comparison import hazard_lidar
from lightning_unlearn.audits.probe_data import (
    CLASSES,
    LIDAR_DISTANCE,
    STEPS_DISTANCE,
    ProbeData,
    record_on_data,
    save_data,
    steps_until,
)
from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.collectors.episodes import BLOCK_STEPS
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import (
    add_concept_option,
    concept_to_json,
    parse_with_concept,
    resolve_concept,
)
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.options import CommandParser, require_at_least
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, training_seeds


@dataclass(frozen=True)
class Collection:
    """Options of a collection of states."""

    env: str
    model_path: str
    """URI of the model; recorded with the states."""
    n_per_class: int = 10_000
    max_env_steps: int = 400_000
    max_per_episode: int | None = None
    """States of one class from one episode, at most."""
    num_envs: int = 32
    workers: int = 2
    concept: str | Concept = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        require_at_least(1, n_per_class=self.n_per_class, num_envs=self.num_envs, workers=self.workers)
        require_at_least(self.num_envs, max_env_steps=self.max_env_steps)
        if self.max_per_episode is not None:
            require_at_least(1, max_per_episode=self.max_per_episode)
        SeedStreams.of(self.seed)


def main(args: Sequence[str]) -> None:
    """Collect the states that the options ask for; write, record and print them."""
    options, collection = read_options(args)
    out = outputs.output_file("out", options.out)
    outputs.open_audit_store(options.tracking_uri, collection.env)
    model = read_model(collection.model_path, collection.env, "model")
    collection = replace(collection, concept=resolve_concept(collection.concept, [model.concept]))
    data = collect(model.policy, collection, "collecting")
    files = out, save_data(out, data)
    run = record_on_data("probe-collect", options, {}, data, out, dict.fromkeys(files, "probes"), [model])
    for name, count in data.counts.items():
        needed = collection.n_per_class
        short = "" if count == needed else f", fewer than the {needed} asked for: raise --max_env_steps"
        print(f"{count} {name} states from {data.metadata['episodes'][name]} episodes{short}")
    print(f"{data.metadata['env_steps']} environment steps; hazard distance: {data.metadata['hazard_distance']}")
    outputs.print_outputs(files, run)


def read_options(args: Sequence[str]) -> tuple[Any, Collection]:
    """The options of `probe collect`, and the collection that they ask for.

    Raises:
        ValueError: One is unknown or impossible.
    """
    parser = CommandParser(prog="lightning-unlearn probe collect", description="Roll a model and keep labelled states.")
    add = parser.add_argument
    add("--env", type=str, required=True, help="the task")
    add("--model_path", type=str, required=True, help="the model that acts, deterministically")
    add("--out", type=str, required=True, help="the dataset's file (.npz)")
    add("--n_per_class", type=int, default=10_000, help="states of each class")
    add("--max_env_steps", type=int, default=400_000, help="environment steps, at most")
    add("--max_per_episode", type=int | None, default=None, help="states of a class from one episode")
    add("--num_envs", type=int, default=32, help="environments stepped together")
    add("--workers", type=int, default=2, help="processes that step the environments; results do not depend on it")
    add_concept_option(parser, ", or recorded, what the models record")
    add("--seed", type=int, default=42, help="seed of the environments")
    outputs.add_store_option(parser)
    options, concept = parse_with_concept(parser, args)
    given = {name: value for name, value in vars(options).items() if name not in ("out", "tracking_uri")}
    return options, Collection(**given | {"concept": concept})


def collect(policy: ActorCritic, collection: Collection, label: str | None = None) -> ProbeData:
    """Roll the deterministic policy until both classes are full or `max_env_steps` is spent.

    The first states met are kept, by step, and within a step by environment. Steps that the simulator failed in are
    left out. The environments' seeds come from the run's evaluation stream: no layout bank, no training environment.

    Args:
        policy: Acts, with its editor if it has one.
        collection: Number of states, and their origin.
        label: Names the progress bar; None: no bar.

    Raises:
        ValueError: The policy is of another observation size, or one class was never met.
    """
    num_envs, needed = collection.num_envs, 2 * collection.n_per_class
    env = make_env(collection.env, num_envs, collection.concept, min(collection.workers, num_envs))
    try:
        require_fit(policy, env.simulator, "model", collection.model_path)
        seeds = training_seeds(SeedStreams.of(collection.seed).evaluation, num_envs)
        kept = _KeptStates(collection)
        with tqdm(total=needed, desc=label, unit="state", disable=label is None, leave=False) as bar:
            for transitions in _transitions(env, policy, seeds, collection.max_env_steps // num_envs):
                bar.update(kept.add(*transitions))
                if kept.full:
                    break
        return kept.data(hazard_lidar(env), env.concept)
    finally:
        env.close()


def _transitions(
    env: BatchedEnv, policy: ActorCritic, seeds: list[int], steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The arguments of `_KeptStates.add`, step by step."""
    sim, actor = env.simulator, actor_of(policy)
    buffer = sim.rollout_buffer(min(steps, BLOCK_STEPS))
    dtype = torch.zeros(0, dtype=policy.observation_dtype).numpy().dtype
    buffer.deviation[:] = 0.0
    buffer.current[0], buffer.ended[0] = sim.reset(None, seeds), False
    for start in range(0, steps, BLOCK_STEPS):
        block = buffer.first(steps - start)
        sim.roll_out(actor, block)
        observation, shown = block.observation.astype(dtype), env.c_forget_of(block) > 0
        yield from zip(observation, shown, block.done, block.failed, strict=True)


class _KeptStates:
    """The states kept so far."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._most = collection.max_per_episode or collection.max_env_steps
        self._room = np.full(2, collection.n_per_class)
        self._episode = np.arange(collection.num_envs)
        self._taken = np.zeros((collection.num_envs, 2), dtype=np.int64)  # from the running episode, by class
        self._states: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []  # of (step, environment, label, episode)
        self._signals: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        self._failed = 0

    @property
    def full(self) -> bool:
        return not self._room.any()

    def add(self, observation: np.ndarray, signal: np.ndarray, done: np.ndarray, failed: np.ndarray) -> int:
        """Keep the states of one step that there is room for.

        Args:
            observation: What the policy saw. Shape: (E, O).
            signal: True where the step showed the concept. This and the others have the shape (E,), bool.
            done: True where it ended an episode.
            failed: True where the simulator failed in it.

        Returns:
            Number of states kept.
        """
        label = signal.astype(np.int64)
        wanted = [(label == c) & ~failed & (self._taken[:, c] < self._most) for c in (0, 1)]
        chosen = np.sort(np.concatenate([np.flatnonzero(wanted[c])[: self._room[c]] for c in (0, 1)]))
        self._states.append(observation[chosen])
        at = np.full_like(chosen, len(self._done))
        self._rows.append(np.stack([at, chosen, label[chosen], self._episode[chosen]], axis=-1))
        np.add.at(self._taken, (chosen, label[chosen]), 1)
        self._room -= np.bincount(label[chosen], minlength=2)
        self._signals.append(signal)
        self._done.append(done)
        self._failed += int(failed.sum())
        self._episode = self._episode.copy()
        self._episode[done] = self._episode.max() + 1 + np.arange(done.sum())
        self._taken[done] = 0
        return len(chosen)

    def data(self, hazards: slice | None, concept: str) -> ProbeData:
        """The dataset; distances come from the hazard lidar, or count steps where there is none."""
        states = np.concatenate(self._states).astype(np.float32, copy=False)
        step, env, label, episode = np.concatenate(self._rows).T
        for value, name in enumerate(CLASSES):
            if value not in label:
                raise ValueError(
                    f"--max_env_steps {self._collection.max_env_steps}: none of the {self._env_steps} states met with "
                    f"{self._collection.model_path} is {name} (shows {'' if value else 'no '}{concept}). "
                    "Raise it, or collect with another model."
                )
        metadata = self._metadata(label, episode, concept)
        if hazards is None:
            distance = steps_until(np.stack(self._signals), np.stack(self._done))[step, env]
            metadata["hazard_distance"] = STEPS_DISTANCE
        else:
            distance = 1.0 - states[:, hazards].max(-1)
            metadata["hazard_distance"] = LIDAR_DISTANCE
        return ProbeData(states, label.copy(), episode.copy(), distance.astype(np.float32), metadata)

    @property
    def _env_steps(self) -> int:
        return len(self._done) * self._collection.num_envs

    def _metadata(self, label: np.ndarray, episode: np.ndarray, concept: str) -> dict[str, Any]:
        options = asdict(self._collection) | {"concept": concept_to_json(self._collection.concept)}
        named = {name: options.pop(name) for name in ("env", "model_path", "seed")}
        return {
            **named,
            "concept": concept,
            "options": options,
            "counts": {name: int((label == c).sum()) for c, name in enumerate(CLASSES)},
            "episodes": {name: len(np.unique(episode[label == c])) for c, name in enumerate(CLASSES)},
            "env_steps": self._env_steps,
            "failed_steps": self._failed,
        }
