"""What the tests of every library's off-policy agents do with one."""

import re

import torch

from lightning_unlearn import cli
from lightning_unlearn.importers.import_command import require_same_actions
from lightning_unlearn.tracking import registry

SMALL = ["--warm_up_rollouts", "2", "--num_envs", "2", "--horizon", "64", "--workers", "1"]


def imported_and_repaired(library, agent, env_id, method, options, capsys):
    """Import an agent by the command, repair it for two updates, and return what was printed and both policies."""
    cli.main(["import", library, *map(str, agent), "--env", env_id, *SMALL])
    printed = capsys.readouterr().out
    assert float(re.search(r"difference.*: (\S+)", printed)[1]) < 1e-5
    chain = ["-c", "base.yaml", "-c", "env/point_goal1.yaml", "-c", f"method/{method}.yaml", "--env", env_id]
    short = ["--updates", "2", "--save_points", "2", "--horizon", "64", "--n_envs", "2", "--data.workers", "1"]
    cli.main(["fit", *chain, *short, "--unsafe_updates", "0", *options])
    before = registry.load_policy(f"models:/unsafe.{env_id}/1")
    return printed, before, registry.load_policy(f"models:/{method}.{env_id}@update-2")


def require_recorded(reader, simulator, states, expected):
    """Compare the policy and the reference with what the library itself did."""
    policy, reference = reader.policy(simulator, torch.Generator().manual_seed(0)), reader.reference(simulator)
    low, high = policy.action_low, policy.action_high
    expected = expected.clamp(low, high)
    assert ((expected - low) / (high - low)).std() > 0.02
    torch.testing.assert_close(policy.act(states), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(reference(states.double()).float(), expected, rtol=0, atol=1e-5)
    assert require_same_actions(reference, policy, states.double()) < 1e-5
    return policy
