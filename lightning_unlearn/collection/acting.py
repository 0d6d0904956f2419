"""The policy where the environments are: on the CPU."""

import copy

from lightning_unlearn.policies.actor_critic import ActorCritic


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
