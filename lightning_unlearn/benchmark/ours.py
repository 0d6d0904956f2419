"""Speed of the machine's physics and of this package's environments, collectors and evaluation; and a long collection.

Shapes: E environments, A action size.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mujoco
import numpy as np
import torch

from lightning_unlearn import keys
from lightning_unlearn.audits.policy_comparison import evaluate
from lightning_unlearn.benchmark.measurement import PEER_ENVS, Measurement, Plan, seconds
from lightning_unlearn.benchmark.peers import memory_megabytes
from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.envs.batched import BatchedEnv, make_env
from lightning_unlearn.envs.compat import BaseTask, make_task
from lightning_unlearn.envs.layouts import ModelTemplate, lay_out
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig
from lightning_unlearn.processes import cores
from lightning_unlearn.seeding import evaluation_layouts

FRAMES = 10
"""Physics steps of one environment step."""
EPISODES = 50
"""Episodes of the measured evaluation."""
_PHYSICS_STEPS = 4000
POINTS = 20
"""Points of a long collection."""
SPEED_DRIFT, MEMORY_DRIFT = 0.05, 0.05
"""Relative change between the first points' median and the last points' that still counts as flat."""
_ENDS = 5
"""Points compared at each end, without the first one, which warms up."""


def physics(plan: Plan) -> list[Measurement]:
    """Measure the physics limit, its mj_step and its mj_forward alone, and the limit of one core."""
    tasks = [make_task(plan.env) for _ in range(cores())]
    for k, task in enumerate(tasks):
        task.random_generator.set_random_seed(plan.seed + k)
        lay_out(task, ModelTemplate())
    rows = (
        ("physics.limit", "10 mj_step + 3 mj_forward on all cores", FRAMES, 3, tasks, plan.repeats),
        ("physics.steps_only", "10 mj_step on all cores", FRAMES, 0, tasks, plan.fewer_repeats),
        ("physics.forwards_only", "3 mj_forward on all cores", 0, 3, tasks, plan.fewer_repeats),
        ("physics.one_core", "10 mj_step + 3 mj_forward on one core", FRAMES, 3, tasks[:1], plan.fewer_repeats),
    )
    return [
        Measurement(name, what, "steps/s", [_physics_rate(used, frames, forwards, plan.seed) for _ in range(repeats)])
        for name, what, frames, forwards, used, repeats in rows
    ]


def stepping(plan: Plan, num_envs: int, workers: int) -> list[Measurement]:
    """Measure environment stepping with random actions, including ends of episodes and resets."""
    with _environment(plan, num_envs, workers) as env:
        rates = [step_rate(env.simulator, plan.steps // num_envs, plan.seed) for _ in range(plan.repeats)]
    name, what = stepping_name(num_envs, workers), f"stepping, E={num_envs}, {workers} worker(s)"
    return [Measurement(name, what, "steps/s", rates)]


def stepping_name(num_envs: int, workers: int) -> str:
    """Return the name of a measurement of our stepping."""
    return f"env.ours_e{num_envs}_w{workers}"


def resets(plan: Plan) -> list[Measurement]:
    """Measure the milliseconds of one reset, amortised over a batch."""
    with _environment(plan, PEER_ENVS, 1) as env:
        values = [1000 * seconds(env.simulator.reset) / PEER_ENVS for _ in range(10 * plan.repeats)]
    return [Measurement("reset.ours", "one reset", "ms", values)]


def collection(plan: Plan) -> list[Measurement]:
    """Measure rollouts of 8 × T with a random policy."""
    with _environment(plan, PEER_ENVS, _workers(PEER_ENVS)) as env:
        collector = RolloutCollector(env, random_policy(env, plan.seed), plan.horizon, torch.Generator())
        rates = [PEER_ENVS * plan.horizon / seconds(collector.rollout) for _ in range(plan.repeats)]
    return [Measurement("collect.lean", f"collecting {PEER_ENVS} x {plan.horizon}", "steps/s", rates)]


@dataclass(frozen=True)
class RolloutCosts:
    """Times of the parts of collecting a rollout."""

    step_s: float
    """Seconds of one environment step and its action, in one process that has a core."""
    message_s: float
    """Seconds that a rollout's message takes to and from one more process."""
    hand_over_s: float
    """Seconds to hand one step over to the learner, in the learner's process."""

    def rate(self, workers: int, horizon: int) -> float:
        """Extrapolate the environment steps a second of workers with a core and 8 environments each."""
        each = PEER_ENVS * horizon
        seconds = each * self.step_s + (workers - 1) * self.message_s + workers * each * self.hand_over_s
        return workers * each / seconds


