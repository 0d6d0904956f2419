"""Environments shared out among processes are those of one process, to the bit, and leave no process behind."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from lightning_unlearn.envs.navigation import NavigationSimulator
from lightning_unlearn.envs.parallel import ParallelSimulator

GOAL1 = "SafetyPointGoal1-v0"
SEEDS = [2**31 + row for row in range(5)]
ACTIONS = np.random.default_rng(5).uniform(-1, 1, (60, 5, 2))
ENDING = np.array([False, True, False, False, True])


@pytest.fixture
def sim():
    sim = ParallelSimulator(partial(NavigationSimulator, GOAL1), 5, 2)
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def alone():
    return NavigationSimulator(GOAL1, 5)


def run(sim, actions=ACTIONS):
    """Everything that a simulator returns; in the middle two environments begin anew."""
    seen = []
    for time_step, action in enumerate(actions):
        step = sim.step(action)
        seen += [step.observation, step.reward, step.terminated, step.truncated, step.failed, step.goal_met]
        seen += [*step.costs.values(), sim.agent_position(), sim.agent_velocity()]
        if time_step == len(actions) // 2:
            seen += [sim.reset(ENDING), sim.agent_position(), sim.agent_velocity()]
    return seen


def assert_equal(ours, theirs):
    for here, there in zip(ours, theirs, strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(("env_id", "workers"), [(GOAL1, 2), ("SafetyCarButton2-v0", 3)])
def test_they_are_those_of_one_process(env_id, workers):
    one, several = NavigationSimulator(env_id, 5), ParallelSimulator(partial(NavigationSimulator, env_id), 5, workers)
    for name in ("env_id", "num_envs", "observation_size", "observation_layout", "cost_keys", "max_episode_steps"):
        assert getattr(one, name) == getattr(several, name)
    assert_equal([one.action_low, one.action_high], [several.action_low, several.action_high])
    assert_equal([one.reset(seeds=SEEDS)], [several.reset(seeds=SEEDS)])
    assert_equal(run(one), run(several))
    ours, theirs = one.top_view(), several.top_view()
    assert ours.radii == theirs.radii
    assert_equal(ours.positions.values(), theirs.positions.values())
    several.close()


def test_one_goes_on_from_the_state_of_several_and_several_from_that_of_one(sim, alone):
    sim.reset(seeds=SEEDS)
    run(sim)
    alone.load_state_dict(sim.state_dict())
    assert_equal(run(alone), run(sim))
    sim.load_state_dict(alone.state_dict())
    assert_equal(run(alone), run(sim))


def test_returned_arrays_belong_to_the_caller(sim):
    sim.reset(seeds=SEEDS)
    step = sim.step(ACTIONS[0])
    kept = step.observation.copy()
    sim.step(ACTIONS[1])
    np.testing.assert_array_equal(step.observation, kept)


def test_wrong_shapes_are_named_and_change_nothing(sim):
    first = sim.reset(seeds=SEEDS)
    with pytest.raises(ValueError, match=r"actions must have shape \(5, 2\), got \(2,\)"):
        sim.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"mask must have shape \(5,\), got \(3,\)"):
        sim.reset(np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="one seed per environment, 5, got 2"):
        sim.reset(seeds=[1, 2])
    np.testing.assert_array_equal(sim.reset(np.zeros(5, dtype=bool)), first)


def test_an_exception_there_is_raised_here_and_the_process_works_on(sim):
    with pytest.raises(ValueError, match="no random stream yet: pass seeds") as caught:
        sim.reset(np.arange(5) == 4)
    assert "In the process of the environments 2 to 4:\nTraceback" in caught.value.__notes__[0]
    sim.reset(seeds=SEEDS)
    sim.step(ACTIONS[0])


def test_a_task_that_does_not_exist_is_refused_as_in_one_process():
    with pytest.raises(ValueError, match="SafetyPointNothing1-v0"):
        ParallelSimulator(partial(NavigationSimulator, "SafetyPointNothing1-v0"), 2, 2)


def process_of(sim):
    return sim._workers[0]._process


def test_a_process_that_dies_is_an_error_that_says_so(sim):
    sim.reset(seeds=SEEDS)
    process_of(sim).kill()
    with pytest.raises(RuntimeError, match=r"environments 2 to 4 has died \(exit code -9\)"):
        run(sim)


def test_to_close_ends_the_process(sim):
    sim.close()
    assert process_of(sim).returncode == 0


def test_a_forgotten_simulator_ends_its_process():
    sim = ParallelSimulator(partial(NavigationSimulator, GOAL1), 2, 2)
    process = process_of(sim)
    del sim
    assert process.returncode == 0


ENDLESS = """
from functools import partial
from lightning_unlearn.envs.navigation import NavigationSimulator
from lightning_unlearn.envs.parallel import ParallelSimulator
import numpy as np
sim = ParallelSimulator(partial(NavigationSimulator, "SafetyPointGoal1-v0"), 2, 2)
sim.reset(seeds=[1, 2])
print(sim._workers[0]._process.pid, flush=True)
while True:
    sim.step(np.zeros((2, 2)))
"""


def test_no_process_outlives_one_that_was_killed():
    program = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    worker = int(program.stdout.readline())
    os.kill(worker, signal.SIGINT)  # as a terminal sends it to both: it is this process that ends the other
    os.kill(worker, 0)
    program.kill()
    program.wait()
    program.stdout.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and os.path.exists(f"/proc/{worker}"):
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


class Still:
    """An actor that does nothing, and does not mind where it is."""

    portable = True

    def mean(self, observation, first):
        return np.zeros((len(observation), 2), np.float32)

    def squash(self, pre_tanh):
        return pre_tanh


class Stumbling(NavigationSimulator):
    """Fails in its 20th step, as code of one's own may; or dies there."""

    def __init__(self, deadly, num_envs):
        super().__init__(GOAL1, num_envs)
        self.deadly, self.here = deadly, os.getpid()

    def step(self, actions):
        if self._steps[0] == 19 and num_envs_of_worker(self):
            if self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ArithmeticError("out of luck")
        return super().step(actions)


def num_envs_of_worker(sim):
    return sim.num_envs == 3  # of five, two are in the process of the test


@pytest.mark.parametrize(
    ("deadly", "error", "message"),
    [(False, ArithmeticError, "out of luck"), (True, RuntimeError, "environments 2 to 4 has died")],
)
def test_what_happens_within_a_rollout_is_raised_here(deadly, error, message):
    sim = ParallelSimulator(partial(Stumbling, deadly), 5, 2)
    buffer = sim.rollout_buffer(40)
    buffer.current[0], buffer.ended[0], buffer.deviation[:] = sim.reset(seeds=SEEDS), False, 0.0
    with pytest.raises(error, match=message):
        sim.roll_out(Still(), buffer)
    sim.close()
    assert process_of(sim).returncode is not None


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
from lightning_unlearn.envs.batched import make_env
env = make_env("SafetyPointGoal1-v0", 4, workers=2)
try:
    env.simulator.rollout_buffer(100_000)
except ValueError as error:
    print(error)
env.close()
"""


def test_shared_memory_that_is_full_is_refused_before_anything_is_stepped():
    said = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=True).stdout
    assert "data.horizon=100001 with data.num_envs=4" in said
    assert "MB of shared memory" in said
