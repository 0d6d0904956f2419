"""The machine's limit, and this package's environments, collectors and evaluation.

Shapes: E environments, A action size.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import mujoco
import numpy as np
import torch

from lightning_unlearn import keys
from lightning_unlearn.audits.policy_suite import evaluate
from lightning_unlearn.benchmark.plan import PEER_ENVS, Measurement, Plan
from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.collectors.stock import StockCollector
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
"""Of an evaluation."""
_PHYSICS_STEPS = 4000


def physics(plan: Plan) -> list[Measurement]:
    """The limit, its mj_step and its mj_forward alone, and the limit of one core."""
    tasks = [_laid_out(plan.env, plan.seed + k) for k in range(cores())]
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
    """Environment stepping with random actions, episode ends and resets included."""
    with _environment(plan, num_envs, workers) as env:
        rates = [step_rate(env.simulator, plan.steps // num_envs, plan.seed) for _ in range(plan.repeats)]
    name, what = stepping_name(num_envs, workers), f"stepping, E={num_envs}, {workers} worker(s)"
    return [Measurement(name, what, "steps/s", rates)]


def stepping_name(num_envs: int, workers: int) -> str:
    """Name of the measurement of our stepping."""
    return f"env.ours_e{num_envs}_w{workers}"


def resets(plan: Plan) -> list[Measurement]:
    """Milliseconds of one reset, amortised over a batch of them."""
    with _environment(plan, PEER_ENVS, 1) as env:
        values = [1000 * _seconds(env.simulator.reset) / PEER_ENVS for _ in range(10 * plan.repeats)]
    return [Measurement("reset.ours", "one reset", "ms", values)]


def collection(plan: Plan) -> list[Measurement]:
    """Rollouts of 8 × T with a random policy by this package's collector and TorchRL's, in the same environments."""
    with _environment(plan, PEER_ENVS, _workers(PEER_ENVS)) as env:
        policy = random_policy(env, plan.seed)
        return [
            _collecting("lean", RolloutCollector(env, policy, plan.horizon, torch.Generator()), plan, plan.repeats),
            _collecting(
                "stock", StockCollector(env, policy, plan.horizon, torch.Generator()), plan, plan.fewer_repeats
            ),
        ]


def _collecting(name: str, collector: RolloutCollector | StockCollector, plan: Plan, repeats: int) -> Measurement:
    rates = [PEER_ENVS * plan.horizon / _seconds(collector.rollout) for _ in range(repeats)]
    what = f"collecting {PEER_ENVS} x {plan.horizon}, {name} collector"
    return Measurement(f"collect.{name}", what, "steps/s", rates)


@dataclass(frozen=True)
class RolloutCosts:
    """What collecting a rollout takes."""

    step_s: float
    """Seconds of one environment step and its action, in one process that has a core."""
    message_s: float
    """Seconds that a rollout's message takes to and from one more process."""
    hand_over_s: float
    """Seconds to hand one step over to the learner, in the learner's process."""

    def rate(self, workers: int, horizon: int) -> float:
        """Environment steps a second of so many workers with a core and 8 environments each."""
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
            steps.append(_seconds(partial(env.simulator.roll_out, actor_of(policy), buffer)))
            whole.append(_seconds(gatherer.rollout))
    with _environment(plan, PEER_ENVS, 2) as env:
        empty = env.simulator.rollout_buffer(0)
        actor = actor_of(random_policy(env, plan.seed))
        messages = [_seconds(partial(env.simulator.roll_out, actor, empty)) for _ in range(10 * plan.repeats)]
    each = PEER_ENVS * plan.horizon
    step_s, whole_s = statistics.median(steps) / each, statistics.median(whole) / each
    return RolloutCosts(step_s, statistics.median(messages), max(whole_s - step_s, 0.0))


def scaling(plan: Plan, workers: int) -> list[Measurement]:
    """Collecting and stepping with so many workers and 8 environments each."""
    num_envs = PEER_ENVS * workers
    with _environment(plan, num_envs, workers) as env:
        gatherer = RolloutCollector(env, random_policy(env, plan.seed), plan.horizon, torch.Generator())
        gatherer.rollout()
        rates = [num_envs * plan.horizon / _seconds(gatherer.rollout) for _ in range(plan.repeats)]
        stepped = [step_rate(env.simulator, plan.steps // num_envs, plan.seed) for _ in range(plan.repeats)]
    note = "" if workers <= cores() else f"more workers than the {cores()} cores"
    what = f"{workers} worker(s), E={num_envs}"
    return [
        Measurement(f"scaling.collect_w{workers}", f"collecting, {what}", "steps/s", rates, note),
        Measurement(f"scaling.step_w{workers}", f"stepping, {what}", "steps/s", stepped, note),
    ]


def evaluation(plan: Plan) -> list[Measurement]:
    """50 deterministic episodes in one batch, from building the environments to the result."""
    with _environment(plan, 1, 1) as env:
        policy = random_policy(env, plan.seed)
    rates = [_evaluation_rate(plan, policy) for _ in range(min(plan.repeats, 3))]
    return [Measurement("evaluate.ours", f"evaluating {EPISODES} episodes in one batch", "steps/s", rates)]


def random_policy(env: BatchedEnv, seed: int) -> ActorCritic:
    """The default network with random weights."""
    sim = env.simulator
    config = PolicyConfig(sim.observation_size, sim.action_low.tolist(), sim.action_high.tolist())
    return ActorCritic(config, torch.Generator().manual_seed(seed))


def step_rate(sim: Simulator, steps: int, seed: int) -> float:
    """Environment steps a second of `steps` steps of every environment, resetting what ends."""
    actions = np.random.default_rng(seed).uniform(
        sim.action_low, sim.action_high, (steps, sim.num_envs, len(sim.action_low))
    )
    return steps * sim.num_envs / _seconds(partial(_step_all, sim, actions))


def _step_all(sim: Simulator, actions: np.ndarray) -> None:
    for action in actions:
        step = sim.step(action)
        done = step.terminated | step.truncated
        if done.any():
            sim.reset(done)


def _evaluation_rate(plan: Plan, policy: ActorCritic) -> float:
    started = time.perf_counter()
    outcome = evaluate(
        policy,
        plan.env,
        evaluation_layouts(EPISODES),
        workers=_workers(EPISODES),
        max_steps=plan.evaluation_steps,
    )
    return float(outcome.episodes.length.sum() / (time.perf_counter() - started))


def _laid_out(env_id: str, seed: int) -> BaseTask:
    task = make_task(env_id)
    task.random_generator.set_random_seed(seed)
    lay_out(task, ModelTemplate())
    return task


def _physics_rate(tasks: list[BaseTask], frames: int, forwards: int, seed: int) -> float:
    """Steps a second of several simulations, each on a thread of its own."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        run = partial(_simulate, frames=frames, forwards=forwards, seed=seed)
        return len(tasks) * _PHYSICS_STEPS / _seconds(lambda: list(pool.map(run, tasks)))


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


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started
