import copy

import torch
from torch import nn

from lightning_unlearn.methods.flat_adam import FlatAdam


def network(*, mixed=False):
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    return layers.append(nn.Linear(2, 2).double()) if mixed else layers


def descend(net, optimizer, steps, max_norm=0.1, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        out = net[2](net[1](net[0](x)))
        (net[3](out.double()) if len(net) == 4 else out).square().sum().backward()
        if isinstance(optimizer, FlatAdam):
            optimizer.clip(max_norm)
        else:
            nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()


def assert_same_weights(one, other):
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_it_steps_as_adam_does_whatever_the_types():
    for mixed in (False, True):
        flat, plain = network(mixed=mixed), network(mixed=mixed)
        descend(flat, FlatAdam(flat.parameters(), 1e-2), 5)
        descend(plain, torch.optim.Adam(plain.parameters(), lr=1e-2), 5)
        assert_same_weights(flat, plain)


def test_state_dicts_are_adams_in_both_directions():
    """A checkpoint of a run whose optimizer was PyTorch's goes on here, and the other way round."""
    flat, plain = network(), network()
    optimizers = FlatAdam(flat.parameters(), 1e-2), torch.optim.Adam(plain.parameters(), lr=1e-2, fused=True)
    descend(flat, optimizers[0], 3)
    descend(plain, optimizers[1], 3)
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    assert {*states[0]["state"]} == {*states[1]["state"]}
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, theirs in states[1]["state"].items():
        torch.testing.assert_close(states[0]["state"][number], theirs, rtol=1e-4, atol=1e-6)
    swapped = FlatAdam(flat.parameters(), 0.5), torch.optim.Adam(plain.parameters(), lr=0.5, fused=True)
    swapped[0].load_state_dict(states[1])
    swapped[1].load_state_dict(states[0])
    assert swapped[0].param_groups[0]["lr"] == 1e-2
    descend(flat, swapped[0], 3, start=3)
    descend(plain, swapped[1], 3, start=3)
    assert_same_weights(flat, plain)


def test_a_parameter_that_no_loss_reaches_stays():
    net = network()
    unused = nn.Parameter(torch.ones(3))
    descend(net, FlatAdam([*net.parameters(), unused], 1e-2), 3)
    assert torch.equal(unused, torch.ones(3))


def test_gradients_that_were_set_to_none_are_found_again():
    net = network()
    optimizer = FlatAdam(net.parameters(), 1e-2)
    before = copy.deepcopy(net.state_dict())
    net.zero_grad()
    descend(net, optimizer, 1)
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])
    loaded = copy.deepcopy(net)
    loaded.load_state_dict(before)
    net.load_state_dict(before)
    descend(net, optimizer, 1)  # what is loaded lands in the vector
    assert not torch.equal(net[0].weight, loaded[0].weight)
    assert net[0].weight.untyped_storage().data_ptr() == net[2].weight.untyped_storage().data_ptr()
