"""The library inside a program that has set PyTorch's global modes for itself."""

import contextlib

import mlflow
import pytest
import torch
from torch import nn

import lightning_unlearn as lu
from lightning_unlearn.global_state import ordinary_modes
from lightning_unlearn.policies.files import ModelCard

TOY = "ToyLine-v0"
QUICK = ["--horizon", "32", "--n_envs", "2", "--data.workers", "1"]
REPAIRS = {
    "concept": QUICK,
    "off_policy_concept": [*QUICK, "--model.critic_steps", "10", "--model.steps", "4"],
}


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "another device": lambda: default_device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic algorithms": deterministic,
}


def results(folder):
    """Everything that the library's calls give, as tensors."""
    policy = lu.load_policy(str(folder))
    network = nn.Sequential(nn.Linear(2, 1, dtype=torch.float32, device="cpu"))
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.25)
    wrapped = lu.wrap(network, TOY, std=0.3, warm_up_rollouts=2)
    repaired = [lu.repair(policy, TOY, method, 2, options) for method, options in REPAIRS.items()]
    policies = [policy, wrapped, *repaired, lu.extrapolate(policy, repaired[0], 1.5)]
    table = lu.evaluate(policy, TOY, episodes=2, workers=1)
    weights = [tensor.detach() for one in policies for tensor in one.state_dict().values()]
    observation = torch.full((3, 2), 0.5, dtype=torch.float32, device="cpu")
    return [*weights, policy.act(observation).detach(), torch.from_numpy(table.to_numpy(float))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig

    folder = tmp_path_factory.mktemp("policy")
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0], hidden_sizes=[16, 8]), torch.Generator().manual_seed(0))
    lu.save_policy(folder, policy, ModelCard("unsafe", TOY))
    return folder


@pytest.fixture
def short_warm_up(monkeypatch):
    monkeypatch.setattr("lightning_unlearn.importers.torch_module.HORIZON", 32)


@pytest.fixture
def expected(store, folder, short_warm_up):
    return results(folder)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_global_modes_change_no_bit_of_a_result(expected, folder):
    for name, mode in MODES.items():
        with mode():
            found = results(folder)
        same = [torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(expected, found, strict=True)]
        assert all(same), f"{name}: {same.count(False)} of {len(same)} tensors differ"


def test_a_policy_that_was_loaded_in_inference_mode_can_be_trained(folder):
    with torch.inference_mode():
        policy = lu.load_policy(str(folder))
    policy.act(torch.ones(1, 2)).sum().backward()
    assert policy.action_mean.weight.grad is not None


def test_modes_are_restored_after_a_call(folder):
    with default_dtype(torch.float64), torch.inference_mode(), default_device("meta"):
        lu.load_policy(str(folder))
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_device().type == "meta"
        assert torch.is_inference_mode_enabled()
        with ordinary_modes():
            assert (torch.zeros(1).device.type, torch.zeros(1).dtype) == ("cpu", torch.float32)
        assert (torch.zeros(1).device.type, torch.zeros(1).dtype) == ("meta", torch.float64)


def test_mlflows_generic_model_acts_under_any_mode(store, folder):
    from lightning_unlearn.tracking import registry

    with mlflow.start_run() as run:
        version = registry.register_policy(lu.load_policy(str(folder)), ModelCard("unsafe", TOY), run.info.run_id)
    states = torch.full((3, 2), 0.5)
    expected = lu.load_policy(str(folder)).act(states).detach().numpy()
    with default_dtype(torch.float64), default_device("meta"):
        found = mlflow.pyfunc.load_model(f"models:/unsafe.{TOY}/{version}").predict(states.numpy())
    assert (found == expected).all()
