"""Agents of CleanRL's `ppo_continuous_action`: the state dict in its `.cleanrl_model`."""

from pathlib import Path

from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.importers.agent import ForeignAgent, Normaliser, layers
from lightning_unlearn.importers.weights import read_torch, tensors

SUPPORTED = "supported are agents of CleanRL's ppo_continuous_action"
EXPORT = """
    env = envs.envs[0]
    while not hasattr(env, "obs_rms"):
        env = env.env
    np.savez("stats.npz", mean=env.obs_rms.mean, var=env.obs_rms.var)"""


def read(path: Path, simulator: Simulator, normaliser: Normaliser | None, *, bare: bool) -> ForeignAgent:
    """An agent from its file.

    Args:
        path: The `.cleanrl_model`.
        simulator: The environment it is for.
        normaliser: The statistics of its NormalizeObservation wrapper, which the script does not save.
        bare: Whether it was trained without that wrapper.

    Raises:
        ValueError: It is not a supported agent, or its statistics are missing.
    """
    try:
        weights = tensors(read_torch(path, str(path)), "it")
        if not {"actor_logstd", "actor_mean.0.weight", "critic.0.weight"} <= set(weights):
            raise ValueError(
                "it has no actor_mean, actor_logstd and critic: it is of another algorithm, has discrete actions, or "
                "is recurrent"
            )
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}; {SUPPORTED}.") from error
    if normaliser is None and not bare:
        raise ValueError(
            f"{path} needs --normalizer stats.npz: the script normalises observations and does not save by what. Add "
            f"this to its end{EXPORT}\nor give --normalizer none if the agent was trained without."
        )
    return ForeignAgent(
        library="CleanRL ppo_continuous_action",
        actor=layers(weights, "actor_mean"),
        critic=layers(weights, "critic"),
        log_std=weights["actor_logstd"].flatten(),
        activation="tanh",
        normaliser=normaliser,
    )
