"""Speed of safety_gymnasium's and TorchRL's own vectorisation, each measured in a process of its own.

The peers run the original environments with nothing but the import shim of `envs.compat`, and without textures that
release 1.0.0 lacks, those of the Race tasks: forked workers inherit both.
Shapes: E environments, O observation size, A action size.
"""

import math
import multiprocessing
import os
import resource
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lightning_unlearn.benchmark.measurement import PEER_ENVS, Measurement, Plan, seconds
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.compat import make_original, original_vector
from lightning_unlearn.envs.layouts import compiled
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.processes import cores

VECTOR = (
    Measurement("env.vector_make", "stepping, safety_gymnasium.vector.make, E=8", "steps/s", []),
    Measurement("collect.vector_make", "collecting with a plain loop over vector.make, E=8", "steps/s", []),
    Measurement("reset.vector_make", "one reset of 8 by vector.make", "ms", []),
)
TORCHRL = (
    Measurement("env.torchrl_parallel", "stepping, TorchRL ParallelEnv of SafetyGymnasiumEnv, E=8", "steps/s", []),
)
MEMORY = (
    Measurement("memory.process", "memory (PSS) of the processes of 128 environments", "MB", []),
    Measurement("memory.environments", "of it for the 128 environments", "MB", []),
)
_TORCHRL_STEPS = 200


def memory_megabytes() -> float:
    """Return the memory of this process and its children (PSS, which counts shared pages once).

    Without /proc, it is the maximum of this process alone.
    """
    kilobytes = 0
    try:
        lists = [file.read_text(encoding="utf-8") for file in Path("/proc/self/task").glob("*/children")]
        for pid in ("self", *" ".join(lists).split()):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except OSError:
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / 2**10


def in_own_process(
    start: Literal["fork", "spawn"], function: Callable[[Plan], list[Measurement]], plan: Plan
) -> list[Measurement]:
    """Measure in a forked process, which has the libraries at once, or in a spawned one, which imports them anew."""
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # a spawned process imports from the working directory otherwise
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start)) as pool:
        return pool.submit(function, plan).result()


@compiled(pictures=True)
def vector_make(plan: Plan) -> list[Measurement]:
    """Measure `safety_gymnasium.vector.make` with 8 processes: stepping, collecting with the same policy, resets.

    It changes PyTorch and Python for its process: run it by `in_own_process`.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # spawned workers would lack the import shim
    make_original(plan.env).reset()  # MuJoCo keeps what it has read of a scene, for every forked worker
    env = original_vector(plan.env, PEER_ENVS)
    try:
        space, shape = env.single_action_space, (plan.peer_steps, PEER_ENVS)
        actions = np.random.default_rng(plan.seed).uniform(space.low, space.high, (*shape, *space.shape))
        reset = partial(env.reset, seed=list(range(plan.seed, plan.seed + PEER_ENVS)))
        resetting = [1000 * seconds(reset) / PEER_ENVS for _ in range(plan.fewer_repeats)]  # amortised over the batch
        stepping = [
            math.prod(shape) / seconds(lambda: deque(map(env.step, actions), maxlen=0))
            for _ in range(plan.fewer_repeats)
        ]
        loop = _PlainLoop(env, plan)
        collecting = [loop.rate() for _ in range(plan.fewer_repeats)]
    finally:
        env.close()
    note = f"{plan.peer_steps} steps of each environment, {'with' if plan.peer_steps >= 1000 else 'without'} resets"
    return [
        Measurement(m.name, m.what, m.unit, values, note if m.unit == "steps/s" else "")
        for m, values in zip(VECTOR, (stepping, collecting, resetting), strict=True)
    ]


class _PlainLoop:
    """The usual collection loop of policy, step and storage, with the autoreset of `vector.make`."""

    def __init__(self, env: Any, plan: Plan) -> None:
        space = env.single_action_space
        self._env, self._steps = env, plan.peer_steps
        config = PolicyConfig(env.single_observation_space.shape[0], space.low.tolist(), space.high.tolist())
        self._policy = ActorCritic(config, torch.Generator().manual_seed(plan.seed))
        shape = (self._steps, PEER_ENVS)
        self._wide = {"observation": torch.empty(*shape, config.observation_size)}
        self._wide |= {key: torch.empty(*shape, config.action_size) for key in ("action", "pre_tanh")}
        self._narrow = {key: torch.empty(shape) for key in ("log_prob", "reward", "cost", "terminated", "truncated")}
        self._observation = torch.as_tensor(env.observations, dtype=torch.float32)  # it goes on from where it is

    @torch.inference_mode()
    def rate(self) -> float:
        """Measure the environment steps a second of one rollout."""
        started = time.perf_counter()
        for t in range(self._steps):
            mean = self._policy.mean(self._observation)
            pre_tanh = mean + self._policy.std * torch.randn_like(mean)
            action = self._policy.squash(pre_tanh)
            following, *signals, _ = self._env.step(action.numpy().astype(np.float64))
            for key, value in zip(self._wide, (self._observation, action, pre_tanh), strict=True):
                self._wide[key][t] = value
            for key, value in zip(self._narrow, (self._policy.log_prob(mean, pre_tanh), *signals), strict=True):
                self._narrow[key][t] = torch.as_tensor(value, dtype=torch.float32)
            self._observation = torch.as_tensor(following, dtype=torch.float32)
        return self._steps * PEER_ENVS / (time.perf_counter() - started)


@compiled(pictures=True)
def torchrl_parallel(plan: Plan) -> list[Measurement]:
    """Measure TorchRL's `SafetyGymnasiumEnv` in a `ParallelEnv` of 8 processes, with random actions."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from torchrl.envs import ParallelEnv
    from torchrl.envs.libs.safety_gymnasium import SafetyGymnasiumEnv

    env = ParallelEnv(PEER_ENVS, lambda: SafetyGymnasiumEnv(plan.env), mp_start_method="fork")
    try:
        state = env.reset()
        rates = []
        for _ in range(plan.fewer_repeats):
            started = time.perf_counter()
            for _ in range(_TORCHRL_STEPS):
                _, state = env.step_and_maybe_reset(env.rand_action(state))
            rates.append(_TORCHRL_STEPS * PEER_ENVS / (time.perf_counter() - started))
    finally:
        env.close()
    return [Measurement(m.name, m.what, m.unit, rates, f"{_TORCHRL_STEPS} steps, without resets") for m in TORCHRL]


def memory(plan: Plan) -> list[Measurement]:
    """Measure the memory of 128 environments after a reset and some steps."""
    torch.set_num_threads(1)
    before = memory_megabytes()
    env = make_env(plan.env, 128, workers=cores())
    try:
        env.set_seed(plan.seed)
        env.rollout(3, break_when_any_done=False)
        after = memory_megabytes()
    finally:
        env.close()
    return [Measurement(m.name, m.what, m.unit, [mb]) for m, mb in zip(MEMORY, (after, after - before), strict=True)]
