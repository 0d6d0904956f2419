"""What audits look at in a policy: its latents and its action means, as float64 arrays.

Shapes: N states, O observation size, H latent size, A action size.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.files import ModelCard
from lightning_unlearn.seeding import SeedStreams, torch_generator
from lightning_unlearn.tracking import registry


def load_model(option: str, uri: str, observation_size: int, env_id: str) -> ActorCritic:
    """The policy that an option names, for states of one size and, where its own is known, of one environment.

    Raises:
        ValueError: There is none, it is of another environment, or it takes observations of another size.
    """
    stored = registry.load_policy(uri)
    require_env(option, uri, stored.card, env_id)
    policy = stored.policy
    if policy.config.observation_size != observation_size:
        raise ValueError(
            f"--{option} {uri} takes {policy.config.observation_size} observations, but the dataset's states have "
            f"{observation_size}: name a model of the dataset's environment, or collect a dataset in the model's."
        )
    return policy


def require_env(option: str, uri: str, card: ModelCard, env_id: str) -> None:
    """Refuse a model, named by an option, whose card names another environment.

    Raises:
        ValueError: It does.
    """
    if card.env and card.env != env_id:
        raise ValueError(
            f"--{option} {uri} is a model of {card.env}, not of {env_id}: name a model of {env_id}, or use the model's "
            "own environment."
        )


def latents(policy: ActorCritic, states: np.ndarray, *, edited: bool = False, batch_size: int = 4096) -> np.ndarray:
    """The trunk's output, or what the heads read of it if the policy has an editor. Shape: (N, O) → (N, H)."""
    return _batched(policy.operative_latent if edited else policy.latent, states, batch_size)


def action_means(policy: ActorCritic, states: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
    """Means of the Gaussian before tanh, of the whole policy with its editor. Shape: (N, O) → (N, A)."""
    return _batched(policy.mean, states, batch_size)


def random_twin(policy: ActorCritic, seed: int) -> ActorCritic:
    """A randomly initialised policy of the same shape, with the same observation normaliser and no editor."""
    twin = ActorCritic(replace(policy.config, editor="none"), torch_generator(SeedStreams.of(seed).weights))
    if twin.normaliser is not None and policy.normaliser is not None:
        twin.normaliser.load_state_dict(policy.normaliser.state_dict())
    return twin.eval()


@torch.inference_mode()
def _batched(pass_on: Callable[[torch.Tensor], torch.Tensor], states: np.ndarray, batch_size: int) -> np.ndarray:
    batches = torch.from_numpy(states).split(batch_size)
    return torch.cat([pass_on(batch) for batch in batches]).double().numpy()
