"""Trajectories: whole episodes of the stochastic policy as transitions, collected, filtered, stored and read again.

Shapes: N episodes, M transitions, O observation size, A action size.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import TensorDict
from tqdm.auto import tqdm

from lightning_unlearn import keys
from lightning_unlearn.collectors.episodes import Episodes, run_episodes
from lightning_unlearn.envs.batched import BatchedEnv
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.safe_files import parse_json, require_small_header

FORMAT = "lightning-unlearn/collection/1"
SIDE_BY_SIDE = 50
"""Most episodes run at once; a fixed number, so that the policy's noise does not depend on any other option."""
TRANSITIONS = {
    keys.OBSERVATION: torch.float32,
    keys.PRE_TANH: torch.float32,
    keys.REWARD: torch.float32,
    keys.DONE: torch.bool,
    keys.EPISODE: torch.int64,
}
"""Key → type of a stored transition. Shape of each: (M, ·)."""
EPISODES = {
    keys.LAYOUT_SEED: torch.int64,
    keys.LENGTH: torch.int64,
    keys.EPISODE_RETURN: torch.float32,
    keys.EPISODE_COST: torch.float32,
    keys.EPISODE_C_FORGET: torch.float32,
    keys.FINAL_OBSERVATION: torch.float32,
    keys.TERMINATED: torch.bool,
    keys.FAILED: torch.bool,
}
"""Key → type of a stored episode. Shape of each: (N, ·)."""


@dataclass(frozen=True)
class Trajectories:
    """Episodes, and the transitions of those that were kept."""

    transitions: TensorDict
    """In order of episodes and time: observation, pre_tanh_action, reward, done, episode. Batch shape: (M,)."""
    episodes: TensorDict
    """All episodes, kept or not: layout_seed, length, episode_return, episode_cost, episode_C_forget,
    final_observation, terminated, simulator_failed. Batch shape: (N,)."""

    @property
    def kept(self) -> int:
        """Number of episodes whose transitions are here."""
        return len(self.transitions[keys.EPISODE].unique())


def collect(
    make: Callable[[int], BatchedEnv], policy: ActorCritic, layout_seeds: list[int], noise: torch.Generator, label: str
) -> Trajectories:
    """Run the stochastic policy once on each layout, and keep the episodes that never show the concept.

    Args:
        make: Makes a given number of environments.
        policy: The policy that acts.
        layout_seeds: One reset seed per episode.
        noise: Stream of the policy's noise.
        label: Text of the progress bar.
    """
    parts = []
    with tqdm(total=len(layout_seeds), desc=label, unit="episode", leave=False) as bar:
        for first in range(0, len(layout_seeds), SIDE_BY_SIDE):
            seeds = layout_seeds[first : first + SIDE_BY_SIDE]
            with closing(make(len(seeds))) as env:
                episodes = run_episodes(env, policy, seeds, max_steps=env.simulator.max_episode_steps, noise=noise)
            part = without_concept(as_transitions(episodes))
            part.transitions[keys.EPISODE] += first
            parts.append(part)
            bar.update(len(seeds))
    return Trajectories(torch.cat([p.transitions for p in parts]), torch.cat([p.episodes for p in parts]))


def as_transitions(episodes: Episodes) -> Trajectories:
    """Turn padded episodes into transitions, one episode after the other."""
    alive = episodes.alive
    row, time = alive.nonzero()
    transitions = {
        keys.OBSERVATION: episodes.observation[alive],
        keys.PRE_TANH: episodes.pre_tanh[alive],
        keys.REWARD: _column(episodes.reward[alive]),
        keys.DONE: (time == episodes.length[row] - 1)[:, None],
        keys.EPISODE: row[:, None],
    }
    table = {
        keys.LAYOUT_SEED: np.array(episodes.layout_seeds)[:, None],
        keys.LENGTH: episodes.length[:, None],
        keys.EPISODE_RETURN: _column(episodes.episode_return),
        keys.EPISODE_COST: _column(episodes.episode_cost),
        keys.EPISODE_C_FORGET: _column(episodes.episode_c_forget),
        keys.FINAL_OBSERVATION: episodes.final_observation,
        keys.TERMINATED: episodes.terminated[:, None],
        keys.FAILED: episodes.failed[:, None],
    }
    return Trajectories(_tensordict(transitions), _tensordict(table))


def without_concept(trajectories: Trajectories) -> Trajectories:
    """Keep the transitions of the episodes that never show the concept; the table of episodes stays whole."""
    never_shown = (trajectories.episodes[keys.EPISODE_C_FORGET] == 0).squeeze(-1)  # (N,)
    row = trajectories.transitions[keys.EPISODE].squeeze(-1)  # (M,)
    return Trajectories(trajectories.transitions[never_shown[row]], trajectories.episodes)


def save(path: Path, trajectories: Trajectories, facts: Mapping[str, Any]) -> None:
    """Write trajectories and how they were made; the file appears only when it is complete."""
    parts = {"transitions": trajectories.transitions, "episodes": trajectories.episodes}
    tensors = {f"{part}.{key}": td[key].contiguous() for part, td in parts.items() for key in td.keys()}  # noqa: SIM118
    unfinished = path.with_suffix(".part")
    save_file(
        tensors, unfinished, metadata={"format": FORMAT, "facts": json.dumps(facts, sort_keys=True, allow_nan=False)}
    )
    os.replace(unfinished, path)


def load(path: Path, facts: Mapping[str, Any]) -> Trajectories:
    """Read what `save` wrote. Refused if it was not made as `facts` say.

    Raises:
        ValueError: The file is damaged, is something else, or was made with other facts.
    """
    try:
        require_small_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        made = parse_json(metadata.get("facts", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Remove it, and it is collected anew.") from error
    if metadata.get("format") != FORMAT or not isinstance(made, dict):
        raise ValueError(f"{path} is not a collection of the format {FORMAT!r}: choose another model.dataset_dir.")
    differing = sorted(key for key in {*made, *facts} if made.get(key) != facts.get(key))
    if differing:
        there, here = (", ".join(f"{key}={d.get(key)}" for key in differing) for d in (made, facts))
        raise ValueError(
            f"{path} was made with {there}, but this run has {here}: choose another model.dataset_dir, or remove the "
            "file and it is collected anew."
        )
    return Trajectories(_part(path, tensors, "transitions", TRANSITIONS), _part(path, tensors, "episodes", EPISODES))


def _part(path: Path, tensors: Mapping[str, torch.Tensor], part: str, expected: dict[str, torch.dtype]) -> TensorDict:
    found = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
    kinds = {name: tensor.dtype for name, tensor in found.items()}
    for key in {keys.OBSERVATION, keys.FINAL_OBSERVATION} & kinds.keys():  # float64 for some policies
        kinds[key] = torch.float32 if kinds[key] == torch.float64 else kinds[key]
    lengths = {len(tensor) if tensor.ndim == 2 else -1 for tensor in found.values()}
    finite = all(tensor.isfinite().all() for tensor in found.values())
    if kinds != expected or len(lengths) != 1 or -1 in lengths or not finite:
        raise ValueError(f"{path} does not hold {part} as it should. Remove it, and it is collected anew.")
    return TensorDict(found, batch_size=list(lengths))


def _tensordict(arrays: Mapping[str, np.ndarray]) -> TensorDict:
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
    return TensorDict(tensors, batch_size=[len(next(iter(tensors.values())))])


def _column(array: np.ndarray) -> np.ndarray:
    """Reshape (M,) of any type to (M, 1) float32."""
    return array.astype(np.float32)[:, None]
