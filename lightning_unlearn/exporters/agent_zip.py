"""A repaired agent of Stable-Baselines3 back in its zip: `load` reads it, and its `predict` gives the repair.

Only weights are replaced; of an off-policy agent those of the actor's means, not its noise, critics and targets.
Everything else of the original zip, its settings and its optimizer included, stays as it is, and nothing in it is
executed. Observations are normalised by the VecNormalize that the agent was trained behind, which lies outside the zip.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.exporters.torch_program import drawn_observations
from lightning_unlearn.importers.agent import Weights, as_policy
from lightning_unlearn.importers.reader import LARGEST_DIFFERENCE, MAX_BYTES, largest_difference, read_torch
from lightning_unlearn.importers.sb3 import StableBaselines3, is_off_policy
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.policies.latent_editor import AffineEditor
from lightning_unlearn.safe_files import open_zip

WEIGHTS = "policy.pth"
_STATES = 1000
_SAME = (
    *("observation_size", "hidden_sizes", "activation", "squash", "critics", "critic_sizes", "normalise_observation"),
    *("normaliser_epsilon", "normaliser_clip", "normaliser_dtype", "observation_dtype"),
)
"""Properties of a policy that its weights do not hold: those of the original agent are kept."""


class Task(NamedTuple):
    """Sizes and bounds of the environment that an agent acts in, as a reader needs them."""

    env_id: str
    observation_size: int
    action_low: np.ndarray
    action_high: np.ndarray


def save_into(policy: ActorCritic, original: StableBaselines3, path: Path) -> float:
    """Write the original's zip with the policy's weights.

    Args:
        policy: A repair of the original.
        original: The agent that was imported, with its VecNormalize if it has one.
        path: The new zip.

    Returns:
        Largest difference between actions of the policy and of the written agent, by its library's rules in float64.

    Raises:
        ValueError: The agent cannot express the policy; no file is left.
    """
    config = policy.config
    low, high = np.array(config.action_low), np.array(config.action_high)
    task = cast("Simulator", Task("the repaired model", config.observation_size, low, high))
    try:
        require_same_agent(policy, as_policy(original.agent(task), task, torch.Generator()))
    except ValueError as error:
        raise ValueError(f"--into {original.path} cannot hold the model: {error}") from error
    with open_zip(original.path, MAX_BYTES) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    torch.save(replaced(read_torch(io.BytesIO(parts[WEIGHTS]), WEIGHTS), without_affine_editor(policy)), buffer)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (parts | {WEIGHTS: buffer.getvalue()}).items():
            archive.writestr(name, content)
    written = StableBaselines3(path, "none" if original.statistics is None else str(original.statistics))
    difference = largest_difference(written.reference(task), policy, drawn_observations(policy, _STATES))
    if not difference < LARGEST_DIFFERENCE:
        path.unlink()
        raise ValueError(f"the written agent's actions are up to {difference:.3g} off the model's: it was removed.")
    return difference


def require_same_agent(policy: ActorCritic, agent: ActorCritic) -> None:
    """Refuse a policy that differs from an agent in more than weights and an affine editor.

    Raises:
        ValueError: It has a gated editor, or another architecture, other squashing or other statistics.
    """
    if policy.config.editor == "gated":
        raise ValueError(
            "the model has a gated editor, which no network of Stable-Baselines3 computes: export it as pt2, or name a "
            "repair by gradient."
        )
    for name in _SAME:
        own, others = getattr(policy.config, name), getattr(agent.config, name)
        if own != others:
            raise ValueError(
                f"the model has {name}={own}, but --into has {others}: name the agent it was repaired from."
            )
    if policy.normaliser is not None and agent.normaliser is not None:
        pairs = zip(policy.normaliser.buffers(), agent.normaliser.buffers(), strict=True)
        if not all(torch.equal(own, others) for own, others in pairs):
            raise ValueError("the model normalises by other statistics than --normalizer holds: name its own file.")


def without_affine_editor(policy: ActorCritic) -> ActorCritic:
    """Return the same action without an editor: W·(M·h + b) + c = (W·M)·h + (W·b + c), of latent h and head (W, c)."""
    plain = policy.without_editor()
    if isinstance(policy.editor, AffineEditor):
        with torch.no_grad():
            plain.action_mean.bias.add_(policy.action_mean.weight @ policy.editor.bias)
            plain.action_mean.weight.copy_(policy.action_mean.weight @ policy.editor.matrix)
    return plain


def replaced(weights: Weights, policy: ActorCritic) -> dict[str, torch.Tensor]:
    """Return an agent's weights with the policy's in their place; layers that actor and critic share are the actor's.

    Args:
        weights: Those of `policy.pth`.
        policy: Of the agent's shape.
    """
    actor, critic = linear_layers(policy.trunk), linear_layers(policy.critic_trunk or policy.trunk)
    if is_off_policy(weights):
        head = ["actor.mu"] if "actor.mu.weight" in weights else layer_names(weights, "actor.mu.")
        places = dict(
            zip([*layer_names(weights, "actor.latent_pi."), *head], [*actor, policy.action_mean], strict=True)
        )
        return dict(weights) | tensors_of(places)
    shared, pi, vf = (layer_names(weights, f"mlp_extractor.{net}_net.") for net in ("shared", "policy", "value"))
    places = dict(zip([*shared, *pi], actor, strict=True)) | dict(zip(vf, critic[len(critic) - len(vf) :], strict=True))
    places |= {"action_net": policy.action_mean, "value_net": policy.reward_value}
    return dict(weights) | tensors_of(places) | {"log_std": policy.clamped_log_std.detach().clone()}


def tensors_of(places: Mapping[str, nn.Linear]) -> dict[str, torch.Tensor]:
    """Return copies of the weights of layers, by the names of their places."""
    named = {f"{name}.{part}": getattr(layer, part) for name, layer in places.items() for part in ("weight", "bias")}
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def linear_layers(network: nn.Sequential) -> list[nn.Linear]:
    """Return a network's linear layers, in order."""
    return [module for module in network if isinstance(module, nn.Linear)]


def layer_names(weights: Weights, prefix: str) -> list[str]:
    """Return the names of the layers `<prefix><index>`, in the order of their indices."""
    names = {name.removesuffix(".weight") for name in weights if name.startswith(prefix) and name.endswith(".weight")}
    return sorted(names, key=lambda name: int(name.removeprefix(prefix)))
