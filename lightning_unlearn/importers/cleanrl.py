"""Agents of CleanRL's `ppo_continuous_action`: the state dict in a `.cleanrl_model` file."""

from functools import cached_property

import torch

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Weights, layers
from lightning_unlearn.importers.normaliser import reference_normalisation
from lightning_unlearn.importers.reader import FileReader, Reference, finite_tensors, read_torch, reference_network

_EXPORT = """
    env = envs.envs[0]
    while not hasattr(env, "obs_rms"):
        env = env.env
    np.savez("stats.npz", mean=env.obs_rms.mean, var=env.obs_rms.var)"""


class CleanRL(FileReader):
    """An agent of CleanRL. Its file has no observation statistics, since the script does not save them."""

    supported = "supported are agents of CleanRL's ppo_continuous_action"
    library = "CleanRL ppo_continuous_action"

    @cached_property
    def _weights(self) -> Weights:
        return finite_tensors(read_torch(self.path, str(self.path)), "it")

    def _agent(self, simulator: Simulator) -> ForeignAgent:
        weights = self._weights
        if not {"actor_logstd", "actor_mean.0.weight", "critic.0.weight"} <= set(weights):
            raise ValueError(
                "it has no actor_mean, actor_logstd and critic: it is of another algorithm, has discrete actions, or "
                "is recurrent"
            )
        if self.normaliser is None and not self.acts_on_raw:
            raise ValueError(
                "it needs --normalizer stats.npz, since the script normalises observations and does not save by what. "
                f"Add this to its end{_EXPORT}\nor give --normalizer none if the agent was trained without"
            )
        return ForeignAgent(
            actor=layers(weights, "actor_mean"),
            critic=layers(weights, "critic"),
            log_std=weights["actor_logstd"].flatten(),
            activation="tanh",
            normaliser=self.normaliser,
        )

    def reference(self, simulator: Simulator) -> Reference:
        """Return `Agent.actor_mean` behind NormalizeObservation and the clipping, and before ClipAction."""
        normalise = reference_normalisation(self.statistics)
        low, high = torch.from_numpy(simulator.action_low), torch.from_numpy(simulator.action_high)

        def action(observation: torch.Tensor) -> torch.Tensor:
            x = normalise(observation)
            mean = reference_network(self._weights, "actor_mean", torch.tanh, x, last_is_linear=True)
            return torch.minimum(torch.maximum(mean, low), high)

        return action
