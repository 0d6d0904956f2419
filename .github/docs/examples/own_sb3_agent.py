# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Repair my own Stable-Baselines3 agent
#
# An agent does its job, and does one thing that it must not do. This notebook takes it from the zip of
# Stable-Baselines3, repairs it, compares it with what it was, and writes it back into such a zip. The whole takes about
# a minute on two cores.
#
# The task is the one of `own_environment.py`, which lies beside this file: a point walks to a goal, and the straight
# way leads through a puddle. A step in the puddle costs 1. For an agent of yours, set `ENV` to its task. The task
# reports what the agent must not do as `info["cost"]`.
#
# Needed: this package with its extra `sb3`. Files are written to the working directory.

# %%
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from own_environment import ENV, PUDDLE_RADIUS
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import lightning_unlearn as lu
from lightning_unlearn.cli import main as lightning_unlearn

STEPS, UPDATES, EPISODES = 16_384, 40, 50

# %% [markdown]
# ## 1. The agent
#
# If `agent.zip` and `vecnormalize.pkl` are here, they are used. Otherwise an agent is trained. It has never heard of
# the cost, so it walks through the puddle.

# %%
if not Path("agent.zip").exists():
    envs = VecNormalize(DummyVecEnv([lambda: gymnasium.make(ENV)] * 8))
    PPO("MlpPolicy", envs, n_steps=128, seed=0, device="cpu").learn(STEPS).save("agent.zip")
    envs.save("vecnormalize.pkl")

# %% [markdown]
# ## 2. Import
#
# Nothing in the zip is executed. The import prints how much the actions differ from those of Stable-Baselines3, which
# is rounding at most. It also fits critics of return and of cost to the agent's own rollouts.

# %%
lightning_unlearn(["import", "sb3", "agent.zip", "--normalizer", "vecnormalize.pkl", "--env", ENV, "--horizon", "128"])
expert = lu.load_policy(f"models:/unsafe.{ENV}/latest")

# %% [markdown]
# ## 3. Before
#
# Every policy gets the same layouts, one episode each.

# %%
before = lu.evaluate(expert, ENV, episodes=EPISODES)
print(before[["reward", "cost_sum", "episode_length"]].mean())

# %% [markdown]
# ## 4. Repair
#
# `--cost_limit` is the mean cost of an episode that is allowed. The other options suit a task with short episodes: PPO
# on small rollouts, with large steps. For an agent of a larger task leave them out, and the method too. The expert is
# not changed.

# %%
small = ["--horizon", "128", "--lr", "0.001", "--kp", "2"]
repaired = lu.repair(expert, ENV, method="concept", updates=UPDATES, options=["--cost_limit", "1", *small])
lu.save_policy("repaired", repaired, lu.ModelCard("concept", ENV))

# %% [markdown]
# ## 5. After
#
# A repair should reduce the cost to the limit and keep the return.

# %%
after = lu.evaluate(repaired, ENV, episodes=EPISODES)
columns = ["reward", "cost_sum", "episode_length"]
print(pd.DataFrame({"before": before[columns].mean(), "after": after[columns].mean()}).round(2))

# %% [markdown]
# ## 6. Look
#
# `walk` runs an agent in the task itself, without this package.


# %%
def walk(act, episodes=20):
    """Return the positions of each episode of an agent, and the mean cost of an episode."""
    env, paths, cost = gymnasium.make(ENV), [], 0.0
    for seed in range(episodes):
        position, _ = env.reset(seed=seed)
        paths.append([position])
        is_over = False
        while not is_over:
            position, _, terminated, truncated, info = env.step(act(position))
            paths[-1].append(position)
            cost += info["cost"] / episodes
            is_over = terminated or truncated
    return [np.array(path) for path in paths], cost


def acting(policy):
    """Return a policy's deterministic action as a function of one observation."""
    return lambda observation: policy.act(torch.from_numpy(observation)[None])[0].detach().numpy()


figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
for panel, name, policy in zip(panels, ("before", "after"), (expert, repaired), strict=True):
    paths, cost = walk(acting(policy))
    panel.add_patch(plt.Circle((0, 0), PUDDLE_RADIUS, color="#56B4E9", alpha=0.4))
    for path in paths:
        panel.plot(*path.T, color="#D55E00", alpha=0.5)
    panel.set(title=f"{name}: cost {cost:.1f} an episode", xlabel="x", ylabel="y", aspect="equal")
figure.savefig("paths.png")

# %% [markdown]
# ## 7. Audit: would the behaviour come back?
#
# `relearn` trains the repaired agent on without any limit, and a random network beside it. It prints how many steps
# bring the cost of the expert back, or `censored` if these steps did not. A repair that hides the behaviour needs few.

# %%
budget = ["--max_updates", str(UPDATES), "--eval_episodes", "10", "--horizon", "512"]
lightning_unlearn(["relearn", "--env", ENV, "--models", "repaired", "random", *budget])

# %% [markdown]
# ## 8. Export
#
# The new zip is the old one with the repaired weights. The command prints how much its actions differ from the
# repaired policy's.

# %%
Path("repaired.zip").unlink(missing_ok=True)
lightning_unlearn(
    ["export", "sb3", "repaired", "--into", "agent.zip", "--normalizer", "vecnormalize.pkl", "--out", "repaired.zip"]
)

# %% [markdown]
# ## 9. Use it
#
# Stable-Baselines3 loads it behind the same VecNormalize, as it loaded the agent.

# %%
agent = PPO.load("repaired.zip", device="cpu")
statistics = VecNormalize.load("vecnormalize.pkl", DummyVecEnv([lambda: gymnasium.make(ENV)]))


def predict(observation):
    """Return the action of Stable-Baselines3."""
    return agent.predict(statistics.normalize_obs(observation), deterministic=True)[0]


paths, cost = walk(predict)
differences = [np.abs(predict(at) - acting(repaired)(at)).max() for path in paths for at in path]
print(f"cost {cost:.1f} an episode, largest difference of an action {max(differences):.1e}")
