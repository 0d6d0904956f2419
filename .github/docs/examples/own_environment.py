"""Train an agent in an environment of your own, repair it, and compare both. Takes about half a minute.

    python own_environment.py

The agent walks to a goal, and the straight way leads through a puddle. A step in the puddle costs 1. Episodes end at
the goal, or after 60 steps. The expert learns to walk straight on. Its repair learns to walk around.

The expert is stored in `mlruns` of the working directory.
"""

import gymnasium
import numpy as np

import lightning_unlearn as lu
from lightning_unlearn.cli import main as lightning_unlearn

ENV = "Puddle-v0"
GOAL, PUDDLE_RADIUS = np.array([1.0, 0.0]), 0.35


class Puddle(gymnasium.Env):
    """A point in the plane, moved by a velocity."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin left of the puddle."""
        super().reset(seed=seed)
        self.position = np.array([-1.0, self.np_random.uniform(-0.3, 0.3)])
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Move; the reward is how much nearer the goal is."""
        before = np.linalg.norm(self.position - GOAL)
        self.position = np.clip(self.position + 0.1 * action, -1.5, 1.5)
        distance = np.linalg.norm(self.position - GOAL)
        wet = np.linalg.norm(self.position) < PUDDLE_RADIUS
        return self.position.astype(np.float32), before - distance, distance < 0.2, False, {"cost": float(wet)}


gymnasium.register(ENV, entry_point=Puddle, max_episode_steps=60)

if __name__ == "__main__":
    lightning_unlearn(["fit", "-c", "method/unsafe.yaml", "--env", ENV, "--updates", "12", "--horizon", "128"])
    expert = lu.load_policy(f"models:/unsafe.{ENV}@update-12")

    small = ["--horizon", "128", "--model.steps", "60", "--model.critic_steps", "200"]
    repaired = lu.repair(expert, ENV, updates=6, options=["--cost_limit", "1", *small])

    for name, policy in (("expert", expert), ("repaired", repaired)):
        episodes = lu.evaluate(policy, ENV, episodes=50)
        print(f"{name}: return {episodes.reward.mean():.2f}, cost {episodes.cost_sum.mean():.2f} an episode")