def rollout_costs(plan: Plan) -> RolloutCosts:
    """Measure one worker's rollout, its hand-over, and an empty rollout of two workers."""
    with _environment(plan, PEER_ENVS, 1) as env:
        policy = random_policy(env, plan.seed)
        gatherer = RolloutCollector(env, policy, plan.horizon, torch.Generator())
        buffer = env.simulator.rollout_buffer(plan.horizon)
        buffer.current[0], buffer.ended[0], buffer.deviation[:] = env.simulator.reset(), False, 0.0
        steps, whole = [], []
        for _ in range(plan.repeats):
            steps.append(seconds(partial(env.simulator.roll_out, actor_of(policy), buffer)))
            whole.append(seconds(gatherer.rollout))
    with _environment(plan, PEER_ENVS, 2) as env:
        empty = env.simulator.rollout_buffer(0)
        actor = actor_of(random_policy(env, plan.seed))
        messages = [seconds(partial(env.simulator.roll_out, actor, empty)) for _ in range(10 * plan.repeats)]
    each = PEER_ENVS * plan.horizon
    step_s, whole_s = statistics.median(steps) / each, statistics.median(whole) / each
    return RolloutCosts(step_s, statistics.median(messages), max(whole_s - step_s, 0.0))


def scaling(plan: Plan, workers: int) -> list[Measurement]:
    """Measure collecting and stepping with a number of workers and 8 environments each."""
    num_envs = PEER_ENVS * workers
    with _environment(plan, num_envs, workers) as env:
        gatherer = RolloutCollector(env, random_policy(env, plan.seed), plan.horizon, torch.Generator())
        gatherer.rollout()
        rates = [num_envs * plan.horizon / seconds(gatherer.rollout) for _ in range(plan.repeats)]
        stepped = [step_rate(env.simulator, plan.steps // num_envs, plan.seed) for _ in range(plan.repeats)]
    note = "" if workers <= cores() else f"more workers than the {cores()} cores"
    what = f"{workers} worker(s), E={num_envs}"
    return [
        Measurement(f"scaling.collect_w{workers}", f"collecting, {what}", "steps/s", rates, note),
        Measurement(f"scaling.step_w{workers}", f"stepping, {what}", "steps/s", stepped, note),
    ]


def evaluation(plan: Plan) -> list[Measurement]:
    """Measure 50 deterministic episodes in one batch, from building the environments to the result."""
    with _environment(plan, 1, 1) as env:
        policy = random_policy(env, plan.seed)
    rates = []
    for _ in range(min(plan.repeats, 3)):
        started = time.perf_counter()
        layouts, workers = evaluation_layouts(EPISODES), _workers(EPISODES)
        outcome = evaluate(policy, plan.env, layouts, workers=workers, max_steps=plan.evaluation_steps)
        rates.append(float(outcome.episodes.length.sum() / (time.perf_counter() - started)))
    return [Measurement("evaluate.ours", f"evaluating {EPISODES} episodes in one batch", "steps/s", rates)]


@dataclass(frozen=True)
class Soak:
    """Speed and memory along a long collection, one entry a point."""

    env_steps: list[int]
    steps_per_s: list[float]
    memory_mb: list[float]

    @property
    def speed_change(self) -> float:
        """Relative change of speed from the first points to the last."""
        return _change(self.steps_per_s)

    @property
    def memory_change(self) -> float:
        """Relative change of memory from the first points to the last."""
        return _change(self.memory_mb)

    @property
    def flat(self) -> bool:
        """Neither speed nor memory drifts for the worse."""
        return self.speed_change >= -SPEED_DRIFT and self.memory_change <= MEMORY_DRIFT

    def as_json(self) -> dict[str, Any]:
        """Return the soak as it is written to JSON."""
        drift = {"speed_change": self.speed_change, "memory_change": self.memory_change, "flat": self.flat}
        return asdict(self) | drift


def soak(plan: Plan, steps: int) -> Soak:
    """Collect at least `steps` environment steps at 8 × T, to see whether speed or memory drift.

    Every point prints a line to stderr.
    """
    data = RolloutData(plan.env, PEER_ENVS, plan.horizon, workers=_workers(PEER_ENVS), seed=plan.seed)
    rollouts = max(1, round(steps / POINTS / data.steps_per_update))
    outcome = Soak([], [], [])
    try:
        collector = data.collector(random_policy(data.env, plan.seed))
        for point in range(1, POINTS + 1):
            started = time.perf_counter()
            for _ in range(rollouts):
                collector.rollout()
            elapsed = time.perf_counter() - started
            outcome.env_steps.append(point * rollouts * data.steps_per_update)
            outcome.steps_per_s.append(rollouts * data.steps_per_update / elapsed)
            outcome.memory_mb.append(memory_megabytes())
            print(
                f"soak {outcome.env_steps[-1]:>9} steps, {outcome.steps_per_s[-1]:.0f} steps/s, "
                f"{outcome.memory_mb[-1]:.0f} MB",
                file=sys.stderr,
            )
    finally:
        data.teardown("fit")
    return outcome


def _change(values: list[float]) -> float:
    first, last = statistics.median(values[1 : 1 + _ENDS]), statistics.median(values[-_ENDS:])
    return last / first - 1.0


def random_policy(env: BatchedEnv, seed: int) -> ActorCritic:
    """Return the default network with random weights."""
    sim = env.simulator
    config = PolicyConfig(sim.observation_size, sim.action_low.tolist(), sim.action_high.tolist())
    return ActorCritic(config, torch.Generator().manual_seed(seed))


def step_rate(sim: Simulator, steps: int, seed: int) -> float:
    """Measure the environment steps a second over `steps` steps of every environment, including resets."""
    actions = np.random.default_rng(seed).uniform(
        sim.action_low, sim.action_high, (steps, sim.num_envs, len(sim.action_low))
    )
    started = time.perf_counter()
    for action in actions:
        step = sim.step(action)
        done = step.terminated | step.truncated
        if done.any():
            sim.reset(done)
    return steps * sim.num_envs / (time.perf_counter() - started)


def _physics_rate(tasks: list[BaseTask], frames: int, forwards: int, seed: int) -> float:
    """Measure the steps a second of several simulations, each in its own thread."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        run = partial(_simulate, frames=frames, forwards=forwards, seed=seed)
        return len(tasks) * _PHYSICS_STEPS / seconds(lambda: list(pool.map(run, tasks)))


def _simulate(task: BaseTask, frames: int, forwards: int, seed: int) -> None:
    low, high = task.model.actuator_ctrlrange.T
    for control in np.random.default_rng(seed).uniform(low, high, (_PHYSICS_STEPS, len(low))):
        task.data.ctrl[:] = control
        mujoco.mj_step(task.model, task.data, frames)
        for _ in range(forwards):
            mujoco.mj_forward(task.model, task.data)


@contextmanager
def _environment(plan: Plan, num_envs: int, workers: int) -> Iterator[BatchedEnv]:
    env = make_env(plan.env, num_envs, workers=workers)
    try:
        env.set_seed(plan.seed)
        env.reset()[keys.OBSERVATION]
        yield env
    finally:
        env.close()


def _workers(num_envs: int) -> int:
    return min(cores(), num_envs)
