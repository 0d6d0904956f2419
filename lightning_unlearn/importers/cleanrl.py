"""Agents of CleanRL's scripts for continuous actions: the state dict in a `.cleanrl_model` file.

`td3_continuous_action` and `ddpg_continuous_action` save the actor's state dict and those of the critics, as a tuple,
with `--save-model`; `sac_continuous_action` saves nothing. For all three, `torch.save(actor.state_dict(), FILE)` at the
script's end is enough.
"""

from collections.abc import Mapping
from functools import cached_property

import torch

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Weights, layer, layers
from lightning_unlearn.importers.normaliser import reference_normalisation
from lightning_unlearn.importers.reader import (
    FileReader,
    Reference,
    finite_tensors,
    read_torch,
    reference_network,
    require_bounds,
)

PPO, SAC, TD3 = "ppo_continuous_action", "sac_continuous_action", "td3_continuous_action or ddpg_continuous_action"
_EXPORT = """
    env = envs.envs[0]
    while not hasattr(env, "obs_rms"):
        env = env.env
    np.savez("stats.npz", mean=env.obs_rms.mean, var=env.obs_rms.var)"""
_HEADS = {SAC: "fc_mean", TD3: "fc_mu"}
_MARKS = {
    PPO: {"actor_logstd", "actor_mean.0.weight", "critic.0.weight"},
    **{script: {f"{name}.weight" for name in ("fc1", "fc2", head)} for script, head in _HEADS.items()},
}
"""Script → weights that only its agents have."""


class CleanRL(FileReader):
    """An agent of CleanRL. Its file has no observation statistics, since the scripts do not save them."""

    supported = f"supported are agents of CleanRL's {PPO}, {SAC}, {TD3}"

    @property
    def library(self) -> str:
        """The name, and the script."""
        return f"CleanRL {self._script}"

    @cached_property
    def _weights(self) -> Weights:
        content = read_torch(self.path, str(self.path))
        actor = content.get("0")  # the first of a tuple
        return finite_tensors(actor if isinstance(actor, Mapping) else content, "it")

    @cached_property
    def _script(self) -> str:
        for script, marks in _MARKS.items():
            if marks <= set(self._weights):
                return script
        raise ValueError(
            "it has neither actor_mean, actor_logstd and critic, nor fc1, fc2 and fc_mean or fc_mu: it is of another "
            "algorithm, has discrete actions, or is recurrent. Save torch.save(actor.state_dict(), FILE), or "
            f"agent.state_dict() of {PPO}"
        )

    def _agent(self, simulator: Simulator) -> ForeignAgent:
        weights = self._weights
        if self._script != PPO:
            scale, bias = (weights.get(name, torch.zeros(0)).flatten() for name in ("action_scale", "action_bias"))
            if scale.shape != bias.shape:
                raise ValueError("its action_scale and action_bias do not pair up")
            require_bounds({"low": (bias - scale).tolist(), "high": (bias + scale).tolist()}, simulator)
            actor = [layer(weights, name) for name in ("fc1", "fc2", _HEADS[self._script])]
            return ForeignAgent(actor, None, None, "relu", self.normaliser, squash="tanh")
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
        """Return the deterministic action of the script's `Agent` or `Actor`, clipped as ClipAction does.

        Observations are normalised as by NormalizeObservation and the clipping if there are statistics.
        """
        normalise = reference_normalisation(self.statistics)
        low, high = torch.from_numpy(simulator.action_low), torch.from_numpy(simulator.action_high)
        weights = {name: weight.double() for name, weight in self._weights.items()}

        def squashed(x: torch.Tensor) -> torch.Tensor:
            for name in ("fc1", "fc2"):
                x = torch.relu(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])
            head = "fc_mean" if "fc_mean.weight" in weights else "fc_mu"
            x = torch.tanh(x @ weights[f"{head}.weight"].T + weights[f"{head}.bias"])
            return x * weights["action_scale"] + weights["action_bias"]

        def action(observation: torch.Tensor) -> torch.Tensor:
            x = normalise(observation)
            if "fc1.weight" in weights:
                mean = squashed(x)
            else:
                mean = reference_network(weights, "actor_mean", torch.tanh, x, last_is_linear=True)
            return torch.minimum(torch.maximum(mean, low), high)

        return action
