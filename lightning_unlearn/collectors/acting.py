"""The policy where the environments are: on the CPU, and in numpy where it can be written so."""

import copy

import numpy as np
import torch
from torch import nn

from lightning_unlearn.envs.rollout import Actor
from lightning_unlearn.policies import numpy_actor
from lightning_unlearn.policies.actor_critic import ACTIVATIONS, ActorCritic
from lightning_unlearn.policies.latent_editor import AffineEditor, GatedEditor
from lightning_unlearn.policies.numpy_actor import Linear, NumpyActor


class ActingPolicy:
    """A policy that learns anywhere and acts on the CPU.

    Args:
        policy: The learner's. While it is on the CPU it acts itself; elsewhere a copy does.
    """

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy
        self._copy: ActorCritic | None = None

    def current(self) -> ActorCritic:
        """The policy with the learner's present weights, on the CPU."""
        if self._policy.log_std.device.type == "cpu":
            return self._policy
        if self._copy is None:
            self._copy = copy.deepcopy(self._policy).cpu()
        self._copy.load_state_dict(self._policy.state_dict())
        return self._copy


class TorchActor:
    """A policy of any architecture as the rollout loop sees it; it acts in this process.

    Args:
        policy: On the CPU.
    """

    portable = False

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy

    def mean(self, observation: np.ndarray, first: int) -> np.ndarray:
        """See `Actor.mean`."""
        with torch.inference_mode():
            return self._policy.mean(torch.from_numpy(observation).to(self._policy.observation_dtype)).numpy()

    def squash(self, pre_tanh: np.ndarray) -> np.ndarray:
        """See `Actor.squash`."""
        with torch.inference_mode():
            return self._policy.squash(torch.from_numpy(pre_tanh)).numpy()


def actor_of(policy: ActorCritic) -> Actor:
    """A copy of a policy's weights in numpy; the policy itself, where its network is not plain linear layers."""
    config = policy.config
    layers = [nn.Linear, ACTIVATIONS[config.activation]] * len(config.hidden_sizes)
    plain = isinstance(policy.trunk, nn.Sequential) and [type(module) for module in policy.trunk] == layers
    if not plain or type(policy.action_mean) is not nn.Linear:
        return TorchActor(policy)
    low, high = policy.action_low.numpy(), policy.action_high.numpy()
    hidden = [_linear(layer.weight, layer.bias) for layer in policy.trunk if isinstance(layer, nn.Linear)]
    output = _linear(policy.action_mean.weight, policy.action_mean.bias)
    normaliser, editor = _normaliser(policy), _editor(policy)
    return NumpyActor(hidden, config.activation, output, low, high, config.squash, normaliser, editor)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    return Linear(weight.detach().numpy().T.copy(), bias.detach().numpy().copy())


def _normaliser(policy: ActorCritic) -> numpy_actor.Normaliser | None:
    if policy.normaliser is None:
        return None
    mean, variance = policy.normaliser.mean.numpy().copy(), policy.normaliser.variance.numpy().copy()
    return numpy_actor.Normaliser(mean, variance, policy.normaliser.epsilon, policy.normaliser.clip)


def _editor(policy: ActorCritic) -> numpy_actor.GatedEdit | Linear | None:
    match policy.editor:
        case GatedEditor(direction=direction, alpha=alpha, tau=tau, beta=beta):
            return numpy_actor.GatedEdit(direction.numpy().copy(), float(alpha), float(tau), float(beta))
        case AffineEditor(matrix=matrix, bias=bias):
            return _linear(matrix, bias)
        case _:
            return None
