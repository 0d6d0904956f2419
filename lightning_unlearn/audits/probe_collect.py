"""Collecting a probe's dataset: deterministic rollouts until each class has enough states.

Shapes: E environments, O observation size.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from lightning_unlearn.audits.policy_suite import hazard_lidar
from lightning_unlearn.audits.probe_data import CLASSES, LIDAR_DISTANCE, STEPS_DISTANCE, ProbeData, steps_until
from lightning_unlearn.audits.records import require_at_least
from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.collectors.episodes import BLOCK_STEPS
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.concept_config import concept_to_json
from lightning_unlearn.envs.concepts import Concept
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.seeding import SeedStreams, training_seeds


@dataclass(frozen=True)
class Collection:
    """What to collect."""

    env: str
    model_path: str
    """Where the policy comes from; recorded with the states."""
    n_per_class: int = 10_000
    max_env_steps: int = 400_000
    max_per_episode: int | None = None
    """At most so many states of one class from one episode."""
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


def collect(policy: ActorCritic, wanted: Collection, label: str | None = None) -> ProbeData:
    """Roll the deterministic policy until both classes are full or `max_env_steps` is spent.

    The first states met are kept, by step, and within a step by environment. Steps that the simulator failed in are
    left out. The environments' seeds come from the run's evaluation stream: no layout bank, no training environment.

    Args:
        policy: Acts, with its editor if it has one.
        wanted: How many states, and from where.
        label: Names the progress bar; none is shown without it.

    Raises:
        ValueError: The policy is of another observation size, or one class was never met.
    """
    env = make_env(wanted.env, wanted.num_envs, wanted.concept, min(wanted.workers, wanted.num_envs))
    try:
        _require_fit(policy, env, wanted)
        seeds = training_seeds(SeedStreams.of(wanted.seed).evaluation, wanted.num_envs)
        kept = _Kept(wanted)
        with tqdm(total=2 * wanted.n_per_class, desc=label, unit="state", disable=label is None, leave=False) as bar:
            for transitions in _transitions(env, policy, seeds, wanted.max_env_steps // wanted.num_envs):
                bar.update(kept.add(*transitions))
                if kept.full:
                    break
        return kept.data(hazard_lidar(env), env.concept)
    finally:
        env.close()


def _transitions(
    env: BatchedEnv, policy: ActorCritic, seeds: list[int], steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The arguments of `_Kept.add`, step by step."""
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


def _require_fit(policy: ActorCritic, env: BatchedEnv, wanted: Collection) -> None:
    sizes = policy.config.observation_size, policy.config.action_size
    offered = env.simulator.observation_size, len(env.simulator.action_low)
    if sizes != offered:
        raise ValueError(
            f"--model_path {wanted.model_path} takes {sizes[0]} observations and gives {sizes[1]} actions, but "
            f"{wanted.env} has {offered[0]} and {offered[1]}: name a model of this environment."
        )


class _Kept:
    """The states kept so far."""

    def __init__(self, wanted: Collection) -> None:
        self._wanted = wanted
        self._most = wanted.max_per_episode or wanted.max_env_steps
        self._room = np.full(2, wanted.n_per_class)
        self._episode = np.arange(wanted.num_envs)
        self._taken = np.zeros((wanted.num_envs, 2), dtype=np.int64)  # from the running episode, by class
        self._states: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []  # of (step, environment, label, episode)
        self._signals: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        self._failed = 0

    @property
    def full(self) -> bool:
        return not self._room.any()

    def add(self, observation: np.ndarray, signal: np.ndarray, done: np.ndarray, failed: np.ndarray) -> int:
        """Keep what is wanted of one step.

        Args:
            observation: What the policy saw. Shape: (E, O).
            signal: Whether the step showed the concept. This and the others have the shape (E,), bool.
            done: Whether it ended an episode.
            failed: Whether the simulator failed in it.

        Returns:
            How many states were kept.
        """
        label = signal.astype(np.int64)
        chosen = np.sort(np.concatenate([self._first((label == c) & ~failed, c) for c in (0, 1)]))
        self._states.append(observation[chosen])
        at = np.full_like(chosen, len(self._done))
        self._rows.append(np.stack([at, chosen, label[chosen], self._episode[chosen]], axis=-1))
        np.add.at(self._taken, (chosen, label[chosen]), 1)
        self._room -= np.bincount(label[chosen], minlength=2)
        self._signals.append(signal)
        self._done.append(done)
        self._failed += int(failed.sum())
        self._begin_episodes(done)
        return len(chosen)

    def data(self, hazards: slice | None, concept: str) -> ProbeData:
        """The dataset."""
        states = np.concatenate(self._states).astype(np.float32, copy=False)
        step, env, label, episode = np.concatenate(self._rows).T
        for value, name in enumerate(CLASSES):
            if value not in label:
                raise ValueError(
                    f"--max_env_steps {self._wanted.max_env_steps}: none of the {self._env_steps} states met with "
                    f"{self._wanted.model_path} is {name} (shows {'' if value else 'no '}{concept}). "
                    "Raise it, or collect with another model."
                )
        distance = (
            steps_until(np.stack(self._signals), np.stack(self._done))[step, env]
            if hazards is None
            else 1.0 - states[:, hazards].max(-1)
        )
        metadata = self._metadata(label, episode, concept) | {
            "hazard_distance": STEPS_DISTANCE if hazards is None else LIDAR_DISTANCE
        }
        return ProbeData(states, label.copy(), episode.copy(), distance.astype(np.float32), metadata)

    @property
    def _env_steps(self) -> int:
        return len(self._done) * self._wanted.num_envs

    def _first(self, candidate: np.ndarray, label: int) -> np.ndarray:
        """The first candidates of a class that there is room for. Shape: (E,) bool → (n,)."""
        return np.flatnonzero(candidate & (self._taken[:, label] < self._most))[: self._room[label]]

    def _begin_episodes(self, done: np.ndarray) -> None:
        self._episode = self._episode.copy()
        self._episode[done] = self._episode.max() + 1 + np.arange(done.sum())
        self._taken[done] = 0

    def _metadata(self, label: np.ndarray, episode: np.ndarray, concept: str) -> dict[str, object]:
        options = asdict(self._wanted) | {"concept": concept_to_json(self._wanted.concept)}
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
