"""The acting policy: beside the environments on the CPU, in numpy if its network consists of plain linear layers."""

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
    """A policy that learns on any device and acts on the CPU.

    Args:
        policy: The learner's policy. On the CPU it acts itself; on another device, a copy on the CPU acts.
    """

    def __init__(self, policy: ActorCritic) -> None:
        self._policy = policy
        self._copy: ActorCritic | None = None

    def current(self) -> ActorCritic:
        """Return the policy with the learner's present weights, on the CPU."""
        if self._policy.log_std.device.type == "cpu":
            return self._policy
        if self._copy is None:
            self._copy = copy.deepcopy(self._policy).cpu()
        self._copy.load_state_dict(self._policy.state_dict())
        return self._copy


class TorchActor:
    """An `Actor` of any architecture; it acts in this process only.

    Args:
        policy: The policy, on the CPU.
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
    """Copy a policy's weights to a numpy actor; wrap the policy itself if it is more than plain linear layers."""
    config = policy.config
    layers = [nn.Linear, ACTIVATIONS[config.activation]] * len(config.hidden_sizes)
    plain = isinstance(policy.trunk, nn.Sequential) and [type(module) for module in policy.trunk] == layers
    if type(policy) is not ActorCritic or not plain or type(policy.action_mean) is not nn.Linear:
        return TorchActor(policy)
    low, high = policy.action_low.numpy(), policy.action_high.numpy()
    hidden = [_linear(layer.weight, layer.bias) for layer in policy.trunk if isinstance(layer, nn.Linear)]
    output = _linear(policy.action_mean.weight, policy.action_mean.bias)
    normaliser = None
    if (statistics := policy.normaliser) is not None:
        mean, variance = statistics.mean.numpy().copy(), statistics.variance.numpy().copy()
        normaliser = numpy_actor.Normaliser(mean, variance, statistics.epsilon, statistics.clip)
    editor: numpy_actor.GatedEdit | Linear | None = None
    match policy.editor:
        case GatedEditor(direction=direction, alpha=alpha, tau=tau, beta=beta):
            editor = numpy_actor.GatedEdit(direction.numpy().copy(), float(alpha), float(tau), float(beta))
        case AffineEditor(matrix=matrix, bias=bias):
            editor = _linear(matrix, bias)
    return NumpyActor(hidden, config.activation, output, low, high, config.squash, normaliser, editor)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    return Linear(weight.detach().numpy().T.copy(), bias.detach().numpy().copy())
