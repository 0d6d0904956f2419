"""What a concept costs beside the collection that it is asked in; for a quiet machine."""

import time
from contextlib import closing

import numpy as np
import pytest
import torch

from lightning_unlearn.collectors.collector import RolloutCollector
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.concepts import ActionBox, AnyOf, Disc, InfoKey, ObservationRange, Rectangle, SpeedAbove
from lightning_unlearn.tracking import registry

pytestmark = pytest.mark.benchmark

ENV, NUM_ENVS, HORIZON, CALLS = "SafetyPointGoal1-v0", 8, 512, 4000
CONCEPTS = {
    "auto": "auto",
    "observation": ObservationRange("hazards_lidar", above=0.9),
    "rectangle": Rectangle([0.0, 1.0], [0.0, 1.0]),
    "disc": Disc([0.0, 0.0], 1.0),
    "speed": SpeedAbove(1.0),
    "action": ActionBox([0.5, None], [None, None]),
    "union": AnyOf([InfoKey("cost_hazards"), Disc([0.0, 0.0], 1.0)]),
}


@pytest.mark.parametrize("concept", CONCEPTS.values(), ids=CONCEPTS)
def test_a_concept_costs_under_two_percent_of_collection(concept):
    torch.set_num_threads(1)
    policy = registry.load_policy(f"zoo:unsafe.{ENV}").policy
    with closing(make_env(ENV, NUM_ENVS, concept, workers=2)) as env:
        env.set_seed(0)
        collector = RolloutCollector(env, policy, HORIZON, torch.Generator().manual_seed(0))
        collector.rollout()
        per_step = min(seconds(collector.rollout) for _ in range(3)) / HORIZON
        action = np.zeros((NUM_ENVS, 2))
        step = env.simulator.step(action)
        seen = step.observation.astype(np.float32)
        asked = min(seconds(lambda: [env.c_forget(seen, action, step) for _ in range(CALLS)]) for _ in range(3)) / CALLS
    print(f"{asked * 1e6:.1f} of {per_step * 1e6:.0f} µs a step: {asked / per_step:.2%}")
    assert asked < 0.02 * per_step


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
